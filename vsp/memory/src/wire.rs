//! Messages of dynamic memory. Names are those of Linux `drivers/hv/hv_balloon.c`; all numbers are little-endian, and every
//! message starts with a [`Header`].

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The guest asks for a version.
pub const VERSION_REQUEST: u16 = 1;
/// The parent's answer to that.
pub const VERSION_RESPONSE: u16 = 2;
/// What the guest can do.
pub const CAPABILITIES_REPORT: u16 = 3;
/// The parent's answer to that.
pub const CAPABILITIES_RESPONSE: u16 = 4;
/// The guest's memory pressure, about once a second.
pub const STATUS_REPORT: u16 = 5;
/// The parent wants pages.
pub const BALLOON_REQUEST: u16 = 6;
/// Pages that the guest gives up.
pub const BALLOON_RESPONSE: u16 = 7;
/// The parent gives pages back.
pub const UNBALLOON_REQUEST: u16 = 8;
/// The guest has taken them.
pub const UNBALLOON_RESPONSE: u16 = 9;
/// How an addition of memory went.
pub const HOT_ADD_RESPONSE: u16 = 11;
/// Something that the parent tells the guest.
pub const INFO_MESSAGE: u16 = 12;

/// Longest message to a guest. It has room for a page; half of that fits its ring several times.
const MAX_MESSAGE: usize = 2048;
/// Most ranges in one message to the guest.
pub const MAX_RANGES: usize = (MAX_MESSAGE - size_of::<Unballoon>()) / size_of::<U64>();
/// Most pages in one range: the count has 24 bits.
pub const MAX_RANGE_PAGES: u64 = (1 << 24) - 1;
/// Bits of a range's first page.
const FIRST_BITS: u32 = 40;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major.
    pub major: u16,
    /// Minor.
    pub minor: u16,
}

impl Version {
    /// Windows 7.
    pub const V0_3: Version = Version { major: 0, minor: 3 };
    /// Windows 8.
    pub const V1_0: Version = Version { major: 1, minor: 0 };
    /// Windows 10.
    pub const V2_0: Version = Version { major: 2, minor: 0 };
    /// All that are spoken here.
    pub const ALL: [Version; 3] = [Version::V0_3, Version::V1_0, Version::V2_0];
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Pages that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// Number of the first page.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl PageRange {
    fn read(word: u64) -> PageRange {
        PageRange { first: word & ((1 << FIRST_BITS) - 1), count: word >> FIRST_BITS }
    }

    fn word(self) -> u64 {
        self.first | self.count << FIRST_BITS
    }
}

/// What a guest can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Give pages up and take them back.
    pub balloon: bool,
    /// Take more memory than it started with.
    pub hot_add: bool,
    /// Added memory has to be aligned to this many MiB.
    pub hot_add_alignment: u64,
}

/// The guest's memory pressure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Pages that it could still use.
    pub available: u64,
    /// Pages that it has promised to its programs, with those that it gave up and those that it will not give up.
    pub committed: u64,
}

/// Starts every message.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Header {
    kind: U16,
    /// Bytes of the message with this header.
    size: U16,
    transaction: U32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct VersionRequest {
    minor: U16,
    major: U16,
    last_attempt: U32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct CapabilitiesReport {
    bits: U64,
    min_pages: U64,
    max_page: U64,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct StatusReport {
    available: U64,
    committed: U64,
    page_file_size: U64,
    zero_and_free: U64,
    page_file_writes: U32,
    io_difference: U32,
}

/// What stands before the ranges that a guest gives up.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct BalloonResponse {
    reserved: U32,
    /// Bit 0: more messages follow. The others: number of ranges.
    more_and_count: U32,
}

/// What stands before the ranges that a guest gets back.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Unballoon {
    header: Header,
    /// Bit 0: more messages follow.
    more: U32,
    count: U32,
}

/// A message of the guest's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGuest {
    /// It wants this version.
    Version(Version),
    /// It can do this.
    Capabilities(Capabilities),
    /// Its pressure.
    Status(Pressure),
    /// It gives pages up.
    Ballooned {
        /// Which.
        ranges: Vec<PageRange>,
        /// Another message follows.
        more: bool,
    },
    /// It has taken pages back.
    Unballooned,
    /// It has tried to add memory.
    HotAdded,
    /// Something of a type that is not known here.
    Unknown(u16),
}

/// Why a packet is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is shorter than it says or than its type needs.
    #[error("a message of type {0} is cut off")]
    Short(u16),
    /// There is not even a header.
    #[error("a message has no header")]
    Headless,
}

/// Reads a message; returns its transaction too.
///
/// # Errors
/// It is cut off.
pub fn read(packet: &[u8]) -> Result<(u32, FromGuest), Malformed> {
    let (header, _) = Header::read_from_prefix(packet).map_err(|_| Malformed::Headless)?;
    let kind = header.kind.get();
    let short = Malformed::Short(kind);
    let body = packet.get(size_of::<Header>()..header.size.get().into()).ok_or(short)?;
    let message = match kind {
        VERSION_REQUEST => {
            let request = part::<VersionRequest>(body, short)?.0;
            FromGuest::Version(Version { major: request.major.get(), minor: request.minor.get() })
        }
        CAPABILITIES_REPORT => FromGuest::Capabilities(capabilities(part(body, short)?.0)),
        STATUS_REPORT => {
            let report = part::<StatusReport>(body, short)?.0;
            let (available, committed) = (report.available.get(), report.committed.get());
            FromGuest::Status(Pressure { available, committed })
        }
        BALLOON_RESPONSE => {
            let (head, words) = part::<BalloonResponse>(body, short)?;
            let more_and_count = head.more_and_count.get();
            let count = (more_and_count >> 1) as usize;
            let words = words.as_chunks().0.get(..count).ok_or(short)?;
            let ranges = words.iter().map(|word| PageRange::read(u64::from_le_bytes(*word))).collect();
            FromGuest::Ballooned { ranges, more: more_and_count & 1 != 0 }
        }
        UNBALLOON_RESPONSE => FromGuest::Unballooned,
        HOT_ADD_RESPONSE => FromGuest::HotAdded,
        other => FromGuest::Unknown(other),
    };
    Ok((header.transaction.get(), message))
}

