//! The synthetic interrupt controller: its pages, ports and connections
//! (TLFS chapters "Virtual Interrupt Control" and "Inter-Partition Communication"; Linux `hvhdk.h`).
//!
//! The registers are in [`crate::msr`], messages in [`crate::message`].

use crate::message::Message;
use crate::msr::SINT_COUNT;
use crate::types::VpIndex;
use bitflags::bitflags;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The SINT for intercepts, in the root partition for all its messages.
pub const INTERCEPTION_SINT: u32 = 0;
/// The SINT for faults of the IOMMU.
pub const IOMMU_FAULT_SINT: u32 = 1;
/// The SINT for VMBus.
pub const VMBUS_SINT: u32 = 2;
/// The first SINT without a fixed use.
pub const FIRST_UNUSED_SINT: u32 = 5;
/// The SINT that Linux as root uses for doorbells.
pub const DOORBELL_SINT: u32 = FIRST_UNUSED_SINT;

/// Event flags of one SINT.
pub const EVENT_FLAGS_COUNT: usize = 2048;
/// Entries in an event ring.
pub const EVENT_RING_ENTRIES: usize = 63;

/// The message page (SIMP): one slot for each SINT.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MessagePage {
    /// The slots.
    pub sint_message: [Message; SINT_COUNT],
}
const _: () = assert!(size_of::<MessagePage>() == 4096);

/// The event flags of one SINT (`HV_SYNIC_EVENT_FLAGS`); flag N is bit `N % 64` of word `N / 64`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EventFlags {
    /// The flags.
    pub words: [u64; EVENT_FLAGS_COUNT / 64],
}
const _: () = assert!(size_of::<EventFlags>() == 256);

/// The event flags page (SIEFP).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EventFlagsPage {
    /// The flags of each SINT.
    pub sint_event_flags: [EventFlags; SINT_COUNT],
}
const _: () = assert!(size_of::<EventFlagsPage>() == 4096);

/// The ring of port ids of one SINT (Linux `hv_synic_event_ring`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EventRing {
    /// Non-zero: the consumer is at work and needs no signal.
    pub signal_masked: u8,
    /// Non-zero: an entry did not fit; the consumer says so with `HvCallNotifyPortRingEmpty`.
    pub ring_full: u8,
    /// Must be zero.
    pub reserved: u16,
    /// The port ids; 0 is an empty entry.
    pub data: [u32; EVENT_RING_ENTRIES],
}
const _: () = assert!(size_of::<EventRing>() == 256);

/// The event ring page (SIRBP) of a root VP.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EventRingPage {
    /// The ring of each SINT.
    pub sint_event_ring: [EventRing; SINT_COUNT],
}
const _: () = assert!(size_of::<EventRingPage>() == 4096);

/// The kind of a port (`HV_PORT_TYPE`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum PortType {
    /// Not a port.
    INVALID = 0,
    /// For messages.
    MESSAGE = 1,
    /// For event flags.
    EVENT = 2,
    /// For monitored notifications.
    MONITOR = 3,
    /// For writes to a guest physical address; the receiver is the root partition.
    DOORBELL = 4,
}

/// Where a port's messages or events go (`HV_PORT_INFO`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PortInfo {
    /// What kind.
    pub port_type: PortType,
    /// Must be zero.
    pub padding: u32,
    /// At which SINT. (Of a monitor port: the monitor page's address, low half.)
    pub target_sint: u32,
    /// On which VP. (Of a monitor port: the monitor page's address, high half.)
    pub target_vp: VpIndex,
    /// Of an event port: its first flag. Else zero.
    pub base_flag_number: u16,
    /// Of an event port: how many flags. Else zero.
    pub flag_count: u16,
    /// Must be zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<PortInfo>() == 24);

impl PortInfo {
    /// The address of a monitor port's page.
    pub const fn monitor_address(&self) -> u64 {
        self.target_sint as u64 | (self.target_vp.0 as u64) << 32
    }
}

/// What triggers a connection (`HV_CONNECTION_INFO`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ConnectionInfo {
    /// What kind of port it connects to.
    pub port_type: PortType,
    /// Must be zero.
    pub padding: u32,
    /// Of a doorbell: the address in bytes. Of a monitor connection: the monitor page's address. Else zero.
    pub gpa: u64,
    /// Of a doorbell: the value that is to be written.
    pub trigger_value: u64,
    /// Of a doorbell: see [`DoorbellFlags`].
    pub flags: u64,
}
const _: () = assert!(size_of::<ConnectionInfo>() == 32);

impl ConnectionInfo {
    /// How wide a write triggers the doorbell: `Some(None)` any, `None` if the flags name no width.
    pub const fn trigger_size(&self) -> Option<Option<u8>> {
        match self.flags & DoorbellFlags::TRIGGER_SIZE_MASK {
            0 => Some(None),
            1 => Some(Some(1)),
            2 => Some(Some(2)),
            3 => Some(Some(4)),
            4 => Some(Some(8)),
            _ => None,
        }
    }

    /// Whether a write of any value triggers the doorbell.
    pub const fn triggers_on_any_value(&self) -> bool {
        self.flags & DoorbellFlags::TRIGGER_ANY_VALUE.bits() != 0
    }
}

bitflags! {
    /// What triggers a doorbell (`HV_DOORBELL_FLAG_*`), besides the width in bits 2:0.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct DoorbellFlags: u64 {
        /// Any value.
        const TRIGGER_ANY_VALUE = 0x8000_0000;
    }
}

impl DoorbellFlags {
    /// The bits of the width: 0 any, 1 to 4 for 1, 2, 4, 8 bytes.
    pub const TRIGGER_SIZE_MASK: u64 = 7;
}
