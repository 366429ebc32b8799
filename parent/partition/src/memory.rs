//! Guest memory: anonymous host memory laid out as a PC's RAM, with a hole below 4 GiB.
//!
//! Every block starts on a 2 MiB boundary of the host's address space, as it does in the guest's physical one, so
//! that the parent kernel can give it huge pages and the hypervisor can map those as large SLAT entries.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory;
use vm_memory::{
    GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection, GuestRegionMmap,
    GuestUsize, MemoryRegionAddress, MmapRegion, VolatileSlice,
};

use crate::{Error, Result};

/// Size of a large page: the unit of guest memory.
pub const LARGE_PAGE: u64 = 2 << 20;
/// RAM below 4 GiB ends here at the latest; devices (IO-APIC, local APIC) live between this and 4 GiB.
pub const LOW_RAM_END: u64 = 3 << 30;
/// RAM that does not fit below the hole continues here.
pub const HIGH_RAM_START: u64 = 4 << 30;
const PAGE_SIZE: usize = 4096;
/// The least memory that a partition may have.
pub const MIN_MEMORY: u64 = 16 << 20;

/// One block of host memory, unmapped on drop.
struct Block {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: a block is plain memory without thread affinity; it is only reached through vm-memory's volatile accesses.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Reserves `len` bytes of zeroed memory on a large-page boundary.
    fn new(len: usize) -> std::io::Result<Block> {
        let large = LARGE_PAGE as usize;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len + large, ProtFlags::READ | ProtFlags::WRITE, flags)?
        };
        let head = start.addr().next_multiple_of(large) - start.addr();
        let address = start.wrapping_byte_add(head);
        // SAFETY: both pieces lie within the mapping just made, outside of the block kept. A failure to trim leaves
        // address space unused, nothing else.
        let _ = unsafe { if head > 0 { munmap(start, head) } else { Ok(()) } };
        // SAFETY: see above.
        let _ = unsafe { munmap(address.wrapping_byte_add(len), large - head) };
        let address = NonNull::new(address.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let block = Block { address, len };
        // Huge pages are a matter of speed; a kernel without them says no, and all works.
        let _ = block.advise(Advice::LinuxHugepage);
        let _ = block.advise(Advice::LinuxDontDump);
        Ok(block)
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        self.advise_part(0, self.len, advice)
    }

    /// `start` and `len` must lie within the block.
    fn advise_part(&self, start: usize, len: usize, advice: Advice) -> rustix::io::Result<()> {
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(rustix::io::Errno::INVAL);
        }
        // SAFETY: the range is this block's own, as was just checked; guest memory may change under vm-memory's volatile
        // accesses at any time, so dropping its contents is like a write by the guest.
        unsafe { madvise(self.address.as_ptr().wrapping_add(start).cast(), len, advice) }
    }

    /// Whether the last page has memory behind it.
    fn is_backed(&self) -> bool {
        let mut state = 0;
        let last = self.address.as_ptr().wrapping_add(self.len - PAGE_SIZE);
        // SAFETY: the page is the block's last, and the kernel writes one byte for one page.
        let done = unsafe { libc::mincore(last.cast(), PAGE_SIZE, &raw mut state) };
        done == 0 && state & 1 != 0
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the mapping is this block's own. The region that points to it lives in the same struct and has been
        // dropped before.
        let _ = unsafe { munmap(self.address.as_ptr().cast(), self.len) };
    }
}

/// A range of guest physical addresses backed by host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First guest physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
}

/// The ranges of a PC with `size` bytes of RAM.
pub fn layout(size: u64) -> Vec<RamRange> {
    let low = size.min(LOW_RAM_END);
    let mut ranges = vec![RamRange { gpa: 0, len: low }];
    if size > low {
        ranges.push(RamRange { gpa: HIGH_RAM_START, len: size - low });
    }
    ranges
}

/// One range of RAM with the memory behind it.
pub struct RamRegion {
    // Declared first: it points into the block and must go before it.
    region: GuestRegionMmap<()>,
    block: Block,
}

