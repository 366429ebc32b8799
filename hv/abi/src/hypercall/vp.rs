//! Calls about virtual processors: creation, registers, translation, dispatch.

use crate::cpuid::CpuidResult;
use crate::registers::{PendingExceptionEvent, SegmentRegister, TableRegister};
use crate::types::{InputVtl, PartitionId, ProximityDomainInfo, VpIndex};
use bitfield_struct::bitfield;
use bitflags::bitflags;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Input of `HvCallCreateVp`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreateVpInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// With which index.
    pub vp_index: VpIndex,
    /// Ignored: Linux does not zero it.
    pub padding: [u8; 3],
    /// What `subnode_id` names: 0 anything, 1 a socket, 2 a cluster, 3 an L3 cache.
    pub subnode_type: u8,
    /// Where in the topology.
    pub subnode_id: u64,
    /// On which node.
    pub proximity_domain_info: ProximityDomainInfo,
    /// For a VP of the root partition: the logical processor it is bound to. Else 0.
    pub flags: u64,
}
const _: () = assert!(size_of::<CreateVpInput>() == 40);

/// Input of `HvCallDeleteVp` (fast).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeleteVpInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// Which VP.
    pub vp_index: VpIndex,
    /// Must be zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<DeleteVpInput>() == 16);

/// The header of `HvCallGetVpRegisters`; register names (`u32`) follow, the output is a list of register values.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetVpRegistersInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// Which VP.
    pub vp_index: VpIndex,
    /// Which VTL.
    pub input_vtl: InputVtl,
    /// Must be zero.
    pub reserved: [u8; 3],
}
const _: () = assert!(size_of::<GetVpRegistersInput>() == 16);

/// The header of `HvCallSetVpRegisters`; [`RegisterAssoc`](crate::registers::RegisterAssoc)s follow.
pub type SetVpRegistersInput = GetVpRegistersInput;

/// Input of `HvCallTranslateVirtualAddress` and `HvCallTranslateVirtualAddressEx`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateVirtualAddressInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// By which VP's page tables.
    pub vp_index: VpIndex,
    /// Must be zero.
    pub padding: u32,
    /// How.
    pub control_flags: TranslateGvaControlFlags,
    /// The linear address's page number.
    pub gva_page: u64,
}
const _: () = assert!(size_of::<TranslateVirtualAddressInput>() == 32);

/// How to translate (`HV_TRANSLATE_GVA_CONTROL_FLAGS`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateGvaControlFlags(pub u64);

bitflags! {
    impl TranslateGvaControlFlags: u64 {
        /// Check the right to read.
        const VALIDATE_READ = 0x0001;
        /// Check the right to write.
        const VALIDATE_WRITE = 0x0002;
        /// Check the right to execute.
        const VALIDATE_EXECUTE = 0x0004;
        /// Do not check user against supervisor.
        const PRIVILEGE_EXEMPT = 0x0008;
        /// Set accessed and dirty bits in the guest's page tables.
        const SET_PAGE_TABLE_BITS = 0x0010;
        /// Hold back TLB flushes until the VP runs again.
        const TLB_FLUSH_INHIBIT = 0x0020;
        /// As supervisor.
        const SUPERVISOR_ACCESS = 0x0040;
        /// As user.
        const USER_ACCESS = 0x0080;
        /// Enforce SMAP.
        const ENFORCE_SMAP = 0x0100;
        /// Override SMAP.
        const OVERRIDE_SMAP = 0x0200;
        /// As an access to a shadow stack.
        const SHADOW_STACK = 0x0400;
    }
}

impl TranslateGvaControlFlags {
    /// The bits that name the VTL, in the layout of [`InputVtl`].
    pub const INPUT_VTL_MASK: u64 = 0xFF00_0000_0000_0000;
}

/// How a translation went (`HV_TRANSLATE_GVA_RESULT_CODE`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum TranslateGvaResultCode {
    /// There is a GPA.
    SUCCESS = 0,
    /// A page is not present.
    PAGE_NOT_PRESENT = 1,
    /// A right is missing.
    PRIVILEGE_VIOLATION = 2,
    /// A page table entry is malformed.
    INVALID_PAGE_TABLE_FLAGS = 3,
    /// A page table lies where nothing is mapped.
    GPA_UNMAPPED = 4,
    /// A page table cannot be read.
    GPA_NO_READ_ACCESS = 5,
    /// A page table cannot be written.
    GPA_NO_WRITE_ACCESS = 6,
    /// A page table lies in an overlay page that forbids it.
    GPA_ILLEGAL_OVERLAY_ACCESS = 7,
    /// The access is intercepted.
    INTERCEPT = 8,
    /// The page was not accepted by the guest.
    GPA_UNACCEPTED = 9,
}

/// The result of a translation (`HV_TRANSLATE_GVA_RESULT`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateGvaResult {
    /// How it went.
    pub result_code: TranslateGvaResultCode,
    /// About the page.
    pub attributes: TranslateGvaAttributes,
}
const _: () = assert!(size_of::<TranslateGvaResult>() == 8);

