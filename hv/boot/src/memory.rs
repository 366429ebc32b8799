//! The physical memory map: from the firmware's descriptors to the hypervisor's list and the parent's e820.
//!
//! The firmware's map is input like any other: it may be unsorted, overlap, wrap around or be longer than we hold.
//! Where descriptors overlap, the more restrictive kind wins, so nothing that anybody calls reserved becomes RAM.

use arrayvec::ArrayVec;
use parterre_hw::launch::{MemoryKind, MemoryRange, PAGE_SIZE, PhysicalRange};

use crate::efi_map::Descriptor;

/// How many ranges a [`MemoryMap`] holds.
pub const CAPACITY: usize = 512;

/// Physical addresses end here on every x86-64 processor (52 bits).
const ADDRESS_END: u64 = 1 << 52;

/// A map: sorted, without overlaps, neighbours of one kind merged.
pub type MemoryMap = ArrayVec<MemoryRange, CAPACITY>;

/// The firmware's map is too long for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyRanges;

impl core::fmt::Display for TooManyRanges {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            out,
            "the firmware's memory map has more than {CAPACITY} separate ranges, which Parterre does not hold; \
             report the machine's model as a bug"
        )
    }
}

/// Builds the map from the firmware's descriptors; the ranges in `owned` become the hypervisor's.
///
/// # Errors
/// More than [`CAPACITY`] ranges.
pub fn build(
    descriptors: impl Iterator<Item = Descriptor> + Clone,
    owned: &[PhysicalRange],
) -> Result<MemoryMap, TooManyRanges> {
    let inputs = || {
        let firmware = descriptors.clone().map(|d| (d.range(), d.kind()));
        let ours = owned.iter().map(|range| (*range, MemoryKind::HypervisorOwned));
        firmware.chain(ours).filter_map(|(range, kind)| Some((whole_pages(range, kind)?, kind)))
    };
    let mut map = MemoryMap::new();
    let mut from = 0;
    // Sweep over the edges: between two neighbouring edges nothing changes.
    while let Some(to) = next_edge(inputs().map(|(range, _)| range), from) {
        let kind =
            inputs().filter(|(range, _)| range.contains(from)).map(|(_, kind)| kind).max_by_key(strictness);
        if let Some(kind) = kind {
            append(&mut map, MemoryRange { base: from, length: to - from, kind })?;
        }
        from = to;
    }
    Ok(map)
}

/// RAM shrinks to whole pages; anything else grows.
fn whole_pages(range: PhysicalRange, kind: MemoryKind) -> Option<PhysicalRange> {
    let (low, high) = (range.base.min(ADDRESS_END), range.end().min(ADDRESS_END));
    let (base, end) = if kind == MemoryKind::Ram {
        (low.next_multiple_of(PAGE_SIZE), high & !(PAGE_SIZE - 1))
    } else {
        (low & !(PAGE_SIZE - 1), high.next_multiple_of(PAGE_SIZE))
    };
    (base < end).then(|| PhysicalRange::new(base, end - base))
}

fn next_edge(ranges: impl Iterator<Item = PhysicalRange>, after: u64) -> Option<u64> {
    ranges.flat_map(|range| [range.base, range.end()]).filter(|edge| *edge > after).min()
}

fn append(map: &mut MemoryMap, next: MemoryRange) -> Result<(), TooManyRanges> {
    match map.last_mut() {
        Some(last) if last.kind == next.kind && last.range().end() == next.base => {
            last.length += next.length;
            Ok(())
        }
        _ => map.try_push(next).map_err(|_| TooManyRanges),
    }
}

/// Which kind wins where two overlap.
fn strictness(kind: &MemoryKind) -> u8 {
    match kind {
        MemoryKind::Ram => 0,
        MemoryKind::Persistent => 1,
        MemoryKind::AcpiReclaim => 2,
        MemoryKind::AcpiNvs => 3,
        MemoryKind::Mmio => 4,
        MemoryKind::Reserved => 5,
        MemoryKind::Unusable => 6,
        MemoryKind::HypervisorOwned => 7,
    }
}

