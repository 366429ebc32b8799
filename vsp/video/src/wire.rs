//! Messages of the screen. Names are those of Linux `drivers/gpu/drm/hyperv/hyperv_drm_proto.c`; all numbers are little-endian
//! and nothing is aligned.

use std::fmt;

use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The guest asks for a version.
pub const VERSION_REQUEST: u32 = 1;
/// The parent's answer to that.
pub const VERSION_RESPONSE: u32 = 2;
/// Where the guest wants the video memory.
pub const VRAM_LOCATION: u32 = 3;
/// The parent's answer to that.
pub const VRAM_LOCATION_ACK: u32 = 4;
/// How the picture lies in the video memory.
pub const SITUATION_UPDATE: u32 = 5;
/// The parent's answer to that.
pub const SITUATION_UPDATE_ACK: u32 = 6;
/// Where the pointer is.
pub const POINTER_POSITION: u32 = 7;
/// What it looks like.
pub const POINTER_SHAPE: u32 = 8;
/// What the parent wants to be told.
pub const FEATURE_CHANGE: u32 = 9;
/// Where the picture has changed.
pub const DIRT: u32 = 10;
/// The guest asks which resolutions there are.
pub const RESOLUTION_REQUEST: u32 = 13;
/// The parent's answer to that.
pub const RESOLUTION_RESPONSE: u32 = 14;

/// Bytes of the identification data (EDID) in [`RESOLUTION_RESPONSE`]. They are zero here: guests go by the list.
const EDID: usize = 128;
/// Packet type of data in a pipe.
const PIPE_DATA: u32 = 1;

/// A version of the protocol: 3.2 is Windows 8's, 3.5 Windows 10's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major.
    pub major: u16,
    /// Minor.
    pub minor: u16,
}

