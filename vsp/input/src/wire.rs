//! Messages of the keyboard. Names are those of Linux.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::keys::Stroke;

/// The guest asks for a version.
pub const PROTOCOL_REQUEST: u32 = 1;
/// The parent's answer to that.
pub const PROTOCOL_RESPONSE: u32 = 2;
/// A keystroke.
pub const EVENT: u32 = 3;
/// The guest's lights.
pub const LED_INDICATORS: u32 = 4;

/// The version: 1.0.
pub const VERSION: u32 = 1 << 16;
/// Status of [`PROTOCOL_RESPONSE`]: the version is accepted.
const ACCEPTED: u32 = 1;

const IS_BREAK: u32 = 1 << 1;
const IS_E0: u32 = 1 << 2;
const IS_E1: u32 = 1 << 3;

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Response {
    kind: U32,
    status: U32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Keystroke {
    kind: U32,
    make_code: U16,
    reserved: U16,
    info: U32,
}

/// What a guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromGuest {
    /// It wants this version.
    Version(u32),
    /// These lights are on: bit 0 scroll lock, bit 1 num lock, bit 2 caps lock.
    Lights(u16),
    /// Something of a type that this version does not know.
    Unknown(u32),
}

/// Reads a message of the guest. `None` if it is cut off.
pub fn read(payload: &[u8]) -> Option<FromGuest> {
    let (kind, rest) = U32::read_from_prefix(payload).ok()?;
    Some(match kind.get() {
        PROTOCOL_REQUEST => FromGuest::Version(U32::read_from_prefix(rest).ok()?.0.get()),
        LED_INDICATORS => FromGuest::Lights(U16::read_from_prefix(rest).ok()?.0.get()),
        other => FromGuest::Unknown(other),
    })
}

/// The answer to a guest that wants a version.
pub fn response(accepted: bool) -> Vec<u8> {
    let status = if accepted { ACCEPTED } else { 0 };
    Response { kind: PROTOCOL_RESPONSE.into(), status: status.into() }.as_bytes().to_vec()
}

/// A keystroke.
pub fn keystroke(stroke: Stroke) -> Vec<u8> {
    let flag = |set, flag| if set { flag } else { 0 };
    let prefix = match stroke.key.prefix {
        0xE0 => IS_E0,
        0xE1 => IS_E1,
        _ => 0,
    };
    let info = prefix | flag(stroke.released, IS_BREAK);
    let make_code = u16::from(stroke.key.code).into();
    Keystroke { kind: EVENT.into(), make_code, reserved: 0.into(), info: info.into() }.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Key;

    #[test]
    fn messages_have_the_layout_that_linux_reads() {
        assert_eq!(response(true), [2, 0, 0, 0, 1, 0, 0, 0]);
        let key = Key { prefix: 0xE0, code: 0x53 };
        assert_eq!(keystroke(Stroke { key, released: true }), [3, 0, 0, 0, 0x53, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(read(&[1, 0, 0, 0, 0, 0, 1, 0]), Some(FromGuest::Version(VERSION)));
        assert_eq!(read(&[4, 0, 0, 0, 4, 0]), Some(FromGuest::Lights(4)));
        assert_eq!(read(&[9, 0, 0, 0]), Some(FromGuest::Unknown(9)));
        assert_eq!(read(&[1, 0, 0, 0, 0]), None);
        assert_eq!(read(&[]), None);
    }
}
