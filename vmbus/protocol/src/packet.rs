//! Packets in a ring (`struct vmpacket_descriptor` and what follows it).

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a packet is (`enum vmbus_packet_type`).
#[open_enum]
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum PacketType {
    /// All data are in the packet.
    DATA_INBAND = 6,
    /// Data are in ranges of a buffer that both sides know.
    DATA_USING_TRANSFER_PAGES = 7,
    /// Data are in guest pages that the packet names.
    DATA_USING_GPA_DIRECT = 9,
    /// Answers an earlier packet.
    COMPLETION = 11,
}

/// Flag of a packet: the receiver is to complete it.
pub const COMPLETION_REQUESTED: u16 = 1;

/// Head of every packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Descriptor {
    /// What follows.
    pub packet_type: PacketType,
    /// Offset of the payload from the start of the packet, in units of 8 bytes.
    pub offset8: u16,
    /// Length of the packet with this descriptor, in units of 8 bytes.
    pub length8: u16,
    /// See [`COMPLETION_REQUESTED`].
    pub flags: u16,
    /// The sender's name for the packet; a completion repeats it.
    pub transaction_id: u64,
}
const _: () = assert!(size_of::<Descriptor>() == 16);

/// Follows the descriptor of a GPA-direct packet; then come `range_count` ranges.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GpaDirectHeader {
    /// Zero.
    pub reserved: u32,
    /// How many ranges follow.
    pub range_count: u32,
}

/// Head of a range of guest memory (`struct gpa_range`); the numbers of its pages follow, 8 bytes each.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RangeHeader {
    /// Length in bytes.
    pub byte_count: u32,
    /// Offset of the first byte in the first page.
    pub byte_offset: u32,
}

/// Follows the descriptor of a transfer-page packet; then come `range_count` of [`TransferPageRange`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TransferPageHeader {
    /// Which buffer.
    pub set_id: u16,
    /// Whether the sender of the packet owns the buffer.
    pub sender_owns_set: u8,
    /// Zero.
    pub reserved: u8,
    /// How many ranges follow.
    pub range_count: u32,
}

/// A piece of a transfer-page buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TransferPageRange {
    /// Length in bytes.
    pub byte_count: u32,
    /// Offset of the first byte in the buffer.
    pub byte_offset: u32,
}