fn part<T: FromBytes>(body: &[u8], short: Malformed) -> Result<(T, &[u8]), Malformed> {
    T::read_from_prefix(body).map_err(|_| short)
}

fn capabilities(report: CapabilitiesReport) -> Capabilities {
    let bits = report.bits.get();
    Capabilities { balloon: bits & 1 != 0, hot_add: bits & 2 != 0, hot_add_alignment: 1 << (bits >> 2 & 0xF) }
}

fn header(kind: u16, transaction: u32, size: usize) -> Header {
    // Sizes here are at most a page.
    Header { kind: kind.into(), size: (size as u16).into(), transaction: transaction.into() }
}

/// An answer that accepts or not: [`VERSION_RESPONSE`] or [`CAPABILITIES_RESPONSE`].
pub fn response(kind: u16, transaction: u32, accepted: bool) -> Vec<u8> {
    let flags = U64::new(accepted.into());
    [header(kind, transaction, size_of::<Header>() + size_of::<U64>()).as_bytes(), flags.as_bytes()].concat()
}

/// The guest is to give up so many pages.
pub fn balloon_request(transaction: u32, pages: u32) -> Vec<u8> {
    let body = [U32::new(pages), U32::ZERO];
    [header(BALLOON_REQUEST, transaction, size_of::<Header>() + 8).as_bytes(), body.as_bytes()].concat()
}

/// The guest gets pages back: at most [`MAX_RANGES`] ranges of at most [`MAX_RANGE_PAGES`].
pub fn unballoon_request(transaction: u32, ranges: &[PageRange], more: bool) -> Vec<u8> {
    let size = size_of::<Unballoon>() + size_of_val(ranges) / size_of::<PageRange>() * size_of::<U64>();
    let head = Unballoon {
        header: header(UNBALLOON_REQUEST, transaction, size),
        more: u32::from(more).into(),
        count: (ranges.len() as u32).into(),
    };
    let words = ranges.iter().flat_map(|range| range.word().to_le_bytes());
    head.as_bytes().iter().copied().chain(words).collect()
}

/// Tells the guest how many pages it may have at most (type 0, `INFO_TYPE_MAX_PAGE_CNT`).
pub fn max_page_count(transaction: u32, pages: u64) -> Vec<u8> {
    let data = size_of::<U64>() as u32;
    // Reserved, bytes of the information, its type, bytes of its data.
    let words = [0, 8 + data, 0, data].map(U32::new);
    let pages = U64::new(pages);
    let size = size_of::<Header>() + size_of_val(&words) + size_of_val(&pages);
    [header(INFO_MESSAGE, transaction, size).as_bytes(), words.as_bytes(), pages.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_of_linux_are_read() {
        let version = [1, 0, 16, 0, 7, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0];
        assert_eq!(read(&version), Ok((7, FromGuest::Version(Version::V2_0))));
        let mut report = vec![3, 0, 32, 0, 1, 0, 0, 0, 0b01_1111, 0, 0, 0, 0, 0, 0, 0];
        report.resize(32, 0xFF);
        let expected = Capabilities { balloon: true, hot_add: true, hot_add_alignment: 128 };
        assert_eq!(read(&report), Ok((1, FromGuest::Capabilities(expected))));
        let mut status = vec![5, 0, 48, 0, 9, 0, 0, 0, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0x78, 0x56];
        status.resize(48, 0);
        let pressure = Pressure { available: 0x1234, committed: 0x5678 };
        assert_eq!(read(&status), Ok((9, FromGuest::Status(pressure))));
        let balloon = [7, 0, 24, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0];
        let ranges = vec![PageRange { first: 0x200, count: 0x200 }];
        assert_eq!(read(&balloon), Ok((2, FromGuest::Ballooned { ranges, more: true })));
    }

    #[test]
    fn what_is_cut_off_is_no_message() {
        assert_eq!(read(&[]), Err(Malformed::Headless));
        // The size says more than there is, or less than a header.
        assert_eq!(read(&[9, 0, 16, 0, 0, 0, 0, 0]), Err(Malformed::Short(9)));
        assert_eq!(read(&[9, 0, 4, 0, 0, 0, 0, 0]), Err(Malformed::Short(9)));
        // Two ranges are told, one is there.
        let balloon = [7, 0, 24, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0];
        assert_eq!(read(&balloon), Err(Malformed::Short(7)));
    }

    #[test]
    fn the_longest_message_is_as_long_as_it_may_be() {
        let ranges = vec![PageRange { first: 1, count: MAX_RANGE_PAGES }; MAX_RANGES];
        let message = unballoon_request(1, &ranges, false);
        assert!(message.len() <= MAX_MESSAGE && message.len() + 8 > MAX_MESSAGE);
        assert_eq!(U16::read_from_bytes(&message[2..4]).unwrap().get() as usize, message.len());
        assert_eq!(message[16..24], [1, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF]);
        assert_eq!(max_page_count(3, 5).len(), 32);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((_, FromGuest::Ballooned { ranges, .. })) = read(&bytes) {
                prop_assert!(ranges.len() * 8 <= bytes.len());
            }
        }
    }
}
