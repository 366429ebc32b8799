//! Hypervisor CPUID leaves and their bits (TLFS chapter "Feature and Interface Discovery").

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bit of CPUID.1:ECX that says a hypervisor is present.
pub const HYPERVISOR_PRESENT: u32 = 1 << 31;

/// Largest leaf and vendor signature.
pub const VENDOR_AND_MAX_FUNCTION: u32 = 0x4000_0000;
/// Interface signature.
pub const INTERFACE: u32 = 0x4000_0001;
/// The hypervisor's version: EAX build, EBX major:16 minor:16, ECX service pack, EDX branch:8 number:24.
pub const VERSION: u32 = 0x4000_0002;
/// Privileges and features: EAX and EBX are [`PrivilegeMask`], EDX is [`Features`].
pub const FEATURES: u32 = 0x4000_0003;
/// Recommendations: EAX is [`Enlightenments`], EBX the spin count before a long spin wait is notified.
pub const ENLIGHTENMENTS: u32 = 0x4000_0004;
/// Limits: EAX virtual processors, EBX logical processors, ECX interrupt vectors for remapping.
pub const IMPLEMENTATION_LIMITS: u32 = 0x4000_0005;
/// Hardware features in use: EAX is [`HardwareFeatures`].
pub const HARDWARE_FEATURES: u32 = 0x4000_0006;
/// Processor management: EAX is [`CpuManagement`].
pub const CPU_MANAGEMENT_FEATURES: u32 = 0x4000_0007;
/// Shared virtual memory (PASID) features.
pub const SVM_FEATURES: u32 = 0x4000_0008;
/// Features for a hypervisor inside, when it is itself nested.
pub const SKIP_LEVEL_FEATURES: u32 = 0x4000_0009;
/// Nested virtualization features.
pub const NESTED_FEATURES: u32 = 0x4000_000A;
/// Processor trace features.
pub const IPT_FEATURES: u32 = 0x4000_000B;
/// Isolation configuration.
pub const ISOLATION_CONFIG: u32 = 0x4000_000C;
/// The virtualization stack's vendor and largest leaf (answered by the parent).
pub const VIRT_STACK_VENDOR: u32 = 0x4000_0080;
/// The virtualization stack's interface signature (answered by the parent).
pub const VIRT_STACK_INTERFACE: u32 = 0x4000_0081;
/// The virtualization stack's properties: EAX is [`VirtStackProperties`].
pub const VIRT_STACK_PROPERTIES: u32 = 0x4000_0082;

/// The first leaf that belongs to the hypervisor.
pub const FIRST: u32 = 0x4000_0000;
/// The last leaf that belongs to the hypervisor or the virtualization stack.
pub const LAST: u32 = 0x4000_FFFF;

/// "Microsoft Hv" in EBX, ECX, EDX of [`VENDOR_AND_MAX_FUNCTION`].
pub const VENDOR: [u32; 3] = [0x7263_694D, 0x666F_736F, 0x7648_2074];
/// "Hv#1" in EAX of [`INTERFACE`].
pub const INTERFACE_SIGNATURE: u32 = 0x3123_7648;
/// "VS#1" in EAX of [`VIRT_STACK_INTERFACE`].
pub const VIRT_STACK_SIGNATURE: u32 = 0x3123_5356;

/// The four registers of a CPUID answer (`HV_CPUID_RESULT`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuidResult {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}
const _: () = assert!(size_of::<CpuidResult>() == 16);

/// What a partition may do (`HV_PARTITION_PRIVILEGE_MASK`); EAX and EBX of [`FEATURES`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PrivilegeMask(pub u64);

