//! Small steps that every exit handler takes: passing over the instruction, raising an exception.

use crate::{
    instruction::{ControlWrite, Exiting, Mode},
    machine::{Event, Reg, SegmentName, Vcpu},
    walk::{self, GuestMemory},
};

/// Vectors of exceptions (Intel SDM 3A table 6-1).
pub(crate) mod vector {
    pub const INVALID_OPCODE: u8 = 6;
    pub const DOUBLE_FAULT: u8 = 8;
    pub const GENERAL_PROTECTION: u8 = 13;
    pub const MACHINE_CHECK: u8 = 18;
}

/// RFLAGS.IF.
pub(crate) const RFLAGS_IF: u64 = 1 << 9;
/// EFER.LMA.
pub(crate) const EFER_LMA: u64 = 1 << 10;

/// Passes over the instruction that exited, `length` bytes long.
#[inline]
pub(crate) fn skip<V: Vcpu>(vcpu: &mut V, length: u8) {
    let rip = vcpu.get(Reg::Rip);
    let next = rip.wrapping_add(length.into());
    // Only where the lower half overflows does the mode matter.
    let within = next >> 32 == rip >> 32;
    vcpu.set(Reg::Rip, if within { next } else { across_overflow(vcpu, rip, length) });
    vcpu.set_interrupt_shadow(false);
}

#[cold]
fn across_overflow<V: Vcpu>(vcpu: &V, rip: u64, length: u8) -> u64 {
    Mode::of(vcpu).advance(rip, length)
}

/// Raises an exception at the present instruction. One that meets another in delivery becomes a double fault (Intel SDM
/// 3A table 6-5, for the exceptions raised here, which are all contributory or benign).
pub(crate) fn raise<V: Vcpu>(vcpu: &mut V, vector: u8, error: Option<u32>) {
    let event = match vcpu.pending_event() {
        Some(Event::Exception(first, _)) if contributory(first) && contributory(vector) => {
            Event::Exception(vector::DOUBLE_FAULT, Some(0))
        }
        _ => Event::Exception(vector, error),
    };
    vcpu.inject(Some(event));
}

fn contributory(vector: u8) -> bool {
    matches!(vector, 0 | 10..=13)
}

/// Raises #GP(0).
pub(crate) fn general_protection<V: Vcpu>(vcpu: &mut V) {
    raise(vcpu, vector::GENERAL_PROTECTION, Some(0));
}

/// Raises #UD.
pub(crate) fn invalid_opcode<V: Vcpu>(vcpu: &mut V) {
    raise(vcpu, vector::INVALID_OPCODE, None);
}

/// What a refusal to run on means: #GP(0) if the present instruction is a MOV to CR3 or CR4. Emulated processors end the
/// run there when the value has reserved bits, where real ones raise the exception. Says whether it was that.
pub(crate) fn refuse_control_register<V: Vcpu, G: GuestMemory + ?Sized>(
    vcpu: &mut V,
    memory: &G,
    physical_bits: u8,
) -> bool {
    let mode = Mode::of(vcpu);
    let written = fetch_at_rip(vcpu, memory, physical_bits, mode)
        .and_then(|bytes| ControlWrite::decode(&bytes, mode))
        .is_some_and(|write| matches!(write.control, 3 | 4));
    let refused = vcpu.cpl() == 0 && written;
    if refused {
        general_protection(vcpu);
    }
    refused
}

/// The length of the exiting instruction `what`, decoded where the machine does not tell it. If its bytes cannot be fetched
/// (the guest has just changed its tables or its code), the length without prefixes.
pub(crate) fn length_of<V: Vcpu, G: GuestMemory + ?Sized>(
    vcpu: &V,
    memory: &G,
    physical_bits: u8,
    what: Exiting,
) -> u8 {
    let mode = Mode::of(vcpu);
    fetch_at_rip(vcpu, memory, physical_bits, mode)
        .and_then(|bytes| what.length(&bytes, mode))
        .unwrap_or_else(|| shortest(what))
}

/// The bytes at the present instruction.
pub(crate) fn fetch_at_rip<V: Vcpu, G: GuestMemory + ?Sized>(
    vcpu: &V,
    memory: &G,
    physical_bits: u8,
    mode: Mode,
) -> Option<walk::Instruction> {
    let paging = walk::Paging::of(vcpu, physical_bits);
    let linear = mode.linear(vcpu.segment(SegmentName::Cs).base, vcpu.get(Reg::Rip));
    walk::fetch(memory, &paging, vcpu.cpl(), linear).ok()
}

fn shortest(what: Exiting) -> u8 {
    match what {
        Exiting::Halt => 1,
        Exiting::Cpuid | Exiting::ReadMsr | Exiting::WriteMsr | Exiting::CacheInvalidate | Exiting::Pause => {
            2
        }
        _ => 3,
    }
}
