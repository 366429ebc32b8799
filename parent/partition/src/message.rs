//! Intercept messages: what the hypervisor says when a VP needs the worker, decoded from its 256 bytes.
//!
//! Layouts: `struct hv_message` and `struct hv_x64_*_intercept_message` (Linux `include/hyperv/hvgdk_mini.h`,
//! `hvhdk.h`; TLFS "Intercepts"). A message is data from another layer: lengths and counts are checked here, so that
//! nothing above has to.

use crate::registers::Segment;
use crate::{Error, Result};

/// Size of a message with its header.
pub const MESSAGE_SIZE: usize = 256;
/// Bytes of the message header before the payload.
const HEADER_SIZE: usize = 16;
/// Longest payload.
const MAX_PAYLOAD: usize = MESSAGE_SIZE - HEADER_SIZE;

/// Message types (`enum hv_message_type`).
mod kind {
    pub const UNMAPPED_GPA: u32 = 0x8000_0000;
    pub const GPA_INTERCEPT: u32 = 0x8000_0001;
    pub const UNRECOVERABLE_EXCEPTION: u32 = 0x8000_0021;
    pub const IO_PORT: u32 = 0x8001_0000;
    pub const MSR: u32 = 0x8001_0001;
    pub const CPUID: u32 = 0x8001_0002;
    pub const APIC_EOI: u32 = 0x8001_0004;
    pub const HALT: u32 = 0x8001_0007;
}

/// Where the VP stood when it was intercepted (`struct hv_x64_intercept_message_header`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// VP index.
    pub vp: u32,
    /// Length of the instruction in bytes, 0 when the hypervisor does not know it.
    pub instruction_length: u8,
    /// Current privilege level.
    pub cpl: u8,
    /// The processor is in long mode (EFER.LMA); with a long `cs` it runs 64-bit code.
    pub long_mode: bool,
    /// Code segment.
    pub cs: Segment,
    /// Address of the instruction (offset in `cs`).
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

impl Context {
    /// Width in bits of the code that runs: 16, 32 or 64.
    pub fn code_bits(&self) -> u32 {
        match (self.long_mode && self.cs.is_long(), self.cs.is_default_32()) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        }
    }

    /// The linear address of the instruction.
    pub fn linear_rip(&self) -> u64 {
        if self.code_bits() == 64 { self.rip } else { self.cs.base.wrapping_add(self.rip) & 0xFFFF_FFFF }
    }

    /// The instruction pointer after an instruction of `length` bytes.
    pub fn rip_after(&self, length: u64) -> u64 {
        let next = self.rip.wrapping_add(length);
        if self.code_bits() == 64 { next } else { next & 0xFFFF_FFFF }
    }
}

/// Up to 16 bytes of the intercepted instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstructionBytes {
    bytes: [u8; 16],
    count: u8,
}

impl InstructionBytes {
    /// Bytes as they were fetched; at most 16 of them are kept.
    pub fn new(source: &[u8]) -> InstructionBytes {
        let mut bytes = [0; 16];
        let count = source.len().min(16);
        bytes[..count].copy_from_slice(&source[..count]);
        InstructionBytes { bytes, count: count as u8 }
    }

    /// The bytes that are there, possibly none.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.count)]
    }
}

/// The guest touched an I/O port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoPort {
    /// Where.
    pub context: Context,
    /// OUT or OUTS, else IN or INS.
    pub write: bool,
    /// Port number.
    pub port: u16,
    /// Access size in bytes: 1, 2 or 4.
    pub size: u8,
    /// INS or OUTS.
    pub string: bool,
    /// With a REP prefix.
    pub rep: bool,
    /// RAX at the intercept.
    pub rax: u64,
    /// The instruction.
    pub bytes: InstructionBytes,
    /// DS or the segment that overrides it.
    pub ds: Segment,
    /// ES.
    pub es: Segment,
    /// RCX.
    pub rcx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
}

/// What a memory access wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// The guest touched a guest physical address that is not its RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAccess {
    /// Where.
    pub context: Context,
    /// What for.
    pub kind: AccessKind,
    /// Guest physical address.
    pub gpa: u64,
    /// Guest virtual address, when the hypervisor knows it.
    pub gva: Option<u64>,
    /// The instruction, possibly without bytes.
    pub bytes: InstructionBytes,
}

