//! Reading an instruction byte by byte: prefixes, the ModRM byte and what follows it (Intel SDM 2A chapter 2).

use super::Mode;

/// No instruction is longer.
const LONGEST: usize = 15;

/// The bytes of an instruction, and how far they have been read.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.get(..LONGEST).unwrap_or(bytes), at: 0 }
    }

    /// The next byte; `None` at the end of what there is, or of what an instruction can have.
    pub fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// The next `count` bytes (up to 8) as an unsigned number.
    pub fn number(&mut self, count: usize) -> Option<u64> {
        let mut number = 0;
        for index in 0..count {
            number |= u64::from(self.byte()?) << (8 * index);
        }
        Some(number)
    }

    /// An immediate of `size` bytes, sign-extended.
    pub fn immediate(&mut self, size: usize) -> Option<u64> {
        let shift = 64 - 8 * size as u32;
        self.number(size).map(|number| ((number << shift) as i64 >> shift) as u64)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.number(count).map(|_| ())
    }

    /// Bytes read so far: at most 15.
    pub fn length(&self) -> u8 {
        self.at as u8
    }
}

/// The prefixes of an instruction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Prefixes {
    pub operand_size: bool,
    pub address_size: bool,
    pub lock: bool,
    /// F2 or F3.
    pub repeat: Option<u8>,
    pub rex: Option<u8>,
}

impl Prefixes {
    /// Reads prefixes; gives the byte that follows them, which is the opcode's first.
    pub fn read(cursor: &mut Cursor<'_>, mode: Mode) -> Option<(Self, u8)> {
        let mut prefixes = Self::default();
        loop {
            let byte = cursor.byte()?;
            match byte {
                0x66 => prefixes.operand_size = true,
                0x67 => prefixes.address_size = true,
                0xF0 => prefixes.lock = true,
                0xF2 | 0xF3 => prefixes.repeat = Some(byte),
                0x26 | 0x2E | 0x36 | 0x3E | 0x64 | 0x65 => {}
                0x40..=0x4F if mode == Mode::Bits64 => {
                    prefixes.rex = Some(byte);
                    continue;
                }
                _ => return Some((prefixes, byte)),
            }
            // A REX prefix counts only right before the opcode.
            prefixes.rex = None;
        }
    }

    fn rex_bit(&self, bit: u8) -> bool {
        self.rex.is_some_and(|rex| rex & 1 << bit != 0)
    }

    /// Bytes of an operand that is not a byte: 2, 4 or 8.
    pub fn operand(&self, mode: Mode) -> u8 {
        match (mode, self.operand_size) {
            _ if self.rex_bit(3) => 8,
            (Mode::Bits16, false) | (Mode::Bits32 | Mode::Bits64, true) => 2,
            _ => 4,
        }
    }

    /// Bytes of an address: 2, 4 or 8.
    pub fn address(&self, mode: Mode) -> u8 {
        match (mode, self.address_size) {
            (Mode::Bits64, false) => 8,
            (Mode::Bits16, false) | (Mode::Bits32, true) => 2,
            _ => 4,
        }
    }

    /// What REX.R adds to a register number.
    pub fn extended(&self, register: u8) -> u8 {
        register & 7 | u8::from(self.rex_bit(2)) << 3
    }

    /// The same for REX.B.
    pub fn extended_base(&self, register: u8) -> u8 {
        register & 7 | u8::from(self.rex_bit(0)) << 3
    }
}

/// Reads a ModRM byte that names memory, and skips the address after it; gives the `reg` field without REX. `None` if
/// it names a register.
pub(super) fn memory_operand(cursor: &mut Cursor<'_>, prefixes: &Prefixes, mode: Mode) -> Option<u8> {
    let modrm = cursor.byte()?;
    let (kind, register, base) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
    if kind == 3 {
        return None;
    }
    if prefixes.address(mode) == 2 {
        cursor.skip(match (kind, base) {
            (0, 6) | (2, _) => 2,
            (1, _) => 1,
            _ => 0,
        })?;
        return Some(register);
    }
    // Base 4 is a SIB byte, whose base 5 without displacement is a 32-bit one, as base 5 itself is.
    let base = if base == 4 { cursor.byte()? & 7 } else { base };
    cursor.skip(match (kind, base) {
        (0, 5) | (2, _) => 4,
        (1, _) => 1,
        _ => 0,
    })?;
    Some(register)
}
