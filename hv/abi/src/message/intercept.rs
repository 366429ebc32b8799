//! Payloads of intercepts: what the guest did and what the parent needs to finish it.

use crate::registers::SegmentRegister;
use crate::types::{CacheType, VpIndex};
use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Instruction bytes that an intercept carries at most.
pub const MAX_INSTRUCTION_BYTES: usize = 16;

/// What kind of access was intercepted (`HV_INTERCEPT_ACCESS_TYPE`).
#[open_enum]
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum InterceptAccessType {
    /// A read.
    READ = 0,
    /// A write.
    WRITE = 1,
    /// An instruction fetch, or the execution of an instruction.
    EXECUTE = 2,
}

/// Length of the intercepted instruction and CR8 (the first byte after the VP index).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InstructionLengthAndCr8 {
    /// Bytes; 0 when not known.
    #[bits(4)]
    pub instruction_length: u8,
    /// CR8 of the VP (exo partitions only).
    #[bits(4)]
    pub cr8: u8,
}

/// The VP's mode at the intercept (`HV_X64_VP_EXECUTION_STATE`).
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExecutionState {
    /// Current privilege level.
    #[bits(2)]
    pub cpl: u8,
    /// CR0.PE.
    pub cr0_pe: bool,
    /// CR0.AM.
    pub cr0_am: bool,
    /// EFER.LMA.
    pub efer_lma: bool,
    /// A debug register is in use.
    pub debug_active: bool,
    /// An event is pending in `PENDING_INTERRUPTION`.
    pub interruption_pending: bool,
    /// Virtual trust level.
    #[bits(4)]
    pub vtl: u8,
    /// In an enclave.
    pub enclave_mode: bool,
    /// In the shadow of STI or MOV SS.
    pub interrupt_shadow: bool,
    /// A virtualization fault is active.
    pub virtualization_fault_active: bool,
    /// Reserved.
    #[bits(2)]
    pub reserved: u8,
}

/// What every intercept begins with (`HV_X64_INTERCEPT_MESSAGE_HEADER`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterceptMessageHeader {
    /// Which VP.
    pub vp_index: VpIndex,
    /// Instruction length and CR8.
    pub instruction_length_and_cr8: InstructionLengthAndCr8,
    /// Kind of access.
    pub intercept_access_type: InterceptAccessType,
    /// Mode.
    pub execution_state: ExecutionState,
    /// CS.
    pub cs_segment: SegmentRegister,
    /// RIP of the intercepted instruction.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
}
const _: () = assert!(size_of::<InterceptMessageHeader>() == 40);

/// What is known about a memory access (`HV_X64_MEMORY_ACCESS_INFO`).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryAccessInfo {
    /// `guest_virtual_address` is valid.
    pub gva_valid: bool,
    /// The address is the one that translates to `guest_physical_address` (not a page table's).
    pub gva_gpa_valid: bool,
    /// A hypercall's output is still to be written.
    pub hypercall_output_pending: bool,
    /// The TLB is locked and there is no overlay.
    pub tlb_locked_no_overlay: bool,
    /// Reserved.
    #[bits(4)]
    pub reserved: u8,
}

/// Access to a guest physical address (`HV_X64_MEMORY_INTERCEPT_MESSAGE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryInterceptMessage {
    /// Common part.
    pub header: InterceptMessageHeader,
    /// Memory type of the access.
    pub cache_type: CacheType,
    /// Bytes in `instruction_bytes` that count; 0 when they could not be read.
    pub instruction_byte_count: u8,
    /// What is valid below.
    pub memory_access_info: MemoryAccessInfo,
    /// Task priority of the VP.
    pub tpr_priority: u8,
    /// Must be zero.
    pub reserved1: u8,
    /// Linear address.
    pub guest_virtual_address: u64,
    /// Physical address, in bytes.
    pub guest_physical_address: u64,
    /// The instruction.
    pub instruction_bytes: [u8; MAX_INSTRUCTION_BYTES],
}
const _: () = assert!(size_of::<MemoryInterceptMessage>() == 80);

/// What kind of port access (`HV_X64_IO_PORT_ACCESS_INFO`).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoPortAccessInfo {
    /// Bytes: 1, 2 or 4.
    #[bits(3)]
    pub access_size: u8,
    /// INS or OUTS.
    pub string_op: bool,
    /// With a REP prefix.
    pub rep_prefix: bool,
    /// Reserved.
    #[bits(3)]
    pub reserved: u8,
}

/// Port I/O (`HV_X64_IO_PORT_INTERCEPT_MESSAGE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoPortInterceptMessage {
    /// Common part.
    pub header: InterceptMessageHeader,
    /// The port.
    pub port_number: u16,
    /// The access.
    pub access_info: IoPortAccessInfo,
    /// Bytes in `instruction_bytes` that count.
    pub instruction_byte_count: u8,
    /// Must be zero.
    pub reserved: u32,
    /// RAX.
    pub rax: u64,
    /// The instruction.
    pub instruction_bytes: [u8; MAX_INSTRUCTION_BYTES],
    /// DS.
    pub ds_segment: SegmentRegister,
    /// ES.
    pub es_segment: SegmentRegister,
    /// RCX.
    pub rcx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
}
const _: () = assert!(size_of::<IoPortInterceptMessage>() == 128);

