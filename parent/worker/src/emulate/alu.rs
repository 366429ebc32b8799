//! What instructions without repetition do, and the flags that they leave.

use iced_x86::{Instruction, Mnemonic, OpKind};
use parterre_partition::registers::Register;

use super::operands::{mask, sign_extend};
use super::{Emulation, Outcome, undefined};

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// A result with its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alu {
    pub(super) value: u64,
    pub(super) flags: u64,
}

fn sign(size: usize) -> u64 {
    1 << (8 * size - 1)
}

/// Zero, sign and parity of a result.
fn result_flags(value: u64, size: usize) -> u64 {
    let mut flags = 0;
    if value & mask(size) == 0 {
        flags |= ZF;
    }
    if value & sign(size) != 0 {
        flags |= SF;
    }
    if (value as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    flags
}

/// `a + b + carry` on `size` bytes.
pub(super) fn add(a: u64, b: u64, carry: u64, size: usize) -> Alu {
    let (a, b) = (a & mask(size), b & mask(size));
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let value = wide as u64 & mask(size);
    let mut flags = result_flags(value, size);
    flags |= if wide > u128::from(mask(size)) { CF } else { 0 };
    flags |= if (a ^ value) & (b ^ value) & sign(size) != 0 { OF } else { 0 };
    flags |= (a ^ b ^ value) & AF;
    Alu { value, flags }
}

/// `a - b - borrow` on `size` bytes.
pub(super) fn sub(a: u64, b: u64, borrow: u64, size: usize) -> Alu {
    let (a, b) = (a & mask(size), b & mask(size));
    let value = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    let mut flags = result_flags(value, size);
    flags |= if u128::from(a) < u128::from(b) + u128::from(borrow) { CF } else { 0 };
    flags |= if (a ^ b) & (a ^ value) & sign(size) != 0 { OF } else { 0 };
    flags |= (a ^ b ^ value) & AF;
    Alu { value, flags }
}

/// A bitwise result: carry and overflow are clear.
pub(super) fn logic(value: u64, size: usize) -> Alu {
    Alu { value: value & mask(size), flags: result_flags(value, size) }
}

impl Emulation<'_> {
    fn set_flags(&mut self, flags: u64, of: u64) {
        let old = self.get(Register::Rflags);
        self.set(Register::Rflags, old & !of | flags & of);
    }

    /// Every instruction but the string ones.
    pub(super) fn plain_instruction(&mut self, instruction: &Instruction) -> Outcome<()> {
        use Mnemonic as M;
        match instruction.mnemonic() {
            M::Mov | M::Movnti => {
                let value = self.read_operand(instruction, 1)?;
                self.write_operand(instruction, 0, value)
            }
            M::Movzx => {
                let value = self.read_operand(instruction, 1)?;
                self.write_operand(instruction, 0, value)
            }
            M::Movsx | M::Movsxd => {
                let size = Self::operand_size(instruction, 1);
                let value = self.read_operand(instruction, 1)?;
                self.write_operand(instruction, 0, sign_extend(value, size))
            }
            M::Add | M::Adc | M::Sub | M::Sbb | M::And | M::Or | M::Xor | M::Cmp | M::Test => {
                self.two_operands(instruction)
            }
            M::Inc | M::Dec | M::Not | M::Neg => self.one_operand(instruction),
            M::Xchg | M::Xadd | M::Cmpxchg => self.exchange(instruction),
            M::Bt | M::Bts | M::Btr | M::Btc => self.bit_test(instruction),
            M::Push | M::Pop => self.stack(instruction),
            _ => undefined(),
        }
    }

    fn two_operands(&mut self, instruction: &Instruction) -> Outcome<()> {
        use Mnemonic as M;
        let size = Self::operand_size(instruction, 0);
        let a = self.read_operand(instruction, 0)?;
        let b = self.read_operand(instruction, 1)?;
        let carry = self.get(Register::Rflags) & CF;
        let mnemonic = instruction.mnemonic();
        let result = match mnemonic {
            M::Add => add(a, b, 0, size),
            M::Adc => add(a, b, carry, size),
            M::Sub | M::Cmp => sub(a, b, 0, size),
            M::Sbb => sub(a, b, carry, size),
            M::Or => logic(a | b, size),
            M::Xor => logic(a ^ b, size),
            _ => logic(a & b, size), // AND and TEST
        };
        if !matches!(mnemonic, M::Cmp | M::Test) {
            self.write_operand(instruction, 0, result.value)?;
        }
        self.set_flags(result.flags, ARITHMETIC);
        Ok(())
    }

    fn one_operand(&mut self, instruction: &Instruction) -> Outcome<()> {
        use Mnemonic as M;
        let size = Self::operand_size(instruction, 0);
        let a = self.read_operand(instruction, 0)?;
        let (result, flags) = match instruction.mnemonic() {
            M::Inc => (add(a, 1, 0, size), ARITHMETIC & !CF),
            M::Dec => (sub(a, 1, 0, size), ARITHMETIC & !CF),
            M::Neg => (sub(0, a, 0, size), ARITHMETIC),
            _ => (logic(!a, size), 0),
        };
        self.write_operand(instruction, 0, result.value)?;
        self.set_flags(result.flags, flags);
        Ok(())
    }

    fn exchange(&mut self, instruction: &Instruction) -> Outcome<()> {
        let size = Self::operand_size(instruction, 0);
        let a = self.read_operand(instruction, 0)?;
        let b = self.read_operand(instruction, 1)?;
        match instruction.mnemonic() {
            Mnemonic::Xchg => {
                // The operand in memory goes first: it may fault.
                let memory_first = instruction.op_kind(0) == OpKind::Memory;
                let order = if memory_first { [(0, b), (1, a)] } else { [(1, a), (0, b)] };
                for (operand, value) in order {
                    self.write_operand(instruction, operand, value)?;
                }
            }
            Mnemonic::Xadd => {
                let sum = add(a, b, 0, size);
                self.write_operand(instruction, 0, sum.value)?;
                self.write_operand(instruction, 1, a)?;
                self.set_flags(sum.flags, ARITHMETIC);
            }
            _ => {
                let accumulator = self.get(Register::Rax) & mask(size);
                let compared = sub(accumulator, a, 0, size);
                if compared.value == 0 {
                    self.write_operand(instruction, 0, b)?;
                } else {
                    self.write_operand(instruction, 0, a)?;
                    let merged = match size {
                        1 | 2 => self.get(Register::Rax) & !mask(size) | a,
                        _ => a,
                    };
                    self.set(Register::Rax, merged);
                }
                self.set_flags(compared.flags, ARITHMETIC);
            }
        }
        Ok(())
    }

    /// Bit tests with the bit inside the operand. A register offset that points beyond it is not emulated.
    fn bit_test(&mut self, instruction: &Instruction) -> Outcome<()> {
        let bits = 8 * Self::operand_size(instruction, 0) as u64;
        let offset = self.read_operand(instruction, 1)?;
        let by_register = instruction.op_kind(1) == OpKind::Register;
        if by_register && instruction.op_kind(0) == OpKind::Memory && offset >= bits {
            return undefined();
        }
        let a = self.read_operand(instruction, 0)?;
        let bit = 1u64 << (offset % bits);
        let result = match instruction.mnemonic() {
            Mnemonic::Bts => Some(a | bit),
            Mnemonic::Btr => Some(a & !bit),
            Mnemonic::Btc => Some(a ^ bit),
            _ => None,
        };
        if let Some(value) = result {
            self.write_operand(instruction, 0, value)?;
        }
        self.set_flags(if a & bit != 0 { CF } else { 0 }, CF);
        Ok(())
    }

    /// PUSH from and POP to a device; 64-bit code only.
    fn stack(&mut self, instruction: &Instruction) -> Outcome<()> {
        if self.context.code_bits() != 64 {
            return undefined();
        }
        let size = Self::operand_size(instruction, 0);
        let rsp = self.get(Register::Rsp);
        if instruction.mnemonic() == Mnemonic::Push {
            let value = self.read_operand(instruction, 0)?;
            let top = rsp.wrapping_sub(size as u64);
            self.write_value(top, size, value)?;
            self.set(Register::Rsp, top);
        } else {
            let value = self.read_value(rsp, size)?;
            self.set(Register::Rsp, rsp.wrapping_add(size as u64));
            if let Err(stop) = self.write_operand(instruction, 0, value) {
                self.set(Register::Rsp, rsp);
                return Err(stop);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signed(value: u64, size: usize) -> i128 {
        i128::from(sign_extend(value, size) as i64)
    }

    /// Flags as the manual defines them, by wide arithmetic: carry from the unsigned result, overflow from the signed one.
    fn check(result: Alu, unsigned: i128, wide: i128, size: usize) {
        let range = 1i128 << (8 * size);
        assert_eq!(i128::from(result.value), unsigned.rem_euclid(range));
        assert_eq!(result.flags & CF != 0, !(0..range).contains(&unsigned));
        assert_eq!(result.flags & OF != 0, wide != signed(result.value, size));
        assert_eq!(result.flags & ZF != 0, result.value == 0);
        assert_eq!(result.flags & SF != 0, signed(result.value, size) < 0);
        assert_eq!(result.flags & PF != 0, (result.value as u8).count_ones().is_multiple_of(2));
    }

    proptest! {
        #[test]
        fn sums_and_differences_have_the_right_flags(
            a: u64, b: u64, carry in 0u64..2, size in prop::sample::select(vec![1usize, 2, 4, 8]),
        ) {
            let (ua, ub) = (i128::from(a & mask(size)), i128::from(b & mask(size)));
            let (sa, sb, c) = (signed(a, size), signed(b, size), i128::from(carry));
            let sum = add(a, b, carry, size);
            check(sum, ua + ub + c, sa + sb + c, size);
            prop_assert_eq!(sum.flags & AF != 0, (a & 15) + (b & 15) + carry > 15);
            let difference = sub(a, b, carry, size);
            check(difference, ua - ub - c, sa - sb - c, size);
            prop_assert_eq!(difference.flags & AF != 0, (a & 15) < (b & 15) + carry);
        }
    }
}
