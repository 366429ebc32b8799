//! Registers that neither entries into a guest nor exits out of it switch by themselves: vector registers, debug registers, speculation
//! control. They have to be each virtual processor's own, whatever runs between two of its instructions: the hypervisor, the parent,
//! another virtual processor.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use tmk::cpu::{self, cpuid, outb, rdmsr, try_wrmsr, wrmsr};
use tmk::{TestResult, check, fault, skip, smp};

tmk::program!("state":
    vector_registers_are_kept,
    debug_registers_are_kept,
    speculation_control_is_kept,
    speculation_control_has_no_other_bits,
    predictions_can_be_dropped,
);

/// Nobody has a device there but the parent, so it takes an exit all the way.
const PORT: u16 = 0x80;
const TIMES: u32 = 100;

static WRONG: AtomicU32 = AtomicU32::new(0);

/// Runs `work` on all processors at a time, and fails if one of them has counted something wrong.
fn on_all(what: &str, work: fn()) -> TestResult {
    WRONG.store(0, Ordering::SeqCst);
    for index in 1..smp::count() {
        smp::give(index, work);
    }
    work();
    for index in 1..smp::count() {
        check!(smp::finished(index), "processor {index} does not come back");
    }
    let wrong = WRONG.load(Ordering::SeqCst);
    check!(wrong == 0, "{what} held another value {wrong} times");
    Ok(())
}

/// A value that no two processors have.
fn own(round: u32) -> u64 {
    0x0101_0101_0101_0101 * (fault::processor_index() as u64 + 1) + (u64::from(round) << 32)
}

fn count_wrong(wrong: bool) {
    WRONG.fetch_add(u32::from(wrong), Ordering::SeqCst);
}

const XSAVE: u32 = 1 << 26;
const AVX: u32 = 1 << 28;

fn vector_registers_are_kept() -> TestResult {
    if cpuid(1, 0).ecx & (XSAVE | AVX) != XSAVE | AVX {
        skip!("no AVX")
    }
    on_all("a vector register", || {
        enable_vectors();
        for round in 0..TIMES {
            let value = [own(round), !own(round), own(round + 7), own(round) ^ 0x55];
            count_wrong(over_an_exit(&value) != value);
        }
    })
}

fn enable_vectors() {
    let cr4 = cpu::cr4();
    // SAFETY: the processor has XSAVE and AVX; nothing else here uses them.
    unsafe {
        asm!("mov cr4, {}", in(reg) cr4 | 1 << 9 | 1 << 18);
        asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0);
    }
}

/// Puts `value` into YMM registers and reads it out of one of them after an exit to the parent.
fn over_an_exit(value: &[u64; 4]) -> [u64; 4] {
    let mut after = [0; 4];
    // SAFETY: AVX is enabled; the program itself uses no vector registers.
    unsafe {
        asm!(
            "vmovdqu ymm15, [{value}]",
            "vmovdqu ymm3, [{value}]",
            "out dx, al",
            "vandps ymm15, ymm15, ymm3",
            "vmovdqu [{after}], ymm15",
            value = in(reg) value, after = in(reg) &mut after, in("dx") PORT, in("al") 0_u8,
            options(nostack),
        );
    }
    after
}

fn debug_registers_are_kept() -> TestResult {
    on_all("a debug register", || {
        for round in 0..TIMES {
            let value = own(round) & 0x7FFF_FFFF_FFFF;
            let (first, last): (u64, u64);
            // SAFETY: DR7 enables no breakpoint.
            unsafe {
                asm!("mov dr0, {}", "mov dr3, {}", in(reg) value, in(reg) !value >> 17, options(nostack));
                outb(PORT, 0);
                asm!("mov {}, dr0", "mov {}, dr3", out(reg) first, out(reg) last, options(nostack));
            }
            count_wrong((first, last) != (value, !value >> 17));
        }
    })
}

const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const IBRS: u64 = 1 << 0;
const STIBP: u64 = 1 << 1;

/// Whether CPUID tells of IBRS, in either vendor's way.
fn has_speculation_control() -> bool {
    let extended = if cpuid(0x8000_0000, 0).eax >= 0x8000_0008 { cpuid(0x8000_0008, 0).ebx } else { 0 };
    cpuid(7, 0).edx & 1 << 26 != 0 || extended & 1 << 14 != 0
}

fn speculation_control_is_kept() -> TestResult {
    if !has_speculation_control() {
        skip!("no SPEC_CTRL")
    }
    on_all("SPEC_CTRL", || {
        for round in 0..TIMES {
            let value = if round % 2 == fault::processor_index() as u32 % 2 { IBRS } else { IBRS | STIBP };
            let value = if round % 5 == 0 { 0 } else { value };
            wrmsr(SPEC_CTRL, value);
            outb(PORT, 0);
            count_wrong(rdmsr(SPEC_CTRL) != value);
        }
        wrmsr(SPEC_CTRL, 0);
    })
}

fn speculation_control_has_no_other_bits() -> TestResult {
    if !has_speculation_control() {
        skip!("no SPEC_CTRL")
    }
    for bit in (3..64).filter(|bit| *bit != 7) {
        check!(try_wrmsr(SPEC_CTRL, 1 << bit).is_err(), "bit {bit} of SPEC_CTRL can be set");
    }
    check!(rdmsr(SPEC_CTRL) == 0, "SPEC_CTRL is {:#x} after refused writes", rdmsr(SPEC_CTRL));
    Ok(())
}

fn predictions_can_be_dropped() -> TestResult {
    if cpuid(7, 0).edx & 1 << 26 == 0 {
        skip!("no PRED_CMD")
    }
    check!(try_wrmsr(PRED_CMD, 1).is_ok(), "IBPB is refused");
    check!(try_wrmsr(PRED_CMD, 2).is_err(), "a command that does not exist is taken");
    Ok(())
}
