//! GUIDs in the byte order of the wire: the first three fields little-endian.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A GUID as it travels.
#[repr(transparent)]
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// All zeroes.
    pub const NIL: Guid = Guid([0; 16]);

    /// The GUID whose text form has these digits: `0xf8615163_df3e_46c5_913f_f2d2f965ed0e`.
    pub const fn from_u128(digits: u128) -> Guid {
        let mut bytes = digits.to_be_bytes();
        Self::swap(&mut bytes);
        Guid(bytes)
    }

    /// The digits of the text form.
    pub const fn to_u128(self) -> u128 {
        let mut bytes = self.0;
        Self::swap(&mut bytes);
        u128::from_be_bytes(bytes)
    }

    /// Turns the first three fields round.
    const fn swap(bytes: &mut [u8; 16]) {
        let [a, b, c, d, e, f, g, h, ..] = *bytes;
        bytes[0] = d;
        bytes[1] = c;
        bytes[2] = b;
        bytes[3] = a;
        bytes[4] = f;
        bytes[5] = e;
        bytes[6] = h;
        bytes[7] = g;
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.to_u128();
        let field = |shift: u32, bits: u32| (digits >> shift) & ((1 << bits) - 1);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            field(96, 32),
            field(80, 16),
            field(64, 16),
            field(48, 16),
            field(0, 48)
        )
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_wire_order() {
        let guid = Guid::from_u128(0xf8615163_df3e_46c5_913f_f2d2f965ed0e);
        assert_eq!(guid.to_string(), "f8615163-df3e-46c5-913f-f2d2f965ed0e");
        assert_eq!(guid.0[..8], [0x63, 0x51, 0x61, 0xf8, 0x3e, 0xdf, 0xc5, 0x46]);
        assert_eq!(guid.0[8..10], [0x91, 0x3f]);
        assert_eq!(guid.to_u128(), 0xf8615163_df3e_46c5_913f_f2d2f965ed0e);
    }
}
