//! The entries in assembly, and the first Rust function.

// Label differences cannot be written in Intel syntax, see boot.s.
#![allow(bad_asm_style)]

use crate::{apic, cpu, fault, harness, line, paging, params, serial, smp};

core::arch::global_asm!(include_str!("boot.s"), options(raw));

unsafe extern "Rust" {
    /// The program, defined by [`crate::program!`].
    safe fn tmk_main();
}

/// Called once, on the boot processor, with a stack and zeroed statics.
#[unsafe(no_mangle)]
extern "C" fn tmk_start(boot_params: usize) -> ! {
    serial::init();
    // SAFETY: this is what the loader passed in RSI.
    unsafe { params::set(boot_params) };
    paging::init();
    fault::init_processor(0);
    mask_legacy_pics();
    apic::enable();
    smp::init();
    tmk_main();
    harness::finish()
}

/// The interrupts of the old controllers are not wanted.
fn mask_legacy_pics() {
    cpu::outb(0x21, 0xFF);
    cpu::outb(0xA1, 0xFF);
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    line!("{info}");
    harness::abort(format_args!("the test program panicked"))
}
