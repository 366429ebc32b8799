//! Messages about intercepts: what the parent learns when a virtual processor needs something done (TLFS "Intercepts").

use super::{Inner, Vp, pages, registers::segment_layout};
use crate::{
    events::{self, EFER_LMA},
    instruction::Mode,
    machine::{Access, IoExit, Machine, Reg, Segment, SegmentName, Vcpu, gpr},
    walk::{GuestMemory, Instruction},
};
use parterre_abi::{
    message::{
        ApicEoiMessage, ExecutionState, HypercallInterceptMessage, InstructionLengthAndCr8,
        InterceptAccessType, InterceptMessageHeader, InterruptionDeliverableMessage, IoPortAccessInfo,
        IoPortInterceptMessage, MAX_INSTRUCTION_BYTES, MemoryAccessInfo, MemoryInterceptMessage, Message,
        MessageType, MsrInterceptMessage, SintDeliverableMessage,
    },
    registers::SegmentRegister,
    types::{CacheType, PartitionId, VpIndex},
};
use zerocopy::FromZeros;

/// What is told of an access to memory.
pub(super) struct MemoryAccess {
    /// The guest-physical address.
    pub gpa: u64,
    /// The guest-virtual address, where it is known.
    pub gva: Option<u64>,
    /// What was tried.
    pub access: Access,
    /// The range is known to the parent (no access, or less rights than needed), or not at all.
    pub known: bool,
}

/// Builds messages about one virtual processor.
pub(super) struct Reporter<'a, M: Machine> {
    partition: PartitionId,
    vp: &'a Vp<M>,
    inner: &'a mut Inner<M>,
    /// Of what several messages and the register page tell, what is dear to read: ES, CS, SS, DS, FS and GS.
    segments: [Segment; 6],
}

impl<'a, M: Machine> Reporter<'a, M> {
    /// For a virtual processor of `partition` with its state.
    #[inline(never)]
    pub fn new(partition: PartitionId, vp: &'a Vp<M>, inner: &'a mut Inner<M>) -> Self {
        let mut reporter = Self { partition, vp, inner, segments: Default::default() };
        reporter.inner.vcpu.segments(&mut reporter.segments);
        reporter
    }

    fn segment(&self, name: SegmentName) -> SegmentRegister {
        segment_layout(self.segments[name as usize])
    }

    fn header(&self, length: u8, access: Access) -> InterceptMessageHeader {
        let vcpu = &self.inner.vcpu;
        let access = if access.contains(Access::EXECUTE) {
            InterceptAccessType::EXECUTE
        } else if access.contains(Access::WRITE) {
            InterceptAccessType::WRITE
        } else {
            InterceptAccessType::READ
        };
        let cr0 = vcpu.get(Reg::Cr0);
        let state = ExecutionState::new()
            .with_cpl(vcpu.cpl() & 3)
            .with_cr0_pe(cr0 & 1 != 0)
            .with_cr0_am(cr0 & 1 << 18 != 0)
            .with_efer_lma(vcpu.get(Reg::Efer) & EFER_LMA != 0)
            .with_debug_active(vcpu.get(Reg::Dr7) & 0xFF != 0)
            .with_interruption_pending(vcpu.pending_event().is_some())
            .with_interrupt_shadow(vcpu.interrupt_shadow());
        InterceptMessageHeader {
            vp_index: VpIndex(self.vp.index),
            instruction_length_and_cr8: InstructionLengthAndCr8::new()
                .with_instruction_length(length & 0xF)
                .with_cr8(vcpu.get(Reg::Cr8) as u8 & 0xF),
            intercept_access_type: access,
            execution_state: state,
            cs_segment: self.segment(SegmentName::Cs),
            rip: vcpu.get(Reg::Rip),
            rflags: vcpu.get(Reg::Rflags),
        }
    }

    /// Puts the message where the parent reads it, publishes the registers and suspends the virtual processor until it has
    /// been handled. `false` if the parent has no page for messages.
    #[inline(never)]
    pub fn send(&mut self, machine: &M, message: &Message) -> bool {
        let pages = self.vp.pages.lock();
        if !pages.write_message(machine, message) {
            return false;
        }
        pages::publish_registers(machine, &pages, self.inner, &self.segments);
        self.inner.intercept_suspend = true;
        true
    }

    /// A message that is a header only.
    pub fn plain(&self, kind: MessageType) -> Message {
        Message::with_payload(kind, self.partition.0, &self.header(0, Access::EXECUTE))
    }

