//! The world switch: into a guest by VMRUN and back (AMD APM volume 2, 15.5).
//!
//! VMRUN and #VMEXIT switch part of the state; VMLOAD and VMSAVE the rest (FS, GS, TR, LDTR and the system-call registers).
//! The hypervisor's TR is loaded again after every exit, because its exception stacks hang on it; GDTR and IDTR come
//! back by themselves. The global interrupt flag is 0 from CLGI in `enable` on: a #VMEXIT leaves it so, and nothing but
//! the windows of [`crate::processor`] opens it.

use core::arch::{asm, naked_asm};

/// Runs the guest of `vmcb` until its next exit. All three are physical addresses or pointers onto themselves:
/// `vmcb` of the guest's control block, `gprs` of its general-purpose registers by encoding (RAX and RSP are in the
/// block), `host` of a page with the hypervisor's VMSAVE state.
///
/// RFLAGS.IF is 1 while the guest runs: with virtual interrupt masking it is what lets physical interrupts end the run.
///
/// # Safety
/// SVM is on, the global interrupt flag is 0, `VM_HSAVE_PA` is set; `vmcb` is a valid block in a page of its own whose
/// nested page tables map no memory of the hypervisor's; `host` was written by [`save_host`] on this processor; nobody
/// has references into the three.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn run(vmcb: u64, gprs: *mut [u64; 16], host: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx",
        "push rsi",
        "mov rax, rdi",
        "mov rcx, [rsi + 0x08]",
        "mov rdx, [rsi + 0x10]",
        "mov rbx, [rsi + 0x18]",
        "mov rbp, [rsi + 0x28]",
        "mov rdi, [rsi + 0x38]",
        "mov r8, [rsi + 0x40]",
        "mov r9, [rsi + 0x48]",
        "mov r10, [rsi + 0x50]",
        "mov r11, [rsi + 0x58]",
        "mov r12, [rsi + 0x60]",
        "mov r13, [rsi + 0x68]",
        "mov r14, [rsi + 0x70]",
        "mov r15, [rsi + 0x78]",
        "mov rsi, [rsi + 0x30]",
        "vmload rax",
        "sti",
        "vmrun rax",
        "cli",
        "vmsave rax",
        // RAX and RSP are the hypervisor's again, all other registers the guest's.
        "mov rax, [rsp]",
        "mov [rax + 0x08], rcx",
        "mov [rax + 0x10], rdx",
        "mov [rax + 0x18], rbx",
        "mov [rax + 0x28], rbp",
        "mov [rax + 0x30], rsi",
        "mov [rax + 0x38], rdi",
        "mov [rax + 0x40], r8",
        "mov [rax + 0x48], r9",
        "mov [rax + 0x50], r10",
        "mov [rax + 0x58], r11",
        "mov [rax + 0x60], r12",
        "mov [rax + 0x68], r13",
        "mov [rax + 0x70], r14",
        "mov [rax + 0x78], r15",
        "mov rax, [rsp + 8]",
        "vmload rax",
        "add rsp, 16",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// Stores the hypervisor's VMSAVE state into the page at physical address `host`, for [`run`].
///
/// # Safety
/// SVM is on; the page is the caller's alone.
pub unsafe fn save_host(host: u64) {
    // SAFETY: the caller's promise; VMSAVE writes the page at RAX and nothing else.
    unsafe { asm!("vmsave rax", in("rax") host, options(nostack)) };
}

/// Sets the global interrupt flag to 0.
///
/// # Safety
/// SVM is on.
pub unsafe fn clear_global_interrupt_flag() {
    // SAFETY: the caller's promise.
    unsafe { asm!("clgi", options(nostack)) };
}
