//! Instructions that exit by themselves.

use super::Mode;
use super::cursor::{Cursor, Prefixes};

/// An instruction without operands in memory that makes a virtual processor exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exiting {
    /// CPUID.
    Cpuid,
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// HLT.
    Halt,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// XSETBV.
    Xsetbv,
    /// INVD, WBINVD or WBNOINVD.
    CacheInvalidate,
    /// MONITOR or MONITORX.
    Monitor,
    /// MWAIT or MWAITX.
    Mwait,
    /// RDPMC.
    ReadPerformanceCounter,
    /// RDTSC or RDTSCP.
    ReadTimestamp,
    /// PAUSE.
    Pause,
}

impl Exiting {
    /// The instruction at the start of `bytes` and its length, prefixes included; `None` if it is another one (the
    /// guest has changed its code meanwhile, or the bytes end too soon).
    pub fn decode(bytes: &[u8], mode: Mode) -> Option<(Self, u8)> {
        let mut cursor = Cursor::new(bytes);
        let (prefixes, opcode) = Prefixes::read(&mut cursor, mode)?;
        // None of these can be locked.
        if prefixes.lock {
            return None;
        }
        let instruction = match opcode {
            0xF4 => Self::Halt,
            0x90 if prefixes.repeat == Some(0xF3) => Self::Pause,
            0x0F => Self::two_bytes(&mut cursor, prefixes.repeat.is_some())?,
            _ => return None,
        };
        Some((instruction, cursor.length()))
    }

    /// Its length, if it is what starts `bytes`: how far the instruction pointer moves after it. `None` means that
    /// nothing is to be done for it: let the processor run on from where it is.
    pub fn length(self, bytes: &[u8], mode: Mode) -> Option<u8> {
        Self::decode(bytes, mode).filter(|(found, _)| *found == self).map(|(_, length)| length)
    }

    fn two_bytes(cursor: &mut Cursor<'_>, repeat: bool) -> Option<Self> {
        Some(match cursor.byte()? {
            0x01 => match cursor.byte()? {
                0xC1 | 0xD9 => Self::Hypercall,
                0xC8 => Self::Monitor,
                0xC9 => Self::Mwait,
                // With F2 or F3 they are others, MCOMMIT for one.
                0xFA if !repeat => Self::Monitor,
                0xFB if !repeat => Self::Mwait,
                0xD1 => Self::Xsetbv,
                0xF9 => Self::ReadTimestamp,
                _ => return None,
            },
            0x08 | 0x09 => Self::CacheInvalidate,
            0x30 => Self::WriteMsr,
            0x31 => Self::ReadTimestamp,
            0x32 => Self::ReadMsr,
            0x33 => Self::ReadPerformanceCounter,
            0xA2 => Self::Cpuid,
            _ => return None,
        })
    }
}

/// A MOV to a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlWrite {
    /// The control register's number.
    pub control: u8,
    /// The general-purpose register with the value.
    pub register: u8,
    /// The instruction's length, prefixes included.
    pub length: u8,
}

impl ControlWrite {
    /// The one at the start of `bytes`; `None` if that is another instruction.
    pub fn decode(bytes: &[u8], mode: Mode) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let (prefixes, opcode) = Prefixes::read(&mut cursor, mode)?;
        let (second, modrm) = (cursor.byte()?, cursor.byte()?);
        // The ModRM byte always names a register, whatever its upper bits say.
        (!prefixes.lock && (opcode, second) == (0x0F, 0x22)).then(|| Self {
            control: prefixes.extended(modrm >> 3),
            register: prefixes.extended_base(modrm),
            length: cursor.length(),
        })
    }
}
