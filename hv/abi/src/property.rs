//! Properties of partitions and of the system: codes and values (TLFS `HV_PARTITION_PROPERTY_CODE`; Linux
//! `hvhdk_mini.h`). The processor feature banks are in [`crate::processor_features`].

use bitfield_struct::bitfield;
use bitflags::bitflags;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use crate::processor_features::{ProcessorFeatures0, ProcessorFeatures1, XsaveFeatures};

/// A partition's property (`HV_PARTITION_PROPERTY_CODE`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum PartitionPropertyCode {
    /// [`PrivilegeMask`](crate::cpuid::PrivilegeMask).
    PRIVILEGE_FLAGS = 0x0001_0000,
    /// [`SyntheticProcessorFeatures`]; before initialization.
    SYNTHETIC_PROC_FEATURES = 0x0001_0001,
    /// Non-zero: no VP runs.
    SUSPEND = 0x0002_0000,
    /// Guaranteed share of processors.
    CPU_RESERVE = 0x0002_0001,
    /// Largest share of processors.
    CPU_CAP = 0x0002_0002,
    /// Share relative to others.
    CPU_WEIGHT = 0x0002_0003,
    /// CPU group.
    CPU_GROUP_ID = 0x0002_0004,
    /// The parent schedules with the integrated scheduler.
    INTEGRATED_SCHEDULER_ENABLED = 0x0002_0005,
    /// Non-zero: reference time stands still.
    TIME_FREEZE = 0x0003_0003,
    /// Reference time, in 100 ns.
    REFERENCE_TIME = 0x0003_0005,
    /// Debug channel.
    DEBUG_CHANNEL_ID = 0x0004_0000,
    /// Pages of the virtual TLB.
    VIRTUAL_TLB_PAGE_COUNT = 0x0005_0000,
    /// VSM configuration.
    VSM_CONFIG = 0x0005_0001,
    /// Memory is zeroed on reset.
    ZERO_MEMORY_ON_RESET = 0x0005_0002,
    /// VPs per socket.
    PROCESSORS_PER_SOCKET = 0x0005_0003,
    /// Pages of the nested TLB.
    NESTED_TLB_SIZE = 0x0005_0004,
    /// Non-zero: accessed and dirty bits are kept.
    GPA_PAGE_ACCESS_TRACKING = 0x0005_0005,
    /// VSM permissions changed.
    VSM_PERMISSIONS_DIRTY_SINCE_LAST_QUERY = 0x0005_0006,
    /// Isolation state.
    ISOLATION_STATE = 0x0005_000C,
    /// Isolation control.
    ISOLATION_CONTROL = 0x0005_000D,
    /// Allocation id.
    ALLOCATION_ID = 0x0005_000E,
    /// Monitoring id.
    MONITORING_ID = 0x0005_000F,
    /// Bits of physical addresses that are implemented.
    IMPLEMENTED_PHYSICAL_ADDRESS_BITS = 0x0005_0010,
    /// Whether cores may be shared.
    NON_ARCHITECTURAL_CORE_SHARING = 0x0005_0011,
    /// Hypercall doorbell page.
    HYPERCALL_DOORBELL_PAGE = 0x0005_0012,
    /// Isolation policy.
    ISOLATION_POLICY = 0x0005_0014,
    /// VPs that share an L3 cache.
    PROCESSORS_PER_L3 = 0x0005_0016,
    /// [`UnimplementedMsrAction`](crate::hypercall::UnimplementedMsrAction).
    UNIMPLEMENTED_MSR_ACTION = 0x0005_0017,
    /// [`ProcessorVendor`].
    PROCESSOR_VENDOR = 0x0006_0000,
    /// Processor features, in an older layout.
    PROCESSOR_FEATURES_DEPRECATED = 0x0006_0001,
    /// [`XsaveFeatures`].
    PROCESSOR_XSAVE_FEATURES = 0x0006_0002,
    /// log2 of the bytes CLFLUSH flushes.
    PROCESSOR_CL_FLUSH_SIZE = 0x0006_0003,
    /// Changes of what is recommended to the guest.
    ENLIGHTENMENT_MODIFICATIONS = 0x0006_0004,
    /// The version of the interface asked for.
    COMPATIBILITY_VERSION = 0x0006_0005,
    /// Bits of a physical address.
    PHYSICAL_ADDRESS_WIDTH = 0x0006_0006,
    /// Components of XCR0 and XSS that the guest can have.
    XSAVE_STATES = 0x0006_0007,
    /// Bytes of the largest XSAVE area.
    MAX_XSAVE_DATA_SIZE = 0x0006_0008,
    /// Frequency of the processor in Hz.
    PROCESSOR_CLOCK_FREQUENCY = 0x0006_0009,
    /// [`ProcessorFeatures0`].
    PROCESSOR_FEATURES0 = 0x0006_000A,
    /// [`ProcessorFeatures1`].
    PROCESSOR_FEATURES1 = 0x0006_000B,
    /// Synthetic features of the root partition.
    ROOT_SYNTHETIC_PROC_FEATURES = 0x0006_0013,
    /// What the guest wrote to GUEST_OS_ID.
    GUEST_OS_ID = 0x0007_0000,
    /// Virtualization features for nested hypervisors.
    PROCESSOR_VIRTUALIZATION_FEATURES = 0x0008_0000,
    /// Virtual NUMA topology; extended.
    VIRTUAL_NUMA_TOPOLOGY = 0x0009_0004,
    /// [`VmmCapabilities`]; extended.
    VMM_CAPABILITIES = 0x0009_0007,
    /// [`SyntheticProcessorFeatures`] that may be asked for; extended.
    ASSIGNABLE_SYNTHETIC_PROC_FEATURES = 0x0009_0009,
}

