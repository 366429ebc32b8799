//! The world switch: into a guest by VMLAUNCH or VMRESUME and back (Intel SDM volume 3C, 27 and 28).
//!
//! The processor switches control, segment and table registers by itself; what is left are the general-purpose registers.
//! Nothing holds NMIs back on this vendor's processors: one that comes in hypervisor code is noted by its handler
//! ([`crate::processor::Shared::note_nmi`]). So the last thing before the entry is a look at that note, and an NMI that
//! comes between the look and the entry goes to [`abort`] instead of back ([`interrupted`]).

use core::arch::{asm, global_asm};
use core::sync::atomic::AtomicBool;

use super::field::Field;

/// How an attempt to enter ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest ran, and left.
    Left,
    /// An NMI has come, and the guest was not entered.
    NmiCame,
    /// The processor refused the instruction; the current structure says why.
    Refused,
}

// RDI: general-purpose registers by encoding, RSI: whether the structure was launched, RDX: the note of NMIs.
// RAX afterwards: 0 left, 1 an NMI came, 2 refused.
global_asm!(
    ".text",
    ".globl parterre_vmx_run, parterre_vmx_look, parterre_vmx_entered, parterre_vmx_abort, parterre_vmx_left",
    ".balign 16",
    "parterre_vmx_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "mov eax, {host_rsp}",
    "vmwrite rax, rsp",
    "parterre_vmx_look:",
    "cmp byte ptr [rdx], 0",
    "jne parterre_vmx_abort",
    // No MOV changes the flags that this sets.
    "test rsi, rsi",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 0x08]",
    "mov rdx, [rdi + 0x10]",
    "mov rbx, [rdi + 0x18]",
    "mov rbp, [rdi + 0x28]",
    "mov rsi, [rdi + 0x30]",
    "mov r8, [rdi + 0x40]",
    "mov r9, [rdi + 0x48]",
    "mov r10, [rdi + 0x50]",
    "mov r11, [rdi + 0x58]",
    "mov r12, [rdi + 0x60]",
    "mov r13, [rdi + 0x68]",
    "mov r14, [rdi + 0x70]",
    "mov r15, [rdi + 0x78]",
    "mov rdi, [rdi + 0x38]",
    "jnz 2f",
    "vmlaunch",
    "jmp 3f",
    "2: vmresume",
    "parterre_vmx_entered:",
    "3: mov eax, 2",
    "jmp 4f",
    "parterre_vmx_abort:",
    "mov eax, 1",
    "jmp 4f",
    // The exit leads here. RSP is the hypervisor's again, all other registers are the guest's.
    "parterre_vmx_left:",
    "push rdi",
    "mov rdi, [rsp + 8]",
    "mov [rdi], rax",
    "mov [rdi + 0x08], rcx",
    "mov [rdi + 0x10], rdx",
    "mov [rdi + 0x18], rbx",
    "mov [rdi + 0x28], rbp",
    "mov [rdi + 0x30], rsi",
    "pop qword ptr [rdi + 0x38]",
    "mov [rdi + 0x40], r8",
    "mov [rdi + 0x48], r9",
    "mov [rdi + 0x50], r10",
    "mov [rdi + 0x58], r11",
    "mov [rdi + 0x60], r12",
    "mov [rdi + 0x68], r13",
    "mov [rdi + 0x70], r14",
    "mov [rdi + 0x78], r15",
    "xor eax, eax",
    "4: add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // RDI: the note of NMIs.
    ".globl parterre_vmx_halt, parterre_vmx_halted",
    ".balign 16",
    "parterre_vmx_halt:",
    "cmp byte ptr [rdi], 0",
    "jne parterre_vmx_halted",
    "sti",
    "hlt",
    "parterre_vmx_halted:",
    "cli",
    "ret",
    host_rsp = const Field::HostRsp as u32,
);

unsafe extern "sysv64" {
    fn parterre_vmx_run(gprs: *mut [u64; 16], launched: u64, nmi: *const AtomicBool) -> u64;
    fn parterre_vmx_look();
    fn parterre_vmx_entered();
    fn parterre_vmx_abort();
    fn parterre_vmx_left();
    fn parterre_vmx_halt(nmi: *const AtomicBool);
    fn parterre_vmx_halted();
}

fn address(function: unsafe extern "sysv64" fn()) -> u64 {
    function as usize as u64
}

/// Runs the guest of the current structure until its next exit. RSP is in the structure, the other general-purpose
/// registers in `gprs`. If `nmi` says that an NMI has come the guest is not entered.
///
/// # Safety
/// The processor is in VMX operation; the current structure's host state is this processor's with [`exit_address`] as
/// RIP; its EPT maps no memory of the hypervisor's; interrupts are off; nobody has references into `gprs`.
pub unsafe fn run(gprs: *mut [u64; 16], launched: bool, nmi: *const AtomicBool) -> Outcome {
    // SAFETY: the caller's promise.
    match unsafe { parterre_vmx_run(gprs, launched.into(), nmi) } {
        0 => Outcome::Left,
        1 => Outcome::NmiCame,
        _ => Outcome::Refused,
    }
}

/// Where exits lead, for the host state.
pub fn exit_address() -> u64 {
    address(parterre_vmx_left)
}

/// Waits with interrupts on until an interrupt or an NMI comes; returns at once if `nmi` says that one has come.
///
/// # Safety
/// Interrupts are off; all vectors have handlers.
pub unsafe fn halt(nmi: *const AtomicBool) {
    // SAFETY: the caller's promise. STI holds interrupts off for one instruction, so that none comes between it and HLT.
    unsafe { parterre_vmx_halt(nmi) };
}

/// Where to go on after an NMI that came at `rip` in hypervisor code, if not there: between the look at the note and the
/// entry, or the halt, away from it.
pub fn interrupted(rip: u64) -> Option<u64> {
    let halt = parterre_vmx_halt as unsafe extern "sysv64" fn(*const AtomicBool) as usize as u64;
    let entry = address(parterre_vmx_look)..address(parterre_vmx_entered);
    let halting = halt..address(parterre_vmx_halted);
    match rip {
        rip if entry.contains(&rip) => Some(address(parterre_vmx_abort)),
        rip if halting.contains(&rip) => Some(address(parterre_vmx_halted)),
        _ => None,
    }
}

/// Calls the handler of NMIs for one that ended a guest's run. Its IRET ends the masking of further ones.
///
/// # Safety
/// The hypervisor's descriptor tables are loaded.
pub unsafe fn handle_nmi() {
    // SAFETY: the handler runs on a stack of its own, restores all registers and touches `Shared` only.
    unsafe { asm!("int 2", options(nostack)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_way_into_a_guest_is_left_at_an_nmi() {
        let look = address(parterre_vmx_look);
        let entered = address(parterre_vmx_entered);
        assert_eq!(interrupted(look - 1), None);
        assert_eq!(interrupted(look), Some(address(parterre_vmx_abort)));
        assert_eq!(interrupted(entered - 1), Some(address(parterre_vmx_abort)));
        assert_eq!(interrupted(entered), None);
        assert_eq!(interrupted(exit_address()), None);
        let halted = address(parterre_vmx_halted);
        assert_eq!(interrupted(halted - 1), Some(halted));
        assert_eq!(interrupted(halted), None);
    }
}
