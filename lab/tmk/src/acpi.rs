//! The little of ACPI that is needed: which local APICs the MADT names.

use crate::fault::MAX_PROCESSORS;
use crate::params;
use arrayvec::ArrayVec;

/// APIC ids of enabled processors, in the MADT's order.
pub fn apic_ids() -> ArrayVec<u32, { MAX_PROCESSORS + 1 }> {
    let mut ids = ArrayVec::new();
    if let Some(madt) = rsdp().and_then(|rsdp| find_table(rsdp, *b"APIC")) {
        let length = u64::from(read::<u32>(madt + 4));
        let mut offset = 44;
        while offset + 2 <= length {
            let entry = madt + offset;
            let (kind, size) = (read::<u8>(entry), u64::from(read::<u8>(entry + 1)));
            let id = match kind {
                0 if read::<u32>(entry + 4) & 1 != 0 => Some(u32::from(read::<u8>(entry + 3))),
                9 if read::<u32>(entry + 8) & 1 != 0 => Some(read::<u32>(entry + 4)),
                _ => None,
            };
            if let Some(id) = id {
                let _ = ids.try_push(id);
            }
            offset += size.max(2);
        }
    }
    ids
}

/// Reads firmware's memory; addresses at 4 GiB and above are not mapped and read as zero.
fn read<T: Copy + Default>(address: u64) -> T {
    if address == 0 || address + size_of::<T>() as u64 > 1 << 32 {
        return T::default();
    }
    // SAFETY: the first 4 GiB are mapped; tables are plain bytes that nobody changes.
    unsafe { core::ptr::read_unaligned(address as *const T) }
}

fn rsdp() -> Option<u64> {
    const SIGNATURE: u64 = u64::from_le_bytes(*b"RSD PTR ");
    let in_bios = || (0xE_0000u64..0x10_0000).step_by(16).find(|&address| read::<u64>(address) == SIGNATURE);
    params::acpi_rsdp().filter(|&address| read::<u64>(address) == SIGNATURE).or_else(in_bios)
}

fn find_table(rsdp: u64, signature: [u8; 4]) -> Option<u64> {
    let xsdt: u64 = if read::<u8>(rsdp + 15) >= 2 { read(rsdp + 24) } else { 0 };
    let (root, width) = if xsdt != 0 { (xsdt, 8) } else { (u64::from(read::<u32>(rsdp + 16)), 4) };
    let end = u64::from(read::<u32>(root + 4));
    (36..end).step_by(width).find_map(|offset| {
        let table =
            if width == 8 { read::<u64>(root + offset) } else { u64::from(read::<u32>(root + offset)) };
        (read::<[u8; 4]>(table) == signature).then_some(table)
    })
}
