//! Statistics pages: which objects have one, and what the counters in it are (Linux `hvhdk_mini.h` and
//! `mshv_debugfs_counters.c`). A page is 512 counters of 64 bits; times are in 100 ns.

use crate::types::{PartitionId, VpIndex};
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Counters in a page.
pub const COUNTERS_PER_PAGE: usize = 512;

/// The kind of object (`HV_STATS_OBJECT_TYPE`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum StatsObjectType {
    /// The hypervisor; counters are [`HypervisorCounter`].
    HYPERVISOR = 0x0000_0001,
    /// A logical processor; counters are [`LpCounter`].
    LOGICAL_PROCESSOR = 0x0000_0002,
    /// A partition; counters are [`PartitionCounter`].
    PARTITION = 0x0001_0001,
    /// A virtual processor; counters are [`VpCounter`].
    VP = 0x0001_0002,
}

/// Which of an object's pages (`HV_STATS_AREA_TYPE`).
#[open_enum]
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum StatsAreaType {
    /// What the object itself may see.
    SELF = 0,
    /// What its parent may see.
    PARENT = 1,
    /// The hypervisor's own.
    INTERNAL = 2,
}

/// Which object (`HV_STATS_OBJECT_IDENTITY`). What the bytes mean depends on the [`StatsObjectType`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StatsObjectIdentity {
    /// Partition id; of a logical processor, its index in the low half.
    pub id: u64,
    /// VP index of a VP.
    pub vp_index: VpIndex,
    /// Flags of a VP; must be zero.
    pub flags: u16,
    /// Must be zero.
    pub reserved: u8,
    /// Which page.
    pub area_type: StatsAreaType,
}
const _: () = assert!(size_of::<StatsObjectIdentity>() == 16);

impl StatsObjectIdentity {
    /// The partition of a partition's or VP's page.
    pub const fn partition_id(&self) -> PartitionId {
        PartitionId(self.id)
    }

    /// The logical processor of its page.
    pub const fn lp_index(&self) -> u32 {
        self.id as u32
    }
}

/// A page of counters (`hv_stats_page`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StatsPage {
    /// The counters.
    pub data: [u64; COUNTERS_PER_PAGE],
}
const _: () = assert!(size_of::<StatsPage>() == 4096);

/// Counters of the hypervisor.
#[open_enum]
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HypervisorCounter {
    /// Logical processors.
    LOGICAL_PROCESSORS = 1,
    /// Partitions.
    PARTITIONS = 2,
    /// Pages of memory.
    TOTAL_PAGES = 3,
    /// Virtual processors.
    VIRTUAL_PROCESSORS = 4,
    /// Monitored notifications.
    MONITORED_NOTIFICATIONS = 5,
    /// Time from the hypervisor's start to the root's.
    HYPERVISOR_STARTUP_COST = 8,
}

/// Counters of a logical processor.
#[open_enum]
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LpCounter {
    /// Time since its start.
    GLOBAL_TIME = 1,
    /// Time it was not idle.
    TOTAL_RUN_TIME = 2,
    /// Time it was in the hypervisor.
    HYPERVISOR_RUN_TIME = 3,
    /// Interrupts of devices.
    HARDWARE_INTERRUPTS = 4,
    /// Switches between VPs.
    CONTEXT_SWITCHES = 5,
    /// Interprocessor interrupts received.
    INTER_PROCESSOR_INTERRUPTS = 6,
    /// Scheduler interrupts.
    SCHEDULER_INTERRUPTS = 7,
    /// Timer interrupts.
    TIMER_INTERRUPTS = 8,
    /// Interprocessor interrupts sent.
    INTER_PROCESSOR_INTERRUPTS_SENT = 9,
    /// Halts.
    PROCESSOR_HALTS = 10,
    /// The root VP on it.
    ROOT_VP_INDEX = 19,
    /// Its node.
    PROXIMITY_DOMAIN_ID = 28,
}

/// Counters of a partition.
#[open_enum]
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionCounter {
    /// Virtual processors.
    VIRTUAL_PROCESSORS = 1,
    /// Pages for the virtual TLB.
    TLB_SIZE = 3,
    /// Address spaces.
    ADDRESS_SPACES = 4,
    /// Pages in its pool, used or not.
    DEPOSITED_PAGES = 5,
    /// Pages mapped.
    GPA_PAGES = 6,
    /// Changes of mappings.
    GPA_SPACE_MODIFICATIONS = 7,
    /// Flushes of the whole virtual TLB.
    VIRTUAL_TLB_FLUSH_ENTIRES = 8,
    /// Mappings of 4 KiB.
    GPA_PAGES_4K = 10,
    /// Mappings of 2 MiB.
    GPA_PAGES_2M = 11,
    /// Mappings of 1 GiB.
    GPA_PAGES_1G = 12,
    /// Devices attached.
    ATTACHED_DEVICES = 18,
    /// Device interrupts mapped.
    DEVICE_INTERRUPT_MAPPINGS = 19,
    /// Its id.
    PARTITION_ID = 26,
    /// Large pages split.
    PAGES_SHATTERED = 31,
    /// Large pages put together again.
    PAGES_RECOMBINED = 32,
}