/// The first address behind the highest RAM (ACPI memory counts: it becomes RAM), and the amount of RAM, in bytes.
pub fn ram_extent(map: &[MemoryRange]) -> (u64, u64) {
    map.iter()
        .filter(|range| matches!(range.kind, MemoryKind::Ram | MemoryKind::AcpiReclaim))
        .fold((0, 0), |(end, total), range| (range.range().end().max(end), total + range.length))
}

/// Where a free block of `length` bytes can be taken: the highest address that is a multiple of `alignment` (a power
/// of two) and leaves the whole block below `limit`. `free` are the ranges that nobody uses. Page 0 is never taken.
pub fn place(
    free: impl Iterator<Item = PhysicalRange>,
    length: u64,
    alignment: u64,
    limit: u64,
) -> Option<u64> {
    free.filter_map(|range| {
        let base = range.end().min(limit).checked_sub(length)? & !(alignment - 1);
        (base >= range.base.max(PAGE_SIZE)).then_some(base)
    })
    .max()
}

/// An entry of the e820 map in the boot protocol (Linux `struct boot_e820_entry`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
    /// Type (ACPI 6.5, table 15.4).
    pub kind: u32,
}

/// The parent's view of the map: what the hypervisor owns is reserved.
pub fn e820(map: &[MemoryRange]) -> ArrayVec<E820Entry, CAPACITY> {
    let mut entries = ArrayVec::<E820Entry, CAPACITY>::new();
    for range in map.iter().take(CAPACITY) {
        let kind = match range.kind {
            MemoryKind::Ram => 1,
            MemoryKind::Reserved | MemoryKind::Mmio | MemoryKind::HypervisorOwned => 2,
            MemoryKind::AcpiReclaim => 3,
            MemoryKind::AcpiNvs => 4,
            MemoryKind::Unusable => 5,
            MemoryKind::Persistent => 7,
        };
        match entries.last_mut() {
            Some(last) if last.kind == kind && last.base + last.length == range.base => {
                last.length += range.length
            }
            _ => entries.push(E820Entry { base: range.base, length: range.length, kind }),
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn descriptor(kind: u32, base: u64, pages: u64) -> Descriptor {
        Descriptor { kind, base, pages, attributes: 0xf }
    }

    fn map(list: &[Descriptor], owned: &[PhysicalRange]) -> MemoryMap {
        build(list.iter().copied(), owned).unwrap()
    }

    fn range(base: u64, length: u64, kind: MemoryKind) -> MemoryRange {
        MemoryRange { base, length, kind }
    }

    #[test]
    fn descriptors_are_sorted_merged_and_carved() {
        let list = [
            descriptor(7, 0x10_0000, 0x100),
            descriptor(2, 0, 0x10),
            descriptor(3, 0x1_0000, 0x10),
            descriptor(6, 0x20_0000, 1),
        ];
        let owned = [PhysicalRange::new(0x11_0000, 0x1000)];
        assert_eq!(
            map(&list, &owned).as_slice(),
            [
                range(0, 0x2_0000, MemoryKind::Ram),
                range(0x10_0000, 0x1_0000, MemoryKind::Ram),
                range(0x11_0000, 0x1000, MemoryKind::HypervisorOwned),
                range(0x11_1000, 0xe_f000, MemoryKind::Ram),
                range(0x20_0000, 0x1000, MemoryKind::Reserved),
            ]
        );
    }

    #[test]
    fn the_stricter_kind_wins_where_descriptors_overlap() {
        let list = [descriptor(7, 0, 16), descriptor(11, 0x4000, 4), descriptor(0, 0x6000, 4)];
        assert_eq!(
            map(&list, &[]).as_slice(),
            [
                range(0, 0x4000, MemoryKind::Ram),
                range(0x4000, 0x2000, MemoryKind::Mmio),
                range(0x6000, 0x4000, MemoryKind::Reserved),
                range(0xa000, 0x6000, MemoryKind::Ram),
            ]
        );
    }

    #[test]
    fn absurd_descriptors_do_no_harm() {
        let list = [
            descriptor(7, u64::MAX - 0xfff, u64::MAX),
            descriptor(0, 0x1000, u64::MAX),
            descriptor(7, 0, 0),
            descriptor(0x7fff_ffff, 0, 1),
        ];
        assert_eq!(map(&list, &[]).as_slice(), [range(0, ADDRESS_END, MemoryKind::Reserved)]);
        let many: Vec<_> = (0..=CAPACITY as u64).map(|i| descriptor(7, i * 0x2000, 1)).collect();
        assert_eq!(build(many.into_iter(), &[]), Err(TooManyRanges));
    }

    #[test]
    fn a_block_goes_to_the_highest_place_below_its_limit() {
        const MIB: u64 = 1 << 20;
        let free = [
            PhysicalRange::new(MIB, 100 * MIB),
            PhysicalRange::new(1 << 32, 1 << 30),
            PhysicalRange::new(200 * MIB, 3 * MIB + PAGE_SIZE),
        ];
        let place = |length, limit| place(free.iter().copied(), length, 2 * MIB, limit);
        assert_eq!(place(2 * MIB, 1 << 32), Some(200 * MIB));
        assert_eq!(place(4 * MIB, 1 << 32), Some(96 * MIB));
        assert_eq!(place(4 * MIB, 50 * MIB), Some(46 * MIB));
        assert_eq!(place(512 * MIB, 1 << 32), None);
        assert_eq!(place(512 * MIB, u64::MAX), Some((1 << 32) + 512 * MIB));
        assert_eq!(place(2 << 30, u64::MAX), None);
        assert_eq!(place(u64::MAX, u64::MAX), None);
        let low = [PhysicalRange::new(0, 0x2000)];
        assert_eq!(super::place(low.into_iter(), 0x1000, 0x1000, MIB), Some(0x1000));
        assert_eq!(super::place(low.into_iter(), 0x2000, 0x1000, MIB), None);
    }

    #[test]
    fn e820_hides_the_hypervisor_and_merges() {
        let list = [
            range(0, 0x1000, MemoryKind::Ram),
            range(0x1000, 0x1000, MemoryKind::HypervisorOwned),
            range(0x2000, 0x1000, MemoryKind::Reserved),
            range(0x3000, 0x1000, MemoryKind::AcpiNvs),
        ];
        let kinds: Vec<_> = e820(&list).iter().map(|e| (e.base, e.length, e.kind)).collect();
        assert_eq!(kinds, [(0, 0x1000, 1), (0x1000, 0x2000, 2), (0x3000, 0x1000, 4)]);
    }

    #[test]
    fn the_extent_of_ram_counts_what_becomes_ram() {
        let list = [
            range(0, 0x1000, MemoryKind::Ram),
            range(0x8000, 0x1000, MemoryKind::AcpiReclaim),
            range(0x9000, 0x1000, MemoryKind::Mmio),
        ];
        assert_eq!(ram_extent(&list), (0x9000, 0x2000));
    }

    proptest! {
        /// Against the obvious model: look at each page by itself.
        #[test]
        fn each_page_has_the_strictest_kind_that_covers_it(
            list in proptest::collection::vec((0u32..16, 0u64..64, 0u64..32), 0..20),
            owned in proptest::collection::vec((0u64..64, 1u64..8), 0..3),
        ) {
            let list: Vec<_> = list.into_iter().map(|(k, b, p)| descriptor(k, b * PAGE_SIZE, p)).collect();
            let owned: Vec<_> =
                owned.into_iter().map(|(b, p)| PhysicalRange::new(b * PAGE_SIZE, p * PAGE_SIZE)).collect();
            let result = map(&list, &owned);
            for pair in result.windows(2) {
                prop_assert!(pair[0].range().end() <= pair[1].base);
                prop_assert!(pair[0].kind != pair[1].kind || pair[0].range().end() < pair[1].base);
            }
            for page in 0..128 {
                let address = page * PAGE_SIZE;
                let model = list.iter().filter(|d| d.range().contains(address)).map(Descriptor::kind)
                    .chain(owned.iter().filter(|r| r.contains(address)).map(|_| MemoryKind::HypervisorOwned))
                    .max_by_key(strictness);
                let got = result.iter().find(|r| r.range().contains(address)).map(|r| r.kind);
                prop_assert_eq!(got, model);
            }
        }
    }
}
