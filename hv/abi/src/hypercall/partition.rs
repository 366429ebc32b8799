//! Calls about whole partitions: life cycle and properties.

use crate::property::{PartitionPropertyCode, ProcessorFeatures0, ProcessorFeatures1, XsaveFeatures};
use crate::types::{PartitionId, ProximityDomainInfo};
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Input of `HvCallCreatePartition`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreatePartitionInput {
    /// What kind of partition.
    pub flags: PartitionCreationFlags,
    /// Where its pool prefers to be.
    pub proximity_domain_info: ProximityDomainInfo,
    /// Which version of the interface the caller speaks: major in bits 15:8, minor in bits 7:0.
    pub compatibility_version: u32,
    /// Ignored: Linux does not zero it.
    pub padding: u32,
    /// Processor features the guest shall not have, bank 0.
    pub disabled_processor_features0: ProcessorFeatures0,
    /// Processor features the guest shall not have, bank 1.
    pub disabled_processor_features1: ProcessorFeatures1,
    /// XSAVE features the guest shall not have.
    pub disabled_processor_xsave_features: XsaveFeatures,
    /// Isolation from the parent: bits 4:0 the type, 0 for none.
    pub isolation_properties: u64,
}
const _: () = assert!(size_of::<CreatePartitionInput>() == 56);

/// `compatibility_version` of Windows 11 21H2, which Linux asks for.
pub const COMPATIBILITY_VERSION_21_H2: u32 = 0x0609;

/// What kind of partition (`HV_PARTITION_CREATION_FLAG_*`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PartitionCreationFlags(pub u64);

bitflags! {
    impl PartitionCreationFlags: u64 {
        /// The guest knows of threads.
        const SMT_ENABLED_GUEST = 1 << 0;
        /// The guest may run a hypervisor.
        const NESTED_VIRTUALIZATION_CAPABLE = 1 << 1;
        /// Guest memory may be mapped in 1 GiB pages.
        const GPA_SUPER_PAGES_ENABLED = 1 << 4;
        /// Intercepts stop the VP and go to the parent's intercept message page.
        const EXO_PARTITION = 1 << 8;
        /// VTL 1 is overridden.
        const VTL1_OVERRIDE = 1 << 9;
        /// VTL 2 is overridden.
        const VTL2_OVERRIDE = 1 << 10;
        /// The hypervisor provides local APICs.
        const LAPIC_ENABLED = 1 << 13;
        /// Performance counters.
        const ENABLE_PERFMON_PMU = 1 << 15;
        /// Last branch records.
        const ENABLE_PERFMON_LBR = 1 << 16;
        /// VPs have an intercept message page.
        const INTERCEPT_MESSAGE_PAGE_ENABLED = 1 << 19;
        /// Hypercall doorbell page.
        const HYPERCALL_DOORBELL_PAGE_ENABLED = 1 << 20;
        /// Local APICs have the x2APIC mode.
        const X2APIC_CAPABLE = 1 << 22;
    }
}

/// Output of `HvCallCreatePartition`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreatePartitionOutput {
    /// The new partition's id.
    pub partition_id: PartitionId,
}
const _: () = assert!(size_of::<CreatePartitionOutput>() == 8);

/// Input of `HvCallInitializePartition`, `HvCallFinalizePartition`, `HvCallDeletePartition` and
/// `HvCallClearVirtualInterrupt` (all fast).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PartitionInput {
    /// Which partition.
    pub partition_id: PartitionId,
}
const _: () = assert!(size_of::<PartitionInput>() == 8);

/// Input of `HvCallInitializePartition`.
pub type InitializePartitionInput = PartitionInput;
/// Input of `HvCallFinalizePartition`.
pub type FinalizePartitionInput = PartitionInput;
/// Input of `HvCallDeletePartition`.
pub type DeletePartitionInput = PartitionInput;
/// Input of `HvCallClearVirtualInterrupt`.
pub type ClearVirtualInterruptInput = PartitionInput;

/// Output of `HvCallGetPartitionId`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetPartitionIdOutput {
    /// The caller's partition.
    pub partition_id: PartitionId,
}
const _: () = assert!(size_of::<GetPartitionIdOutput>() == 8);

/// Input of `HvCallGetNextChildPartition`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetNextChildPartitionInput {
    /// Whose children.
    pub parent_id: PartitionId,
    /// The child that was answered last, or `INVALID` to begin.
    pub previous_child_id: PartitionId,
}
const _: () = assert!(size_of::<GetNextChildPartitionInput>() == 16);

/// Output of `HvCallGetNextChildPartition`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetNextChildPartitionOutput {
    /// The next child, or `INVALID` at the end.
    pub next_child_id: PartitionId,
}
const _: () = assert!(size_of::<GetNextChildPartitionOutput>() == 8);

/// Input of `HvCallGetPartitionProperty`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetPartitionPropertyInput {
    /// Which partition.
    pub partition_id: PartitionId,
    /// Which property.
    pub property_code: PartitionPropertyCode,
    /// Ignored.
    pub padding: u32,
}
const _: () = assert!(size_of::<GetPartitionPropertyInput>() == 16);

/// Output of `HvCallGetPartitionProperty`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetPartitionPropertyOutput {
    /// The value.
    pub property_value: u64,
}
const _: () = assert!(size_of::<GetPartitionPropertyOutput>() == 8);

/// Input of `HvCallSetPartitionProperty`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetPartitionPropertyInput {
    /// Which partition.
    pub partition_id: PartitionId,
    /// Which property.
    pub property_code: PartitionPropertyCode,
    /// Ignored.
    pub padding: u32,
    /// The value.
    pub property_value: u64,
}
const _: () = assert!(size_of::<SetPartitionPropertyInput>() == 24);

/// Input of `HvCallGetPartitionPropertyEx`. The output is the property's own layout, of at most
/// [`PROPERTY_EX_MAX_SIZE`] bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetPartitionPropertyExInput {
    /// Which partition.
    pub partition_id: PartitionId,
    /// Which property.
    pub property_code: PartitionPropertyCode,
    /// Ignored.
    pub padding: u32,
    /// What the property is about: bits 31:0 an argument or VP index, bits 63:56 the type of object.
    pub argument: u64,
}
const _: () = assert!(size_of::<GetPartitionPropertyExInput>() == 24);

/// The header of `HvCallSetPartitionPropertyEx`; the value follows.
pub type SetPartitionPropertyExInput = GetPartitionPropertyExInput;

/// The largest extended property, in bytes.
pub const PROPERTY_EX_MAX_SIZE: usize = crate::types::PAGE_SIZE - size_of::<GetPartitionPropertyExInput>();
