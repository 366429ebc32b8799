//! RNDIS messages ([MS-RNDIS], Linux `include/linux/rndis.h`), as NVSP carries them.
//!
//! Every message begins with a [`Header`]. Offsets inside of a message count from the end of that header.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Numbers of messages.
pub mod kind {
    /// An Ethernet frame.
    pub const PACKET: u32 = 1;
    /// Start.
    pub const INITIALIZE: u32 = 2;
    /// End.
    pub const HALT: u32 = 3;
    /// Read an object.
    pub const QUERY: u32 = 4;
    /// Write an object.
    pub const SET: u32 = 5;
    /// Reset.
    pub const RESET: u32 = 6;
    /// Something about the adapter has changed.
    pub const INDICATE: u32 = 7;
    /// Are you there?
    pub const KEEPALIVE: u32 = 8;
    /// Set in the number of an answer.
    pub const COMPLETION: u32 = 0x8000_0000;
}

/// Results, and kinds of [`kind::INDICATE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Success = 0,
    /// The link is up.
    MediaConnect = 0x4001_000B,
    /// The link is down.
    MediaDisconnect = 0x4001_000C,
    /// The link is faster or slower than before.
    LinkSpeedChange = 0x4001_0013,
    /// Not done.
    Failure = 0xC000_0001,
    /// Not provided.
    NotSupported = 0xC000_00BB,
    /// The information is too short or too long for the object.
    InvalidLength = 0xC001_0014,
    /// The information says what cannot be.
    InvalidData = 0xC001_0015,
    /// There is no such object here.
    InvalidOid = 0xC001_0017,
}

