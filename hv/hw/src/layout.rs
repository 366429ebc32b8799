//! What physical memory is for, worked out from the memory map: what the hypervisor maps for itself, what the parent
//! sees, and whose every page is. Pure arithmetic.

use parterre_core::memory::{PageKind, PageRange};

use crate::cpu::mtrr::{MemoryTypes, kind};
use crate::launch::{MemoryKind, MemoryRange, PhysicalRange};
use crate::paging::slat::IdentityRange;

const GIB: u64 = 1 << 30;
const PAGE: u64 = 4096;
/// What four levels of tables reach.
const REACH: u64 = 1 << 48;
/// How far the parent's map goes at least, and without gigabyte pages at most: device registers lie below that.
const DEVICES: u64 = 512 * GIB;

/// Whether pages of this kind are memory that the parent may lend, deposit and pass to hypercalls.
fn is_parent_ram(kind: MemoryKind) -> bool {
    matches!(kind, MemoryKind::Ram | MemoryKind::AcpiReclaim)
}

/// Whether hypervisor code touches pages of this kind: its own, and the parent's memory.
pub fn is_mapped_for_hypervisor(kind: MemoryKind) -> bool {
    is_parent_ram(kind) || kind == MemoryKind::HypervisorOwned
}

/// The first address behind all memory that has an entry in the ownership table.
pub fn ram_end(memory: &[MemoryRange]) -> u64 {
    let ram = memory.iter().filter(|range| is_mapped_for_hypervisor(range.kind));
    ram.map(|range| range.range().end()).max().unwrap_or(0)
}

/// How far the parent's map reaches: all that the processor can address with four levels.
pub fn reach(memory: &[MemoryRange], address_bits: u32, gigabyte_pages: bool) -> u64 {
    let addressable = 1_u64.checked_shl(address_bits).unwrap_or(REACH).min(REACH);
    if gigabyte_pages {
        addressable
    } else {
        addressable.min(ram_end(memory).max(DEVICES).next_multiple_of(GIB))
    }
}

/// How many tables the parent's map takes at most: the top one, those that hold 1 GiB pages, and at each place where the
/// kind or the type of memory changes one with 2 MiB pages and one with single pages.
pub fn identity_tables(
    memory: &[MemoryRange],
    types: Option<&MemoryTypes>,
    reach: u64,
    gigabyte_pages: bool,
) -> u64 {
    let changes = 2 * memory.len() as u64 + 1 + types.map_or(0, MemoryTypes::changes);
    let level_2 = if gigabyte_pages { changes } else { reach.div_ceil(GIB) };
    1 + reach.div_ceil(512 * GIB) + level_2 + changes
}

/// Calls `emit` for the stretches of what the parent sees, in order: everything from 0 to `reach` but what is the
/// hypervisor's.
pub fn identity(memory: &[MemoryRange], reach: u64, mut emit: impl FnMut(IdentityRange)) {
    let mut next = 0;
    // What has been seen and not yet emitted: where it begins, and whether it is something else than RAM.
    let mut open = (0, true);
    let mut change = |at: u64, device: bool, first: u64| {
        if at > open.0 {
            let kind = if open.1 { kind::UNCACHED } else { kind::WRITE_BACK };
            emit(IdentityRange { first: open.0 / PAGE, pages: (at - open.0) / PAGE, device: open.1, kind });
        }
        open = (first, device);
    };
    for entry in memory.iter().filter(|entry| entry.base < reach) {
        let end = entry.range().end().min(reach);
        if is_parent_ram(entry.kind) {
            change(entry.base, false, entry.base);
            change(end, true, end);
        } else if entry.kind == MemoryKind::HypervisorOwned {
            change(entry.base, true, end);
        }
        next = end;
    }
    change(reach.max(next), true, reach);
}

/// How many stretches [`identity`] and [`typed`] make at most.
pub fn most_stretches(memory: &[MemoryRange], types: Option<&MemoryTypes>) -> usize {
    let changes = types.map_or(0, |types| types.changes() + MemoryTypes::FIXED_PIECES);
    2 * memory.len() + 1 + changes as usize
}

/// Calls `emit` for the pieces of `range` that have the same memory type.
pub fn typed(range: IdentityRange, types: &MemoryTypes, emit: &mut dyn FnMut(IdentityRange)) {
    let end = range.first + range.pages;
    let (mut first, mut next) = (range.first, range.first);
    while next < end {
        let (kind, until) = types.at(next * PAGE);
        next = (until / PAGE).min(end);
        // What follows with the same type belongs to it.
        if next == end || types.at(next * PAGE).0 != kind {
            emit(IdentityRange { first, pages: next - first, kind, ..range });
            first = next;
        }
    }
}

/// Whose the pages of an entry of the memory map are.
pub fn page_range(range: &MemoryRange) -> PageRange {
    let kind = match range.kind {
        MemoryKind::HypervisorOwned => PageKind::Hypervisor,
        kind if is_parent_ram(kind) => PageKind::Parent,
        _ => PageKind::Absent,
    };
    pages(range.range(), kind)
}

/// The pages of `range`.
pub fn pages(range: PhysicalRange, kind: PageKind) -> PageRange {
    PageRange { first: range.base / PAGE, pages: range.length / PAGE, kind }
}

