//! Instructions. Those that do not touch memory are safe functions here, see the crate's documentation.

use crate::fault::{Fault, catch};
use core::arch::asm;

pub use core::arch::x86_64::CpuidResult;

/// CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// RDTSC, after all instructions before it.
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads the time stamp counter only.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Reads a byte from a port.
pub fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: ports do not reach memory that Rust knows of: the machine has no device that copies into it.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Writes a byte to a port.
pub fn outb(port: u16, value: u8) {
    // SAFETY: as for `inb`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Writes 16 bits to a port.
pub fn outw(port: u16, value: u16) {
    // SAFETY: as for `inb`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}

/// Reads 32 bits from a port.
pub fn inl(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as for `inb`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

/// RDMSR; an exception if the MSR is not there and nothing catches it.
pub fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads only.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR; an exception if the value is refused and nothing catches it.
pub fn wrmsr(msr: u32, value: u64) {
    // SAFETY: changes the machine's state, which the program owns. (A page that an MSR overlays over the program's
    // memory is chosen by the caller from memory set apart for it.)
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
    };
}

/// RDMSR that answers the exception.
pub fn try_rdmsr(msr: u32) -> Result<u64, Fault> {
    catch(|| rdmsr(msr))
}

/// WRMSR that answers the exception.
pub fn try_wrmsr(msr: u32, value: u64) -> Result<(), Fault> {
    catch(|| wrmsr(msr, value))
}

/// Allows interrupts.
pub fn enable_interrupts() {
    // SAFETY: handlers are installed before any program runs.
    unsafe { asm!("sti", options(nomem, nostack)) };
}

/// Forbids interrupts.
pub fn disable_interrupts() {
    // SAFETY: changes RFLAGS.IF only.
    unsafe { asm!("cli", options(nomem, nostack)) };
}

/// Allows interrupts and halts in one step, so that none is missed; forbids them again.
pub fn halt() {
    // SAFETY: as for `enable_interrupts`.
    unsafe { asm!("sti", "hlt", "cli", options(nomem, nostack)) };
}

/// Allows interrupts for a moment.
pub fn take_interrupts() {
    // SAFETY: as for `enable_interrupts`. The instruction after STI still runs before an interrupt is taken.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nomem, nostack)) };
}

/// CR2: the address of the last page fault.
pub fn cr2() -> u64 {
    let value: u64;
    // SAFETY: reads only.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack)) };
    value
}

/// CR4.
pub fn cr4() -> u64 {
    let value: u64;
    // SAFETY: reads only.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack)) };
    value
}

/// Bits of a physical address (CPUID 0x80000008).
pub fn physical_address_bits() -> u32 {
    if cpuid(0x8000_0000, 0).eax >= 0x8000_0008 { cpuid(0x8000_0008, 0).eax & 0xFF } else { 36 }
}

/// Whether the processor is AMD's or a relative of it (SVM, VMMCALL).
pub fn is_amd() -> bool {
    matches!(cpuid(0, 0).ecx, 0x444D_4163 | 0x656E_6975)
}