/// Objects (OIDs).
pub mod oid {
    #![allow(missing_docs)] // The names are NDIS's.
    pub const GEN_SUPPORTED_LIST: u32 = 0x0001_0101;
    pub const GEN_HARDWARE_STATUS: u32 = 0x0001_0102;
    pub const GEN_MEDIA_SUPPORTED: u32 = 0x0001_0103;
    pub const GEN_MEDIA_IN_USE: u32 = 0x0001_0104;
    pub const GEN_MAXIMUM_LOOKAHEAD: u32 = 0x0001_0105;
    pub const GEN_MAXIMUM_FRAME_SIZE: u32 = 0x0001_0106;
    pub const GEN_LINK_SPEED: u32 = 0x0001_0107;
    pub const GEN_TRANSMIT_BUFFER_SPACE: u32 = 0x0001_0108;
    pub const GEN_RECEIVE_BUFFER_SPACE: u32 = 0x0001_0109;
    pub const GEN_TRANSMIT_BLOCK_SIZE: u32 = 0x0001_010A;
    pub const GEN_RECEIVE_BLOCK_SIZE: u32 = 0x0001_010B;
    pub const GEN_VENDOR_ID: u32 = 0x0001_010C;
    pub const GEN_VENDOR_DESCRIPTION: u32 = 0x0001_010D;
    pub const GEN_CURRENT_PACKET_FILTER: u32 = 0x0001_010E;
    pub const GEN_CURRENT_LOOKAHEAD: u32 = 0x0001_010F;
    pub const GEN_MAXIMUM_TOTAL_SIZE: u32 = 0x0001_0111;
    pub const GEN_MAC_OPTIONS: u32 = 0x0001_0113;
    pub const GEN_MEDIA_CONNECT_STATUS: u32 = 0x0001_0114;
    pub const GEN_MAXIMUM_SEND_PACKETS: u32 = 0x0001_0115;
    pub const GEN_VENDOR_DRIVER_VERSION: u32 = 0x0001_0116;
    pub const GEN_PHYSICAL_MEDIUM: u32 = 0x0001_0202;
    pub const GEN_RECEIVE_SCALE_CAPABILITIES: u32 = 0x0001_0203;
    pub const GEN_RECEIVE_SCALE_PARAMETERS: u32 = 0x0001_0204;
    pub const GEN_CONFIG_PARAMETER: u32 = 0x0001_021B;
    pub const GEN_XMIT_OK: u32 = 0x0002_0101;
    pub const GEN_RCV_OK: u32 = 0x0002_0102;
    pub const GEN_XMIT_ERROR: u32 = 0x0002_0103;
    pub const GEN_RCV_ERROR: u32 = 0x0002_0104;
    pub const GEN_RCV_NO_BUFFER: u32 = 0x0002_0105;
    pub const GEN_DIRECTED_BYTES_XMIT: u32 = 0x0002_0201;
    pub const GEN_DIRECTED_FRAMES_XMIT: u32 = 0x0002_0202;
    pub const GEN_MULTICAST_BYTES_XMIT: u32 = 0x0002_0203;
    pub const GEN_MULTICAST_FRAMES_XMIT: u32 = 0x0002_0204;
    pub const GEN_BROADCAST_BYTES_XMIT: u32 = 0x0002_0205;
    pub const GEN_BROADCAST_FRAMES_XMIT: u32 = 0x0002_0206;
    pub const GEN_DIRECTED_BYTES_RCV: u32 = 0x0002_0207;
    pub const GEN_DIRECTED_FRAMES_RCV: u32 = 0x0002_0208;
    pub const GEN_MULTICAST_BYTES_RCV: u32 = 0x0002_0209;
    pub const GEN_MULTICAST_FRAMES_RCV: u32 = 0x0002_020A;
    pub const GEN_BROADCAST_BYTES_RCV: u32 = 0x0002_020B;
    pub const GEN_BROADCAST_FRAMES_RCV: u32 = 0x0002_020C;
    pub const GEN_FRIENDLY_NAME: u32 = 0x0002_0216;
    pub const ETHERNET_PERMANENT_ADDRESS: u32 = 0x0101_0101;
    pub const ETHERNET_CURRENT_ADDRESS: u32 = 0x0101_0102;
    pub const ETHERNET_MULTICAST_LIST: u32 = 0x0101_0103;
    pub const ETHERNET_MAXIMUM_LIST_SIZE: u32 = 0x0101_0104;
    pub const OFFLOAD_ENCAPSULATION: u32 = 0x0101_010A;
    pub const TCP_OFFLOAD_CURRENT_CONFIG: u32 = 0xFC01_020B;
    pub const TCP_OFFLOAD_PARAMETERS: u32 = 0xFC01_020C;
    pub const TCP_OFFLOAD_HARDWARE_CAPABILITIES: u32 = 0xFC01_020D;
}

/// Bits of [`oid::GEN_CURRENT_PACKET_FILTER`].
pub mod filter {
    /// Frames to the adapter's address.
    pub const DIRECTED: u32 = 1;
    /// Frames to addresses of the multicast list.
    pub const MULTICAST: u32 = 2;
    /// Frames to every group address.
    pub const ALL_MULTICAST: u32 = 4;
    /// Frames to everybody.
    pub const BROADCAST: u32 = 8;
    /// All frames.
    pub const PROMISCUOUS: u32 = 0x20;
}

/// The start of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`kind`].
    pub kind: u32,
    /// Bytes of the message, this header included.
    pub len: u32,
}

/// Size of [`Header`].
pub const HEADER_SIZE: usize = size_of::<Header>();

/// [`kind::INITIALIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Initialize {
    /// Comes back in the answer.
    pub request: u32,
    /// Version of RNDIS.
    pub major: u32,
    /// Version of RNDIS.
    pub minor: u32,
    /// Longest message that the VSC takes.
    pub max_transfer: u32,
}

/// Answer to [`Initialize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitializeComplete {
    /// The request's.
    pub request: u32,
    /// [`Status`].
    pub status: u32,
    /// Version of RNDIS.
    pub major: u32,
    /// Version of RNDIS.
    pub minor: u32,
    /// 1: connectionless.
    pub flags: u32,
    /// 0: Ethernet.
    pub medium: u32,
    /// Most packet messages that may follow one another in one NVSP message.
    pub max_packets: u32,
    /// Longest message that this VSP takes.
    pub max_transfer: u32,
    /// Packet messages that follow one another are aligned to this power of two.
    pub alignment: u32,
    /// Reserved.
    pub reserved: [u32; 2],
}

