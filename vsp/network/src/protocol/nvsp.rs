//! NVSP messages: what is said directly on the channel (Linux `drivers/net/hyperv/hyperv_net.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::read;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Version {
    /// Windows Server 2008.
    V1 = 2,
    /// Windows Server 2008 R2.
    V2 = 0x30002,
    /// Windows Server 2012.
    V4 = 0x40000,
    /// Windows Server 2012 R2: sub-channels.
    V5 = 0x50000,
    /// Windows Server 2016.
    V6 = 0x60000,
    /// Windows Server 2019: coalesced receive packets.
    V61 = 0x60001,
}

impl Version {
    /// All versions, the oldest first.
    pub const ALL: [Version; 6] =
        [Version::V1, Version::V2, Version::V4, Version::V5, Version::V6, Version::V61];

    /// The newest version between two numbers, both included.
    pub fn newest_between(min: u32, max: u32) -> Option<Version> {
        Version::ALL.into_iter().rev().find(|version| (min..=max).contains(&(*version as u32)))
    }
}

/// Size of every message but those with a table behind it: the largest member of the union decides.
pub const MESSAGE_SIZE: usize = 40;

/// Numbers of messages.
pub mod kind {
    /// Which versions the VSC speaks.
    pub const INIT: u32 = 1;
    /// Which version it shall be.
    pub const INIT_COMPLETE: u32 = 2;
    /// The VSC's NDIS version.
    pub const SEND_NDIS_VERSION: u32 = 100;
    /// A receive buffer.
    pub const SEND_RECEIVE_BUFFER: u32 = 101;
    /// How the receive buffer is divided.
    pub const SEND_RECEIVE_BUFFER_COMPLETE: u32 = 102;
    /// The receive buffer is taken back.
    pub const REVOKE_RECEIVE_BUFFER: u32 = 103;
    /// A send buffer.
    pub const SEND_SEND_BUFFER: u32 = 104;
    /// How the send buffer is divided.
    pub const SEND_SEND_BUFFER_COMPLETE: u32 = 105;
    /// The send buffer is taken back.
    pub const REVOKE_SEND_BUFFER: u32 = 106;
    /// RNDIS messages, in either direction.
    pub const SEND_RNDIS_PACKET: u32 = 107;
    /// They were taken.
    pub const SEND_RNDIS_PACKET_COMPLETE: u32 = 108;
    /// MTU and capabilities of the VSC; version 2 and later.
    pub const SEND_NDIS_CONFIG: u32 = 125;
    /// Which path carries data; version 4 and later.
    pub const SWITCH_DATA_PATH: u32 = 129;
    /// An OID query beside RNDIS; version 5 and later.
    pub const OID_QUERY_EX: u32 = 131;
    /// Sub-channels are asked for, and the answer; version 5 and later.
    pub const SUBCHANNEL: u32 = 133;
    /// Which channel the VSC shall send what on; version 5 and later.
    pub const SEND_INDIRECTION_TABLE: u32 = 134;
    /// Packet direct; version 6 and later.
    pub const PD_API: u32 = 135;
    /// What a VSC may say and this VSP does not provide: TCP chimney and VMQ (version 2), the OID query beside RNDIS.
    pub const UNSUPPORTED: [u32; 10] = [109, 111, 112, 113, 116, 118, 121, 123, 126, OID_QUERY_EX];
}

/// Results that completions carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Success = 1,
    /// Not done.
    Fail = 2,
    /// The VSC wants a version that is too new.
    ProtocolTooNew = 3,
    /// The VSC wants a version that is too old.
    ProtocolTooOld = 4,
    /// A bad RNDIS message.
    InvalidRndisPacket = 5,
    /// The version is none that is known.
    ProtocolUnsupported = 7,
}

/// No section of the send buffer is meant.
pub const NO_SECTION: u32 = u32::MAX;
/// The channel type of data packets.
pub const CHANNEL_DATA: u32 = 0;
/// The channel type of control messages.
pub const CHANNEL_CONTROL: u32 = 1;
/// Entries of the send indirection table.
pub const SEND_TABLE_ENTRIES: usize = 16;
/// Operation of [`kind::SUBCHANNEL`]: give me some.
const SUBCHANNEL_ALLOCATE: u32 = 1;

