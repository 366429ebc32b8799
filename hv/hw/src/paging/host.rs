//! The hypervisor's own page tables (AMD APM 2, 5.3: long mode, four levels): physical memory mapped onto itself, with the
//! rights that each part needs and no more.
//!
//! They are built while the hypervisor starts and stay as they are. Nothing is ever writable and executable, stacks have a
//! hole below them, and no device registers are mapped but the one that resets the machine, if it is one.

use crate::heap::BootHeap;
use crate::launch::PhysicalRange;
use crate::physical;

/// What the hypervisor may do with a range of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Nothing: a guard.
    None,
    /// Read it.
    Read,
    /// Read and write it.
    ReadWrite,
    /// Read and execute it.
    ReadExecute,
    /// Read and write device registers: never cached.
    Device,
}

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl Rights {
    /// The entry's bits; a leaf above the lowest level adds [`LARGE`].
    fn bits(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Read => PRESENT | ACCESSED | DIRTY | NO_EXECUTE,
            Self::ReadWrite => PRESENT | ACCESSED | DIRTY | NO_EXECUTE | WRITE,
            Self::Device => Self::ReadWrite.bits() | WRITE_THROUGH | CACHE_DISABLE,
            Self::ReadExecute => PRESENT | ACCESSED | DIRTY,
        }
    }
}

/// The tables under construction.
#[derive(Debug)]
pub struct HostTables {
    root: u64,
    gigabyte_pages: bool,
}

impl HostTables {
    /// Empty tables whose root lies at physical address `root`.
    ///
    /// # Safety
    /// The page at `root` is zeroed, mapped, and the caller's alone. While the tables are loaded, the caller maps all that
    /// hypervisor code uses.
    pub unsafe fn new(root: u64, gigabyte_pages: bool) -> Self {
        Self { root, gigabyte_pages }
    }

    /// The physical address of the root.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Maps `range` (whole pages) onto itself with `rights`, whatever it was before. The processor's cached translations
    /// stay as they are.
    pub fn map(&mut self, heap: &mut BootHeap, range: PhysicalRange, rights: Rights) {
        debug_assert!(range.base.is_multiple_of(4096) && range.length.is_multiple_of(4096));
        self.map_in(heap, self.root, 4, range, rights);
    }

    fn map_in(&mut self, heap: &mut BootHeap, table: u64, level: u32, range: PhysicalRange, rights: Rights) {
        let shift = 12 + 9 * (level - 1);
        let size = 1_u64 << shift;
        let mut at = range.base;
        while at < range.end() {
            let entry_end = (at & !(size - 1)) + size;
            let part = PhysicalRange::new(at, entry_end.min(range.end()) - at);
            let slot = Slot::new(table, at >> shift & 511);
            let whole = part.length == size;
            if whole && self.leaf_allowed(level) && !slot.is_table(level) {
                let large = if level > 1 && rights != Rights::None { LARGE } else { 0 };
                slot.set(if rights == Rights::None { 0 } else { at | rights.bits() | large });
            } else {
                let below = slot.descend(heap, level);
                self.map_in(heap, below, level - 1, part, rights);
            }
            at = part.end();
        }
    }

    fn leaf_allowed(&self, level: u32) -> bool {
        level <= 2 || level == 3 && self.gigabyte_pages
    }
}

/// An entry of a table.
struct Slot(*mut u64);

impl Slot {
    fn new(table: u64, index: u64) -> Self {
        Self(physical::pointer(table + index * 8).cast())
    }

    fn get(&self) -> u64 {
        // SAFETY: `HostTables` has made the table and owns it; the index is below 512.
        unsafe { self.0.read_volatile() }
    }

    fn set(&self, value: u64) {
        // SAFETY: as in `get`. What a value maps is the machine's physical memory onto itself; who may use it is a question
        // of ownership, not of mapping.
        unsafe { self.0.write_volatile(value) }
    }

    fn is_table(&self, level: u32) -> bool {
        let entry = self.get();
        level > 1 && entry & PRESENT != 0 && entry & LARGE == 0
    }

