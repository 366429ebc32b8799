//! The local APIC, in either mode (Intel SDM volume 3, chapter "APIC").

use crate::cpu::{cpuid, rdmsr, wrmsr};

/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1B;
const ENABLED: u64 = 1 << 11;
const X2APIC_ENABLED: u64 = 1 << 10;
const PAGE: u64 = 0xFEE0_0000;

/// Registers, by their offset in the page divided by 16; that is also their MSR number above 0x800.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Register {
    /// Id.
    Id = 0x02,
    /// Version.
    Version = 0x03,
    /// Task priority.
    Tpr = 0x08,
    /// Processor priority.
    Ppr = 0x0A,
    /// End of interrupt.
    Eoi = 0x0B,
    /// Logical destination.
    Ldr = 0x0D,
    /// Destination format (xAPIC only).
    Dfr = 0x0E,
    /// Spurious vector.
    Spurious = 0x0F,
    /// First word of in-service vectors.
    Isr0 = 0x10,
    /// First word of requested vectors.
    Irr0 = 0x20,
    /// Error status.
    Esr = 0x28,
    /// Interrupt command.
    Icr = 0x30,
    /// Interrupt command, high half (xAPIC only).
    IcrHigh = 0x31,
    /// Timer entry.
    LvtTimer = 0x32,
    /// LINT0 entry.
    LvtLint0 = 0x35,
    /// Error entry.
    LvtError = 0x37,
    /// Timer: initial count.
    InitialCount = 0x38,
    /// Timer: current count.
    CurrentCount = 0x39,
    /// Timer: divider.
    Divide = 0x3E,
}

/// Whether the processor has the x2APIC mode.
pub fn has_x2apic() -> bool {
    cpuid(1, 0).ecx & 1 << 21 != 0
}

/// Whether this processor is in the x2APIC mode.
pub fn in_x2apic_mode() -> bool {
    rdmsr(APIC_BASE) & X2APIC_ENABLED != 0
}

/// Enables the APIC, in the x2APIC mode if it is there. (Not back again: that would need a reset of the APIC.)
pub fn enable() {
    let base = rdmsr(APIC_BASE) | ENABLED;
    wrmsr(APIC_BASE, base);
    if has_x2apic() {
        wrmsr(APIC_BASE, base | X2APIC_ENABLED);
    }
    write(Register::Spurious, 0x1FF);
    write(Register::Tpr, 0);
}

/// Reads a register.
pub fn read(register: Register) -> u64 {
    if in_x2apic_mode() {
        return rdmsr(0x800 + register as u32);
    }
    // SAFETY: the page is mapped uncached and holds nothing of Rust's.
    unsafe { core::ptr::read_volatile((PAGE + 16 * register as u64) as *const u32) }.into()
}

/// Writes a register.
pub fn write(register: Register, value: u64) {
    if in_x2apic_mode() {
        return wrmsr(0x800 + register as u32, value);
    }
    // SAFETY: as for `read`.
    unsafe { core::ptr::write_volatile((PAGE + 16 * register as u64) as *mut u32, value as u32) }
}

/// This processor's id.
pub fn id() -> u32 {
    let id = read(Register::Id) as u32;
    if in_x2apic_mode() { id } else { id >> 24 }
}

/// Ends the interrupt in service.
pub fn eoi() {
    write(Register::Eoi, 0);
}

/// Sends what an interrupt command says (bits 19:0 as in the register) to an APIC id.
pub fn send(command: u32, destination: u32) {
    if in_x2apic_mode() {
        return wrmsr(0x830, u64::from(destination) << 32 | u64::from(command));
    }
    write(Register::IcrHigh, u64::from(destination) << 24);
    write(Register::Icr, command.into());
    for _ in 0..100_000 {
        if read(Register::Icr) & 1 << 12 == 0 {
            break;
        }
    }
}

/// Sends an interrupt to an APIC id.
pub fn send_ipi(vector: u8, destination: u32) {
    send(1 << 14 | u32::from(vector), destination);
}

/// Sends an interrupt to this processor.
pub fn send_self(vector: u8) {
    if in_x2apic_mode() {
        wrmsr(0x83F, vector.into());
    } else {
        send(1 << 18 | 1 << 14 | u32::from(vector), 0);
    }
}

/// Starts the timer: `count` ticks of the bus clock, once or again and again.
pub fn start_timer(vector: u8, count: u32, periodic: bool) {
    write(Register::Divide, 0xB);
    write(Register::LvtTimer, u64::from(vector) | u64::from(periodic) << 17);
    write(Register::InitialCount, count.into());
}

/// Stops the timer.
pub fn stop_timer() {
    write(Register::LvtTimer, 1 << 16);
    write(Register::InitialCount, 0);
}

/// Whether a vector's bit is set in a bank of eight registers that begins with `first`.
pub fn bit(first: Register, vector: u8) -> bool {
    let (word, bit) = (u32::from(vector / 32), vector % 32);
    let number = first as u32 + word;
    let value = if in_x2apic_mode() {
        rdmsr(0x800 + number)
    } else {
        // SAFETY: as for `read`.
        u64::from(unsafe { core::ptr::read_volatile((PAGE + 16 * u64::from(number)) as *const u32) })
    };
    value & 1 << bit != 0
}
