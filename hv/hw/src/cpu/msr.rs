//! Model-specific registers.

use core::arch::{asm, global_asm};

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

// Reading and writing with a way out: a #GP at one of the two labelled instructions continues at the third label
// (`interrupts` asks `fixup`).
global_asm!(
    ".text",
    ".globl parterre_msr_read, parterre_msr_read_at, parterre_msr_write, parterre_msr_write_at, parterre_msr_fault",
    "parterre_msr_read:",
    "mov ecx, edi",
    "parterre_msr_read_at:",
    "rdmsr",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rsi], rax",
    "mov eax, 1",
    "ret",
    "parterre_msr_write:",
    "mov ecx, edi",
    "mov rax, rsi",
    "mov rdx, rsi",
    "shr rdx, 32",
    "parterre_msr_write_at:",
    "wrmsr",
    "mov eax, 1",
    "ret",
    "parterre_msr_fault:",
    "xor eax, eax",
    "ret",
);

unsafe extern "sysv64" {
    fn parterre_msr_read(msr: u32, value: *mut u64) -> u32;
    fn parterre_msr_read_at();
    fn parterre_msr_write(msr: u32, value: u64) -> u32;
    fn parterre_msr_write_at();
    fn parterre_msr_fault();
}

/// Reads a register; `None` if that raises #GP.
pub fn try_read(msr: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: a read changes nothing that the hypervisor depends on, and a #GP is caught (`fixup`).
    let done = unsafe { parterre_msr_read(msr, &raw mut value) };
    (done != 0).then_some(value)
}

/// Writes a register; `false` if that raises #GP.
///
/// # Safety
/// What the register changes keeps the hypervisor's memory and control flow intact.
pub unsafe fn try_write(msr: u32, value: u64) -> bool {
    // SAFETY: the caller's promise; a #GP is caught (`fixup`).
    unsafe { parterre_msr_write(msr, value) != 0 }
}

/// Where to go on after a #GP at `rip`, if it is the instruction of [`try_read`] or [`try_write`].
pub(super) fn fixup(rip: u64) -> Option<u64> {
    let address = |function: unsafe extern "sysv64" fn()| function as usize as u64;
    let ours = rip == address(parterre_msr_read_at) || rip == address(parterre_msr_write_at);
    ours.then(|| address(parterre_msr_fault))
}