    /// The table that this entry of `level` points to; makes it if there is none, out of a large leaf if there is one.
    fn descend(&self, heap: &mut BootHeap, level: u32) -> u64 {
        let entry = self.get();
        if self.is_table(level) {
            return entry & ADDRESS;
        }
        let table = heap.pages(1);
        if entry & PRESENT != 0 {
            let step = 1_u64 << (12 + 9 * (level - 2));
            let large = if level - 1 > 1 { LARGE } else { 0 };
            for index in 0..512 {
                Slot::new(table, index).set(((entry & !LARGE) + index * step) | large);
            }
        }
        self.set(table | PRESENT | WRITE | ACCESSED);
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(4096))]
    struct Arena([u8; 64 * 4096]);

    fn tables(gigabyte_pages: bool) -> (HostTables, BootHeap) {
        let arena = Box::leak(Box::new(Arena([0; 64 * 4096])));
        // SAFETY: the arena is leaked and used through the heap only.
        let mut heap =
            unsafe { BootHeap::new(PhysicalRange::new(physical::address(&raw const arena.0), 64 * 4096)) };
        let root = heap.pages(1);
        // SAFETY: a fresh page of the heap; the tables are never loaded.
        (unsafe { HostTables::new(root, gigabyte_pages) }, heap)
    }

    /// The leaf for `address`: rights bits, physical address, level.
    fn walk(tables: &HostTables, address: u64) -> Option<(u64, u64, u32)> {
        let mut table = tables.root();
        for level in (1..=4).rev() {
            let shift = 12 + 9 * (level - 1);
            let slot = Slot::new(table, address >> shift & 511);
            let entry = slot.get();
            if entry & PRESENT == 0 {
                return None;
            }
            if !slot.is_table(level) {
                let within = address & ((1 << shift) - 1);
                return Some((
                    entry & (WRITE | NO_EXECUTE),
                    (entry & ADDRESS & !((1 << shift) - 1)) + within,
                    level,
                ));
            }
            table = entry & ADDRESS;
        }
        unreachable!("level 1 is a leaf");
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_is_mapped_onto_itself_in_the_largest_pages() {
        for (gigabyte_pages, level) in [(true, 3), (false, 2)] {
            let (mut tables, mut heap) = tables(gigabyte_pages);
            tables.map(&mut heap, PhysicalRange::new(0x1000, 3 * GIB - 0x1000), Rights::ReadWrite);
            assert_eq!(walk(&tables, 0), None);
            assert_eq!(walk(&tables, 0x1234), Some((WRITE | NO_EXECUTE, 0x1234, 1)));
            assert_eq!(walk(&tables, 0x20_0000), Some((WRITE | NO_EXECUTE, 0x20_0000, 2)));
            assert_eq!(walk(&tables, 2 * GIB + 5), Some((WRITE | NO_EXECUTE, 2 * GIB + 5, level)));
            assert_eq!(walk(&tables, 3 * GIB), None);
        }
    }

    #[test]
    fn rights_of_a_part_leave_its_surroundings() {
        let (mut tables, mut heap) = tables(true);
        tables.map(&mut heap, PhysicalRange::new(0, 600 * GIB), Rights::ReadWrite);
        let code = 513 * GIB + 0x5000;
        tables.map(&mut heap, PhysicalRange::new(code, 0x3000), Rights::ReadExecute);
        tables.map(&mut heap, PhysicalRange::new(code + 0x1000, 0x1000), Rights::None);
        tables.map(&mut heap, PhysicalRange::new(code + 0x2000, 0x1000), Rights::Read);
        assert_eq!(walk(&tables, code - 1), Some((WRITE | NO_EXECUTE, code - 1, 1)));
        assert_eq!(walk(&tables, code), Some((0, code, 1)));
        assert_eq!(walk(&tables, code + 0x1fff), None);
        assert_eq!(walk(&tables, code + 0x2000), Some((NO_EXECUTE, code + 0x2000, 1)));
        assert_eq!(walk(&tables, code + 0x3000), Some((WRITE | NO_EXECUTE, code + 0x3000, 1)));
        assert_eq!(
            walk(&tables, 513 * GIB + 0x20_0000),
            Some((WRITE | NO_EXECUTE, 513 * GIB + 0x20_0000, 2))
        );
        assert_eq!(walk(&tables, 514 * GIB), Some((WRITE | NO_EXECUTE, 514 * GIB, 3)));
    }
}
