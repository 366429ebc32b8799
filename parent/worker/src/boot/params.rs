//! The zero page: the setup header, the memory map and the address of the ACPI tables.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use parterre_partition::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, address};

/// Boot loader type "undefined".
const LOADER_UNDEFINED: u8 = 0xFF;
/// `loadflags`: the kernel was loaded at 1 MiB or above; the heap field is not used.
const LOADED_HIGH: u8 = 1 << 0;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// The memory map: conventional memory, the BIOS area, and all RAM above it.
pub(super) fn memory_map(memory: &GuestMemory) -> Vec<boot_e820_entry> {
    let entry = |addr, end: u64, kind| boot_e820_entry { addr, size: end - addr, r#type: kind };
    let mut map = vec![
        entry(0, address::LOW_END, E820_RAM),
        entry(address::LOW_END, address::HIGH, E820_RESERVED), //
    ];
    for range in memory.ranges() {
        map.push(entry(range.gpa.max(address::HIGH), range.gpa + range.len, E820_RAM));
    }
    map
}

/// Writes the zero page.
pub(super) fn write_zero_page(memory: &GuestMemory, header: setup_header) -> Result<(), BootError> {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: address::ACPI, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.loadflags |= LOADED_HIGH;
    let map = memory_map(memory);
    params.e820_entries = map.len() as u8;
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = entry;
    }
    params.e820_table = table;
    memory
        .regions()
        .write_obj(params, GuestAddress(address::ZERO_PAGE))
        .map_err(BootError::load("the boot parameters"))
}
