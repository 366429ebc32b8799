//! String instructions: MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS, with and without REP.
//!
//! A repeated instruction runs for a bounded number of elements; then the guest re-enters it, so that its interrupts
//! are not held up. The registers always say how far it got.

use iced_x86::{Instruction, Mnemonic, OpKind, Register as Iced};
use parterre_partition::Access;
use parterre_partition::message::IoPort;
use parterre_partition::registers::Register;

use super::operands::mask;
use super::ports::merge_rax;
use super::{Emulation, Outcome, REP_CHUNK, alu, undefined};

const DIRECTION: u64 = 1 << 10;
const ZERO: u64 = 1 << 6;
/// The flags that comparing instructions set.
const ARITHMETIC: u64 = 0x8D5;

/// What one element of the instruction is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Move,
    Store,
    Load,
    Scan,
    Compare,
    In,
    Out,
}

fn kind_and_size(mnemonic: Mnemonic) -> Option<(Kind, usize)> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Movsb => (Kind::Move, 1),
        M::Movsw => (Kind::Move, 2),
        M::Movsd => (Kind::Move, 4),
        M::Movsq => (Kind::Move, 8),
        M::Stosb => (Kind::Store, 1),
        M::Stosw => (Kind::Store, 2),
        M::Stosd => (Kind::Store, 4),
        M::Stosq => (Kind::Store, 8),
        M::Lodsb => (Kind::Load, 1),
        M::Lodsw => (Kind::Load, 2),
        M::Lodsd => (Kind::Load, 4),
        M::Lodsq => (Kind::Load, 8),
        M::Scasb => (Kind::Scan, 1),
        M::Scasw => (Kind::Scan, 2),
        M::Scasd => (Kind::Scan, 4),
        M::Scasq => (Kind::Scan, 8),
        M::Cmpsb => (Kind::Compare, 1),
        M::Cmpsw => (Kind::Compare, 2),
        M::Cmpsd => (Kind::Compare, 4),
        M::Cmpsq => (Kind::Compare, 8),
        M::Insb => (Kind::In, 1),
        M::Insw => (Kind::In, 2),
        M::Insd => (Kind::In, 4),
        M::Outsb => (Kind::Out, 1),
        M::Outsw => (Kind::Out, 2),
        M::Outsd => (Kind::Out, 4),
        _ => return None,
    })
}

/// Width in bytes of the addresses of a string instruction.
fn address_size(instruction: &Instruction) -> usize {
    let kinds = (0..instruction.op_count()).map(|operand| instruction.op_kind(operand));
    for kind in kinds {
        match kind {
            OpKind::MemorySegSI | OpKind::MemoryESDI => return 2,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => return 4,
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => return 8,
            _ => {}
        }
    }
    8
}

/// One string instruction.
struct StringOp<'a> {
    kind: Kind,
    size: usize,
    address_size: usize,
    source_segment: Iced,
    io: Option<&'a IoPort>,
}

impl Emulation<'_> {
    /// A string instruction on memory.
    pub(super) fn string_instruction(&mut self, instruction: &Instruction) -> Outcome<()> {
        // MOVSD and CMPSD also name SSE instructions; those have a vector register.
        if instruction.op_register(0).is_vector_register() || instruction.op_register(1).is_vector_register()
        {
            return undefined();
        }
        self.string_instruction_with(instruction, None)
    }

    /// Any string instruction; INS and OUTS know their port from the intercept.
    pub(super) fn string_instruction_with(
        &mut self,
        instruction: &Instruction,
        io: Option<&IoPort>,
    ) -> Outcome<()> {
        let Some((kind, size)) = kind_and_size(instruction.mnemonic()) else { return undefined() };
        let address_size = address_size(instruction);
        let source_segment = instruction.memory_segment();
        let op = StringOp { kind, size, address_size, source_segment, io };
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if !repeated {
            self.element(&op)?;
            self.advance(instruction);
            return Ok(());
        }
        let until_zero = instruction.has_repne_prefix();
        for _ in 0..REP_CHUNK {
            if self.index(Register::Rcx, address_size) == 0 {
                self.advance(instruction);
                return Ok(());
            }
            self.element(&op)?;
            self.step(Register::Rcx, address_size, u64::MAX);
            let zero = self.get(Register::Rflags) & ZERO != 0;
            if matches!(op.kind, Kind::Scan | Kind::Compare) && zero == until_zero {
                self.advance(instruction);
                return Ok(());
            }
        }
        if self.index(Register::Rcx, address_size) == 0 {
            self.advance(instruction);
        }
        Ok(())
    }

    /// A counter or index register, cut to the address size.
    fn index(&self, register: Register, address_size: usize) -> u64 {
        self.get(register) & mask(address_size)
    }

    /// Adds to a counter or index register within the address size.
    fn step(&mut self, register: Register, address_size: usize, by: u64) {
        let old = self.get(register);
        let new = old.wrapping_add(by) & mask(address_size);
        let kept = if address_size == 2 { old & !mask(2) } else { 0 };
        self.set(register, kept | new);
    }

    /// One element: reads, writes, then moves the index registers.
    fn element(&mut self, op: &StringOp<'_>) -> Outcome<()> {
        let back = self.get(Register::Rflags) & DIRECTION != 0;
        let by = if back { (op.size as u64).wrapping_neg() } else { op.size as u64 };
        let uses_source = matches!(op.kind, Kind::Move | Kind::Load | Kind::Compare | Kind::Out);
        let uses_target = !matches!(op.kind, Kind::Load | Kind::Out);
        let source = self.index(Register::Rsi, op.address_size);
        let target = self.index(Register::Rdi, op.address_size);
        let value = match op.kind {
            _ if uses_source => {
                let at = self.linear(op.source_segment, source)?;
                self.read_value(at, op.size)?
            }
            Kind::In => {
                // A fault must come before the device gives up its data.
                let at = self.linear(Iced::ES, target)?;
                self.translate(at, Access::Write)?;
                op.io.map_or(0, |io| self.devices.ports.read(io.port.into(), op.size as u8))
            }
            _ => self.get(Register::Rax) & mask(op.size),
        };
        self.deliver(op, value, target)?;
        if uses_source {
            self.step(Register::Rsi, op.address_size, by);
        }
        if uses_target {
            self.step(Register::Rdi, op.address_size, by);
        }
        Ok(())
    }

    /// Puts the element where it belongs.
    fn deliver(&mut self, op: &StringOp<'_>, value: u64, target: u64) -> Outcome<()> {
        match op.kind {
            Kind::Move | Kind::Store | Kind::In => {
                let at = self.linear(Iced::ES, target)?;
                self.write_value(at, op.size, value)
            }
            Kind::Scan | Kind::Compare => {
                let at = self.linear(Iced::ES, target)?;
                let other = self.read_value(at, op.size)?;
                let flags = alu::sub(value, other, 0, op.size).flags;
                let old = self.get(Register::Rflags);
                self.set(Register::Rflags, old & !ARITHMETIC | flags);
                Ok(())
            }
            Kind::Load if op.size == 8 => {
                self.set(Register::Rax, value);
                Ok(())
            }
            Kind::Load => {
                let rax = merge_rax(self.get(Register::Rax), op.size as u8, value);
                self.set(Register::Rax, rax);
                Ok(())
            }
            Kind::Out => {
                if let Some(io) = op.io {
                    self.devices.ports.write(io.port.into(), op.size as u8, value);
                }
                Ok(())
            }
        }
    }
}
