//! Physical memory while the firmware owns it: taking pages, reading tables, the map.
//!
//! The firmware maps all memory onto itself, so an address that its map names is a pointer. This module holds the
//! `unsafe` that follows from it.

use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};
use core::slice;
use core::sync::atomic::{AtomicBool, Ordering};

use parterre_boot::acpi::PhysicalMemory;
use parterre_boot::efi_map::Descriptor;
use parterre_boot::memory;
use parterre_hw::launch::{PAGE_SIZE, PhysicalRange};
use uefi::Handle;
use uefi::boot::{
    self, AllocateType, MemoryType, OpenProtocolAttributes, OpenProtocolParams, ScopedProtocol,
};
use uefi::mem::memory_map::{MemoryDescriptor, MemoryMap, MemoryMapOwned};

use uefi::proto::ProtocolPointer;

use super::BootError;

/// Addresses of 32 bits.
pub const BELOW_4G: u64 = 1 << 32;
/// Anywhere.
pub const ANYWHERE: u64 = u64::MAX;

/// Whether boot services were left.
static LEFT: AtomicBool = AtomicBool::new(false);

/// Whether the firmware's boot services may be called.
pub fn has_boot_services() -> bool {
    !LEFT.load(Ordering::Relaxed)
}

/// Leaves boot services; returns the memory map that holds from now on.
///
/// # Safety
/// No protocol is open, and nothing that the firmware's allocator gave is dropped any more.
pub unsafe fn leave_boot_services() -> MemoryMapOwned {
    LEFT.store(true, Ordering::Relaxed);
    // SAFETY: what this needs is what the caller promises.
    unsafe { boot::exit_boot_services(Some(MemoryType::LOADER_DATA)) }
}

/// What the library needs of one of the firmware's descriptors.
pub fn descriptor(firmware: &MemoryDescriptor) -> Descriptor {
    Descriptor {
        kind: firmware.ty.0,
        base: firmware.phys_start,
        pages: firmware.page_count,
        attributes: firmware.att.bits(),
    }
}

/// The firmware's map as it is now; the next allocation changes it.
pub fn current_map() -> Result<MemoryMapOwned, BootError> {
    boot::memory_map(MemoryType::LOADER_DATA).map_err(|error| {
        BootError::new(error.status(), format_args!("the firmware gives no memory map ({})", error.status()))
    })
}

/// Pages taken from the firmware, given back when dropped before boot services are left.
pub struct Pages {
    base: NonNull<u8>,
    count: usize,
}

impl Pages {
    /// Takes `length` bytes (whole pages) at exactly `address`, if they are free. The content is whatever was there.
    pub fn at(address: u64, length: u64, kind: MemoryType) -> Option<Self> {
        let count = usize::try_from(length.div_ceil(PAGE_SIZE)).ok()?;
        let base = boot::allocate_pages(AllocateType::Address(address), kind, count).ok()?;
        Some(Self { base, count })
    }

    /// Takes `length` bytes aligned to `alignment`, as high as possible below the first of `limits` that allows it.
    pub fn below(limits: &[u64], length: u64, alignment: u64, kind: MemoryType) -> Option<Self> {
        let map = current_map().ok()?;
        let free = || map.entries().map(descriptor).filter(Descriptor::is_free).map(|entry| entry.range());
        let length = length.next_multiple_of(PAGE_SIZE);
        let address = limits.iter().find_map(|limit| memory::place(free(), length, alignment, *limit))?;
        Self::at(address, length, kind)
    }

    /// The same pages, all zero.
    pub fn zeroed(mut self) -> Self {
        self.bytes().fill(0);
        self
    }

    /// Where they are.
    pub fn range(&self) -> PhysicalRange {
        PhysicalRange::new(self.address(), self.count as u64 * PAGE_SIZE)
    }

    /// Physical address of the first byte.
    pub fn address(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the firmware gave these pages to us alone and maps them; any byte is a valid `u8`. The slice
        // borrows `self`, so nobody else has one.
        unsafe { slice::from_raw_parts_mut(self.base.as_ptr(), self.count * PAGE_SIZE as usize) }
    }

    /// The bytes, for ever.
    pub fn leak(self) -> &'static mut [u8] {
        let mut pages = ManuallyDrop::new(self);
        let bytes: *mut [u8] = pages.bytes();
        // SAFETY: as in `bytes`; the pages are never given back, because the value is never dropped.
        unsafe { &mut *bytes }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if has_boot_services() {
            // SAFETY: the pages are ours, and slices of them borrowed `self`. A firmware that refuses to take pages
            // back only loses them.
            let _ = unsafe { boot::free_pages(self.base, self.count) };
        }
    }
}

/// A protocol of a handle, only to read from it. Opening it exclusively would take it away from the drivers that use
/// it now, such as the console.
pub fn peek<P: ProtocolPointer + ?Sized>(handle: Handle) -> Option<ScopedProtocol<P>> {
    let params = OpenProtocolParams { handle, agent: boot::image_handle(), controller: None };
    // SAFETY: nothing here disconnects or unloads drivers, so the interface stays while the returned value lives, and
    // the program has one thread, so nobody changes it meanwhile.
    unsafe { boot::open_protocol::<P>(params, OpenProtocolAttributes::GetProtocol) }.ok()
}

/// Memory that the firmware's map names, for reading tables.
pub struct Mapped {
    map: MemoryMapOwned,
}

impl Mapped {
    /// All that is mapped now.
    pub fn new() -> Result<Self, BootError> {
        Ok(Self { map: current_map()? })
    }

    /// Whether one descriptor names all of it, and not as device registers.
    fn is_memory(&self, range: PhysicalRange) -> bool {
        range.base != 0
            && self.map.entries().map(descriptor).any(|entry| {
                let whole = entry.range();
                let device = [MemoryType::MMIO.0, MemoryType::MMIO_PORT_SPACE.0].contains(&entry.kind);
                !device && range.base >= whole.base && range.end() <= whole.end()
            })
    }
}

impl PhysicalMemory for Mapped {
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
        if !self.is_memory(PhysicalRange::new(address, buffer.len() as u64)) {
            return false;
        }
        let source = ptr::with_exposed_provenance::<u8>(address as usize);
        // SAFETY: the firmware's map says that this is memory, and memory is mapped onto itself. It belongs to the
        // firmware, so it is not part of any Rust object of ours, `buffer` included.
        unsafe { ptr::copy_nonoverlapping(source, buffer.as_mut_ptr(), buffer.len()) };
        true
    }
}

/// Overwrites the first bytes of an ACPI table.
///
/// # Safety
/// `address` is that of an ACPI table which [`PhysicalMemory::read`] of [`Mapped`] has read; boot services are left,
/// so that nobody else runs.
pub unsafe fn overwrite_table_header(address: u64, header: [u8; 10]) {
    let target = ptr::with_exposed_provenance_mut::<[u8; 10]>(address as usize);
    // SAFETY: the caller says that this is readable memory of a table; tables are in RAM, and whoever reads them later
    // reads bytes.
    unsafe { target.write_unaligned(header) };
}

/// Reads the first bytes of an ACPI table.
///
/// # Safety
/// As for [`overwrite_table_header`].
pub unsafe fn table_header(address: u64) -> [u8; 10] {
    let source = ptr::with_exposed_provenance::<[u8; 10]>(address as usize);
    // SAFETY: the caller says that this is readable memory.
    unsafe { source.read_unaligned() }
}
