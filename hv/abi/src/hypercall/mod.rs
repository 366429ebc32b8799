//! Hypercalls: the control and result words, the call codes, and the parameters of every call.
//!
//! Calling convention (TLFS chapter "Hypercall Interface", x64): RCX is the [`HypercallInput`], RDX the GPA of the
//! input page or the first eight input bytes of a fast call, R8 the GPA of the output page or the second eight, RAX the
//! [`HypercallOutput`]. Input and output structures of a call `HvCallFooBar` are `FooBarInput` and `FooBarOutput`;
//! a rep call's structure holds the header only, its elements follow.

mod code;
mod dispatch;
mod flush;
mod intercept;
mod interrupt;
mod ipc;
mod memory;
mod partition;
mod system;
mod vp;
mod vp_state;

pub use code::HypercallCode;
pub use dispatch::*;
pub use flush::*;
pub use intercept::*;
pub use interrupt::*;
pub use ipc::*;
pub use memory::*;
pub use partition::*;
pub use system::*;
pub use vp::*;
pub use vp_state::*;

use crate::status::{HvResult, HvStatus};
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// XMM registers that carry fast input or output.
pub const MAX_XMM_REGISTERS: usize = 6;
/// The largest fast input in bytes: RDX, R8 and six XMM registers.
pub const MAX_FAST_INPUT: usize = 16 + 16 * MAX_XMM_REGISTERS;

/// The control word of a hypercall (`HV_HYPERCALL_INPUT`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HypercallInput {
    /// The call code, see [`HypercallCode`].
    pub call_code: u16,
    /// The input is in registers.
    pub fast: bool,
    /// The variable part of the input header, in units of 8 bytes.
    #[bits(10)]
    pub variable_header_size: u16,
    /// Must be zero.
    #[bits(4)]
    pub reserved1: u8,
    /// The call is meant for the outermost hypervisor.
    pub nested: bool,
    /// The number of elements of a rep call; 0 in a simple call.
    #[bits(12)]
    pub rep_count: u16,
    /// Must be zero.
    #[bits(4)]
    pub reserved2: u8,
    /// The element to start with.
    #[bits(12)]
    pub rep_start: u16,
    /// Must be zero.
    #[bits(4)]
    pub reserved3: u8,
}

impl HypercallInput {
    /// Which call is meant.
    pub const fn code(self) -> HypercallCode {
        HypercallCode(self.call_code())
    }

    /// Refuses set reserved bits, and a start that is not below the count of a rep call.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_HYPERCALL_INPUT`].
    pub const fn check(self) -> HvResult<()> {
        let reserved = self.reserved1() | self.reserved2() | self.reserved3();
        let reps_fit =
            self.rep_start() < self.rep_count() || (self.rep_start() == 0 && self.rep_count() == 0);
        if reserved == 0 && reps_fit { Ok(()) } else { Err(HvStatus::INVALID_HYPERCALL_INPUT) }
    }

    /// The size of the variable part of the header, in bytes.
    pub const fn variable_header_bytes(self) -> usize {
        self.variable_header_size() as usize * 8
    }
}

/// The result word of a hypercall (`HV_HYPERCALL_OUTPUT`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HypercallOutput {
    /// The status, see [`HvStatus`].
    pub call_status: u16,
    /// Ignored.
    pub reserved1: u16,
    /// Elements done since element 0, including those of earlier calls.
    #[bits(12)]
    pub reps_completed: u16,
    /// Ignored.
    #[bits(20)]
    pub reserved2: u32,
}

impl HypercallOutput {
    /// The result of a simple call.
    pub const fn from_status(status: HvStatus) -> Self {
        Self(status.0 as u64)
    }

    /// The result of a rep call: its status, and how many elements are done in all, counted from element 0.
    /// Counts above 4095 cannot be expressed and are cut off.
    pub const fn from_reps(status: HvStatus, reps_completed: u16) -> Self {
        Self(status.0 as u64 | ((reps_completed & 0xFFF) as u64) << 32)
    }

    /// The status.
    pub const fn status(self) -> HvStatus {
        HvStatus(self.call_status())
    }
}