/// How many pages the parent's reserve for splitting large pages needs: a table for each 2 MiB and each GiB of RAM, and some
/// for the pages of the hypervisor that the parent is shown.
pub fn reserve_pages(memory: &[MemoryRange]) -> u64 {
    let tables = |size: u64| {
        let ram = memory.iter().filter(|range| is_parent_ram(range.kind));
        let touched = |range: &MemoryRange| range.range().end().div_ceil(size) - range.base / size;
        ram.map(touched).sum::<u64>().min(ram_end(memory).div_ceil(size))
    };
    tables(2 << 20) + tables(GIB) + 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use MemoryKind::*;

    fn map() -> Vec<MemoryRange> {
        let entry = |(base, length, kind)| MemoryRange { base, length, kind };
        [
            (0, 0x8000, Ram),
            (0x8000, 0x1000, HypervisorOwned),
            (0x9000, 0x9_7000, Ram),
            (0x10_0000, 0x3ff0_0000, Ram),
            (0x4000_0000, 0x1000_0000, HypervisorOwned),
            (0x5000_0000, 0x10_0000, AcpiReclaim),
            (0x5010_0000, 0x10_0000, AcpiNvs),
            (0xfed0_0000, 0x1000, Mmio),
            (0x1_0000_0000, 0x4000_0000, Ram),
        ]
        .map(entry)
        .to_vec()
    }

    fn seen(memory: &[MemoryRange], reach: u64) -> Vec<(u64, u64, bool)> {
        let mut seen = Vec::new();
        identity(memory, reach, |range| {
            seen.push((range.first * 4096, (range.first + range.pages) * 4096, range.device))
        });
        seen
    }

    #[test]
    fn the_parent_sees_everything_but_the_hypervisor() {
        let expected = [
            (0, 0x8000, false),
            (0x9000, 0xa_0000, false),
            (0xa_0000, 0x10_0000, true),
            (0x10_0000, 0x4000_0000, false),
            (0x5000_0000, 0x5010_0000, false),
            (0x5010_0000, 0x1_0000_0000, true),
            (0x1_0000_0000, 0x1_4000_0000, false),
            (0x1_4000_0000, 1 << 40, true),
        ];
        assert_eq!(seen(&map(), 1 << 40), expected);
        let at_zero = [MemoryRange { base: 0, length: 0x1000, kind: HypervisorOwned }];
        assert_eq!(seen(&at_zero, 0x10_0000), [(0x1000, 0x10_0000, true)]);
        assert_eq!(seen(&[], 0x10_0000), [(0, 0x10_0000, true)]);
    }

    #[test]
    fn stretches_are_cut_where_the_type_changes() {
        let registers = |register: u32| match register {
            0xfe => 1 << 8 | 1,
            0x2ff => 1 << 11 | 1 << 10 | 6,
            0x200 => 0x8000_0000,
            0x201 => 0xff_8000_0800,
            0x250 | 0x258 => 0x0606_0606_0606_0606,
            0x26f => 5 << 56,
            _ => 0,
        };
        let types = MemoryTypes::new(registers, 40);
        let cut = |first, end| {
            let mut pieces = Vec::new();
            let range = IdentityRange { first, pages: end - first, device: true, kind: 9 };
            typed(range, &types, &mut |piece| {
                assert!(piece.device);
                pieces.push((piece.first, piece.first + piece.pages, piece.kind));
            });
            pieces
        };
        let expected = [(0, 0xa0, 6), (0xa0, 0xff, 0), (0xff, 0x100, 5), (0x100, 0x8_0000, 6)];
        assert_eq!(cut(0, 0x8_0000), expected);
        assert_eq!(cut(0x8, 0x9), [(8, 9, 6)]);
        assert_eq!(
            cut(0x7_ffff, 0x20_0000),
            [(0x7_ffff, 0x8_0000, 6), (0x8_0000, 0x10_0000, 0), (0x10_0000, 0x20_0000, 6)]
        );
        assert!(expected.len() <= most_stretches(&[], Some(&types)));
        assert_eq!(identity_tables(&[], Some(&types), 512 << 30, true), 1 + 1 + 4 + 4);
    }

    #[test]
    fn the_map_reaches_all_that_can_be_addressed() {
        assert_eq!(reach(&map(), 40, true), 1 << 40);
        assert_eq!(reach(&map(), 52, true), 1 << 48);
        assert_eq!(reach(&map(), 40, false), 512 << 30);
        assert_eq!(reach(&map(), 36, false), 1 << 36);
    }

    #[test]
    fn tables_are_enough_for_every_level() {
        assert_eq!(ram_end(&map()), 0x1_4000_0000);
        assert_eq!(identity_tables(&map(), None, 1 << 40, true), 1 + 2 + 19 + 19);
        assert_eq!(identity_tables(&map(), None, 512 << 30, false), 1 + 1 + 512 + 19);
        assert_eq!(reserve_pages(&map()), 16 + (1 + 1 + 512 + 1 + 512) + (1 + 1 + 1 + 1 + 1));
    }

    #[test]
    fn pages_belong_to_whom_the_map_says() {
        let kinds: Vec<_> = map().iter().map(|range| page_range(range).kind).collect();
        use PageKind::{Absent, Hypervisor, Parent};
        assert_eq!(kinds, [Parent, Hypervisor, Parent, Parent, Hypervisor, Parent, Absent, Absent, Parent]);
        assert_eq!(page_range(&map()[1]), PageRange { first: 8, pages: 1, kind: Hypervisor });
    }
}
