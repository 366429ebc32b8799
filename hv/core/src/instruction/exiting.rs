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

/// Whether the instruction at the start of `bytes` is a MOV to CR3 or CR4: the control registers whose reserved bits
/// depend on what the processor has.
pub fn writes_control_register(bytes: &[u8], mode: Mode) -> bool {
    let mut cursor = Cursor::new(bytes);
    let found = Prefixes::read(&mut cursor, mode).and_then(|(prefixes, opcode)| {
        let (second, modrm) = (cursor.byte()?, cursor.byte()?);
        Some((prefixes, opcode, second, modrm))
    });
    // The ModRM byte always names a register, whatever its upper bits say.
    found.is_some_and(|(prefixes, opcode, second, modrm)| {
        !prefixes.lock && (opcode, second) == (0x0F, 0x22) && matches!(prefixes.extended(modrm >> 3), 3 | 4)
    })
}