bitflags! {
    impl PrivilegeMask: u64 {
        /// MSR VP_RUNTIME.
        const ACCESS_VP_RUNTIME_REG = 1 << 0;
        /// MSR TIME_REF_COUNT.
        const ACCESS_PARTITION_REFERENCE_COUNTER = 1 << 1;
        /// SynIC MSRs SCONTROL..EOM and SINT0..SINT15.
        const ACCESS_SYNIC_REGS = 1 << 2;
        /// Synthetic timer MSRs.
        const ACCESS_SYNTHETIC_TIMER_REGS = 1 << 3;
        /// MSRs EOI, ICR, TPR and the VP assist page.
        const ACCESS_INTR_CTRL_REGS = 1 << 4;
        /// MSRs GUEST_OS_ID and HYPERCALL.
        const ACCESS_HYPERCALL_REGS = 1 << 5;
        /// MSR VP_INDEX.
        const ACCESS_VP_INDEX = 1 << 6;
        /// MSR RESET.
        const ACCESS_RESET_REG = 1 << 7;
        /// The MSRs for a partition's own statistics pages.
        const ACCESS_STATS_REG = 1 << 8;
        /// MSR REFERENCE_TSC.
        const ACCESS_PARTITION_REFERENCE_TSC = 1 << 9;
        /// MSR GUEST_IDLE.
        const ACCESS_GUEST_IDLE_REG = 1 << 10;
        /// MSRs TSC_FREQUENCY and APIC_FREQUENCY.
        const ACCESS_FREQUENCY_REGS = 1 << 11;
        /// Debug MSRs.
        const ACCESS_DEBUG_REGS = 1 << 12;
        /// Reenlightenment MSRs.
        const ACCESS_REENLIGHTENMENT_CONTROLS = 1 << 13;
        /// The root scheduler's MSR.
        const ACCESS_ROOT_SCHEDULER_REG = 1 << 14;
        /// MSR TSC_INVARIANT_CONTROL.
        const ACCESS_TSC_INVARIANT_CONTROLS = 1 << 15;
        /// HvCallCreatePartition, and all calls that act on children.
        const CREATE_PARTITIONS = 1 << 32;
        /// HvCallGetPartitionId.
        const ACCESS_PARTITION_ID = 1 << 33;
        /// HvCallDepositMemory, HvCallWithdrawMemory, HvCallGetMemoryBalance.
        const ACCESS_MEMORY_POOL = 1 << 34;
        /// Adjusting the number of message buffers.
        const ADJUST_MESSAGE_BUFFERS = 1 << 35;
        /// HvCallPostMessage.
        const POST_MESSAGES = 1 << 36;
        /// HvCallSignalEvent.
        const SIGNAL_EVENTS = 1 << 37;
        /// HvCallCreatePort.
        const CREATE_PORT = 1 << 38;
        /// HvCallConnectPort.
        const CONNECT_PORT = 1 << 39;
        /// HvCallMapStatsPage and HvCallUnmapStatsPage.
        const ACCESS_STATS = 1 << 40;
        /// Debug data calls.
        const DEBUGGING = 1 << 43;
        /// Calls that manage logical processors.
        const CPU_MANAGEMENT = 1 << 44;
        /// Calls that configure the profiler.
        const CONFIGURE_PROFILER = 1 << 45;
        /// Tracing of VP exits.
        const ACCESS_VP_EXIT_TRACING = 1 << 46;
        /// Extended ranges in HvCallFlushVirtualAddressList.
        const EXTENDED_GVA_RANGES_FOR_FLUSH = 1 << 47;
        /// Virtual secure mode.
        const ACCESS_VSM = 1 << 48;
        /// HvCallGetVpRegisters and HvCallSetVpRegisters on the caller's own partition.
        const ACCESS_VP_REGISTERS = 1 << 49;
        /// Hypercall output in XMM registers.
        const FAST_HYPERCALL_OUTPUT = 1 << 51;
        /// The extended hypercall interface (0x8001 and following).
        const ENABLE_EXTENDED_HYPERCALLS = 1 << 52;
        /// HvCallStartVirtualProcessor.
        const START_VIRTUAL_PROCESSOR = 1 << 53;
        /// The partition is isolated from its parent.
        const ISOLATION = 1 << 54;
    }
}

