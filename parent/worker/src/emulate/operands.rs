//! Operands: registers of every width, immediates, memory with its address formed.

use iced_x86::{Instruction, OpKind, Register as Iced};
use parterre_partition::registers::{Register, Segments};

use super::{Emulation, Outcome, undefined};

/// All ones in `size` bytes.
pub(super) fn mask(size: usize) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 }
}

/// Sign-extends a value of `size` bytes.
pub(super) fn sign_extend(value: u64, size: usize) -> u64 {
    let shift = 64 - 8 * size.clamp(1, 8) as u32;
    ((value << shift) as i64 >> shift) as u64
}

/// Whether a register is one of AH, CH, DH, BH.
fn is_high_byte(register: Iced) -> bool {
    matches!(register, Iced::AH | Iced::CH | Iced::DH | Iced::BH)
}

/// The general register of which this one is a part.
fn full(register: Iced) -> Option<Register> {
    register.is_gpr().then(|| Register::general(register.full_register().number())).flatten()
}

impl Emulation<'_> {
    /// Width in bytes of an operand.
    pub(super) fn operand_size(instruction: &Instruction, operand: u32) -> usize {
        match instruction.op_kind(operand) {
            OpKind::Register => instruction.op_register(operand).size(),
            OpKind::Memory => instruction.memory_size().size(),
            _ => instruction.op_register(0).size().max(instruction.memory_size().size()),
        }
    }

    /// Reads part of a general register.
    pub(super) fn read_register(&self, register: Iced) -> Outcome<u64> {
        let Some(name) = full(register) else { return undefined() };
        let shift = if is_high_byte(register) { 8 } else { 0 };
        Ok(self.get(name) >> shift & mask(register.size()))
    }

    /// Writes part of a general register; a 32-bit write clears the upper half.
    pub(super) fn write_register(&mut self, register: Iced, value: u64) -> Outcome<()> {
        let Some(name) = full(register) else { return undefined() };
        let old = self.get(name);
        let new = match register.size() {
            1 if is_high_byte(register) => old & !0xFF00 | (value & 0xFF) << 8,
            1 => old & !0xFF | value & 0xFF,
            2 => old & !0xFFFF | value & 0xFFFF,
            4 => value & mask(4),
            _ => value,
        };
        self.set(name, new);
        Ok(())
    }

    /// Reads an operand of any kind, cut to its width.
    pub(super) fn read_operand(&mut self, instruction: &Instruction, operand: u32) -> Outcome<u64> {
        match instruction.op_kind(operand) {
            OpKind::Register => self.read_register(instruction.op_register(operand)),
            OpKind::Memory => {
                let size = Self::value_size(instruction)?;
                let at = self.address(instruction, operand)?;
                self.read_value(at, size)
            }
            _ => match instruction.try_immediate(operand) {
                Ok(value) => Ok(value),
                Err(_) => undefined(),
            },
        }
    }

    /// Writes a register or memory operand.
    pub(super) fn write_operand(
        &mut self,
        instruction: &Instruction,
        operand: u32,
        value: u64,
    ) -> Outcome<()> {
        match instruction.op_kind(operand) {
            OpKind::Register => self.write_register(instruction.op_register(operand), value),
            OpKind::Memory => {
                let size = Self::value_size(instruction)?;
                let at = self.address(instruction, operand)?;
                self.write_value(at, size, value)
            }
            _ => undefined(),
        }
    }

    /// Width of the memory operand, when it is one that fits a general register.
    fn value_size(instruction: &Instruction) -> Outcome<usize> {
        match instruction.memory_size().size() {
            size @ (1 | 2 | 4 | 8) => Ok(size),
            _ => undefined(),
        }
    }

    /// The segment registers, fetched when first needed.
    pub(super) fn segments(&mut self) -> Outcome<Segments> {
        match self.segments {
            Some(segments) => Ok(segments),
            None => {
                let segments = self.vp.segments()?;
                self.segments = Some(segments);
                Ok(segments)
            }
        }
    }

    /// The base that a segment adds: nothing in 64-bit code, except for FS and GS.
    pub(super) fn segment_base(&mut self, segment: Iced) -> Outcome<u64> {
        let long = self.context.code_bits() == 64;
        if long && !matches!(segment, Iced::FS | Iced::GS) {
            return Ok(0);
        }
        if !segment.is_segment_register() {
            return undefined();
        }
        let registers = self.segments()?.registers;
        Ok(registers.get(segment.number()).map_or(0, |register| register.base))
    }

    /// The linear address of an effective address.
    pub(super) fn linear(&mut self, segment: Iced, effective: u64) -> Outcome<u64> {
        let linear = self.segment_base(segment)?.wrapping_add(effective);
        Ok(if self.context.code_bits() == 64 { linear } else { linear & mask(4) })
    }

    /// The linear address of a memory operand.
    fn address(&mut self, instruction: &Instruction, operand: u32) -> Outcome<u64> {
        let base = self.segment_base(instruction.memory_segment())?;
        let address = instruction.virtual_address(operand, 0, |register, _, _| {
            if register.is_segment_register() { Some(base) } else { self.read_register(register).ok() }
        });
        match address {
            Some(address) if self.context.code_bits() == 64 => Ok(address),
            Some(address) => Ok(address & mask(4)),
            None => undefined(),
        }
    }
}