/// Capabilities in [`kind::SEND_NDIS_CONFIG`]: the VSC takes packets that were coalesced.
pub const CAPABILITY_RSC: u64 = 1 << 7;

/// A message of the VSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// [`kind::INIT`].
    Init {
        /// Oldest version.
        min: u32,
        /// Newest version.
        max: u32,
    },
    /// [`kind::SEND_NDIS_VERSION`].
    NdisVersion {
        /// Major.
        major: u32,
        /// Minor.
        minor: u32,
    },
    /// [`kind::SEND_NDIS_CONFIG`].
    NdisConfig {
        /// Longest frame, with its Ethernet header.
        mtu: u32,
        /// Bits.
        capabilities: u64,
    },
    /// [`kind::SEND_RECEIVE_BUFFER`].
    ReceiveBuffer {
        /// GPADL.
        gpadl: u32,
        /// The VSC's name for it.
        id: u16,
    },
    /// [`kind::REVOKE_RECEIVE_BUFFER`].
    RevokeReceiveBuffer,
    /// [`kind::SEND_SEND_BUFFER`].
    SendBuffer {
        /// GPADL.
        gpadl: u32,
        /// The VSC's name for it.
        id: u16,
    },
    /// [`kind::REVOKE_SEND_BUFFER`].
    RevokeSendBuffer,
    /// [`kind::SEND_RNDIS_PACKET`].
    Rndis(RndisPacket),
    /// [`kind::SEND_RNDIS_PACKET_COMPLETE`], which comes as a completion.
    RndisComplete {
        /// Result.
        status: u32,
    },
    /// [`kind::SUBCHANNEL`] with the operation "allocate".
    Subchannels {
        /// How many are wanted.
        count: u32,
    },
    /// [`kind::SWITCH_DATA_PATH`].
    SwitchDataPath {
        /// 0 is the synthetic path, 1 that of a virtual function.
        path: u32,
    },
    /// A message of the protocol that this VSP does not provide.
    Unsupported {
        /// Its number.
        kind: u32,
    },
    /// [`kind::PD_API`].
    PacketDirect {
        /// Operation.
        operation: u32,
    },
}

/// Where the RNDIS messages of a packet are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RndisPacket {
    /// [`CHANNEL_DATA`] or [`CHANNEL_CONTROL`].
    pub channel: u32,
    /// Section of the send buffer that holds the first bytes, or [`NO_SECTION`].
    pub section: u32,
    /// How many bytes it holds.
    pub section_size: u32,
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than its kind.
    #[error("an NVSP message of {len} bytes is too short for its kind {kind}")]
    Short {
        /// Kind, 0 if not even that is there.
        kind: u32,
        /// Length.
        len: usize,
    },
    /// A number that no version knows.
    #[error("there is no NVSP message of kind {0} from a VSC")]
    Unknown(u32),
    /// A sub-channel operation that no version knows.
    #[error("there is no sub-channel operation {0}")]
    Operation(u32),
}

impl Request {
    /// Reads a message that was copied out of the ring.
    pub fn parse(bytes: &[u8]) -> Result<Request, Malformed> {
        let len = bytes.len();
        let kind: u32 = read(bytes).ok_or(Malformed::Short { kind: 0, len })?;
        let body = &bytes[4..];
        parse_body(kind, body)?.ok_or(Malformed::Short { kind, len })
    }
}

