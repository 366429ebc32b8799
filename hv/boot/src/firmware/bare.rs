//! The jump into a kernel on the bare machine (Linux `boot.rst`, "64-bit boot protocol").

use core::arch::asm;

use parterre_hw::launch::{PARENT_CODE_SELECTOR, PARENT_DATA_SELECTOR, PARENT_GDT_LIMIT, ParentStart};

/// What LGDT reads.
#[repr(C, packed)]
struct GdtPointer {
    limit: u16,
    base: u64,
}

/// Turns interrupts off; the firmware's handlers end with its boot services.
pub fn disable_interrupts() {
    // SAFETY: nothing of this program waits for an interrupt.
    unsafe { asm!("cli", options(nomem, nostack)) };
}

/// Starts the kernel.
pub fn enter(start: &ParentStart) -> ! {
    let gdt = GdtPointer { limit: PARENT_GDT_LIMIT, base: start.gdt };
    // SAFETY: `start` names a GDT and page tables that this program has just made; they map this code, this stack and
    // the kernel onto themselves. The kernel never returns, and nothing of this program is used after it began.
    unsafe {
        asm!(
            "cli",
            "cld",
            "lgdt [{gdt}]",
            "mov cr3, {page_tables}",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "mov ss, {data:e}",
            "push {code}",
            "push {entry}",
            "xor ebp, ebp",
            "xor edi, edi",
            "retfq",
            gdt = in(reg) &raw const gdt,
            page_tables = in(reg) start.page_tables,
            data = in(reg) u32::from(PARENT_DATA_SELECTOR),
            code = in(reg) u64::from(PARENT_CODE_SELECTOR),
            entry = in(reg) start.entry,
            in("rsi") start.boot_params,
            options(noreturn)
        )
    }
}
