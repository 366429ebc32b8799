//! The state in which the first processor enters the kernel: long mode, identity-mapped, flat segments.

use parterre_partition::memory::GuestMemory;
use parterre_partition::registers::{ArchState, Register, Segment, Table};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, address};

/// CR0: protected mode, extension type, native FPU errors, paging.
const CR0: u64 = 1 << 31 | 1 << 5 | 1 << 4 | 1 << 0;
/// CR4: physical address extension.
const CR4: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER: u64 = 1 << 8 | 1 << 10;
/// RFLAGS: only the bit that is always one; interrupts are off.
const RFLAGS: u64 = 1 << 1;

/// Selectors that the boot protocol names: `__BOOT_CS`, `__BOOT_DS`, and a task segment behind them.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Attributes (type, S, DPL, P, L, D, G) of the segments.
const CODE_ATTRIBUTES: u16 = 0xA09B;
const DATA_ATTRIBUTES: u16 = 0xC093;
const TASK_ATTRIBUTES: u16 = 0x008B;
const LDT_ATTRIBUTES: u16 = 0x0082;

/// Page table bits: present, writable, and (in a directory) a 2 MiB page.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
/// GiB that the page tables map.
const MAPPED_GIB: u64 = 4;

/// Writes descriptor and page tables; returns the registers to enter the kernel at `entry`.
pub(super) fn prepare(memory: &GuestMemory, entry: u64) -> Result<ArchState, BootError> {
    write_page_tables(memory)?;
    let gdt = write_gdt(memory)?;
    let data = segment(DATA, DATA_ATTRIBUTES, 0xFFFF_FFFF);
    let code = segment(CODE, CODE_ATTRIBUTES, 0xFFFF_FFFF);
    let mut general = [0; 18];
    general[Register::Rsi as usize] = address::ZERO_PAGE;
    general[Register::Rsp as usize] = address::STACK;
    general[Register::Rip as usize] = entry;
    general[Register::Rflags as usize] = RFLAGS;
    Ok(ArchState {
        general,
        segments: [data, code, data, data, data, data],
        tr: segment(TASK, TASK_ATTRIBUTES, 0x67),
        ldtr: segment(0, LDT_ATTRIBUTES, 0xFFFF),
        gdtr: gdt,
        idtr: Table { base: 0, limit: 0 },
        cr0: CR0,
        cr3: address::PAGE_TABLES,
        cr4: CR4,
        efer: EFER,
    })
}

fn segment(selector: u16, attributes: u16, limit: u32) -> Segment {
    Segment { base: 0, limit, selector, attributes }
}

/// A descriptor with base 0 as it stands in the table (AMD APM volume 2, 4.7.1).
fn descriptor(segment: &Segment) -> u64 {
    let granular = segment.attributes & (1 << 15) != 0;
    let limit = u64::from(if granular { segment.limit >> 12 } else { segment.limit });
    limit & 0xFFFF | (limit >> 16 & 0xF) << 48 | u64::from(segment.attributes & 0xF0FF) << 40
}

fn write_gdt(memory: &GuestMemory) -> Result<Table, BootError> {
    let entries = [
        0,
        0,
        descriptor(&segment(CODE, CODE_ATTRIBUTES, 0xFFFF_FFFF)),
        descriptor(&segment(DATA, DATA_ATTRIBUTES, 0xFFFF_FFFF)),
        descriptor(&segment(TASK, TASK_ATTRIBUTES, 0x67)),
        0, // upper half of the task segment's base
    ];
    for (entry, at) in entries.iter().zip((address::GDT..).step_by(8)) {
        memory.regions().write_obj(*entry, GuestAddress(at)).map_err(BootError::load("descriptor tables"))?;
    }
    Ok(Table { base: address::GDT, limit: entries.len() as u16 * 8 - 1 })
}

/// Maps the first 4 GiB to themselves with 2 MiB pages.
fn write_page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    let pdpt = address::PAGE_TABLES + 0x1000;
    let directories = pdpt + 0x1000;
    let write = |at: u64, value: u64| {
        memory.regions().write_obj(value, GuestAddress(at)).map_err(BootError::load("page tables"))
    };
    write(address::PAGE_TABLES, pdpt | PRESENT_WRITABLE)?;
    for gib in 0..MAPPED_GIB {
        write(pdpt + gib * 8, (directories + gib * 0x1000) | PRESENT_WRITABLE)?;
    }
    for page in 0..MAPPED_GIB * 512 {
        write(directories + page * 8, page << 21 | LARGE | PRESENT_WRITABLE)?;
    }
    Ok(())
}
