//! Instructions that access memory with one plain operand, as kernels use them for device registers: MOV, MOVZX,
//! MOVSX, MOVSXD, ADD, OR, AND, SUB, XOR, CMP, TEST, XCHG. Where the operand lies is not decoded: the exit tells.

use super::Mode;
use super::cursor::{Cursor, Prefixes, memory_operand};

/// What an instruction does with the operand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// The register becomes the operand, extended to the register's size.
    Load { to: Register, signed: bool },
    /// The operand becomes the source.
    Store { from: Source },
    /// The register becomes register `op` operand.
    Into { to: Register, op: Arithmetic },
    /// The operand becomes operand `op` source.
    Modify { op: Arithmetic, from: Source },
    /// Flags as by operand `op` source; nothing else.
    Compare { op: Arithmetic, from: Source },
    /// Flags as by register - operand.
    CompareInto { to: Register },
    /// Register and operand change places.
    Exchange { with: Register },
}

/// What is combined with the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Register(Register),
    /// Sign-extended.
    Immediate(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Or,
    And,
    Subtract,
    Xor,
}

/// A general-purpose register or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register {
    /// By its encoding, 0-15.
    pub index: u8,
    /// Bytes.
    pub size: u8,
    /// Bits 15:8 (AH, CH, DH, BH).
    pub high: bool,
}

/// An instruction that reads or writes one operand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAccess {
    pub(super) operation: Operation,
    /// Bytes of the operand.
    pub(super) size: u8,
    length: u8,
}

impl MemoryAccess {
    /// The instruction at the start of `bytes`; `None` if it is not one of those above.
    pub fn decode(bytes: &[u8], mode: Mode) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let (prefixes, opcode) = Prefixes::read(&mut cursor, mode)?;
        // With F2 or F3 these are other instructions, or lock elision.
        if prefixes.repeat.is_some() {
            return None;
        }
        let mut decoder = Decoder { cursor, prefixes, mode };
        let (operation, size) = match opcode {
            0x0F => decoder.extending_move()?,
            _ => decoder.one_byte(opcode)?,
        };
        // Only what reads and writes can be locked, and not a register's own change.
        if prefixes.lock && !matches!(operation, Operation::Modify { .. } | Operation::Exchange { .. }) {
            return None;
        }
        Some(Self { operation, size, length: decoder.cursor.length() })
    }

    /// The instruction's length.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Bytes of the operand in memory: 1, 2, 4 or 8.
    pub fn size(&self) -> u8 {
        self.size
    }

    /// Whether the operand is read.
    pub fn reads(&self) -> bool {
        !matches!(self.operation, Operation::Store { .. })
    }

    /// Whether the operand is written.
    pub fn writes(&self) -> bool {
        use Operation::{Exchange, Modify, Store};
        matches!(self.operation, Store { .. } | Modify { .. } | Exchange { .. })
    }
}

struct Decoder<'a> {
    cursor: Cursor<'a>,
    prefixes: Prefixes,
    mode: Mode,
}