/// Who makes the processor, in `PROCESSOR_VENDOR` (`HV_PROCESSOR_VENDOR`).
#[open_enum]
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum ProcessorVendor {
    /// AMD.
    AMD = 0,
    /// Intel.
    INTEL = 1,
    /// Hygon.
    HYGON = 2,
}

/// What a VMM can ask of the hypervisor (`HV_PARTITION_PROPERTY_VMM_CAPABILITIES`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VmmCapabilities {
    /// Banks that follow: 1.
    pub bank_count: u16,
    /// Zero.
    pub reserved: [u16; 3],
    /// Bank 0.
    pub capabilities: VmmCapabilityFlags,
}
const _: () = assert!(size_of::<VmmCapabilities>() == 16);

/// Bank 0 of [`VmmCapabilities`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VmmCapabilityFlags(pub u64);

bitflags! {
    impl VmmCapabilityFlags: u64 {
        /// Maps keep the adjustable flag.
        const MAP_GPA_PRESERVE_ADJUSTABLE = 1 << 0;
        /// The VMM gives the place of overlay pages.
        const VMM_CAN_PROVIDE_OVERLAY_GPFN = 1 << 1;
        /// VPs have the affinity property.
        const VP_AFFINITY_PROPERTY = 1 << 2;
        /// `ASSIGNABLE_SYNTHETIC_PROC_FEATURES` can be read.
        const ASSIGNABLE_SYNTHETIC_PROC_FEATURES = 1 << 4;
        /// The integrated scheduler can be enabled.
        const VMM_ENABLE_INTEGRATED_SCHEDULER = 1 << 6;
    }
}

/// What the guest sees of the hypervisor (`HV_PARTITION_SYNTHETIC_PROCESSOR_FEATURES`, bank 0).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SyntheticProcessorFeatures(pub u64);