/// MSR access (`HV_X64_MSR_INTERCEPT_MESSAGE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MsrInterceptMessage {
    /// Common part.
    pub header: InterceptMessageHeader,
    /// The MSR.
    pub msr_number: u32,
    /// Must be zero.
    pub reserved: u32,
    /// RDX.
    pub rdx: u64,
    /// RAX.
    pub rax: u64,
}
const _: () = assert!(size_of::<MsrInterceptMessage>() == 64);

/// CPUID (`HV_X64_CPUID_INTERCEPT_MESSAGE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuidInterceptMessage {
    /// Common part.
    pub header: InterceptMessageHeader,
    /// RAX: the leaf.
    pub rax: u64,
    /// RCX: the subleaf.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RBX.
    pub rbx: u64,
    /// RAX that the hypervisor would answer.
    pub default_result_rax: u64,
    /// RCX that the hypervisor would answer.
    pub default_result_rcx: u64,
    /// RDX that the hypervisor would answer.
    pub default_result_rdx: u64,
    /// RBX that the hypervisor would answer.
    pub default_result_rbx: u64,
}
const _: () = assert!(size_of::<CpuidInterceptMessage>() == 104);

/// What is known about an exception (`HV_X64_EXCEPTION_INFO`).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExceptionInfo {
    /// `error_code` is valid.
    pub error_code_valid: bool,
    /// The exception came from a software interrupt instruction.
    pub software_exception: bool,
    /// Reserved.
    #[bits(6)]
    pub reserved: u8,
}

/// An exception (`HV_X64_EXCEPTION_INTERCEPT_MESSAGE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExceptionInterceptMessage {
    /// Common part.
    pub header: InterceptMessageHeader,
    /// The vector.
    pub exception_vector: u16,
    /// What is valid below.
    pub exception_info: ExceptionInfo,
    /// Bytes in `instruction_bytes` that count.
    pub instruction_byte_count: u8,
    /// The error code.
    pub error_code: u32,
    /// CR2 of a page fault, DR6 of a debug exception.
    pub exception_parameter: u64,
    /// Must be zero.
    pub reserved: u64,
    /// The instruction.
    pub instruction_bytes: [u8; MAX_INSTRUCTION_BYTES],
    /// DS.
    pub ds_segment: SegmentRegister,
    /// SS.
    pub ss_segment: SegmentRegister,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15.
    pub registers: [u64; 16],
}
const _: () = assert!(size_of::<ExceptionInterceptMessage>() == 240);

/// A hypercall for the parent (`HV_X64_HYPERCALL_INTERCEPT_MESSAGE`).
#[repr(C, packed(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HypercallInterceptMessage {
    /// Common part.
    pub header: InterceptMessageHeader,
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RCX: the control word.
    pub rcx: u64,
    /// RDX: input.
    pub rdx: u64,
    /// R8: output.
    pub r8: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// XMM0..=XMM5, low half first.
    pub xmm_registers: [[u64; 2]; 6],
    /// Bit 0: the guest is isolated.
    pub flags: u32,
}
const _: () = assert!(size_of::<HypercallInterceptMessage>() == 196);

/// A register holds a value the processor refuses (`HV_X64_INVALID_VP_REGISTER_MESSAGE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InvalidVpRegisterMessage {
    /// Which VP.
    pub vp_index: VpIndex,
    /// Must be zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<InvalidVpRegisterMessage>() == 8);

/// What the hypervisor cannot do (`HV_X64_UNSUPPORTED_FEATURE_MESSAGE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnsupportedFeatureMessage {
    /// Which VP.
    pub vp_index: VpIndex,
    /// Which feature: 1 is an intercept, 2 a task switch over TSS.
    pub feature_code: u32,
    /// More about it.
    pub feature_parameter: u64,
}
const _: () = assert!(size_of::<UnsupportedFeatureMessage>() == 16);

/// What can be delivered (`HV_X64_PENDING_INTERRUPTION_TYPE` in 32 bits).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterruptionDeliverableMessage {
    /// Common part.
    pub header: InterceptMessageHeader,
    /// 0 an interrupt, 2 an NMI.
    pub deliverable_type: u32,
    /// Must be zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<InterruptionDeliverableMessage>() == 48);

/// Message slots that are free again (`HV_X64_SINT_DELIVERABLE_MESSAGE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SintDeliverableMessage {
    /// Common part.
    pub header: InterceptMessageHeader,
    /// Bit N: SINT N.
    pub deliverable_sints: u16,
    /// Must be zero.
    pub reserved1: u16,
    /// Must be zero.
    pub reserved2: u32,
}
const _: () = assert!(size_of::<SintDeliverableMessage>() == 48);

/// A start-up IPI (`HV_X64_SIPI_INTERCEPT_MESSAGE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SipiInterceptMessage {
    /// Common part.
    pub header: InterceptMessageHeader,
    /// The VP to be started.
    pub target_vp_index: VpIndex,
    /// The start page: the VP starts at `vector << 12`.
    pub interrupt_vector: u32,
}
const _: () = assert!(size_of::<SipiInterceptMessage>() == 48);