/// [`kind::QUERY`] and [`kind::SET`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ObjectRequest {
    /// Comes back in the answer.
    pub request: u32,
    /// [`oid`].
    pub oid: u32,
    /// Length of the information.
    pub len: u32,
    /// Where it is.
    pub offset: u32,
    /// Reserved.
    pub vc: u32,
}

/// Answer to [`kind::QUERY`], followed by the information.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QueryComplete {
    /// The request's.
    pub request: u32,
    /// [`Status`].
    pub status: u32,
    /// Length of the information.
    pub len: u32,
    /// Where it is.
    pub offset: u32,
}

/// Answer to [`kind::SET`] and [`kind::KEEPALIVE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Complete {
    /// The request's.
    pub request: u32,
    /// [`Status`].
    pub status: u32,
}

/// Answer to [`kind::RESET`], which has no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResetComplete {
    /// [`Status`].
    pub status: u32,
    /// The VSC has to send its filter and addresses again.
    pub addressing_reset: u32,
}

/// [`kind::INDICATE`], followed by its information.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Indicate {
    /// [`Status`].
    pub status: u32,
    /// Length of the information.
    pub len: u32,
    /// Where it is.
    pub offset: u32,
}

/// [`kind::PACKET`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Packet {
    /// Where the frame is.
    pub data_offset: u32,
    /// Its length.
    pub data_len: u32,
    /// Out-of-band data; not used.
    pub oob_offset: u32,
    /// Out-of-band data; not used.
    pub oob_len: u32,
    /// Out-of-band data; not used.
    pub oob_count: u32,
    /// Where the per-packet information is.
    pub ppi_offset: u32,
    /// Its length.
    pub ppi_len: u32,
    /// Reserved.
    pub vc: u32,
    /// Reserved.
    pub reserved: u32,
}

/// The start of one piece of per-packet information.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PpiHeader {
    /// Length of the piece, this header included.
    pub size: u32,
    /// [`ppi`]; the top bit makes the number one of NVSP's own.
    pub kind: u32,
    /// Where the information is, from the start of this header.
    pub offset: u32,
}

/// Kinds of per-packet information.
pub mod ppi {
    /// Checksums: what to compute, or what was found.
    pub const CHECKSUM: u32 = 0;
    /// Large send: segments to be made.
    pub const LARGE_SEND: u32 = 2;
    /// IEEE 802.1Q tag.
    pub const VLAN: u32 = 6;
    /// Hash of the flow.
    pub const HASH: u32 = 8;
    /// NVSP's own: which piece of a coalesced packet this is.
    pub const PACKET_ID: u32 = 0x8000_0001;
}

/// A message with the information behind its body.
pub fn message(kind: u32, body: &impl MessageBody, information: &[u8]) -> Vec<u8> {
    let body = body.as_bytes();
    let len = HEADER_SIZE + body.len() + information.len();
    // Messages made here are a few hundred bytes.
    let header = Header { kind, len: len as u32 };
    [header.as_bytes(), body, information].concat()
}

/// What may be the body of a message.
pub trait MessageBody: IntoBytes + Immutable {}

impl MessageBody for InitializeComplete {}
impl MessageBody for QueryComplete {}
impl MessageBody for Complete {}
impl MessageBody for ResetComplete {}
impl MessageBody for Indicate {}

const _: () = {
    assert!(size_of::<Header>() == 8);
    assert!(size_of::<InitializeComplete>() == 44);
    assert!(size_of::<ObjectRequest>() == 20);
    assert!(size_of::<Packet>() == 36);
    assert!(size_of::<PpiHeader>() == 12);
};
