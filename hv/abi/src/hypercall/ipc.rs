//! Calls about messages, events, ports and connections (TLFS chapter "Inter-Partition Communication").

use crate::message::{MESSAGE_PAYLOAD_SIZE, MESSAGE_SIZE, MessageType};
use crate::synic::{ConnectionInfo, PortInfo};
use crate::types::{PartitionId, ProximityDomainInfo, VpIndex};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The bits of a port or connection id that count.
pub const ID_MASK: u32 = 0x00FF_FFFF;

/// Input of `HvCallPostMessage`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PostMessageInput {
    /// Through which connection, see [`ID_MASK`].
    pub connection_id: u32,
    /// Must be zero. Bits 7:0 may name the target VTL.
    pub reserved: u32,
    /// The type, without [`MessageType::HYPERVISOR_MASK`] and not `NONE`.
    pub message_type: MessageType,
    /// Bytes of `payload` that count.
    pub payload_size: u32,
    /// The payload.
    pub payload: [u8; MESSAGE_PAYLOAD_SIZE],
}
const _: () = assert!(size_of::<PostMessageInput>() == 256);

/// Input of `HvCallSignalEvent` (fast).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SignalEventInput {
    /// Through which connection, see [`ID_MASK`].
    pub connection_id: u32,
    /// Which flag, counted from the port's first.
    pub flag_number: u16,
    /// Must be zero.
    pub reserved: u16,
}
const _: () = assert!(size_of::<SignalEventInput>() == 8);

/// Input of `HvCallSignalEventDirect`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SignalEventDirectInput {
    /// In which partition.
    pub target_partition: PartitionId,
    /// On which VP.
    pub target_vp: VpIndex,
    /// In which VTL.
    pub target_vtl: u8,
    /// At which SINT.
    pub target_sint: u8,
    /// Which flag of the event flags page.
    pub flag_number: u16,
}
const _: () = assert!(size_of::<SignalEventDirectInput>() == 16);

/// Output of `HvCallSignalEventDirect`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SignalEventDirectOutput {
    /// 1 if the flag was clear before.
    pub newly_signaled: u8,
    /// Zero.
    pub reserved: [u8; 7],
}
const _: () = assert!(size_of::<SignalEventDirectOutput>() == 8);

/// Input of `HvCallPostMessageDirect`, in the layout that `/dev/mshv` passes on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PostMessageDirectInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// On which VP.
    pub vp_index: VpIndex,
    /// In which VTL.
    pub vtl: u8,
    /// Must be zero.
    pub padding0: [u8; 3],
    /// At which SINT.
    pub sint_index: u32,
    /// A whole message; it is not aligned to 8 bytes.
    pub message: [u8; MESSAGE_SIZE],
    /// Must be zero.
    pub padding1: u32,
}
const _: () = assert!(size_of::<PostMessageDirectInput>() == 280);

/// Input of `HvCallCreatePort`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreatePortInput {
    /// Who receives.
    pub port_partition_id: PartitionId,
    /// The port's id, see [`ID_MASK`].
    pub port_id: u32,
    /// VTL of the port.
    pub port_vtl: u8,
    /// The lowest VTL that may connect.
    pub min_connection_vtl: u8,
    /// Must be zero.
    pub padding: u16,
    /// Who may connect.
    pub connection_partition_id: PartitionId,
    /// What kind, and where it goes.
    pub port_info: PortInfo,
    /// On which node.
    pub proximity_domain_info: ProximityDomainInfo,
}
const _: () = assert!(size_of::<CreatePortInput>() == 56);

/// Input of `HvCallDeletePort` (fast).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeletePortInput {
    /// Whose port.
    pub port_partition_id: PartitionId,
    /// Its id.
    pub port_id: u32,
    /// Must be zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<DeletePortInput>() == 16);

/// Input of `HvCallConnectPort`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ConnectPortInput {
    /// Who sends.
    pub connection_partition_id: PartitionId,
    /// The connection's id, see [`ID_MASK`].
    pub connection_id: u32,
    /// VTL of the connection.
    pub connection_vtl: u8,
    /// Must be zero.
    pub reserved0: u8,
    /// Must be zero.
    pub reserved1: u16,
    /// Who receives.
    pub port_partition_id: PartitionId,
    /// Its port.
    pub port_id: u32,
    /// Must be zero.
    pub reserved2: u32,
    /// What kind, and what triggers it.
    pub connection_info: ConnectionInfo,
    /// On which node.
    pub proximity_domain_info: ProximityDomainInfo,
}
const _: () = assert!(size_of::<ConnectPortInput>() == 72);

/// Input of `HvCallDisconnectPort` (fast).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DisconnectPortInput {
    /// Whose connection.
    pub connection_partition_id: PartitionId,
    /// Its id.
    pub connection_id: u32,
    /// Bit 0: it is a doorbell.
    pub flags: u32,
}
const _: () = assert!(size_of::<DisconnectPortInput>() == 16);

impl DisconnectPortInput {
    /// The flag that says that the connection is a doorbell.
    pub const IS_DOORBELL: u32 = 1;
}

/// Input of `HvCallNotifyPortRingEmpty` (fast).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NotifyPortRingEmptyInput {
    /// Whose ring: the SINT of the calling VP.
    pub sint_index: u32,
    /// Must be zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<NotifyPortRingEmptyInput>() == 8);
