//! The headers that all messages of the integration components begin with.
//!
//! ```text
//!   0  pipe header     u32 1, u32 bytes that follow
//!   8  IC header       framework version, message type, message version, size, status, transaction, flags
//!  28  body            of `size` bytes, by message type
//! ```
//! Source: Linux `include/linux/hyperv.h`, `struct vmbuspipe_hdr` and `struct icmsg_hdr`.

use std::fmt;

use open_enum::open_enum;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A version of the framework or of a service's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Major number.
    pub major: u16,
    /// Minor number.
    pub minor: u16,
}

impl Version {
    /// A version.
    pub const fn new(major: u16, minor: u16) -> Version {
        Version { major, minor }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A version as it is sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct WireVersion {
    major: U16,
    minor: U16,
}

impl From<Version> for WireVersion {
    fn from(version: Version) -> WireVersion {
        WireVersion { major: version.major.into(), minor: version.minor.into() }
    }
}

impl From<WireVersion> for Version {
    fn from(version: WireVersion) -> Version {
        Version::new(version.major.get(), version.minor.get())
    }
}

/// Kind of a message.
#[open_enum]
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// Offer and choice of versions.
    Negotiate = 0,
    /// Heartbeat.
    Heartbeat = 1,
    /// Data exchange.
    KeyValue = 2,
    /// Shutdown.
    Shutdown = 3,
    /// Time synchronization.
    TimeSync = 4,
    /// Backup.
    Backup = 5,
    /// Guest file copy.
    FileCopy = 7,
}

/// Flags: the message belongs to a transaction.
pub const FLAG_TRANSACTION: u8 = 1;
/// Flags: the message is a request.
pub const FLAG_REQUEST: u8 = 2;
/// Flags: the message is an answer.
pub const FLAG_RESPONSE: u8 = 4;

/// Packet type of data in a pipe.
pub const PIPE_DATA: u32 = 1;

/// What each packet of a pipe begins with (`struct vmbuspipe_hdr`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct PipeHeader {
    /// [`PIPE_DATA`].
    pub packet_type: U32,
    /// Bytes that follow.
    pub size: U32,
}

/// What each message begins with (`struct icmsg_hdr`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Header {
    /// Version of the framework.
    pub framework: WireVersion,
    /// A [`MessageType`].
    pub message_type: U16,
    /// Version of the service's messages.
    pub version: WireVersion,
    /// Bytes of the body.
    pub size: U16,
    /// In answers, how it went.
    pub status: U32,
    /// Which request an answer is for.
    pub transaction: u8,
    /// `FLAG_*`.
    pub flags: u8,
    reserved: [u8; 2],
}

/// Bytes before the body of a message.
pub const HEADERS_SIZE: usize = size_of::<PipeHeader>() + size_of::<Header>();

const _: () = assert!(size_of::<Header>() == 20 && HEADERS_SIZE == 28);

/// How a request went, in a guest's words: an HRESULT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

impl Status {
    /// Done.
    pub const OK: Status = Status(0);
    /// Failed, for a reason that is not told.
    pub const FAIL: Status = Status(0x8000_4005);
    /// There is no such item, or no further one.
    pub const NO_MORE_ITEMS: Status = Status(0x8007_0103);
    /// The guest cannot do that.
    pub const NOT_SUPPORTED: Status = Status(0x8007_0032);
    /// The guest is locked.
    pub const MACHINE_LOCKED: Status = Status(0x8007_04F7);
    /// The program in the guest that would do it does not run.
    pub const NOT_CONNECTED: Status = Status(0x8007_048F);
    /// The request makes no sense to the guest.
    pub const INVALID_ARGUMENT: Status = Status(0x8007_0057);
    /// There is no such network adapter.
    pub const ADAPTER_NOT_FOUND: Status = Status(0x8004_1002);
    /// There is such a file already.
    pub const ALREADY_EXISTS: Status = Status(0x8007_0050);
    /// The guest's disk is full.
    pub const DISK_FULL: Status = Status(0x8007_0070);

    /// What a status says, as a part of a sentence.
    fn words(self) -> Option<&'static str> {
        Some(match self {
            Status::OK => "done",
            Status::FAIL => "it failed there, for a reason that the guest does not tell",
            Status::NO_MORE_ITEMS => "there is no such item",
            Status::NOT_SUPPORTED => "the guest cannot do that",
            Status::MACHINE_LOCKED => "the guest is locked; only force would do it",
            Status::NOT_CONNECTED => "the program in the guest that does it is not running",
            Status::INVALID_ARGUMENT => "the guest takes the request for wrong",
            Status::ADAPTER_NOT_FOUND => "the guest has no such network adapter",
            Status::ALREADY_EXISTS => "the file exists there already",
            Status::DISK_FULL => "the guest's disk is full",
            _ => return None,
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words() {
            Some(words) => write!(f, "{words}"),
            None => write!(f, "status {:#010x}", self.0),
        }
    }
}

/// A message of the parent.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Version of the framework.
    pub framework: Version,
    /// Version of the service's messages.
    pub version: Version,
    /// Kind.
    pub message_type: MessageType,
    /// Number of the transaction.
    pub transaction: u8,
    /// Body, at most 65,535 bytes.
    pub body: &'a [u8],
}

impl Request<'_> {
    /// The whole packet.
    pub fn packet(&self) -> Vec<u8> {
        let size = u16::try_from(self.body.len()).unwrap_or(u16::MAX);
        let body = &self.body[..usize::from(size)];
        let pipe = PipeHeader {
            packet_type: PIPE_DATA.into(),
            size: (size_of::<Header>() as u32 + u32::from(size)).into(),
        };
        let header = Header {
            framework: self.framework.into(),
            message_type: self.message_type.0.into(),
            version: self.version.into(),
            size: size.into(),
            status: 0.into(),
            transaction: self.transaction,
            flags: FLAG_TRANSACTION | FLAG_REQUEST,
            reserved: [0; 2],
        };
        [pipe.as_bytes(), header.as_bytes(), body].concat()
    }
}

/// Takes a packet of the guest apart: header and body. The body is all that came after the header, because guests answer
/// in the packet that they got, whatever the size in its header says. `None` if it is too short for the headers.
pub fn split(packet: &[u8]) -> Option<(Header, &[u8])> {
    let (_, rest) = PipeHeader::read_from_prefix(packet).ok()?;
    let (header, body) = Header::read_from_prefix(rest).ok()?;
    Some((header, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_the_layout_that_linux_reads() {
        let request = Request {
            framework: Version::new(3, 0),
            version: Version::new(4, 1),
            message_type: MessageType::Shutdown,
            transaction: 9,
            body: b"abc",
        };
        let packet = request.packet();
        let expected = [
            1, 0, 0, 0, 23, 0, 0, 0, // pipe
            3, 0, 0, 0, 3, 0, 4, 0, 1, 0, 3, 0, 0, 0, 0, 0, 9, 3, 0, 0, // header
            b'a', b'b', b'c',
        ];
        assert_eq!(packet, expected);
        let (header, body) = split(&packet).unwrap();
        assert_eq!((header.transaction, body), (9, &b"abc"[..]));
        assert_eq!(split(&packet[..HEADERS_SIZE - 1]), None);
    }

    #[test]
    fn a_status_speaks() {
        assert_eq!(Status::DISK_FULL.to_string(), "the guest's disk is full");
        assert_eq!(Status(0x8123_4567).to_string(), "status 0x81234567");
    }
}
