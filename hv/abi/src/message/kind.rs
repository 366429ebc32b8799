//! Message types (`HV_MESSAGE_TYPE`).

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a message is. Types with the highest bit set are the hypervisor's; guests post the others.
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum MessageType {
    /// The slot is empty.
    NONE = 0x0000_0000,
    /// Access to a GPA where nothing is mapped: `MemoryInterceptMessage`.
    UNMAPPED_GPA = 0x8000_0000,
    /// Access that the mapping forbids: `MemoryInterceptMessage`.
    GPA_INTERCEPT = 0x8000_0001,
    /// Access to a page that an isolated guest has not accepted.
    UNACCEPTED_GPA = 0x8000_0003,
    /// Access against a page's attributes.
    GPA_ATTRIBUTE_INTERCEPT = 0x8000_0004,
    /// A synthetic timer expired: `TimerMessagePayload`.
    TIMER_EXPIRED = 0x8000_0010,
    /// A register holds a value the processor refuses: `InvalidVpRegisterMessage`.
    INVALID_VP_REGISTER_VALUE = 0x8000_0020,
    /// Triple fault: the intercept header only.
    UNRECOVERABLE_EXCEPTION = 0x8000_0021,
    /// The guest used what the hypervisor cannot do: `UnsupportedFeatureMessage`.
    UNSUPPORTED_FEATURE = 0x8000_0022,
    /// A VP has an intercept in its intercept message page: `OpaqueInterceptMessage`.
    OPAQUE_INTERCEPT = 0x8000_003F,
    /// A trace buffer is complete.
    EVENT_LOG_BUFFER_COMPLETE = 0x8000_0040,
    /// A hypercall for the parent: `HypercallInterceptMessage`.
    HYPERCALL_INTERCEPT = 0x8000_0050,
    /// An event for the parent.
    SYNIC_EVENT_INTERCEPT = 0x8000_0060,
    /// A SINT that is set "as intercept" has news: `NotificationMessagePayload`.
    SYNIC_SINT_INTERCEPT = 0x8000_0061,
    /// A SINT's message slot is free again: `SintDeliverableMessage`.
    SYNIC_SINT_DELIVERABLE = 0x8000_0062,
    /// A call that answered `CALL_PENDING` is done: `AsyncCompletionMessagePayload`.
    ASYNC_CALL_COMPLETION = 0x8000_0070,
    /// The hypervisor lacks memory to go on.
    INSUFFICIENT_MEMORY = 0x8000_0071,
    /// VPs of one partition can run again: `VpSignalBitsetSchedulerMessage`.
    SCHEDULER_VP_SIGNAL_BITSET = 0x8000_0100,
    /// VPs of several partitions can run again: `VpSignalPairSchedulerMessage`.
    SCHEDULER_VP_SIGNAL_PAIR = 0x8000_0101,
    /// Port I/O: `IoPortInterceptMessage`.
    X64_IO_PORT_INTERCEPT = 0x8001_0000,
    /// MSR access: `MsrInterceptMessage`.
    X64_MSR_INTERCEPT = 0x8001_0001,
    /// CPUID: `CpuidInterceptMessage`.
    X64_CPUID_INTERCEPT = 0x8001_0002,
    /// An exception: `ExceptionInterceptMessage`.
    X64_EXCEPTION_INTERCEPT = 0x8001_0003,
    /// End of a level-triggered interrupt: `ApicEoiMessage`.
    X64_APIC_EOI = 0x8001_0004,
    /// x87 error through FERR#.
    X64_LEGACY_FP_ERROR = 0x8001_0005,
    /// Register access: the TLFS' name for what Linux calls an IOMMU page request.
    X64_IOMMU_PRQ = 0x8001_0006,
    /// HLT: the intercept header only.
    X64_HALT = 0x8001_0007,
    /// An interrupt can be taken now: `InterruptionDeliverableMessage`.
    X64_INTERRUPTION_DELIVERABLE = 0x8001_0008,
    /// A start-up IPI: `SipiInterceptMessage`.
    X64_SIPI_INTERCEPT = 0x8001_0009,
    /// RDTSC.
    X64_RDTSC_INTERCEPT = 0x8001_000A,
    /// SMI through the APIC.
    X64_APIC_SMI_INTERCEPT = 0x8001_000B,
    /// INIT or SIPI through the APIC.
    X64_APIC_INIT_SIPI_INTERCEPT = 0x8001_000D,
    /// A write to an APIC register.
    X64_APIC_WRITE_INTERCEPT = 0x8001_000E,
}

impl MessageType {
    /// The bit of types that only the hypervisor can send.
    pub const HYPERVISOR_MASK: u32 = 0x8000_0000;

    /// Whether a guest may post a message of this type.
    pub const fn can_be_posted(self) -> bool {
        self.0 != 0 && self.0 & Self::HYPERVISOR_MASK == 0
    }
}
