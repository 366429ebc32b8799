//! Calls about the machine as a whole, for the root partition: processors, properties, power, crash, statistics
//! (Linux `hvhdk_mini.h`).

use crate::property::{SleepState, SystemPropertyCode};
use crate::stats::{StatsObjectIdentity, StatsObjectType};
use crate::types::ProximityDomainInfo;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Input of `HvCallGetLogicalProcessorRunTime`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetLogicalProcessorRunTimeInput {
    /// Which logical processor.
    pub lp_index: u32,
}
const _: () = assert!(size_of::<GetLogicalProcessorRunTimeInput>() == 4);

/// Output of `HvCallGetLogicalProcessorRunTime`, in 100 ns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetLogicalProcessorRunTimeOutput {
    /// Time since the processor was started.
    pub global_time: u64,
    /// Time it was not idle.
    pub local_run_time: u64,
    /// Zero.
    pub reserved: u64,
    /// Time it was in the hypervisor.
    pub hypervisor_time: u64,
}
const _: () = assert!(size_of::<GetLogicalProcessorRunTimeOutput>() == 32);

/// Input of `HvCallAddLogicalProcessor`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AddLogicalProcessorInput {
    /// The index it gets.
    pub lp_index: u32,
    /// Its physical APIC id.
    pub apic_id: u32,
    /// Its node.
    pub proximity_domain_info: ProximityDomainInfo,
}
const _: () = assert!(size_of::<AddLogicalProcessorInput>() == 16);

/// Output of `HvCallAddLogicalProcessor` (`HV_LP_STARTUP_STATUS`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AddLogicalProcessorOutput {
    /// A status.
    pub status: u64,
    /// More about it.
    pub substatus: [u64; 6],
}
const _: () = assert!(size_of::<AddLogicalProcessorOutput>() == 56);

/// Input of `HvCallGetSystemProperty`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetSystemPropertyInput {
    /// Which property.
    pub property_id: SystemPropertyCode,
    /// Ignored.
    pub reserved: u32,
    /// What the property is about.
    pub argument: u64,
}
const _: () = assert!(size_of::<GetSystemPropertyInput>() == 16);

/// Output of `HvCallGetSystemProperty`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetSystemPropertyOutput {
    /// The value; smaller values are in the low bits.
    pub value: u64,
}
const _: () = assert!(size_of::<GetSystemPropertyOutput>() == 8);

/// Input of `HvCallSetSystemProperty` with [`SystemPropertyCode::SLEEP_STATE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetSystemPropertyInput {
    /// Which property.
    pub property_id: SystemPropertyCode,
    /// Ignored.
    pub reserved: u32,
    /// How a sleep state is entered.
    pub sleep_state_info: SleepStateInfo,
    /// The rest of the property's space.
    pub rest: [u64; 7],
}
const _: () = assert!(size_of::<SetSystemPropertyInput>() == 72);

/// What to write to the ACPI registers PM1a and PM1b to enter a sleep state (`HV_SLEEP_STATE_INFO`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SleepStateInfo {
    /// Which state.
    pub sleep_state: SleepState,
    /// SLP_TYP of PM1a.
    pub pm1a_slp_typ: u8,
    /// SLP_TYP of PM1b.
    pub pm1b_slp_typ: u8,
    /// Padding up to the next 8 bytes.
    pub padding: u16,
}
const _: () = assert!(size_of::<SleepStateInfo>() == 8);

/// Input of `HvCallEnterSleepState`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EnterSleepStateInput {
    /// Which state.
    pub sleep_state: SleepState,
}
const _: () = assert!(size_of::<EnterSleepStateInput>() == 4);

/// Input of `HvCallNotifyPartitionEvent`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NotifyPartitionEventInput {
    /// What happened.
    pub event: PartitionEvent,
    /// For a crash: what to do.
    pub crashdump_action: CrashdumpAction,
}
const _: () = assert!(size_of::<NotifyPartitionEventInput>() == 8);

/// What happened in the root partition (`HV_PARTITION_EVENT`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum PartitionEvent {
    /// It crashed.
    ROOT_CRASHDUMP = 2,
    /// It has started all logical processors.
    ALL_LOGICAL_PROCESSORS_STARTED = 4,
}

/// What to do in a crash (`HV_CRASHDUMP_ACTION`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum CrashdumpAction {
    /// Nothing.
    NONE = 0,
    /// Suspend all VPs but the caller.
    SUSPEND_ALL_VPS = 1,
    /// Prepare to save the state.
    PREPARE_FOR_STATE_SAVE = 2,
    /// The state has been saved.
    STATE_SAVED = 3,
    /// The crash begins.
    ENTRY = 4,
}

/// Input of `HvCallDisableHypervisorEx`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DisableHypervisorExInput {
    /// Where to go on: a physical address below 4 GiB, in protected mode without paging.
    pub rip: u64,
    /// What EDI holds then.
    pub argument: u64,
}
const _: () = assert!(size_of::<DisableHypervisorExInput>() == 16);

/// Input of `HvCallMapStatsPage` and `HvCallUnmapStatsPage`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapStatsPageInput {
    /// Of what kind of object.
    pub stats_type: StatsObjectType,
    /// Ignored.
    pub padding: u32,
    /// Of which object.
    pub identity: StatsObjectIdentity,
}
const _: () = assert!(size_of::<MapStatsPageInput>() == 24);

/// Input of `HvCallUnmapStatsPage`.
pub type UnmapStatsPageInput = MapStatsPageInput;

/// Output of `HvCallMapStatsPage`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapStatsPageOutput {
    /// Where it is: a GPA page number of the caller.
    pub map_location: u64,
}
const _: () = assert!(size_of::<MapStatsPageOutput>() == 8);

/// Input of `HvCallMapStatsPage2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapStatsPage2Input {
    /// Of what kind of object.
    pub stats_type: StatsObjectType,
    /// Must be zero.
    pub reserved: u32,
    /// Of which object.
    pub identity: StatsObjectIdentity,
    /// Where to: a GPA page number of the caller.
    pub map_location: u64,
}
const _: () = assert!(size_of::<MapStatsPage2Input>() == 32);
