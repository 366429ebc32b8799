//! Page tables: the first 4 GiB as they are, for user mode too, and a window through which any physical page can be seen.

use crate::cpu;
use core::cell::UnsafeCell;

#[repr(C, align(4096))]
struct Table(UnsafeCell<[u64; 512]>);
// SAFETY: written by the boot processor only; the processors' page walks are no accesses of Rust.
unsafe impl Sync for Table {}

impl Table {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; 512]))
    }

    fn address(&self) -> u64 {
        self.0.get() as u64
    }

    fn set(&self, index: usize, entry: u64) {
        // SAFETY: the index is below 512 by the mask; a volatile write, since the processor reads it.
        unsafe { core::ptr::write_volatile((self.0.get() as *mut u64).add(index & 511), entry) };
    }
}

static PML4: Table = Table::new();
static PDPT: Table = Table::new();
static PDS: [Table; 4] = [const { Table::new() }; 4];
static WINDOW_PDPT: Table = Table::new();
static WINDOW_PD: Table = Table::new();
static WINDOW_PT: Table = Table::new();

/// Present, writable, for user mode.
pub const RIGHTS: u64 = 7;
/// Uncached.
pub const UNCACHED: u64 = 0x18;
const LARGE: u64 = 0x80;
const WINDOW: u64 = 1 << 39;

/// Pages that the window shows at a time.
pub const WINDOW_PAGES: usize = 512;

/// Builds the tables and switches to them.
pub fn init() {
    PML4.set(0, PDPT.address() | RIGHTS);
    for (index, pd) in PDS.iter().enumerate() {
        PDPT.set(index, pd.address() | RIGHTS);
        for entry in 0..512 {
            let address = (index as u64) << 30 | (entry as u64) << 21;
            // The last 32 MiB hold the APICs and firmware.
            let caching = if address >= 0xFE00_0000 { UNCACHED } else { 0 };
            pd.set(entry, address | LARGE | RIGHTS | caching);
        }
    }
    PML4.set(1, WINDOW_PDPT.address() | RIGHTS);
    WINDOW_PDPT.set(0, WINDOW_PD.address() | RIGHTS);
    WINDOW_PD.set(0, WINDOW_PT.address() | RIGHTS);
    load();
}

/// The address of the tables.
pub fn cr3() -> u64 {
    PML4.address()
}

/// Switches this processor to the tables.
pub fn load() {
    // SAFETY: the tables map the program where it is.
    unsafe { core::arch::asm!("mov cr3, {}", in(reg) cr3(), options(nostack)) };
}

/// Shows a physical page in the window; `flags` are those of the page table entry.
pub fn show(slot: usize, physical: u64, flags: u64) -> *mut u8 {
    let slot = slot % WINDOW_PAGES;
    WINDOW_PT.set(slot, physical & 0x000F_FFFF_FFFF_F000 | flags);
    let address = WINDOW + 4096 * slot as u64;
    // SAFETY: drops a translation.
    unsafe { core::arch::asm!("invlpg [{}]", in(reg) address, options(nostack)) };
    (address | physical & 0xFFF) as *mut u8
}

/// An address whose translation goes through a page table that lies at any physical address.
pub fn show_through_table(table: u64) -> *mut u8 {
    const INDEX: usize = 1;
    WINDOW_PD.set(INDEX, table & 0x000F_FFFF_FFFF_F000 | RIGHTS);
    let address = WINDOW + ((INDEX as u64) << 21);
    // SAFETY: drops a translation.
    unsafe { core::arch::asm!("invlpg [{}]", in(reg) address, options(nostack)) };
    address as *mut u8
}

/// Changes what a slot of the window shows, without flushing the translation that may be cached.
pub fn change_without_flush(slot: usize, physical: u64, flags: u64) {
    WINDOW_PT.set(slot % WINDOW_PAGES, physical & 0x000F_FFFF_FFFF_F000 | flags);
}

/// The highest physical page the processor can name.
pub fn highest_page() -> u64 {
    (1u64 << cpu::physical_address_bits().min(52)) - 4096
}