impl Version {
    /// Whether it is spoken here. Before 3.2 pictures had 16 bits for a pixel.
    pub fn is_known(self) -> bool {
        self.major == 3 && (2..=5).contains(&self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// How a picture lies in the video memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// The screen is on.
    pub active: bool,
    /// First byte of the picture.
    pub offset: u32,
    /// Bits for a pixel.
    pub depth: u8,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Bytes from a row to the next.
    pub pitch: u32,
}

/// A rectangle of the picture; the second corner is outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rectangle {
    /// Left edge.
    pub x1: i32,
    /// Upper edge.
    pub y1: i32,
    /// Behind the right edge.
    pub x2: i32,
    /// Below the lower edge.
    pub y2: i32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Header {
    pipe_type: U32,
    /// Bytes that follow this word.
    pipe_size: U32,
    kind: U32,
    /// Bytes of the message from `kind` on.
    size: U32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct VramLocation {
    context: U64,
    is_specified: u8,
    gpa: U64,
}

/// What stands before the outputs in [`SITUATION_UPDATE`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct SituationHead {
    context: U64,
    outputs: u8,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Output {
    active: u8,
    offset: U32,
    depth: u8,
    width: U32,
    height: U32,
    pitch: U32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct WireRectangle {
    x1: I32,
    y1: I32,
    x2: I32,
    y2: I32,
}

/// A message of the guest's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGuest {
    /// It wants this version.
    Version(Version),
    /// It wants the video memory here, or nowhere.
    Vram {
        /// To be repeated in the answer.
        context: u64,
        /// Guest physical address.
        gpa: Option<u64>,
    },
    /// This is the picture; absent if there is no output.
    Situation {
        /// To be repeated in the answer.
        context: u64,
        /// Of the first output: there is one.
        output: Option<Situation>,
    },
    /// The picture has changed here.
    Dirt(Vec<Rectangle>),
    /// Which resolutions are there?
    Resolutions,
    /// Something about the pointer, which the guest draws itself.
    Pointer,
    /// Something of a type that is not known here.
    Unknown(u32),
}

/// Reads a packet. `None` if it is cut off or no data.
pub fn read(packet: &[u8]) -> Option<FromGuest> {
    let (header, _) = Header::read_from_prefix(packet).ok()?;
    if header.pipe_type.get() != PIPE_DATA {
        return None;
    }
    // The message begins with its type and its size.
    let end = usize::try_from(header.size.get()).ok()?.checked_add(size_of::<Header>() - 8)?;
    let body = packet.get(size_of::<Header>()..end)?;
    Some(match header.kind.get() {
        VERSION_REQUEST => {
            let word = part::<U32>(body)?.0.get();
            FromGuest::Version(Version { major: word as u16, minor: (word >> 16) as u16 })
        }
        VRAM_LOCATION => {
            let location = part::<VramLocation>(body)?.0;
            let gpa = (location.is_specified != 0).then_some(location.gpa.get());
            FromGuest::Vram { context: location.context.get(), gpa }
        }
        SITUATION_UPDATE => {
            let (head, rest) = part::<SituationHead>(body)?;
            let output = if head.outputs == 0 { None } else { Some(situation(&part::<Output>(rest)?.0)) };
            FromGuest::Situation { context: head.context.get(), output }
        }
        DIRT => {
            let (head, rest) = part::<[u8; 2]>(body)?;
            let (rectangles, _) = <[WireRectangle]>::ref_from_prefix_with_elems(rest, head[1].into()).ok()?;
            FromGuest::Dirt(rectangles.iter().map(rectangle).collect())
        }
        RESOLUTION_REQUEST => FromGuest::Resolutions,
        POINTER_POSITION | POINTER_SHAPE => FromGuest::Pointer,
        other => FromGuest::Unknown(other),
    })
}

fn part<T: FromBytes>(body: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(body).ok()
}

fn situation(output: &Output) -> Situation {
    Situation {
        active: output.active != 0,
        offset: output.offset.get(),
        depth: output.depth,
        width: output.width.get(),
        height: output.height.get(),
        pitch: output.pitch.get(),
    }
}

fn rectangle(rectangle: &WireRectangle) -> Rectangle {
    let WireRectangle { x1, y1, x2, y2 } = rectangle;
    Rectangle { x1: x1.get(), y1: y1.get(), x2: x2.get(), y2: y2.get() }
}

/// A whole packet with a message.
fn message(kind: u32, body: &[u8]) -> Vec<u8> {
    // Messages of the parent are short.
    let size = U32::new(body.len() as u32 + 8);
    let header = Header { pipe_type: PIPE_DATA.into(), pipe_size: size, kind: kind.into(), size };
    [header.as_bytes(), body].concat()
}

/// The answer to a guest that wants a version.
pub fn version_response(version: Version, accepted: bool) -> Vec<u8> {
    let word = U32::new(u32::from(version.major) | u32::from(version.minor) << 16);
    // Accepted or not, and how many screens there are.
    message(VERSION_RESPONSE, &[word.as_bytes(), &[accepted.into(), 1]].concat())
}

/// The answer to [`VRAM_LOCATION`] or [`SITUATION_UPDATE`].
pub fn acknowledgement(kind: u32, context: u64) -> Vec<u8> {
    message(kind, &context.to_le_bytes())
}

/// What the parent wants to be told: whether the picture changes, nothing of the pointer, and the situation now.
pub fn feature_change(dirt: bool) -> Vec<u8> {
    message(FEATURE_CHANGE, &[dirt.into(), 0, 0, dirt.into()])
}

/// The resolutions that there are (at most 64), and which of them the guest is to begin with.
pub fn resolutions(all: &[(u16, u16)], first: u8) -> Vec<u8> {
    let mut body = vec![0; EDID];
    // The list is not the standard one: it holds what fits the video memory.
    body.extend([all.len() as u8, first, 0]);
    for (width, height) in all {
        body.extend([U16::new(*width), U16::new(*height)].as_bytes());
    }
    message(RESOLUTION_RESPONSE, &body)
}
