//! Names of registers (`HV_REGISTER_NAME`): those that stand alone. Families are in `family`.

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The number of a virtual processor's register (`HV_REGISTER_NAME`).
#[open_enum]
#[repr(u32)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub enum RegisterName {
    /// Suspended by the parent; layout [`SuspendRegister`](super::SuspendRegister). A new VP starts suspended.
    EXPLICIT_SUSPEND = 0x00000000,
    /// Suspended because an intercept is to be handled.
    INTERCEPT_SUSPEND = 0x00000001,
    /// Hints for an instruction emulator.
    INSTRUCTION_EMULATION_HINTS = 0x00000002,
    /// Suspended by the root scheduler; no more signals come for the VP.
    DISPATCH_SUSPEND = 0x00000003,
    /// Waiting by its own doing; layout [`InternalActivityRegister`](super::InternalActivityRegister).
    INTERNAL_ACTIVITY_STATE = 0x00000004,
    /// CPUID leaf 0x40000002.
    HYPERVISOR_VERSION = 0x00000100,
    /// CPUID leaf 0x40000003.
    PRIVILEGES_AND_FEATURES_INFO = 0x00000200,
    /// CPUID leaf 0x40000004.
    FEATURES_INFO = 0x00000201,
    /// CPUID leaf 0x40000005.
    IMPLEMENTATION_LIMITS_INFO = 0x00000202,
    /// CPUID leaf 0x40000006.
    HARDWARE_FEATURES_INFO = 0x00000203,
    /// CPUID leaf 0x40000007.
    CPU_MANAGEMENT_FEATURES_INFO = 0x00000204,
    /// CPUID leaf 0x40000008.
    SVM_FEATURES_INFO = 0x00000205,
    /// CPUID leaf 0x40000009.
    SKIP_LEVEL_FEATURES_INFO = 0x00000206,
    /// CPUID leaf 0x4000000A.
    NESTED_VIRT_FEATURES_INFO = 0x00000207,
    /// CPUID leaf 0x4000000B.
    IPT_FEATURES_INFO = 0x00000208,
    /// Crash parameter 0.
    GUEST_CRASH_P0 = 0x00000210,
    /// Crash parameter 1.
    GUEST_CRASH_P1 = 0x00000211,
    /// Crash parameter 2.
    GUEST_CRASH_P2 = 0x00000212,
    /// Crash parameter 3.
    GUEST_CRASH_P3 = 0x00000213,
    /// Crash parameter 4.
    GUEST_CRASH_P4 = 0x00000214,
    /// Crash control.
    GUEST_CRASH_CTL = 0x00000215,
    /// Frequency of the TSC.
    PROCESSOR_CLOCK_FREQUENCY = 0x00000240,
    /// Frequency of the local APIC timer.
    INTERRUPT_CLOCK_FREQUENCY = 0x00000241,
    /// Guest idle.
    GUEST_IDLE = 0x00000250,
    /// Event for the next entry; layout [`PendingInterruptionRegister`](super::PendingInterruptionRegister).
    PENDING_INTERRUPTION = 0x00010002,
    /// Interrupt shadow and NMI mask; layout [`InterruptStateRegister`](super::InterruptStateRegister).
    INTERRUPT_STATE = 0x00010003,
    /// First pending event; layout [`PendingExceptionEvent`](super::PendingExceptionEvent).
    PENDING_EVENT0 = 0x00010004,
    /// Second pending event; layout [`PendingExtIntEvent`](super::PendingExtIntEvent).
    PENDING_EVENT1 = 0x00010005,
    /// What to tell the parent; layout [`DeliverabilityNotificationsRegister`](super::DeliverabilityNotificationsRegister).
    DELIVERABILITY_NOTIFICATIONS = 0x00010006,
    /// Debug exception that is pending.
    PENDING_DEBUG_EXCEPTION = 0x00010007,
    /// Third pending event.
    PENDING_EVENT2 = 0x00010008,
    /// Fourth pending event.
    PENDING_EVENT3 = 0x00010009,
    /// RAX.
    RAX = 0x00020000,
    /// RCX.
    RCX = 0x00020001,
    /// RDX.
    RDX = 0x00020002,
    /// RBX.
    RBX = 0x00020003,
    /// RSP.
    RSP = 0x00020004,
    /// RBP.
    RBP = 0x00020005,
    /// RSI.
    RSI = 0x00020006,
    /// RDI.
    RDI = 0x00020007,
    /// R8.
    R8 = 0x00020008,
    /// R9.
    R9 = 0x00020009,
    /// R10.
    R10 = 0x0002000A,
    /// R11.
    R11 = 0x0002000B,
    /// R12.
    R12 = 0x0002000C,
    /// R13.
    R13 = 0x0002000D,
    /// R14.
    R14 = 0x0002000E,
    /// R15.
    R15 = 0x0002000F,
    /// RIP.
    RIP = 0x00020010,
    /// RFLAGS.
    RFLAGS = 0x00020011,
    /// x87 environment; layout [`FpControlStatusRegister`](super::FpControlStatusRegister).
    FP_CONTROL_STATUS = 0x00030018,
    /// MXCSR; layout [`XmmControlStatusRegister`](super::XmmControlStatusRegister).
    XMM_CONTROL_STATUS = 0x00030019,
    /// CR0.
    CR0 = 0x00040000,
    /// CR2.
    CR2 = 0x00040001,
    /// CR3.
    CR3 = 0x00040002,
    /// CR4.
    CR4 = 0x00040003,
    /// CR8.
    CR8 = 0x00040004,
    /// XCR0.
    XFEM = 0x00040005,
    /// CR0 as an interceptor of CR0 sees it.
    INTERMEDIATE_CR0 = 0x00041000,
    /// CR3 as an interceptor of CR3 sees it.
    INTERMEDIATE_CR3 = 0x00041002,
    /// CR4 as an interceptor of CR4 sees it.
    INTERMEDIATE_CR4 = 0x00041003,
    /// CR8 as an interceptor of CR8 sees it.
    INTERMEDIATE_CR8 = 0x00041004,
    /// DR0.
    DR0 = 0x00050000,
    /// DR1.
    DR1 = 0x00050001,
    /// DR2.
    DR2 = 0x00050002,
    /// DR3.
    DR3 = 0x00050003,
    /// DR6.
    DR6 = 0x00050004,
    /// DR7.
    DR7 = 0x00050005,
    /// ES; layout [`SegmentRegister`](super::SegmentRegister).
    ES = 0x00060000,
    /// CS; layout [`SegmentRegister`](super::SegmentRegister).
    CS = 0x00060001,
    /// SS; layout [`SegmentRegister`](super::SegmentRegister).
    SS = 0x00060002,
    /// DS; layout [`SegmentRegister`](super::SegmentRegister).
    DS = 0x00060003,
    /// FS; layout [`SegmentRegister`](super::SegmentRegister).
    FS = 0x00060004,
    /// GS; layout [`SegmentRegister`](super::SegmentRegister).
    GS = 0x00060005,
    /// LDTR; layout [`SegmentRegister`](super::SegmentRegister).
    LDTR = 0x00060006,
    /// TR; layout [`SegmentRegister`](super::SegmentRegister).
    TR = 0x00060007,
    /// IDTR; layout [`TableRegister`](super::TableRegister).
    IDTR = 0x00070000,
    /// GDTR; layout [`TableRegister`](super::TableRegister).
    GDTR = 0x00070001,
    /// The guest's time stamp counter.
    TSC = 0x00080000,
    /// IA32_EFER.
    EFER = 0x00080001,
    /// IA32_KERNEL_GS_BASE.
    KERNEL_GS_BASE = 0x00080002,
    /// IA32_APIC_BASE.
    APIC_BASE = 0x00080003,
    /// IA32_PAT.
    PAT = 0x00080004,
    /// IA32_SYSENTER_CS.
    SYSENTER_CS = 0x00080005,
    /// IA32_SYSENTER_EIP.
    SYSENTER_EIP = 0x00080006,
    /// IA32_SYSENTER_ESP.
    SYSENTER_ESP = 0x00080007,
    /// IA32_STAR.
    STAR = 0x00080008,
    /// IA32_LSTAR.
    LSTAR = 0x00080009,
    /// IA32_CSTAR.
    CSTAR = 0x0008000A,
    /// IA32_SFMASK.
    SFMASK = 0x0008000B,
    /// APIC id at reset.
    INITIAL_APIC_ID = 0x0008000C,
    /// IA32_TSC_AUX.
    TSC_AUX = 0x0008007B,
    /// IA32_BNDCFGS.
    BNDCFGS = 0x0008007C,
    /// IA32_DEBUGCTL.
    DEBUG_CTL = 0x0008007D,
    /// IA32_MPERF.
    MCOUNT = 0x0008007E,
    /// IA32_APERF.
    ACOUNT = 0x0008007F,
    /// IA32_SPEC_CTRL.
    SPEC_CTRL = 0x00080084,
    /// IA32_PRED_CMD.
    PRED_CMD = 0x00080085,
    /// VIRT_SPEC_CTRL.
    VIRT_SPEC_CTRL = 0x00080086,
    /// Offset added to the processor's TSC.
    TSC_VIRTUAL_OFFSET = 0x00080087,
    /// IA32_TSX_CTRL.
    TSX_CTRL = 0x00080088,
    /// IA32_XSS.
    XSS = 0x0008008B,
    /// IA32_U_CET.
    U_CET = 0x0008008C,
    /// IA32_S_CET.
    S_CET = 0x0008008D,
    /// Shadow stack pointer.
    SSP = 0x0008008E,
    /// IA32_PL0_SSP.
    PL0_SSP = 0x0008008F,
    /// IA32_PL1_SSP.
    PL1_SSP = 0x00080090,
    /// IA32_PL2_SSP.
    PL2_SSP = 0x00080091,
    /// IA32_PL3_SSP.
    PL3_SSP = 0x00080092,
    /// IA32_INTERRUPT_SSP_TABLE_ADDR.
    INTERRUPT_SSP_TABLE_ADDR = 0x00080093,
    /// IA32_TSC_DEADLINE.
    TSC_DEADLINE = 0x00080095,
    /// IA32_TSC_ADJUST.
    TSC_ADJUST = 0x00080096,
    /// IA32_UMWAIT_CONTROL.
    UMWAIT_CONTROL = 0x00080098,
    /// IA32_XFD.
    XFD = 0x00080099,
    /// IA32_XFD_ERR.
    XFD_ERR = 0x0008009A,
    /// IA32_MISC_ENABLE.
    MSR_IA32_MISC_ENABLE = 0x000800A0,
    /// IA32_FEATURE_CONTROL.
    IA32_FEATURE_CONTROL = 0x000800A1,
    /// Time the VP has run, in 100 ns.
    VP_RUNTIME = 0x00090000,
    /// Hypercall page; layout [`HypercallMsr`](crate::msr::HypercallMsr).
    HYPERCALL = 0x00090001,
    /// Guest OS id; layout [`GuestOsId`](crate::msr::GuestOsId).
    GUEST_OS_ID = 0x00090002,
    /// The VP's index.
    VP_INDEX = 0x00090003,
    /// Reference time, in 100 ns.
    TIME_REF_COUNT = 0x00090004,
    /// Version of the processor management interface.
    CPU_MANAGEMENT_VERSION = 0x00090007,
    /// MSR EOI.
    SYNTHETIC_EOI = 0x00090010,
    /// MSR ICR.
    SYNTHETIC_ICR = 0x00090011,
    /// MSR TPR.
    SYNTHETIC_TPR = 0x00090012,
    /// VP assist page; layout [`OverlayPageMsr`](crate::msr::OverlayPageMsr).
    VP_ASSIST_PAGE = 0x00090013,
    /// Signals sent to the root scheduler for this VP.
    VP_ROOT_SIGNAL_COUNT = 0x00090014,
    /// Reference TSC page; layout [`OverlayPageMsr`](crate::msr::OverlayPageMsr).
    REFERENCE_TSC = 0x00090017,
    /// GHCB page.
    GHCB = 0x00090019,
    /// Sequence of the reference TSC page.
    REFERENCE_TSC_SEQUENCE = 0x0009001A,
    /// Register page; layout [`OverlayPageMsr`](crate::msr::OverlayPageMsr).
    REG_PAGE = 0x0009001C,
    /// Period of the emulated timer.
    EMULATED_TIMER_PERIOD = 0x00090030,
    /// Control of the emulated timer.
    EMULATED_TIMER_CONTROL = 0x00090031,
    /// Port of the ACPI PM timer that the hypervisor may answer.
    PM_TIMER_ASSIST = 0x00090032,
    /// Synthetic interrupt source 0; layout [`Sint`](crate::msr::Sint).
    SINT0 = 0x000A0000,
    /// Synthetic interrupt source 1.
    SINT1 = 0x000A0001,
    /// Synthetic interrupt source 2.
    SINT2 = 0x000A0002,
    /// Synthetic interrupt source 3.
    SINT3 = 0x000A0003,
    /// Synthetic interrupt source 4.
    SINT4 = 0x000A0004,
    /// Synthetic interrupt source 5.
    SINT5 = 0x000A0005,
    /// Synthetic interrupt source 6.
    SINT6 = 0x000A0006,
    /// Synthetic interrupt source 7.
    SINT7 = 0x000A0007,
    /// Synthetic interrupt source 8.
    SINT8 = 0x000A0008,
    /// Synthetic interrupt source 9.
    SINT9 = 0x000A0009,
    /// Synthetic interrupt source 10.
    SINT10 = 0x000A000A,
    /// Synthetic interrupt source 11.
    SINT11 = 0x000A000B,
    /// Synthetic interrupt source 12.
    SINT12 = 0x000A000C,
    /// Synthetic interrupt source 13.
    SINT13 = 0x000A000D,
    /// Synthetic interrupt source 14.
    SINT14 = 0x000A000E,
    /// Synthetic interrupt source 15; layout [`Sint`](crate::msr::Sint).
    SINT15 = 0x000A000F,
    /// SynIC control; layout [`Scontrol`](crate::msr::Scontrol).
    SCONTROL = 0x000A0010,
    /// SynIC version.
    SVERSION = 0x000A0011,
    /// Event flags page; layout [`OverlayPageMsr`](crate::msr::OverlayPageMsr).
    SIEFP = 0x000A0012,
    /// Message page; layout [`OverlayPageMsr`](crate::msr::OverlayPageMsr).
    SIMP = 0x000A0013,
    /// End of message.
    EOM = 0x000A0014,
    /// Event ring page; layout [`OverlayPageMsr`](crate::msr::OverlayPageMsr).
    SIRBP = 0x000A0015,
    /// Configuration of synthetic timer 0.
    STIMER0_CONFIG = 0x000B0000,
    /// Count of synthetic timer 0, in 100 ns.
    STIMER0_COUNT = 0x000B0001,
    /// Configuration of synthetic timer 1.
    STIMER1_CONFIG = 0x000B0002,
    /// Count of synthetic timer 1, in 100 ns.
    STIMER1_COUNT = 0x000B0003,
    /// Configuration of synthetic timer 2.
    STIMER2_CONFIG = 0x000B0004,
    /// Count of synthetic timer 2, in 100 ns.
    STIMER2_COUNT = 0x000B0005,
    /// Configuration of synthetic timer 3.
    STIMER3_CONFIG = 0x000B0006,
    /// Count of synthetic timer 3, in 100 ns.
    STIMER3_COUNT = 0x000B0007,
    /// Where VTL call and return code lies in the hypercall page.
    VSM_CODE_PAGE_OFFSETS = 0x000D0002,
    /// VTL state of the VP.
    VSM_VP_STATUS = 0x000D0003,
    /// VTL state of the partition.
    VSM_PARTITION_STATUS = 0x000D0004,
    /// Virtual interrupt notification assist.
    VSM_VINA = 0x000D0005,
    /// What VSM can do.
    VSM_CAPABILITIES = 0x000D0006,
    /// VSM configuration of a VTL.
    VSM_PARTITION_CONFIG = 0x000D0007,
    /// What isolation can do.
    ISOLATION_CAPABILITIES = 0x000D0100,
    /// Which register accesses a higher VTL intercepts.
    CR_INTERCEPT_CONTROL = 0x000E0000,
    /// Bits of CR0 that are intercepted.
    CR_INTERCEPT_CR0_MASK = 0x000E0001,
    /// Bits of CR4 that are intercepted.
    CR_INTERCEPT_CR4_MASK = 0x000E0002,
    /// Bits of IA32_MISC_ENABLE that are intercepted.
    CR_INTERCEPT_IA32_MISC_ENABLE_MASK = 0x000E0003,
}
const _: () = assert!(size_of::<RegisterName>() == 4);
