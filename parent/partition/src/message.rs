//! Intercept messages: what the hypervisor says when a VP needs the worker, decoded from its 256 bytes.
//!
//! The layouts are `parterre_abi`'s (TLFS "Intercepts"). A message is data from another layer: lengths and counts are
//! checked here, so that nothing above has to.

use parterre_abi::message::{
    ApicEoiMessage, CpuidInterceptMessage, InterceptAccessType, InterceptMessageHeader,
    IoPortInterceptMessage, MemoryInterceptMessage, Message, MessageType, MsrInterceptMessage,
    SintDeliverableMessage,
};
use zerocopy::FromBytes;

use crate::hypercall::Hypercall;
use crate::registers::Segment;
use crate::{Error, Result};

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
    /// A hypercall that the hypervisor leaves to the worker.
    Hypercall(Hypercall),
    /// Message slots that were full are free again.
    SintDeliverable {
        /// VP index.
        vp: u32,
        /// Bit N: SINT N.
        sints: u16,
    },
    /// Any other message.
    Other {
        /// `HV_MESSAGE_TYPE`.
        kind: u32,
    },
}

/// The payload of a message as the type that its kind says.
fn payload<T: FromBytes>(message: &Message) -> Result<T> {
    let (size, expected) = (usize::from(message.header.payload_size), size_of::<T>());
    if size < expected {
        return Err(Error::ShortMessage { kind: message.header.message_type.0, size, expected });
    }
    Ok(message.payload_as())
}

impl Intercept {
    /// Decodes a message.
    pub fn decode(message: &Message) -> Result<Intercept> {
        Ok(match message.header.message_type {
            MessageType::X64_IO_PORT_INTERCEPT => {
                Intercept::IoPort(payload::<IoPortInterceptMessage>(message)?.into())
            }
            MessageType::UNMAPPED_GPA | MessageType::GPA_INTERCEPT => {
                Intercept::Memory(payload::<MemoryInterceptMessage>(message)?.into())
            }
            MessageType::X64_APIC_EOI => {
                let ApicEoiMessage { vp_index, interrupt_vector } = payload(message)?;
                Intercept::ApicEoi { vp: vp_index.0, vector: interrupt_vector }
            }
            MessageType::X64_HALT => Intercept::Halt(payload::<InterceptMessageHeader>(message)?.into()),
            MessageType::UNRECOVERABLE_EXCEPTION => {
                Intercept::TripleFault(payload::<InterceptMessageHeader>(message)?.into())
            }
            MessageType::X64_MSR_INTERCEPT => decode_msr(payload(message)?),
            MessageType::X64_CPUID_INTERCEPT => decode_cpuid(payload(message)?),
            MessageType::HYPERCALL_INTERCEPT => Intercept::Hypercall(Hypercall::decode(&payload(message)?)),
            MessageType::SYNIC_SINT_DELIVERABLE => decode_sint(payload(message)?),
            MessageType(kind) => Intercept::Other { kind },
        })
    }
}

impl From<InterceptMessageHeader> for Context {
    fn from(header: InterceptMessageHeader) -> Context {
        Context {
            vp: header.vp_index.0,
            instruction_length: header.instruction_length_and_cr8.instruction_length(),
            cpl: header.execution_state.cpl(),
            long_mode: header.execution_state.efer_lma(),
            cs: header.cs_segment.into(),
            rip: header.rip,
            rflags: header.rflags,
        }
    }
}

impl From<InterceptAccessType> for AccessKind {
    fn from(access: InterceptAccessType) -> AccessKind {
        match access {
            InterceptAccessType::READ => AccessKind::Read,
            InterceptAccessType::WRITE => AccessKind::Write,
            _ => AccessKind::Execute,
        }
    }
}

/// The instruction bytes of a message, of which at most all are there.
fn instruction(bytes: &[u8; 16], count: u8) -> InstructionBytes {
    if count == 0 {
        return InstructionBytes::default();
    }
    InstructionBytes::new(&bytes[..usize::from(count).min(bytes.len())])
}

impl From<IoPortInterceptMessage> for IoPort {
    fn from(message: IoPortInterceptMessage) -> IoPort {
        IoPort {
            context: message.header.into(),
            write: message.header.intercept_access_type == InterceptAccessType::WRITE,
            port: message.port_number,
            size: match message.access_info.access_size() {
                size @ (2 | 4) => size,
                _ => 1,
            },
            string: message.access_info.string_op(),
            rep: message.access_info.rep_prefix(),
            rax: message.rax,
            bytes: instruction(&message.instruction_bytes, message.instruction_byte_count),
        }
    }
}

impl From<MemoryInterceptMessage> for MemoryAccess {
    fn from(message: MemoryInterceptMessage) -> MemoryAccess {
        MemoryAccess {
            context: message.header.into(),
            kind: message.header.intercept_access_type.into(),
            gpa: message.guest_physical_address,
            gva: message.memory_access_info.gva_valid().then_some(message.guest_virtual_address),
            bytes: instruction(&message.instruction_bytes, message.instruction_byte_count),
        }
    }
}

fn decode_msr(message: MsrInterceptMessage) -> Intercept {
    let write = message.header.intercept_access_type == InterceptAccessType::WRITE;
    let value = message.rdx << 32 | message.rax & 0xFFFF_FFFF;
    Intercept::Msr { context: message.header.into(), msr: message.msr_number, write: write.then_some(value) }
}

fn decode_sint(message: SintDeliverableMessage) -> Intercept {
    Intercept::SintDeliverable { vp: message.header.vp_index.0, sints: message.deliverable_sints }
}

fn decode_cpuid(message: CpuidInterceptMessage) -> Intercept {
    let CpuidInterceptMessage { default_result_rax: a, default_result_rbx: b, default_result_rcx: c, .. } =
        message;
    let default = [a, b, c, message.default_result_rdx].map(|register| register as u32);
    Intercept::Cpuid { context: message.header.into(), default }
}