/// Counters of a virtual processor.
#[open_enum]
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VpCounter {
    /// Time it ran.
    TOTAL_RUN_TIME = 1,
    /// Time of that in the hypervisor.
    HYPERVISOR_RUN_TIME = 2,
    /// Time it ran away from its node.
    REMOTE_NODE_RUN_TIME = 3,
    /// Time scaled by the processor's speed.
    NORMALIZED_RUN_TIME = 4,
    /// Hypercalls.
    HYPERCALLS_COUNT = 7,
    /// Time for hypercalls.
    HYPERCALLS_TIME = 8,
    /// INVLPG and the like.
    PAGE_INVALIDATIONS_COUNT = 9,
    /// Control register accesses.
    CONTROL_REGISTER_ACCESSES_COUNT = 11,
    /// Time for control register accesses.
    CONTROL_REGISTER_ACCESSES_TIME = 12,
    /// Port I/O.
    IO_INSTRUCTIONS_COUNT = 13,
    /// Time for port I/O.
    IO_INSTRUCTIONS_TIME = 14,
    /// HLT.
    HLT_INSTRUCTIONS_COUNT = 15,
    /// Time for HLT.
    HLT_INSTRUCTIONS_TIME = 16,
    /// MWAIT.
    MWAIT_INSTRUCTIONS_COUNT = 17,
    /// CPUID.
    CPUID_INSTRUCTIONS_COUNT = 19,
    /// Time for CPUID.
    CPUID_INSTRUCTIONS_TIME = 20,
    /// MSR accesses.
    MSR_ACCESSES_COUNT = 21,
    /// Time for MSR accesses.
    MSR_ACCESSES_TIME = 22,
    /// Other intercepts.
    OTHER_INTERCEPTS_COUNT = 23,
    /// Time for other intercepts.
    OTHER_INTERCEPTS_TIME = 24,
    /// External interrupts while it ran.
    EXTERNAL_INTERRUPTS_COUNT = 25,
    /// Time for external interrupts.
    EXTERNAL_INTERRUPTS_TIME = 26,
    /// Exits because an interrupt can be taken.
    PENDING_INTERRUPTS_COUNT = 27,
    /// Time for these.
    PENDING_INTERRUPTS_TIME = 28,
    /// Instructions emulated.
    EMULATED_INSTRUCTIONS_COUNT = 29,
    /// Time for emulation.
    EMULATED_INSTRUCTIONS_TIME = 30,
    /// Debug register accesses.
    DEBUG_REGISTER_ACCESSES_COUNT = 31,
    /// Second level faults.
    PAGE_FAULT_INTERCEPTS_COUNT = 33,
    /// Time for second level faults.
    PAGE_FAULT_INTERCEPTS_TIME = 34,
    /// Accesses to the APIC page.
    APIC_MMIO_ACCESSES = 39,
    /// Port intercepts for the parent.
    IO_INTERCEPT_MESSAGES = 40,
    /// Memory intercepts for the parent.
    MEMORY_INTERCEPT_MESSAGES = 41,
    /// EOIs.
    APIC_EOI_ACCESSES = 42,
    /// Other intercepts for the parent.
    OTHER_MESSAGES = 43,
    /// Changes of the logical processor.
    LOGICAL_PROCESSOR_MIGRATIONS = 45,
    /// TPR accesses.
    APIC_TPR_ACCESSES = 56,
    /// Interrupts by SINTs.
    SYNTHETIC_INTERRUPTS = 58,
    /// Interrupts injected.
    VIRTUAL_INTERRUPTS = 59,
    /// IPIs sent.
    APIC_IPIS_SENT = 60,
    /// IPIs sent to itself.
    APIC_SELF_IPIS_SENT = 61,
    /// Hypercalls: memory.
    GPA_SPACE_HYPERCALLS = 62,
    /// Hypercalls: logical processors.
    LOGICAL_PROCESSOR_HYPERCALLS = 63,
    /// Hypercalls: long spin waits.
    LONG_SPIN_WAIT_HYPERCALLS = 64,
    /// Hypercalls: others.
    OTHER_HYPERCALLS = 65,
    /// Hypercalls: SynIC.
    SYNTHETIC_INTERRUPT_HYPERCALLS = 66,
    /// Hypercalls: interrupts.
    VIRTUAL_INTERRUPT_HYPERCALLS = 67,
    /// Hypercalls: TLB.
    VIRTUAL_MMU_HYPERCALLS = 68,
    /// Hypercalls: virtual processors.
    VIRTUAL_PROCESSOR_HYPERCALLS = 69,
    /// Interrupts of devices.
    HARDWARE_INTERRUPTS = 70,
    /// Dispatches to a logical processor.
    LOGICAL_PROCESSOR_DISPATCHES = 74,
    /// Time it was ready but did not run.
    WAITING_FOR_CPU_TIME = 75,
    /// Non-zero while it is blocked in the hypervisor and waits for a signal. Linux' scheduler depends on it.
    ROOT_DISPATCH_THREAD_BLOCKED = 202,
}
