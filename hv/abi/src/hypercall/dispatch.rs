//! `HvCallDispatchVp`: the root scheduler runs a child's VP on the processor that calls (Linux `hvhdk.h`).

use crate::types::{PartitionId, VpIndex};
use bitflags::bitflags;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Input of `HvCallDispatchVp`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DispatchVpInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// Which VP.
    pub vp_index: VpIndex,
    /// How.
    pub flags: DispatchVpFlags,
    /// The longest time to run, in 100 ns; 0 for no limit.
    pub time_slice: u64,
    /// IA32_SPEC_CTRL of the caller.
    pub spec_ctrl: u64,
}
const _: () = assert!(size_of::<DispatchVpInput>() == 32);

/// How a VP is dispatched (`HV_DISPATCH_VP_FLAG_*`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DispatchVpFlags(pub u32);

bitflags! {
    impl DispatchVpFlags: u32 {
        /// The intercept has been handled: clear `INTERCEPT_SUSPEND` first.
        const CLEAR_INTERCEPT_SUSPEND = 0x01;
        /// Take the caller's interrupts as if they were enabled.
        const ENABLE_CALLER_INTERRUPTS = 0x02;
        /// Load `spec_ctrl` when the caller goes on.
        const SET_CALLER_SPEC_CTRL = 0x04;
        /// No flush against speculation for the VP.
        const SKIP_VP_SPEC_FLUSH = 0x08;
        /// No flush against speculation for the caller.
        const SKIP_CALLER_SPEC_FLUSH = 0x10;
        /// No flush against speculation for the caller's user mode.
        const SKIP_CALLER_USER_SPEC_FLUSH = 0x20;
        /// Inject what stands in the register page's `interrupt_vectors`.
        const SCAN_INTERRUPT_INJECTION = 0x40;
    }
}

/// Output of `HvCallDispatchVp`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DispatchVpOutput {
    /// Whether the VP could run on.
    pub dispatch_state: VpDispatchState,
    /// Why it does not run now.
    pub dispatch_event: VpDispatchEvent,
}
const _: () = assert!(size_of::<DispatchVpOutput>() == 8);

/// Whether the VP could run on (`HV_VP_DISPATCH_STATE`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum VpDispatchState {
    /// Not a state.
    INVALID = 0,
    /// The VP waits; a signal message will say when it can run.
    BLOCKED = 1,
    /// The VP can be dispatched again.
    READY = 2,
}

/// Why the VP does not run now (`HV_VP_DISPATCH_EVENT`). With [`VpDispatchState::READY`], any other value means that
/// the processor was wanted by the caller.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum VpDispatchEvent {
    /// Nothing to tell.
    INVALID = 0,
    /// The VP is explicitly suspended.
    SUSPEND = 1,
    /// The intercept message page holds an intercept.
    INTERCEPT = 2,
}