    /// A port access.
    pub fn io(&self, io: &IoExit, length: u8, bytes: Option<Instruction>) -> Message {
        let vcpu = &self.inner.vcpu;
        let r = vcpu.gprs();
        let (instruction_byte_count, instruction_bytes) = instruction(bytes);
        let access = if io.input { Access::READ } else { Access::WRITE };
        let payload = IoPortInterceptMessage {
            header: self.header(length, access),
            port_number: io.port,
            access_info: IoPortAccessInfo::new()
                .with_access_size(io.size & 7)
                .with_string_op(io.string)
                .with_rep_prefix(io.repeat),
            instruction_byte_count,
            reserved: 0,
            rax: r[gpr::RAX],
            instruction_bytes,
            ds_segment: self.segment(SegmentName::Ds),
            es_segment: self.segment(SegmentName::Es),
            rcx: r[gpr::RCX],
            rsi: r[gpr::RSI],
            rdi: r[gpr::RDI],
        };
        Message::with_payload(MessageType::X64_IO_PORT_INTERCEPT, self.partition.0, &payload)
    }

    /// An access to memory that is not there, or not allowed.
    pub fn memory(&self, access: &MemoryAccess, bytes: Option<Instruction>) -> Message {
        let (instruction_byte_count, instruction_bytes) = instruction(bytes);
        let payload = MemoryInterceptMessage {
            header: self.header(0, access.access),
            cache_type: CacheType::WRITE_BACK,
            instruction_byte_count,
            memory_access_info: MemoryAccessInfo::new()
                .with_gva_valid(access.gva.is_some())
                .with_gva_gpa_valid(access.gva.is_some()),
            tpr_priority: self.inner.vcpu.get(Reg::Cr8) as u8 & 0xF,
            reserved1: 0,
            guest_virtual_address: access.gva.unwrap_or(0),
            guest_physical_address: access.gpa,
            instruction_bytes,
        };
        let kind = if access.known { MessageType::GPA_INTERCEPT } else { MessageType::UNMAPPED_GPA };
        Message::with_payload(kind, self.partition.0, &payload)
    }

    /// An access to a register that the hypervisor does not know.
    pub fn msr(&self, number: u32, write: bool, length: u8) -> Message {
        let r = self.inner.vcpu.gprs();
        let payload = MsrInterceptMessage {
            header: self.header(length, if write { Access::WRITE } else { Access::READ }),
            msr_number: number,
            reserved: 0,
            rdx: r[gpr::RDX],
            rax: r[gpr::RAX],
        };
        Message::with_payload(MessageType::X64_MSR_INTERCEPT, self.partition.0, &payload)
    }

    /// A hypercall that the parent answers.
    pub fn hypercall(&mut self, length: u8) -> Message {
        let xmm = core::array::from_fn(|index| {
            let register = self.inner.vcpu.xmm(index);
            [register as u64, (register >> 64) as u64]
        });
        let r = self.inner.vcpu.gprs();
        let payload = HypercallInterceptMessage {
            header: self.header(length, Access::EXECUTE),
            rax: r[gpr::RAX],
            rbx: r[gpr::RBX],
            rcx: r[gpr::RCX],
            rdx: r[gpr::RDX],
            r8: r[gpr::R8],
            rsi: r[gpr::RSI],
            rdi: r[gpr::RDI],
            xmm_registers: xmm,
            flags: 0,
        };
        Message::with_payload(MessageType::HYPERCALL_INTERCEPT, self.partition.0, &payload)
    }

    /// Message slots that the parent waits for are free.
    pub fn slots_free(&self, sints: u16) -> Message {
        let payload = SintDeliverableMessage {
            header: self.header(0, Access::READ),
            deliverable_sints: sints,
            reserved1: 0,
            reserved2: 0,
        };
        Message::with_payload(MessageType::SYNIC_SINT_DELIVERABLE, self.partition.0, &payload)
    }

    /// The end of a level-triggered interrupt.
    pub fn end_of_interrupt(&self, vector: u8) -> Message {
        let payload =
            ApicEoiMessage { vp_index: VpIndex(self.vp.index), interrupt_vector: u32::from(vector) };
        Message::with_payload(MessageType::X64_APIC_EOI, self.partition.0, &payload)
    }

    /// An interrupt (or NMI) could be taken now.
    pub fn deliverable(&self, kind: u32) -> Message {
        let mut payload = InterruptionDeliverableMessage::new_zeroed();
        payload.header = self.header(0, Access::EXECUTE);
        payload.deliverable_type = kind;
        Message::with_payload(MessageType::X64_INTERRUPTION_DELIVERABLE, self.partition.0, &payload)
    }
}

/// The bytes of the present instruction, for messages.
pub(super) fn instruction_bytes<V: Vcpu, G: GuestMemory + ?Sized>(
    vcpu: &V,
    memory: &G,
    physical_bits: u8,
) -> Option<Instruction> {
    events::fetch_at_rip(vcpu, memory, physical_bits, Mode::of(vcpu))
}

#[inline]
fn instruction(bytes: Option<Instruction>) -> (u8, [u8; MAX_INSTRUCTION_BYTES]) {
    let mut field = [0; MAX_INSTRUCTION_BYTES];
    let Some(bytes) = bytes else { return (0, field) };
    field[..bytes.len()].copy_from_slice(&bytes);
    (bytes.len() as u8, field)
}
