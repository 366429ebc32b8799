//! Model-specific registers.

use core::arch::asm;

/// Local APIC base and mode (Intel SDM 4).
pub const APIC_BASE: u32 = 0x1b;
/// Deadline of the local APIC timer in TSC-deadline mode.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// Page attribute table.
pub const PAT: u32 = 0x277;
/// Extended feature enables.
pub const EFER: u32 = 0xc000_0080;

/// Reads a register.
///
/// # Safety
/// The register exists on this processor.
#[inline]
pub unsafe fn read(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller says that the register exists; reading changes nothing.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a register.
///
/// # Safety
/// The register exists, takes the value, and what it changes keeps the hypervisor's memory and control flow intact.
#[inline]
pub unsafe fn write(msr: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}