bitflags! {
    impl SyntheticProcessorFeatures: u64 {
        /// CPUID says that there is a hypervisor.
        const HYPERVISOR_PRESENT = 1 << 0;
        /// The "Hv#1" leaves.
        const HV1 = 1 << 1;
        /// MSR VP_RUNTIME.
        const ACCESS_VP_RUN_TIME_REG = 1 << 2;
        /// MSR TIME_REF_COUNT.
        const ACCESS_PARTITION_REFERENCE_COUNTER = 1 << 3;
        /// SynIC MSRs.
        const ACCESS_SYNIC_REGS = 1 << 4;
        /// Synthetic timer MSRs.
        const ACCESS_SYNTHETIC_TIMER_REGS = 1 << 5;
        /// APIC MSRs and VP assist page.
        const ACCESS_INTR_CTRL_REGS = 1 << 6;
        /// MSRs GUEST_OS_ID and HYPERCALL.
        const ACCESS_HYPERCALL_REGS = 1 << 7;
        /// MSR VP_INDEX.
        const ACCESS_VP_INDEX = 1 << 8;
        /// MSR REFERENCE_TSC.
        const ACCESS_PARTITION_REFERENCE_TSC = 1 << 9;
        /// MSR GUEST_IDLE.
        const ACCESS_GUEST_IDLE_REG = 1 << 10;
        /// Frequency MSRs.
        const ACCESS_FREQUENCY_REGS = 1 << 11;
        /// Extended ranges in HvCallFlushVirtualAddressList.
        const ENABLE_EXTENDED_GVA_RANGES_FOR_FLUSH_VIRTUAL_ADDRESS_LIST = 1 << 15;
        /// VSM.
        const ACCESS_VSM = 1 << 16;
        /// Hypercall output in XMM registers.
        const FAST_HYPERCALL_OUTPUT = 1 << 18;
        /// HvCallStartVirtualProcessor.
        const START_VIRTUAL_PROCESSOR = 1 << 20;
        /// Synthetic timers have the direct mode.
        const DIRECT_SYNTHETIC_TIMERS = 1 << 22;
        /// Sparse processor sets.
        const EXTENDED_PROCESSOR_MASKS = 1 << 24;
        /// TLB flush calls.
        const TB_FLUSH_HYPERCALLS = 1 << 25;
        /// HvCallSendSyntheticClusterIpi.
        const SYNTHETIC_CLUSTER_IPI = 1 << 26;
        /// HvCallNotifyLongSpinWait.
        const NOTIFY_LONG_SPIN_WAIT = 1 << 27;
        /// NUMA distances.
        const QUERY_NUMA_DISTANCE = 1 << 28;
        /// HvCallSignalEvent.
        const SIGNAL_EVENTS = 1 << 29;
        /// HvCallRetargetDeviceInterrupt.
        const RETARGET_DEVICE_INTERRUPT = 1 << 30;
        /// HvCallRestorePartitionTime.
        const RESTORE_TIME = 1 << 31;
        /// Enlightened VMCS.
        const ENLIGHTENED_VMCS = 1 << 32;
        /// Nested debug control.
        const NESTED_DEBUG_CTL = 1 << 33;
        /// Unhalted timer.
        const SYNTHETIC_TIME_UNHALTED_TIMER = 1 << 34;
        /// IDLE state with IA32_SPEC_CTRL.
        const IDLE_SPEC_CTRL = 1 << 35;
        /// Waking VPs.
        const WAKE_VPS = 1 << 37;
        /// HvCallGetVpRegisters and HvCallSetVpRegisters on itself.
        const ACCESS_VP_REGS = 1 << 38;
        /// SynIC of the management VTL.
        const MANAGEMENT_VTL_SYNIC_SUPPORT = 1 << 40;
        /// Proxy interrupt doorbells.
        const PROXY_INTERRUPT_DOORBELL_SUPPORT = 1 << 41;
        /// Hypercalls for memory-mapped I/O.
        const MMIO_HYPERCALLS = 1 << 43;
        /// HvCallInstallIntercept on itself.
        const INSTALL_INTERCEPT = 1 << 48;
        /// HvCallFlushGuestPhysicalAddressSpace.
        const FLUSH_GUEST_PHYSICAL_ADDRESS_SPACE = 1 << 53;
    }
}

/// A property of the system (`HV_SYSTEM_PROPERTY`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum SystemPropertyCode {
    /// How sleep states are entered; to be set.
    SLEEP_STATE = 3,
    /// [`SchedulerType`].
    SCHEDULER_TYPE = 15,
    /// A feature of the processor at run time.
    DYNAMIC_PROCESSOR_FEATURE = 21,
    /// [`PfnRange`] of the crash dump area.
    CRASHDUMP_AREA = 47,
}

/// Who schedules VPs (`HV_SCHEDULER_TYPE`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum SchedulerType {
    /// The hypervisor, without threads.
    LP = 1,
    /// The hypervisor, with threads.
    LP_SMT = 2,
    /// The hypervisor, whole cores.
    CORE_SMT = 3,
    /// The root partition.
    ROOT = 4,
}

/// A run of pages (`HV_SPA_PAGE_RANGE`).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PfnRange {
    /// The first page's number.
    #[bits(40)]
    pub base_pfn: u64,
    /// Pages after it.
    #[bits(24)]
    pub additional_pages: u32,
}

/// An ACPI sleep state (`HV_SLEEP_STATE`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum SleepState {
    /// S1.
    S1 = 1,
    /// S2.
    S2 = 2,
    /// S3.
    S3 = 3,
    /// S4.
    S4 = 4,
    /// S5: off.
    S5 = 5,
    /// No more registrations are accepted.
    LOCK = 6,
}