/// `None` if the body is too short.
fn parse_body(kind: u32, body: &[u8]) -> Result<Option<Request>, Malformed> {
    let words = read::<[u32; 2]>(body);
    let buffer =
        read::<u32>(body).zip(body.get(4..6)).map(|(gpadl, id)| (gpadl, u16::from_le_bytes([id[0], id[1]])));
    Ok(match kind {
        kind::INIT => words.map(|[min, max]| Request::Init { min, max }),
        kind::SEND_NDIS_VERSION => words.map(|[major, minor]| Request::NdisVersion { major, minor }),
        kind::SEND_NDIS_CONFIG => read::<[u32; 4]>(body).map(|[mtu, _, low, high]| Request::NdisConfig {
            mtu,
            capabilities: u64::from(high) << 32 | u64::from(low),
        }),
        kind::SEND_RECEIVE_BUFFER => buffer.map(|(gpadl, id)| Request::ReceiveBuffer { gpadl, id }),
        kind::REVOKE_RECEIVE_BUFFER => Some(Request::RevokeReceiveBuffer),
        kind::SEND_SEND_BUFFER => buffer.map(|(gpadl, id)| Request::SendBuffer { gpadl, id }),
        kind::REVOKE_SEND_BUFFER => Some(Request::RevokeSendBuffer),
        kind::SEND_RNDIS_PACKET => read(body).map(Request::Rndis),
        kind::SEND_RNDIS_PACKET_COMPLETE => read(body).map(|status| Request::RndisComplete { status }),
        kind::SUBCHANNEL => match words {
            Some([SUBCHANNEL_ALLOCATE, count]) => Some(Request::Subchannels { count }),
            Some([operation, _]) => return Err(Malformed::Operation(operation)),
            None => None,
        },
        kind::SWITCH_DATA_PATH => read(body).map(|path| Request::SwitchDataPath { path }),
        kind if kind::UNSUPPORTED.contains(&kind) => Some(Request::Unsupported { kind }),
        kind::PD_API => read(body).map(|operation| Request::PacketDirect { operation }),
        other => return Err(Malformed::Unknown(other)),
    })
}

/// Division of the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReceiveSection {
    /// Offset in the buffer.
    pub offset: u32,
    /// Bytes of one piece.
    pub size: u32,
    /// Number of pieces.
    pub count: u32,
    /// Offset of the end.
    pub end: u32,
}

/// A message of this VSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// [`kind::INIT_COMPLETE`].
    InitComplete {
        /// The version, if one fits.
        version: Option<Version>,
        /// Result.
        status: Status,
    },
    /// [`kind::SEND_RECEIVE_BUFFER_COMPLETE`].
    ReceiveBufferComplete(Result<ReceiveSection, Status>),
    /// [`kind::SEND_SEND_BUFFER_COMPLETE`]; the size of a section.
    SendBufferComplete(Result<u32, Status>),
    /// [`kind::SEND_RNDIS_PACKET_COMPLETE`].
    RndisComplete(Status),
    /// [`kind::SEND_RNDIS_PACKET`] in the receive buffer, on a channel type.
    Rndis(u32),
    /// [`kind::SUBCHANNEL`]; how many there are now.
    Subchannels(Result<u32, Status>),
    /// [`kind::PD_API`] is not provided.
    PacketDirect {
        /// The operation asked for.
        operation: u32,
    },
}

/// Most memory descriptors in a chain; Hyper-V's number, which VSCs do not use.
const MAX_MDL_CHAIN: u32 = 34;

impl Reply {
    /// The bytes.
    pub fn encode(&self) -> [u8; MESSAGE_SIZE] {
        let mut words = [0u32; MESSAGE_SIZE / 4];
        let fields: &[u32] = match *self {
            Reply::InitComplete { version, status } => {
                let version = version.map_or(u32::MAX, |version| version as u32);
                &[kind::INIT_COMPLETE, version, MAX_MDL_CHAIN, status as u32]
            }
            Reply::ReceiveBufferComplete(Ok(ReceiveSection { offset, size, count, end })) => {
                &[kind::SEND_RECEIVE_BUFFER_COMPLETE, Status::Success as u32, 1, offset, size, count, end]
            }
            Reply::ReceiveBufferComplete(Err(status)) => &[kind::SEND_RECEIVE_BUFFER_COMPLETE, status as u32],
            Reply::SendBufferComplete(Ok(size)) => {
                &[kind::SEND_SEND_BUFFER_COMPLETE, Status::Success as u32, size]
            }
            Reply::SendBufferComplete(Err(status)) => &[kind::SEND_SEND_BUFFER_COMPLETE, status as u32],
            Reply::RndisComplete(status) => &[kind::SEND_RNDIS_PACKET_COMPLETE, status as u32],
            Reply::Rndis(channel) => &[kind::SEND_RNDIS_PACKET, channel, NO_SECTION, 0],
            Reply::Subchannels(Ok(count)) => &[kind::SUBCHANNEL, Status::Success as u32, count],
            Reply::Subchannels(Err(status)) => &[kind::SUBCHANNEL, status as u32],
            Reply::PacketDirect { operation } => &[kind::PD_API, operation, Status::Fail as u32],
        };
        words[..fields.len()].copy_from_slice(fields);
        zerocopy::transmute!(words)
    }
}