impl PrivilegeMask {
    /// EAX of [`FEATURES`].
    pub const fn eax(self) -> u32 {
        self.bits() as u32
    }

    /// EBX of [`FEATURES`].
    pub const fn ebx(self) -> u32 {
        (self.bits() >> 32) as u32
    }
}

bitflags! {
    /// EDX of [`FEATURES`].
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Features: u32 {
        /// Guest debugging.
        const GUEST_DEBUGGING = 1 << 1;
        /// Performance monitor.
        const PERFORMANCE_MONITOR = 1 << 2;
        /// Dynamic partitioning events.
        const CPU_DYNAMIC_PARTITIONING = 1 << 3;
        /// Hypercall input in XMM registers.
        const XMM_HYPERCALL_INPUT = 1 << 4;
        /// The guest idle state.
        const GUEST_IDLE = 1 << 5;
        /// Hypervisor sleep state.
        const HYPERVISOR_SLEEP_STATE = 1 << 6;
        /// NUMA distances can be asked for.
        const NUMA_DISTANCE_QUERY = 1 << 7;
        /// MSRs for timer frequencies.
        const FREQUENCY_REGS = 1 << 8;
        /// Synthetic machine checks can be injected.
        const SYNTHETIC_MACHINE_CHECK = 1 << 9;
        /// Crash MSRs.
        const GUEST_CRASH_REGS = 1 << 10;
        /// Debug MSRs.
        const DEBUG_REGS = 1 << 11;
        /// Non-privileged instruction execution prevention.
        const NPIEP = 1 << 12;
        /// The hypervisor can be disabled.
        const DISABLE_HYPERVISOR = 1 << 13;
        /// Extended ranges in HvCallFlushVirtualAddressList.
        const EXTENDED_GVA_RANGES_FOR_FLUSH = 1 << 14;
        /// Hypercall output in XMM registers.
        const XMM_HYPERCALL_OUTPUT = 1 << 15;
        /// Polling mode of SINTs.
        const SINT_POLLING_MODE = 1 << 17;
        /// The hypercall MSR can be locked.
        const HYPERCALL_MSR_LOCK = 1 << 18;
        /// Synthetic timers have the direct mode.
        const DIRECT_SYNTHETIC_TIMERS = 1 << 19;
    }
}

bitflags! {
    /// ECX of [`FEATURES`].
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct FeaturesEcx: u32 {
        /// Invariant MPERF.
        const INVARIANT_MPERF = 1 << 5;
        /// Supervisor shadow stacks.
        const SUPERVISOR_SHADOW_STACK = 1 << 6;
        /// Architectural performance monitoring.
        const ARCHITECTURAL_PMU = 1 << 7;
        /// Exception trap intercepts.
        const EXCEPTION_TRAP_INTERCEPT = 1 << 8;
        /// HvCallDispatchVp scans the register page's interrupt vectors.
        const VP_DISPATCH_INTERRUPT_INJECTION = 1 << 9;
        /// GHCB mappings for the root partition.
        const VP_GHCB_ROOT_MAPPING = 1 << 10;
    }
}

