//! Calls that share pages of a VP's state with the parent, or copy larger state (Linux `hvhdk.h`).

use crate::msr::STIMER_COUNT;
use crate::types::{InputVtl, PartitionId, VpIndex};
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Which page (`HV_VP_STATE_PAGE_TYPE`).
#[open_enum]
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum VpStatePageType {
    /// The register page, [`VpRegisterPage`](crate::vp_page::VpRegisterPage).
    REGISTERS = 0,
    /// The intercept message page, a [`Message`](crate::message::Message).
    INTERCEPT_MESSAGE = 1,
    /// The guest-hypervisor communication block of an encrypted guest.
    GHCB = 2,
}

/// Input of `HvCallMapVpStatePage`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapVpStatePageInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// Of which VP.
    pub vp_index: VpIndex,
    /// Which page.
    pub page_type: VpStatePageType,
    /// Of which VTL.
    pub input_vtl: InputVtl,
    /// Bit 0: `requested_map_location` counts.
    pub flags: u8,
    /// Where the caller wants it (GPA page number), or 0.
    pub requested_map_location: u64,
}
const _: () = assert!(size_of::<MapVpStatePageInput>() == 24);

impl MapVpStatePageInput {
    /// The flag that says that the caller gives a place.
    pub const MAP_LOCATION_PROVIDED: u8 = 1;
}

/// Output of `HvCallMapVpStatePage`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapVpStatePageOutput {
    /// Where it is: a GPA page number of the caller.
    pub map_location: u64,
}
const _: () = assert!(size_of::<MapVpStatePageOutput>() == 8);

/// Input of `HvCallUnmapVpStatePage`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapVpStatePageInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// Of which VP.
    pub vp_index: VpIndex,
    /// Which page.
    pub page_type: VpStatePageType,
    /// Of which VTL.
    pub input_vtl: InputVtl,
    /// Must be zero.
    pub reserved: u8,
}
const _: () = assert!(size_of::<UnmapVpStatePageInput>() == 16);

/// Which state (`HV_GET_SET_VP_STATE_TYPE`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum VpStateType {
    /// The local APIC, [`LapicState`](crate::lapic::LapicState).
    LAPIC_STATE = 0x8000_0000,
    /// The XSAVE area.
    XSAVE = 0x8000_0001,
    /// The message page.
    SIM_PAGE = 0x8000_0002,
    /// The event flags page.
    SIEF_PAGE = 0x8000_0003,
    /// The synthetic timers, [`SyntheticTimersState`]; in the hypercall pages themselves.
    SYNTHETIC_TIMERS = 0x0000_0004,
}

impl VpStateType {
    /// The bit of types whose data lie in pages that the call lists.
    pub const BY_PAGE_LIST: u32 = 0x8000_0000;

    /// Whether the data lie in pages that the call lists.
    pub const fn is_by_page_list(self) -> bool {
        self.0 & Self::BY_PAGE_LIST != 0
    }
}

/// The fixed header of `HvCallGetVpState` and `HvCallSetVpState`. In the variable header follow GPA page numbers
/// (`u64`) when the type is by page list; else the data to be set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetVpStateInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// Of which VP.
    pub vp_index: VpIndex,
    /// Of which VTL.
    pub input_vtl: InputVtl,
    /// Must be zero.
    pub reserved0: u8,
    /// Must be zero.
    pub reserved1: u16,
    /// Which state.
    pub state_type: VpStateType,
    /// Must be zero.
    pub reserved2: u32,
    /// For XSAVE: the format. 0 is the processor's own.
    pub xsave_flags: u64,
    /// For XSAVE: the components meant (bits as in XCR0).
    pub xsave_states: u64,
}
const _: () = assert!(size_of::<GetVpStateInput>() == 40);

/// The fixed header of `HvCallSetVpState`.
pub type SetVpStateInput = GetVpStateInput;

/// A synthetic timer's state (`HV_STIMER_STATE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StimerState {
    /// Bit 0: a message could not be delivered yet.
    pub flags: u32,
    /// Must be zero.
    pub reserved: u32,
    /// The configuration register.
    pub config: u64,
    /// The count register.
    pub count: u64,
    /// Time by which a periodic timer is behind, in 100 ns.
    pub adjustment: u64,
    /// When the undelivered timer expired, in 100 ns of reference time.
    pub undelivered_expiration_time: u64,
}
const _: () = assert!(size_of::<StimerState>() == 40);

impl StimerState {
    /// The flag that says that a message could not be delivered yet.
    pub const UNDELIVERED_MESSAGE_PENDING: u32 = 1;
}

/// All synthetic timers of a VP (`HV_SYNTHETIC_TIMERS_STATE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SyntheticTimersState {
    /// The timers.
    pub timers: [StimerState; STIMER_COUNT],
    /// Must be zero.
    pub reserved: [u64; 5],
}
const _: () = assert!(size_of::<SyntheticTimersState>() == 200);
