//! Whose every page is at boot, and the parent's address space made of what is the parent's.

use core::sync::atomic::AtomicU64;

use parterre_core::machine::{Access, TableSource};
use parterre_core::memory::{Frame, OwnershipTable, PageKind, PageRange, ParentSpace, Pool, Visible};

use crate::cpu::mtrr::MemoryTypes;
use crate::cpu::registers;
use crate::heap::BootHeap;
use crate::launch::{MemoryRange, PhysicalRange};
use crate::layout;
use crate::machine::Pc;
use crate::paging::slat::{Format, IdentityRange, Space};
use crate::physical::PAGE_SIZE;
use crate::vendor::Vendor;

/// Pages of the hypervisor's region that the ownership table hands out, and what for.
#[derive(Clone, Copy, Debug)]
struct Stocks {
    special: PageRange,
    reserve: PageRange,
    boot: PageRange,
}

impl Stocks {
    fn new(heap: &mut BootHeap, memory: &[MemoryRange], special: usize, tables: u64) -> Self {
        let mut take = |pages: usize, kind| {
            layout::pages(PhysicalRange::new(heap.pages(pages), (pages * PAGE_SIZE) as u64), kind)
        };
        Self {
            special: take(special, PageKind::Special),
            reserve: take(layout::reserve_pages(memory) as usize, PageKind::Reserve),
            boot: take(tables as usize, PageKind::Boot),
        }
    }
}

/// Makes the ownership table and the parent's address space; `special` pages are set aside for [`special_page`].
pub fn build(
    vendor: &Vendor,
    heap: &mut BootHeap,
    memory: &[MemoryRange],
    special: usize,
) -> (OwnershipTable, ParentSpace<Pc>) {
    let gigabyte_pages = vendor.has_gigabyte_pages();
    let reach = layout::reach(memory, registers::physical_address_bits(), gigabyte_pages);
    let types = vendor.memory_types();
    let tables = layout::identity_tables(memory, types.as_ref(), reach, gigabyte_pages);
    let stocks = Stocks::new(heap, memory, special, tables);
    let entries = (layout::ram_end(memory) / PAGE_SIZE as u64) as usize;
    let storage = heap.slice(entries, |_| AtomicU64::new(0));
    let own = [stocks.special, stocks.reserve, stocks.boot];
    let ranges = heap.slice(memory.len() + own.len(), |index| match memory.get(index) {
        Some(range) => layout::page_range(range),
        None => own[index - memory.len()],
    });
    let table = OwnershipTable::new(storage, ranges);
    let ranges = stretches(heap, memory, types.as_ref(), reach);
    let slat = identity(vendor.format(), &table, ranges, gigabyte_pages);
    let reserve = Pool::of_reserve(&table, stocks.reserve.first, stocks.reserve.pages);
    (table, ParentSpace::new(slat, reserve))
}

/// What the parent sees, in stretches of the same kind and memory type.
fn stretches(
    heap: &mut BootHeap,
    memory: &[MemoryRange],
    types: Option<&MemoryTypes>,
    reach: u64,
) -> &'static [IdentityRange] {
    let none = IdentityRange { first: 0, pages: 0, device: true, kind: 0 };
    let ranges = heap.slice(layout::most_stretches(memory, types), |_| none);
    let mut count = 0;
    let mut add = |range| {
        ranges[count] = range;
        count += 1;
    };
    layout::identity(memory, reach, |range| match types {
        Some(types) => layout::typed(range, types, &mut add),
        None => add(range),
    });
    &ranges[..count]
}

fn identity(format: Format, table: &OwnershipTable, ranges: &[IdentityRange], gigabyte_pages: bool) -> Space {
    let mut tables = BootTables(table);
    let root = tables.take().expect("`identity_tables` counts the root");
    Space::identity(format, root, ranges, gigabyte_pages, &mut tables)
        .expect("`identity_tables` counts every table that the map can need")
}

/// Takes a page that the parent finds in a register of its, and shows it to the parent.
pub fn special_page(
    machine: &Pc,
    table: &OwnershipTable,
    space: &mut ParentSpace<Pc>,
    access: Access,
) -> Visible {
    let page = table.take_special().expect("as many were set aside as there are registers for them");
    space
        .share(machine, table, &page, access)
        .expect("the parent's reserve has tables for its special pages");
    page
}

/// Tables for the parent's address space while it is built: zeroed pages of the heap. What splitting takes later comes
/// from the reserve, so nothing is set aside here.
struct BootTables<'a>(&'a OwnershipTable);

impl TableSource for BootTables<'_> {
    fn take(&mut self) -> Option<Frame> {
        self.0.take_boot()
    }

    fn give(&mut self, _: Frame) {
        unreachable!("a map that is only built gives nothing back");
    }

    fn reserve(&mut self) -> bool {
        true
    }

    fn take_reserved(&mut self) -> Option<Frame> {
        self.take()
    }

    fn unreserve(&mut self) {}
}