bitflags! {
    /// What the guest had better do: EAX of [`ENLIGHTENMENTS`].
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Enlightenments: u32 {
        /// Use a hypercall for address space switches.
        const USE_HYPERCALL_FOR_ADDRESS_SPACE_SWITCH = 1 << 0;
        /// Use a hypercall for local TLB flushes.
        const USE_HYPERCALL_FOR_LOCAL_FLUSH = 1 << 1;
        /// Use hypercalls for remote TLB flushes.
        const USE_HYPERCALL_FOR_REMOTE_FLUSH = 1 << 2;
        /// Use MSRs EOI, ICR and TPR instead of the APIC page.
        const USE_APIC_MSRS = 1 << 3;
        /// Use MSR RESET for a reset.
        const USE_MSR_FOR_RESET = 1 << 4;
        /// Use relaxed timing: no watchdog that needs a fixed share of time.
        const USE_RELAXED_TIMING = 1 << 5;
        /// Use DMA remapping.
        const USE_DMA_REMAPPING = 1 << 6;
        /// Use interrupt remapping.
        const USE_INTERRUPT_REMAPPING = 1 << 7;
        /// Use x2APIC MSRs.
        const USE_X2APIC_MSRS = 1 << 8;
        /// Do not use auto-EOI.
        const DEPRECATE_AUTO_EOI = 1 << 9;
        /// Use HvCallSendSyntheticClusterIpi.
        const USE_SYNTHETIC_CLUSTER_IPI = 1 << 10;
        /// Use the calls with sparse processor sets.
        const USE_EX_PROCESSOR_MASKS = 1 << 11;
        /// The hypervisor runs nested in another.
        const NESTED = 1 << 12;
        /// Use INT for system calls under mode-based execution control.
        const USE_INT_FOR_MBEC_SYSTEM_CALLS = 1 << 13;
        /// Use the enlightened VMCS.
        const USE_ENLIGHTENED_VMCS = 1 << 14;
        /// Use a synchronized timeline.
        const USE_SYNCED_TIMELINE = 1 << 15;
        /// The core scheduler is asked for.
        const CORE_SCHEDULER_REQUESTED = 1 << 16;
        /// Flush the whole local TLB directly.
        const USE_DIRECT_LOCAL_FLUSH_ENTIRE = 1 << 17;
        /// A VP shares a core only with its sibling threads.
        const NO_NON_ARCHITECTURAL_CORE_SHARING = 1 << 18;
        /// Use hypercalls for memory-mapped I/O.
        const USE_HYPERCALL_FOR_MMIO_ACCESS = 1 << 21;
    }
}

bitflags! {
    /// What hardware the hypervisor uses: EAX of [`HARDWARE_FEATURES`].
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct HardwareFeatures: u32 {
        /// APIC overlay assist.
        const APIC_OVERLAY_ASSIST = 1 << 0;
        /// MSR bitmaps.
        const MSR_BITMAPS = 1 << 1;
        /// Architectural performance counters.
        const ARCHITECTURAL_PERFORMANCE_COUNTERS = 1 << 2;
        /// Second level address translation.
        const SECOND_LEVEL_ADDRESS_TRANSLATION = 1 << 3;
        /// DMA remapping.
        const DMA_REMAPPING = 1 << 4;
        /// Interrupt remapping.
        const INTERRUPT_REMAPPING = 1 << 5;
        /// A memory patrol scrubber is present.
        const MEMORY_PATROL_SCRUBBER = 1 << 6;
        /// DMA protection is in use.
        const DMA_PROTECTION = 1 << 7;
        /// HPET has been asked for.
        const HPET_REQUESTED = 1 << 8;
        /// Synthetic timers are volatile.
        const SYNTHETIC_TIMERS_VOLATILE = 1 << 9;
    }
}

bitflags! {
    /// EAX of [`CPU_MANAGEMENT_FEATURES`].
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct CpuManagement: u32 {
        /// Logical processors are started by hypercall.
        const START_LOGICAL_PROCESSOR = 1 << 0;
        /// Virtual processors of the root are created by hypercall.
        const CREATE_ROOT_VIRTUAL_PROCESSOR = 1 << 1;
        /// Performance counters are synchronized.
        const PERFORMANCE_COUNTER_SYNC = 1 << 2;
        /// Reserved identity bit.
        const RESERVED_IDENTITY = 1 << 31;
    }
}

bitflags! {
    /// EAX of [`VIRT_STACK_PROPERTIES`].
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct VirtStackProperties: u32 {
        /// IO-APIC entries and MSIs carry 15-bit destinations.
        const EXTENDED_IOAPIC_RTE = 1 << 2;
        /// Confidential VMBus.
        const CONFIDENTIAL_VMBUS = 1 << 3;
    }
}