impl RamRegion {
    pub(crate) fn new(range: RamRange, size: u64) -> Result<RamRegion> {
        let memory_error = |source| Error::Memory { bytes: size, source };
        let block = Block::new(range.len as usize).map_err(memory_error)?;
        // SAFETY: the block is a private mapping of exactly this length and protection; it outlives the region because
        // both live in this struct, which hands neither out, the region dropping first.
        let region = unsafe {
            MmapRegion::build_raw(
                block.address.as_ptr(),
                block.len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            )
        }
        .map_err(|e| memory_error(std::io::Error::other(e.to_string())))?;
        let region = GuestRegionMmap::new(region, GuestAddress(range.gpa)).ok_or(Error::MemorySize(size))?;
        Ok(RamRegion { region, block })
    }

    /// Where it lies in this process.
    pub(crate) fn host_address(&self) -> u64 {
        self.block.address.as_ptr() as u64
    }

    /// Gives all pages back to the host; they are zeroes afterwards.
    pub(crate) fn discard(&self) -> Result<()> {
        let done = self.block.advise(Advice::LinuxDontNeed);
        done.map_err(|e| Error::System { what: "cannot clear guest memory", source: e.into() })
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.region.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.region.start_addr()
    }

    fn bitmap(&self) -> BS<'_, ()> {
        self.region.bitmap()
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> guest_memory::Result<VolatileSlice<'_, BS<'_, ()>>> {
        self.region.get_slice(offset, count)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

/// The memory as vm-memory and the loaders want it. A clone is cheap, and keeps the memory mapped for as long as it lives.
pub type Regions = GuestRegionCollection<RamRegion>;

/// The RAM of one partition.
pub struct GuestMemory {
    blocks: Vec<Arc<RamRegion>>,
    regions: Regions,
    ranges: Vec<RamRange>,
    pinned: AtomicBool,
}

impl GuestMemory {
    /// Reserves memory for a partition of `size` bytes. Host pages are taken when the guest first touches them.
    pub fn new(size: u64) -> Result<GuestMemory> {
        if size < MIN_MEMORY || !size.is_multiple_of(LARGE_PAGE) || size > 1 << 46 {
            return Err(Error::MemorySize(size));
        }
        let ranges = layout(size);
        let mut blocks = Vec::new();
        for range in &ranges {
            blocks.push(Arc::new(RamRegion::new(*range, size)?));
        }
        let regions = Regions::from_arc_regions(blocks.clone()).map_err(|_| Error::MemorySize(size))?;
        Ok(GuestMemory { blocks, regions, ranges, pinned: AtomicBool::new(false) })
    }

    /// The memory as vm-memory and the loaders want it.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// Which guest physical addresses are RAM.
    pub fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    /// Each range with the host virtual address of its memory, for the kernel driver.
    pub(crate) fn host_ranges(&self) -> impl Iterator<Item = (RamRange, u64)> + '_ {
        self.ranges.iter().zip(&self.blocks).map(|(range, block)| (*range, block.host_address()))
    }

    /// Finds out whether the kernel driver has pinned the memory that it just mapped into a partition. Kernels that follow
    /// changes of the mapping (mshv's movable regions) take no page before the guest touches it; others take all at once.
    pub(crate) fn note_mapped(&self) {
        self.pinned.store(self.blocks.iter().any(|region| region.block.is_backed()), Ordering::Relaxed);
    }

    /// Whether the kernel driver holds all pages for as long as the partition lives: then
    /// [`discard_range`](Self::discard_range) must not be used, because worker and guest would no longer see the same memory.
    pub fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Relaxed)
    }

    /// Gives whole pages back to the host while the guest runs; it finds zeroes there when it touches them again, which is
    /// when the host gives memory for them.
    ///
    /// # Errors
    /// The range is not within one of [`ranges`](Self::ranges), not whole pages, or the memory [is pinned](Self::is_pinned).
    pub fn discard_range(&self, gpa: u64, len: u64) -> Result<()> {
        let refused = |source| Error::System { what: "cannot give pages of the guest back", source };
        let invalid = || refused(std::io::ErrorKind::InvalidInput.into());
        let find =
            |range: &&RamRegion| range.start_addr().0 <= gpa && gpa - range.start_addr().0 < range.len();
        let region = self.blocks.iter().map(|block| &**block).find(find).ok_or_else(invalid)?;
        let start = gpa - region.start_addr().0;
        let whole = start.is_multiple_of(PAGE_SIZE as u64) && len.is_multiple_of(PAGE_SIZE as u64);
        if !whole || self.is_pinned() || len > region.len() {
            return Err(invalid());
        }
        let done = region.block.advise_part(start as usize, len as usize, Advice::LinuxDontNeed);
        done.map_err(|error| refused(error.into()))
    }

    /// Gives all pages back to the host; the guest sees zeroes afterwards, as after power-on.
    pub fn discard(&self) -> Result<()> {
        self.blocks.iter().try_for_each(|region| region.discard())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn small_memory_is_one_range_and_large_memory_leaves_the_hole() {
        assert_eq!(layout(512 << 20), [RamRange { gpa: 0, len: 512 << 20 }]);
        assert_eq!(
            layout(5 << 30),
            [RamRange { gpa: 0, len: 3 << 30 }, RamRange { gpa: 4 << 30, len: 2 << 30 }]
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [0, 4096, MIN_MEMORY - LARGE_PAGE, MIN_MEMORY + 4096, 1 << 60] {
            assert!(matches!(GuestMemory::new(size), Err(Error::MemorySize(s)) if s == size));
        }
    }

    #[test]
    fn a_clone_of_the_regions_outlives_the_memory() {
        let memory = GuestMemory::new(MIN_MEMORY).unwrap();
        let regions = memory.regions().clone();
        drop(memory);
        regions.write_obj(7u64, GuestAddress(0x1000)).unwrap();
        assert_eq!(regions.read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 7);
    }

    #[test]
    fn a_part_is_given_back_and_nothing_beside_it() {
        let memory = GuestMemory::new(64 << 20).unwrap();
        memory.note_mapped();
        assert!(!memory.is_pinned());
        let word = |at| memory.regions().read_obj::<u64>(GuestAddress(at)).unwrap();
        for page in 0..4 {
            memory.regions().write_obj(page + 1, GuestAddress(page << 12)).unwrap();
        }
        memory.discard_range(0x1000, 0x2000).unwrap();
        assert_eq!([word(0), word(0x1000), word(0x2000), word(0x3000)], [1, 0, 0, 4]);
        for (gpa, len) in
            [(64 << 20, 4096), ((64 << 20) - 4096, 8192), (1, 4096), (0, 1), (u64::MAX - 4095, 4096)]
        {
            assert!(memory.discard_range(gpa, len).is_err(), "{gpa:#x} {len:#x}");
        }
        // As after a driver that pins: everything is there.
        memory.regions().write_obj(1u64, GuestAddress((64 << 20) - 8)).unwrap();
        memory.note_mapped();
        assert!(memory.is_pinned());
        assert!(memory.discard_range(0, 4096).is_err());
    }

    #[test]
    fn blocks_are_aligned_zeroed_and_discardable() {
        let memory = GuestMemory::new(64 << 20).unwrap();
        for (_, host) in memory.host_ranges() {
            assert_eq!(host % LARGE_PAGE, 0);
        }
        let at = GuestAddress((64 << 20) - 8);
        assert_eq!(memory.regions().read_obj::<u64>(at).unwrap(), 0);
        memory.regions().write_obj(0x1122_3344_5566_7788u64, at).unwrap();
        memory.discard().unwrap();
        assert_eq!(memory.regions().read_obj::<u64>(at).unwrap(), 0);
        assert!(memory.regions().read_obj::<u64>(GuestAddress(64 << 20)).is_err());
    }
}