/// Why a VP stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intercept {
    /// Port I/O.
    IoPort(IoPort),
    /// Memory-mapped I/O, or an access that the mapping does not allow.
    Memory(MemoryAccess),
    /// The guest ended a level-triggered interrupt.
    ApicEoi {
        /// VP index.
        vp: u32,
        /// Interrupt vector.
        vector: u32,
    },
    /// HLT; the hypervisor handles it, unless it was asked not to.
    Halt(Context),
    /// Triple fault: the guest has to be reset.
    TripleFault(Context),
    /// RDMSR or WRMSR that nobody else handles.
    Msr {
        /// Where.
        context: Context,
        /// MSR number.
        msr: u32,
        /// `Some(value)` for WRMSR.
        write: Option<u64>,
    },
    /// CPUID.
    Cpuid {
        /// Where.
        context: Context,
        /// EAX, EBX, ECX, EDX that the hypervisor would answer.
        default: [u32; 4],
    },
    /// Any other message.
    Other {
        /// `HV_MESSAGE_TYPE`.
        kind: u32,
    },
}

/// The payload of a message whose length has been checked.
struct Payload<'a>(&'a [u8]);

impl Payload<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }
    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
    fn segment(&self, at: usize) -> Segment {
        Segment {
            base: self.u64(at),
            limit: self.u32(at + 8),
            selector: self.u16(at + 12),
            attributes: self.u16(at + 14),
        }
    }
    fn instruction(&self, count_at: usize, at: usize) -> InstructionBytes {
        let count = usize::from(self.u8(count_at)).min(16);
        InstructionBytes::new(&self.0[at..at + count])
    }
    fn context(&self) -> Context {
        Context {
            vp: self.u32(0),
            instruction_length: self.u8(4) & 0xF,
            cpl: (self.u16(6) & 3) as u8,
            long_mode: self.u16(6) & (1 << 4) != 0,
            cs: self.segment(8),
            rip: self.u64(24),
            rflags: self.u64(32),
        }
    }
    fn access_type(&self) -> AccessKind {
        match self.u8(5) {
            0 => AccessKind::Read,
            1 => AccessKind::Write,
            _ => AccessKind::Execute,
        }
    }
}

impl Intercept {
    /// Decodes a message page.
    pub fn decode(message: &[u8; MESSAGE_SIZE]) -> Result<Intercept> {
        let [k0, k1, k2, k3, size, ..] = *message;
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        let size = usize::from(size).min(MAX_PAYLOAD);
        let expected = match kind {
            kind::UNMAPPED_GPA | kind::GPA_INTERCEPT => 80,
            kind::UNRECOVERABLE_EXCEPTION | kind::HALT => 40,
            kind::IO_PORT => 128,
            kind::MSR => 64,
            kind::CPUID => 104,
            kind::APIC_EOI => 8,
            _ => return Ok(Intercept::Other { kind }),
        };
        if size < expected {
            return Err(Error::ShortMessage { kind, size, expected });
        }
        let payload = Payload(&message[HEADER_SIZE..]);
        Ok(match kind {
            kind::IO_PORT => Intercept::IoPort(decode_io_port(&payload)),
            kind::UNMAPPED_GPA | kind::GPA_INTERCEPT => Intercept::Memory(decode_memory(&payload)),
            kind::APIC_EOI => Intercept::ApicEoi { vp: payload.u32(0), vector: payload.u32(4) },
            kind::HALT => Intercept::Halt(payload.context()),
            kind::MSR => decode_msr(&payload),
            kind::CPUID => decode_cpuid(&payload),
            _ => Intercept::TripleFault(payload.context()),
        })
    }
}

fn decode_io_port(payload: &Payload<'_>) -> IoPort {
    let info = payload.u8(42);
    IoPort {
        context: payload.context(),
        write: payload.access_type() == AccessKind::Write,
        port: payload.u16(40),
        size: match info & 7 {
            2 => 2,
            4 => 4,
            _ => 1,
        },
        string: info & (1 << 3) != 0,
        rep: info & (1 << 4) != 0,
        rax: payload.u64(48),
        bytes: payload.instruction(43, 56),
        ds: payload.segment(72),
        es: payload.segment(88),
        rcx: payload.u64(104),
        rsi: payload.u64(112),
        rdi: payload.u64(120),
    }
}

fn decode_memory(payload: &Payload<'_>) -> MemoryAccess {
    let gva_valid = payload.u8(45) & 1 != 0;
    MemoryAccess {
        context: payload.context(),
        kind: payload.access_type(),
        gpa: payload.u64(56),
        gva: gva_valid.then(|| payload.u64(48)),
        bytes: payload.instruction(44, 64),
    }
}

fn decode_msr(payload: &Payload<'_>) -> Intercept {
    let value = (payload.u64(48) << 32) | (payload.u64(56) & 0xFFFF_FFFF);
    Intercept::Msr {
        context: payload.context(),
        msr: payload.u32(40),
        write: (payload.access_type() == AccessKind::Write).then_some(value),
    }
}

fn decode_cpuid(payload: &Payload<'_>) -> Intercept {
    // The defaults come in the order RAX, RCX, RDX, RBX.
    let default = [72, 96, 80, 88].map(|at| payload.u32(at));
    Intercept::Cpuid { context: payload.context(), default }
}
