//! The local APIC's state as `HvCallGetVpState` and `HvCallSetVpState` carry it
//! (`HV_LOCAL_INTERRUPT_CONTROLLER_STATE`, x64).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The state of a local APIC. It begins a page; the rest of the page is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LapicState {
    /// APIC id: in xAPIC mode the register (id in bits 31:24), in x2APIC mode the id.
    pub apic_id: u32,
    /// Version.
    pub apic_version: u32,
    /// Logical destination.
    pub apic_ldr: u32,
    /// Destination format.
    pub apic_dfr: u32,
    /// Spurious vector.
    pub apic_spurious: u32,
    /// In service, vectors 32 * N and up in word N.
    pub apic_isr: [u32; 8],
    /// Level-triggered.
    pub apic_tmr: [u32; 8],
    /// Requested.
    pub apic_irr: [u32; 8],
    /// Error status.
    pub apic_esr: u32,
    /// Interrupt command, high.
    pub apic_icr_high: u32,
    /// Interrupt command, low.
    pub apic_icr_low: u32,
    /// LVT timer.
    pub apic_lvt_timer: u32,
    /// LVT thermal.
    pub apic_lvt_thermal: u32,
    /// LVT performance counters.
    pub apic_lvt_perfmon: u32,
    /// LVT LINT0.
    pub apic_lvt_lint0: u32,
    /// LVT LINT1.
    pub apic_lvt_lint1: u32,
    /// LVT error.
    pub apic_lvt_error: u32,
    /// LVT corrected machine check.
    pub apic_lvt_cmci: u32,
    /// Errors not yet shown in `apic_esr`.
    pub apic_error_status: u32,
    /// Timer: initial count.
    pub apic_initial_count: u32,
    /// Timer: current count.
    pub apic_counter_value: u32,
    /// Timer: divider.
    pub apic_divide_configuration: u32,
    /// Remote read.
    pub apic_remote_read: u32,
}
const _: () = assert!(size_of::<LapicState>() == 176);
