//! What happens when an exception, an NMI or an interrupt arrives in hypervisor code.
//!
//! Few may: the hypervisor's own interrupt and NMI in the windows that [`crate::processor`] opens, and a #GP at an
//! instruction that expects it. Any other exception is a defect of the hypervisor and ends in [`crate::panic`].

use core::arch::global_asm;

use super::{msr, registers};
use crate::panic;
use crate::processor::Shared;
use crate::vmx::switch;

/// What an exception leaves on its stack, and the registers of the code that it stopped.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// Bytes from the start of the frame to the top of the stack, where `tables::prepare_interrupt_stack` put a pointer.
const FRAME_BYTES: usize = size_of::<Frame>();
const RFLAGS_INTERRUPT: u64 = 1 << 9;
const NMI: u64 = 2;
const GENERAL_PROTECTION: u64 = 13;
/// The first vector that is not an exception's.
const FIRST_INTERRUPT: u8 = 32;

// One entry of 16 bytes per vector. All push the same frame; an entry pushes a zero where the processor pushes no error
// code. The stack was aligned to 16 by the processor, and the frame is a multiple of that.
global_asm!(
    ".text",
    ".globl parterre_exceptions, parterre_interrupts",
    ".balign 16",
    "parterre_exceptions:",
    ".irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    ".balign 16",
    ".if \\vector != 8 && \\vector != 17 && \\vector != 21 && \\vector != 29 && \\vector != 30 && \
     (\\vector < 10 || \\vector > 14)",
    "push 0",
    ".endif",
    "push \\vector",
    "jmp parterre_interrupt_common",
    ".endr",
    ".balign 16",
    "parterre_interrupts:",
    ".set parterre_vector, 32",
    ".rept 224",
    ".balign 16",
    "push 0",
    ".byte 0x68", // PUSH of a 32-bit immediate
    ".long parterre_vector",
    "jmp parterre_interrupt_common",
    ".set parterre_vector, parterre_vector + 1",
    ".endr",
    "parterre_interrupt_common:",
    "push rax; push rcx; push rdx; push rbx; push rbp; push rsi; push rdi",
    "push r8; push r9; push r10; push r11; push r12; push r13; push r14; push r15",
    "cld",
    "mov rdi, rsp",
    "mov rsi, [rsp + {frame}]",
    "call {handler}",
    "pop r15; pop r14; pop r13; pop r12; pop r11; pop r10; pop r9; pop r8",
    "pop rdi; pop rsi; pop rbp; pop rbx; pop rdx; pop rcx; pop rax",
    "add rsp, 16",
    "iretq",
    frame = const FRAME_BYTES,
    handler = sym handle,
);

unsafe extern "sysv64" {
    fn parterre_exceptions();
    fn parterre_interrupts();
}

/// The address of the entry for `vector`.
pub(super) fn stub(vector: u8) -> u64 {
    let address =
        |function: unsafe extern "sysv64" fn(), index: u8| function as usize as u64 + u64::from(index) * 16;
    match vector {
        0..FIRST_INTERRUPT => address(parterre_exceptions, vector),
        _ => address(parterre_interrupts, vector - FIRST_INTERRUPT),
    }
}

extern "sysv64" fn handle(frame: &mut Frame, shared: &Shared) {
    match frame.vector {
        NMI if panic::happened() => registers::halt(),
        NMI => {
            shared.note_nmi();
            if let Some(rip) = switch::interrupted(frame.rip) {
                frame.rip = rip;
            }
        }
        GENERAL_PROTECTION => match msr::fixup(frame.rip) {
            Some(rip) => frame.rip = rip,
            None => panic::exception(frame, shared),
        },
        0..32 => panic::exception(frame, shared),
        vector => {
            if shared.note_interrupt(vector as u8) {
                frame.rflags &= !RFLAGS_INTERRUPT;
            }
        }
    }
}