/// About the page that was found.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateGvaAttributes {
    /// See [`CacheType`](crate::types::CacheType).
    pub cache_type: u8,
    /// It is an overlay page.
    pub overlay_page: bool,
    /// Zero.
    #[bits(23)]
    pub reserved: u32,
}

/// Output of `HvCallTranslateVirtualAddress`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateVirtualAddressOutput {
    /// How it went.
    pub translation_result: TranslateGvaResult,
    /// The GPA page number, on success.
    pub gpa_page: u64,
}
const _: () = assert!(size_of::<TranslateVirtualAddressOutput>() == 16);

/// Output of `HvCallTranslateVirtualAddressEx`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateVirtualAddressExOutput {
    /// How it went.
    pub translation_result: TranslateGvaResult,
    /// Must be zero: the event is 16-byte aligned.
    pub reserved0: u64,
    /// The exception the access would raise: [`PendingExceptionEvent`] in the first two, low half first.
    pub event_info: [u64; 4],
    /// The GPA page number, on success.
    pub gpa_page: u64,
    /// Must be zero.
    pub reserved1: u64,
}
const _: () = assert!(size_of::<TranslateVirtualAddressExOutput>() == 64);

impl TranslateVirtualAddressExOutput {
    /// The exception the access would raise.
    pub const fn event(&self) -> PendingExceptionEvent {
        let [low, high, ..] = self.event_info;
        PendingExceptionEvent::from_bits(low as u128 | (high as u128) << 64)
    }
}

/// The header of `HvCallGetVpCpuidValues`; [`CpuidLeafInfo`]s follow, the output is [`CpuidResult`]s.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetVpCpuidValuesInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// Which VP.
    pub vp_index: VpIndex,
    /// Bit 0: use the VP's XFEM and XSS; bit 1: apply registered results.
    pub flags: GetVpCpuidValuesFlags,
    /// Must be zero.
    pub reserved: u32,
    /// Must be zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<GetVpCpuidValuesInput>() == 24);

/// Which CPUID values are meant (`HV_GET_VP_CPUID_VALUES_FLAGS`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetVpCpuidValuesFlags(pub u32);

bitflags! {
    impl GetVpCpuidValuesFlags: u32 {
        /// Sizes are for the VP's own XCR0 and XSS instead of those given.
        const USE_VP_XFEM_XSS = 1 << 0;
        /// Results registered with `HvCallRegisterInterceptResult` are applied.
        const APPLY_REGISTERED_VALUES = 1 << 1;
    }
}

/// A CPUID leaf (`HV_CPUID_LEAF_INFO`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuidLeafInfo {
    /// The leaf.
    pub eax: u32,
    /// The subleaf.
    pub ecx: u32,
    /// XCR0 to assume.
    pub xfem: u64,
    /// XSS to assume.
    pub xss: u64,
}
const _: () = assert!(size_of::<CpuidLeafInfo>() == 24);

/// An element of `HvCallGetVpCpuidValues`' output.
pub type GetVpCpuidValuesOutput = CpuidResult;

/// The state a VP starts with (`HV_INITIAL_VP_CONTEXT`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InitialVpContext {
    /// RIP.
    pub rip: u64,
    /// RSP.
    pub rsp: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CS.
    pub cs: SegmentRegister,
    /// DS.
    pub ds: SegmentRegister,
    /// ES.
    pub es: SegmentRegister,
    /// FS.
    pub fs: SegmentRegister,
    /// GS.
    pub gs: SegmentRegister,
    /// SS.
    pub ss: SegmentRegister,
    /// TR.
    pub tr: SegmentRegister,
    /// LDTR.
    pub ldtr: SegmentRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// GDTR.
    pub gdtr: TableRegister,
    /// IA32_EFER.
    pub efer: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_PAT.
    pub msr_cr_pat: u64,
}
const _: () = assert!(size_of::<InitialVpContext>() == 224);

/// Input of `HvCallStartVirtualProcessor`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StartVirtualProcessorInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// Which VP.
    pub vp_index: VpIndex,
    /// In which VTL.
    pub target_vtl: InputVtl,
    /// Must be zero.
    pub reserved: [u8; 3],
    /// With which state.
    pub vp_context: InitialVpContext,
}
const _: () = assert!(size_of::<StartVirtualProcessorInput>() == 240);

/// The header of `HvCallGetVpIndexFromApicId`; APIC ids (`u32`) follow, the output is VP indices (`u32`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetVpIndexFromApicIdInput {
    /// In which partition.
    pub partition_id: PartitionId,
    /// In which VTL.
    pub target_vtl: InputVtl,
    /// Must be zero.
    pub reserved: [u8; 7],
}
const _: () = assert!(size_of::<GetVpIndexFromApicIdInput>() == 16);
