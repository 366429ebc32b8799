//! Decoding of the few instructions that the hypervisor has to understand.
//!
//! Two kinds: those that exit by themselves on a machine that does not tell their length ([`Exiting`]), and accesses
//! to the local APIC's page ([`MemoryAccess`]). Everything else is for the parent's worker, which has a whole decoder.
//! A general decoder would be half the size of the hypervisor; the tests hold this one against a general decoder.
//!
//! The bytes come from guest memory, which may have changed since the exit. So a decoded instruction is never evidence
//! of anything: it says what the guest asks for now, and it does not do what the guest could not do otherwise.

mod complete;
mod cursor;
mod exiting;
mod lengths;
mod memory;
#[cfg(test)]
mod tests;

pub use exiting::{ControlWrite, Exiting};
pub use lengths::{Lengths, Place};
pub use memory::MemoryAccess;

use crate::machine::{Reg, Vcpu};

/// How code is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit operands and addresses: real mode, virtual-8086 mode, 16-bit segments.
    Bits16,
    /// 32-bit operands and addresses.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

impl Mode {
    /// The mode that a virtual processor runs in.
    pub fn of<V: Vcpu>(vcpu: &V) -> Self {
        Self::from_state(
            vcpu.get(Reg::Cr0),
            vcpu.get(Reg::Efer),
            vcpu.get(Reg::Rflags),
            vcpu.code_attributes(),
        )
    }

    /// The mode that CR0, EFER, RFLAGS and the attributes of CS mean.
    pub fn from_state(cr0: u64, efer: u64, rflags: u64, cs_attributes: u16) -> Self {
        let protected = cr0 & 1 != 0;
        let virtual_8086 = rflags & 1 << 17 != 0;
        let long = efer & 1 << 10 != 0;
        let (l, d) = (cs_attributes & 1 << 13 != 0, cs_attributes & 1 << 14 != 0);
        match () {
            _ if protected && long && l => Self::Bits64,
            // Code that left protected mode with a 32-bit segment keeps its size until CS is loaded.
            _ if virtual_8086 => Self::Bits16,
            _ if d => Self::Bits32,
            _ => Self::Bits16,
        }
    }

    /// The instruction pointer after an instruction of `length` bytes at `rip`.
    pub fn advance(self, rip: u64, length: u8) -> u64 {
        let next = rip.wrapping_add(length.into());
        if self == Self::Bits64 { next } else { next & 0xFFFF_FFFF }
    }

    /// The linear address of code at `rip` in a code segment at `base`.
    pub fn linear(self, base: u64, rip: u64) -> u64 {
        match self {
            Self::Bits64 => rip,
            _ => base.wrapping_add(rip) & 0xFFFF_FFFF,
        }
    }
}
