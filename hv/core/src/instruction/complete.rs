//! Carrying out a decoded access: registers, flags, and the value to be written.

use super::memory::{Arithmetic, MemoryAccess, Operation, Register, Source};

/// Flags in RFLAGS.
mod flag {
    pub const CARRY: u64 = 1 << 0;
    pub const PARITY: u64 = 1 << 2;
    pub const ADJUST: u64 = 1 << 4;
    pub const ZERO: u64 = 1 << 6;
    pub const SIGN: u64 = 1 << 7;
    pub const OVERFLOW: u64 = 1 << 11;
    pub const ALL: u64 = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW;
}

impl MemoryAccess {
    /// Carries the instruction out, given what was `read` from memory (if it [reads](MemoryAccess::reads)); gives what
    /// is to be written (if it [writes](MemoryAccess::writes)). Only the operand's own bytes count in either.
    pub fn complete(&self, read: u64, gprs: &mut [u64; 16], rflags: &mut u64) -> Option<u64> {
        let size = self.size;
        let read = truncate(read, size);
        match self.operation {
            Operation::Load { to, signed } => {
                to.set(gprs, if signed { sign_extend(read, size) } else { read });
                None
            }
            Operation::Store { from } => Some(from.value(gprs, size)),
            Operation::Into { to, op } => {
                let result = op.apply(to.value(gprs), read, size, rflags);
                to.set(gprs, result);
                None
            }
            Operation::Modify { op, from } => Some(op.apply(read, from.value(gprs, size), size, rflags)),
            Operation::Compare { op, from } => {
                op.apply(read, from.value(gprs, size), size, rflags);
                None
            }
            Operation::CompareInto { to } => {
                Arithmetic::Subtract.apply(to.value(gprs), read, size, rflags);
                None
            }
            Operation::Exchange { with } => {
                let value = with.value(gprs);
                with.set(gprs, read);
                Some(value)
            }
        }
    }
}

impl Source {
    fn value(self, gprs: &[u64; 16], size: u8) -> u64 {
        match self {
            Self::Register(register) => register.value(gprs),
            Self::Immediate(value) => truncate(value, size),
        }
    }
}

impl Register {
    fn value(self, gprs: &[u64; 16]) -> u64 {
        let whole = gprs[usize::from(self.index & 15)];
        truncate(if self.high { whole >> 8 } else { whole }, self.size)
    }

    /// Sets the register: 32 bits clear those above, fewer leave them.
    fn set(self, gprs: &mut [u64; 16], value: u64) {
        let whole = &mut gprs[usize::from(self.index & 15)];
        *whole = match self.size {
            1 if self.high => *whole & !0xFF00 | (value & 0xFF) << 8,
            1 => *whole & !0xFF | value & 0xFF,
            2 => *whole & !0xFFFF | value & 0xFFFF,
            4 => value & 0xFFFF_FFFF,
            _ => value,
        };
    }
}

impl Arithmetic {
    /// `left op right`, with the flags that go with it (Intel SDM 1 3.4.3.1).
    fn apply(self, left: u64, right: u64, size: u8, rflags: &mut u64) -> u64 {
        let result = truncate(
            match self {
                Self::Add => left.wrapping_add(right),
                Self::Subtract => left.wrapping_sub(right),
                Self::Or => left | right,
                Self::And => left & right,
                Self::Xor => left ^ right,
            },
            size,
        );
        let sign = 1 << (8 * u32::from(size) - 1);
        let (carry, overflow, adjust) = match self {
            Self::Add => {
                (result < left, (left ^ result) & (right ^ result) & sign != 0, left ^ right ^ result)
            }
            Self::Subtract => {
                (left < right, (left ^ right) & (left ^ result) & sign != 0, left ^ right ^ result)
            }
            _ => (false, false, 0),
        };
        let set = |condition, flag| if condition { flag } else { 0 };
        *rflags = *rflags & !flag::ALL
            | set(carry, flag::CARRY)
            | set((result as u8).count_ones().is_multiple_of(2), flag::PARITY)
            | set(adjust & 1 << 4 != 0, flag::ADJUST)
            | set(result == 0, flag::ZERO)
            | set(result & sign != 0, flag::SIGN)
            | set(overflow, flag::OVERFLOW);
        result
    }
}

fn truncate(value: u64, size: u8) -> u64 {
    if size >= 8 { value } else { value & ((1 << (8 * u32::from(size))) - 1) }
}

fn sign_extend(value: u64, size: u8) -> u64 {
    let shift = 64 - 8 * u32::from(size.clamp(1, 8));
    ((value << shift) as i64 >> shift) as u64
}