/// [`kind::SEND_INDIRECTION_TABLE`]: spreads what the VSC sends over `queues` channels.
pub fn send_indirection_table(queues: u32) -> Vec<u8> {
    let mut bytes = vec![0; MESSAGE_SIZE];
    for (place, word) in
        [kind::SEND_INDIRECTION_TABLE, SEND_TABLE_ENTRIES as u32, MESSAGE_SIZE as u32].into_iter().enumerate()
    {
        bytes[place * 4..place * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
    for entry in 0..SEND_TABLE_ENTRIES as u32 {
        bytes.extend_from_slice(&(entry % queues.max(1)).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(Version::newest_between(0x60001, 0x60001), Some(Version::V61));
        assert_eq!(Version::newest_between(2, 0x50000), Some(Version::V5));
        assert_eq!(Version::newest_between(2, u32::MAX), Some(Version::V61));
        assert_eq!(Version::newest_between(0x70000, 0x80000), None);
        assert_eq!(Version::newest_between(5, 2), None);
    }

    #[test]
    fn messages_are_read() {
        let parse = |words: &[u32]| Request::parse(&message(words));
        assert_eq!(parse(&[1, 2, 3]), Ok(Request::Init { min: 2, max: 3 }));
        assert_eq!(parse(&[101, 7, 0xcafe]), Ok(Request::ReceiveBuffer { gpadl: 7, id: 0xcafe }));
        assert_eq!(
            parse(&[125, 1514, 0, 0x88, 1]),
            Ok(Request::NdisConfig { mtu: 1514, capabilities: 1 << 32 | 0x88 })
        );
        let packet = RndisPacket { channel: 1, section: NO_SECTION, section_size: 0 };
        assert_eq!(parse(&[107, 1, u32::MAX, 0]), Ok(Request::Rndis(packet)));
        assert_eq!(parse(&[133, 1, 3]), Ok(Request::Subchannels { count: 3 }));
    }

    #[test]
    fn bad_messages_are_told_apart() {
        assert_eq!(Request::parse(&[]), Err(Malformed::Short { kind: 0, len: 0 }));
        assert_eq!(Request::parse(&message(&[1, 2])), Err(Malformed::Short { kind: 1, len: 8 }));
        assert_eq!(Request::parse(&message(&[104, 2])), Err(Malformed::Short { kind: 104, len: 8 }));
        assert_eq!(Request::parse(&message(&[133, 2, 1])), Err(Malformed::Operation(2)));
        for unknown in [0, 3, 99, 110, 136, u32::MAX] {
            assert_eq!(Request::parse(&message(&[unknown, 0, 0])), Err(Malformed::Unknown(unknown)));
        }
    }

    #[test]
    fn replies_have_the_layout_that_a_vsc_reads() {
        let section = ReceiveSection { offset: 0, size: 4096, count: 10, end: 40960 };
        let bytes = Reply::ReceiveBufferComplete(Ok(section)).encode();
        assert_eq!(bytes[..28], message(&[102, 1, 1, 0, 4096, 10, 40960])[..]);
        let bytes = Reply::InitComplete { version: None, status: Status::ProtocolUnsupported }.encode();
        assert_eq!(bytes[..16], message(&[2, u32::MAX, 34, 7])[..]);
        let table = send_indirection_table(3);
        assert_eq!(table.len(), 40 + 64);
        assert_eq!(table[..12], message(&[134, 16, 40])[..]);
        assert_eq!(table[40..56], message(&[0, 1, 2, 0])[..]);
        assert!(send_indirection_table(0).ends_with(&[0; 64]));
    }
}
