//! What the loader says: the Linux `boot_params` (Documentation/arch/x86/zero-page.rst).

use core::sync::atomic::{AtomicUsize, Ordering};

static BOOT_PARAMS: AtomicUsize = AtomicUsize::new(0);

const ACPI_RSDP: usize = 0x070;
const E820_ENTRIES: usize = 0x1E8;
const CMD_LINE_PTR: usize = 0x228;
const E820_TABLE: usize = 0x2D0;
const E820_RAM: u32 = 1;

/// Remembers where `boot_params` is.
///
/// # Safety
/// The address is the one the loader gave, mapped and never changed.
pub unsafe fn set(address: usize) {
    BOOT_PARAMS.store(address, Ordering::Relaxed);
}

fn read<T: Copy>(offset: usize) -> T {
    let address = BOOT_PARAMS.load(Ordering::Relaxed) + offset;
    // SAFETY: `set` was given the loader's page, and all offsets used are inside of it; any bits are a `T` here.
    unsafe { core::ptr::read_unaligned(address as *const T) }
}

/// The address of the ACPI RSDP, if the loader gave one.
pub fn acpi_rsdp() -> Option<u64> {
    Some(read::<u64>(ACPI_RSDP)).filter(|&address| address != 0)
}

/// A range of the memory map.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// Whether it is RAM.
    pub is_ram: bool,
}

/// The memory map.
pub fn memory_map() -> impl Iterator<Item = Range> {
    let count = usize::from(read::<u8>(E820_ENTRIES)).min(128);
    (0..count).map(|index| {
        let entry = E820_TABLE + 20 * index;
        let (start, size): (u64, u64) = (read(entry), read(entry + 8));
        Range { start, end: start.saturating_add(size), is_ram: read::<u32>(entry + 16) == E820_RAM }
    })
}

/// Whether the memory map names an address: as RAM, as firmware's tables, as reserved.
pub fn is_described(address: u64) -> bool {
    memory_map().any(|range| range.start <= address && address < range.end)
}

/// The end of the RAM below 4 GiB that contains the program.
pub fn low_ram_end() -> u64 {
    memory_map()
        .filter(|range| range.is_ram && range.start <= 0x10_0000 && range.end > 0x10_0000)
        .map(|range| range.end.min(1 << 32))
        .next()
        .unwrap_or(0x100_0000)
}

unsafe extern "C" {
    /// The linker's: the program's memory ends well before a mebibyte after this.
    static tmk_bss_end: u8;
}

/// RAM that neither the program nor the loader uses: from a mebibyte behind the program to one before the end.
pub fn spare_ram() -> Range {
    const MIB: u64 = 1 << 20;
    let start = (&raw const tmk_bss_end as u64 + MIB).next_multiple_of(MIB);
    let end = (low_ram_end().saturating_sub(MIB) / MIB * MIB).max(start);
    Range { start, end, is_ram: true }
}

/// The number after `NAME=` in the command line.
pub fn number(name: &str) -> Option<u64> {
    let pointer: u32 = read(CMD_LINE_PTR);
    if pointer == 0 {
        return None;
    }
    let mut text = [0u8; 256];
    for (index, byte) in text.iter_mut().enumerate() {
        // SAFETY: the protocol says that a zero-terminated string lies there, below 4 GiB; reading stops at the zero.
        *byte = unsafe { core::ptr::read((pointer as usize + index) as *const u8) };
        if *byte == 0 {
            break;
        }
    }
    let text = core::str::from_utf8(&text).ok()?;
    let text = text.trim_end_matches('\0');
    text.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}