impl Decoder<'_> {
    /// The operand's size by the lowest bit of most opcodes: a byte, or what the mode says.
    fn size(&self, opcode: u8) -> u8 {
        if opcode & 1 == 0 { 1 } else { self.prefixes.operand(self.mode) }
    }

    fn modrm(&mut self) -> Option<u8> {
        memory_operand(&mut self.cursor, &self.prefixes, self.mode)
    }

    /// A register operand by the `reg` field of the ModRM byte.
    fn register(&self, field: u8, size: u8) -> Register {
        let high = size == 1 && self.prefixes.rex.is_none() && field >= 4;
        Register { index: if high { field - 4 } else { self.prefixes.extended(field) }, size, high }
    }

    fn immediate(&mut self, size: u8) -> Option<Source> {
        // 64-bit operands take 32-bit immediates.
        self.cursor.immediate(size.min(4).into()).map(Source::Immediate)
    }

    fn one_byte(&mut self, opcode: u8) -> Option<(Operation, u8)> {
        let size = self.size(opcode);
        let operation = match opcode {
            0x00..=0x3F => self.arithmetic(opcode, size)?,
            0x63 if self.mode == Mode::Bits64 => {
                let to = self.modrm()?;
                return Some((Operation::Load { to: self.register(to, size), signed: true }, size.min(4)));
            }
            // 82 is another name of 80, outside 64-bit mode.
            0x82 if self.mode == Mode::Bits64 => return None,
            0x80..=0x83 => {
                let field = self.modrm()?;
                let from = self.immediate(if opcode == 0x83 { 1 } else { size })?;
                combine(field, from)?
            }
            0x84 | 0x85 => {
                let field = self.modrm()?;
                let from = Source::Register(self.register(field, size));
                Operation::Compare { op: Arithmetic::And, from }
            }
            0x86 | 0x87 => {
                let field = self.modrm()?;
                Operation::Exchange { with: self.register(field, size) }
            }
            0x88 | 0x89 => {
                let field = self.modrm()?;
                Operation::Store { from: Source::Register(self.register(field, size)) }
            }
            0x8A | 0x8B => {
                let field = self.modrm()?;
                Operation::Load { to: self.register(field, size), signed: false }
            }
            0xA0..=0xA3 => self.absolute(opcode, size)?,
            0xC6 | 0xC7 if self.modrm()? == 0 => Operation::Store { from: self.immediate(size)? },
            0xF6 | 0xF7 if self.modrm()? <= 1 => {
                Operation::Compare { op: Arithmetic::And, from: self.immediate(size)? }
            }
            _ => return None,
        };
        Some((operation, size))
    }

    /// The first eight rows of the opcode map: `op` in bits 5:3, the form in bits 2:0.
    fn arithmetic(&mut self, opcode: u8, size: u8) -> Option<Operation> {
        let row = opcode >> 3;
        if opcode & 7 > 3 {
            return None;
        }
        let field = self.modrm()?;
        let register = self.register(field, size);
        if opcode & 2 == 0 {
            return combine(row, Source::Register(register));
        }
        Some(match arithmetic(row) {
            Some(op) => Operation::Into { to: register, op },
            None if row == 7 => Operation::CompareInto { to: register },
            None => return None,
        })
    }

    /// MOV between the accumulator and an absolute address.
    fn absolute(&mut self, opcode: u8, size: u8) -> Option<Operation> {
        self.cursor.number(self.prefixes.address(self.mode).into())?;
        let accumulator = Register { index: 0, size, high: false };
        Some(if opcode & 2 == 0 {
            Operation::Load { to: accumulator, signed: false }
        } else {
            Operation::Store { from: Source::Register(accumulator) }
        })
    }

    /// MOVZX and MOVSX.
    fn extending_move(&mut self) -> Option<(Operation, u8)> {
        let opcode = self.cursor.byte()?;
        let signed = match opcode {
            0xB6 | 0xB7 => false,
            0xBE | 0xBF => true,
            _ => return None,
        };
        let field = self.modrm()?;
        let to = self.register(field, self.prefixes.operand(self.mode));
        Some((Operation::Load { to, signed }, if opcode & 1 == 0 { 1 } else { 2 }))
    }
}

/// The operation that a row of the opcode map is, with the operand in memory as its destination.
fn combine(row: u8, from: Source) -> Option<Operation> {
    match arithmetic(row) {
        Some(op) => Some(Operation::Modify { op, from }),
        None if row == 7 => Some(Operation::Compare { op: Arithmetic::Subtract, from }),
        None => None,
    }
}

fn arithmetic(row: u8) -> Option<Arithmetic> {
    Some(match row {
        0 => Arithmetic::Add,
        1 => Arithmetic::Or,
        4 => Arithmetic::And,
        5 => Arithmetic::Subtract,
        6 => Arithmetic::Xor,
        _ => return None,
    })
}
