//! The page tables and the GDT with which the parent's boot processor begins.
//!
//! The firmware's own would do on most machines, but they may be read-only, lie in memory that the kernel reuses, or
//! forbid execution where the kernel lies. Linux replaces both within its first instructions. Sources: Linux
//! `boot.rst`, "64-bit boot protocol"; AMD APM volume 2, 5.3.3 (2 MiB pages) and 4.8 (descriptors).

/// Bytes of one table.
const TABLE: u64 = 4096;
const ENTRIES: u64 = 512;
/// What one table of the lowest level covers.
const GIB: u64 = 1 << 30;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// The most that can be mapped: what one table of the second level covers, 512 GiB.
pub const MAX_MAPPED: u64 = ENTRIES * GIB;

/// Length in bytes of tables that map `mapped` bytes from address 0.
pub const fn page_tables_length(mapped: u64) -> usize {
    ((2 + mapped.div_ceil(GIB)) * TABLE) as usize
}

/// Writes tables that map the first `mapped` bytes onto themselves with 2 MiB pages, readable, writable and
/// executable. `target` is their memory, at physical address `address`: the level-4 table comes first.
///
/// Returns false, with nothing written, when `target` has not [`page_tables_length`] bytes or `mapped` exceeds
/// [`MAX_MAPPED`].
#[must_use]
pub fn write_page_tables(target: &mut [u8], address: u64, mapped: u64) -> bool {
    if mapped > MAX_MAPPED || target.len() != page_tables_length(mapped) {
        return false;
    }
    target.fill(0);
    let mut put = |offset: u64, entry: u64| {
        let offset = offset as usize;
        target[offset..offset + 8].copy_from_slice(&entry.to_le_bytes());
    };
    put(0, (address + TABLE) | PRESENT_WRITABLE);
    for gib in 0..mapped.div_ceil(GIB) {
        let table = (2 + gib) * TABLE;
        put(TABLE + gib * 8, (address + table) | PRESENT_WRITABLE);
        for index in 0..ENTRIES {
            put(table + index * 8, (gib * GIB + (index << 21)) | LARGE | PRESENT_WRITABLE);
        }
    }
    true
}

/// The GDT: null, unused, 64-bit code (0x10), flat data (0x18). Both are marked accessed, so nobody writes to them.
pub const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// The GDT's bytes.
pub fn gdt_bytes() -> [u8; 32] {
    let mut bytes = [0; 32];
    for (slot, descriptor) in bytes.chunks_exact_mut(8).zip(GDT) {
        slot.copy_from_slice(&descriptor.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u64_at;
    use parterre_hw::launch::{PARENT_CODE_SELECTOR, PARENT_DATA_SELECTOR, PARENT_GDT_LIMIT};

    /// Walks the tables as the processor does.
    fn translate(tables: &[u8], root: u64, address: u64) -> Option<u64> {
        let entry = |table: u64, shift: u32| {
            let index = (address >> shift) % ENTRIES;
            let entry = u64_at(tables, usize::try_from(table - root + index * 8).unwrap()).unwrap();
            (entry & 1 != 0).then_some(entry)
        };
        let upper = entry(root, 39)? & !0xfff;
        let middle = entry(upper, 30)? & !0xfff;
        let leaf = entry(middle, 21)?;
        assert_eq!(leaf & LARGE, LARGE);
        Some((leaf & !0x1f_ffff) | (address & 0x1f_ffff))
    }

    #[test]
    fn addresses_map_onto_themselves() {
        let (root, mapped) = (0x7_5432_1000, 5 * GIB);
        let mut tables = vec![0xff; page_tables_length(mapped)];
        assert!(write_page_tables(&mut tables, root, mapped));
        for address in [0, 0x1000, 0x1f_ffff, 0x20_0000, GIB - 1, GIB, 0xfee0_0000, mapped - 1] {
            assert_eq!(translate(&tables, root, address), Some(address));
        }
        assert_eq!(translate(&tables, root, mapped), None);
        assert_eq!(translate(&tables, root, 1 << 40), None);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(!write_page_tables(&mut [0; 4096], 0x1000, GIB));
        assert!(!write_page_tables(&mut vec![0; page_tables_length(MAX_MAPPED + 1)], 0x1000, MAX_MAPPED + 1));
    }

    #[test]
    fn the_gdt_has_the_protocols_selectors() {
        let bytes = gdt_bytes();
        assert_eq!(usize::from(PARENT_GDT_LIMIT) + 1, bytes.len());
        let code = u64_at(&bytes, PARENT_CODE_SELECTOR.into()).unwrap();
        let data = u64_at(&bytes, PARENT_DATA_SELECTOR.into()).unwrap();
        assert_eq!(code >> 40 & 0x9a, 0x9a, "present, code, readable");
        assert_eq!(code >> 53 & 0b11, 0b01, "64-bit");
        assert_eq!(data >> 40 & 0x9a, 0x92, "present, data, writable");
    }
}
