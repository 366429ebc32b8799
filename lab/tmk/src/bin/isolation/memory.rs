//! Addresses that are not the guest's.

use parterre_abi::msr;
use tmk::cpu::{self, cpuid, inb, inl, try_rdmsr, try_wrmsr};
use tmk::paging::{self, RIGHTS, UNCACHED};
use tmk::{Fault, TestResult, apic, catch, check, hv, line, params, skip};

/// Physical addresses of each kind that the memory map does not know, and where a small machine has no device.
fn strange_addresses() -> impl Iterator<Item = u64> {
    let ends =
        params::memory_map().filter(|range| range.is_ram).map(|range| range.end.next_multiple_of(4096));
    let fixed = [
        0xC000_0000,
        0xCFFF_F000,
        0xD000_0000,
        0xDEAD_0000,
        0xF800_0000,
        0xFD00_0000,
        0xFEA0_0000,
        0x1_0000_0000,
        0x4_0000_0000,
        0x40_0000_0000,
        0x7F_FFFF_F000,
        0xFD_0000_0000,
        0x100_0000_0000,
    ];
    let top = paging::highest_page();
    // Where the hypervisor's own memory is, if the one who starts the program knows it.
    let told = ["hypervisor", "hypervisor-end"].into_iter().filter_map(params::number);
    ends.chain(fixed)
        .chain(told)
        .chain([top, top - 0x1000, top - 0x20_0000, top / 2])
        .filter(move |&address| address <= top && address >= 0x10_0000 && !params::is_described(address))
}

fn read(address: u64, flags: u64) -> Result<u64, Fault> {
    let pointer = paging::show(0, address, flags).cast::<u64>();
    // SAFETY: the window is for this; what is read is not Rust's memory.
    catch(|| unsafe { core::ptr::read_volatile(pointer) })
}

fn write(address: u64, flags: u64, value: u64) -> Result<(), Fault> {
    let pointer = paging::show(0, address, flags).cast::<u64>();
    // SAFETY: the window is for this; the address is none of the program's memory.
    catch(|| unsafe { core::ptr::write_volatile(pointer, value) })
}

/// All ones, as an empty bus answers, or zeroes, or a fault. Anything else would be somebody's data.
pub fn memory_beyond_ram_reads_as_nothing() -> TestResult {
    let mut tried = 0;
    for address in strange_addresses() {
        for flags in [RIGHTS, RIGHTS | UNCACHED] {
            if let Ok(value) = read(address, flags) {
                check!(value == 0 || value == u64::MAX, "{address:#x} is not RAM, but reads as {value:#x}");
            }
            tried += 1;
        }
    }
    line!("{tried} addresses read");
    Ok(())
}

/// What is written beyond RAM must not be there afterwards.
pub fn memory_beyond_ram_keeps_no_write() -> TestResult {
    const PATTERN: u64 = 0x5AFE_C0DE_0BAD_F00D;
    for address in strange_addresses() {
        if write(address, RIGHTS | UNCACHED, PATTERN).is_ok()
            && let Ok(value) = read(address, RIGHTS | UNCACHED)
        {
            check!(value != PATTERN, "{address:#x} is not RAM, but keeps what is written");
        }
    }
    Ok(())
}

/// The accesses above must not have gone to the guest's own memory in disguise.
pub fn ram_is_untouched() -> TestResult {
    static CANARY: hv::Page = hv::Page::new();
    CANARY.fill(0x0123_4567_89AB_CDEF);
    memory_beyond_ram_keeps_no_write()?;
    for index in 0..512 {
        check!(CANARY.read(index) == 0x0123_4567_89AB_CDEF, "word {index} of a page of RAM has changed");
    }
    Ok(())
}

/// Overlay pages at addresses that are not RAM: refused, or there and gone again. Nothing else shows meanwhile.
pub fn overlays_beyond_ram_are_harmless() -> TestResult {
    const ENABLE: u64 = 1;
    let registers = [msr::REFERENCE_TSC, msr::VP_ASSIST_PAGE, msr::SIMP, msr::SIEFP];
    for number in registers {
        let Ok(before) = try_rdmsr(number) else { continue };
        for address in strange_addresses() {
            if try_wrmsr(number, address | ENABLE).is_ok() {
                let _ = read(address, RIGHTS);
                let _ = try_wrmsr(number, before);
            }
            if let Ok(value) = read(address, RIGHTS | UNCACHED) {
                check!(
                    value == 0 || value == u64::MAX,
                    "{address:#x} reads as {value:#x} after an overlay was there"
                );
            }
        }
    }
    Ok(())
}

/// A translation through a page table that is not RAM ends in a fault, or shows nothing.
pub fn page_tables_beyond_ram_are_harmless() -> TestResult {
    for address in strange_addresses() {
        let pointer = paging::show_through_table(address).cast::<u64>();
        // SAFETY: the window is for this; what is read is not Rust's memory.
        if let Ok(value) = catch(|| unsafe { core::ptr::read_volatile(pointer) }) {
            check!(
                value == 0 || value == u64::MAX,
                "a page table at {address:#x} leads to memory that reads as {value:#x}"
            );
        }
    }
    Ok(())
}

/// The APIC's page and its neighbours, whatever the mode: they answer something, and nothing breaks.
pub fn apic_hole_is_harmless() -> TestResult {
    let id = apic::id();
    for address in [0xFEE0_0000, 0xFEE0_0020, 0xFEE0_0FF0, 0xFEE0_1000, 0xFEEF_F000, 0xFEF0_0000] {
        let _ = read(address, RIGHTS | UNCACHED);
    }
    for address in [0xFEE0_1000, 0xFEEF_F000] {
        let _ = write(address, RIGHTS | UNCACHED, u64::MAX);
    }
    check!(apic::id() == id, "the APIC id has changed to {}", apic::id());
    Ok(())
}

/// An address above the width that CPUID tells is a page fault with the reserved bit set.
pub fn reserved_address_bits_fault() -> TestResult {
    let bits = cpu::physical_address_bits();
    if bits >= 52 {
        skip!("all 52 address bits are implemented")
    }
    let pointer = paging::show(0, 0, RIGHTS | 1 << 51).cast::<u64>();
    // SAFETY: the window is for this.
    match catch(|| unsafe { core::ptr::read_volatile(pointer) }) {
        Err(Fault { vector: Fault::PF, error_code, .. }) if error_code & 8 != 0 => Ok(()),
        Err(fault) => tmk::harness::fail(format_args!("address bit 51 of {bits} is used: {fault}")),
        // A hypervisor may leave the check to the second level, where the page is not the guest's.
        Ok(0 | u64::MAX) => Ok(()),
        Ok(value) => {
            tmk::harness::fail(format_args!("address bit 51 of {bits} is used, and reads as {value:#x}"))
        }
    }
}

/// Ports of all ranges can be read. (The few that do something when read are left out.)
pub fn ports_are_harmless() -> TestResult {
    for port in (0..=u16::MAX).step_by(251).chain([0x70, 0x71, 0x80, 0xED, 0x3F8, 0xFFFF]) {
        let _ = inb(port);
    }
    for port in [0xCF8, 0xFFFC] {
        let _ = inl(port);
    }
    check!(cpuid(0, 0).eax != 0, "CPUID does not answer any more");
    Ok(())
}
