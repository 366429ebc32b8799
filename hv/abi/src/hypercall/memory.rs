//! Calls about memory: the pools, the mappings, and the accessed and dirty bits. All lists are of GPA page numbers.

use crate::types::{PartitionId, ProximityDomainInfo};
use bitfield_struct::bitfield;
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The header of `HvCallDepositMemory`; page numbers (`u64`) of the caller follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DepositMemoryInput {
    /// Whose pool.
    pub partition_id: PartitionId,
}
const _: () = assert!(size_of::<DepositMemoryInput>() == 8);

/// The header of `HvCallWithdrawMemory`; the output is a list of page numbers (`u64`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct WithdrawMemoryInput {
    /// Whose pool.
    pub partition_id: PartitionId,
    /// Which pages are preferred.
    pub proximity_domain_info: ProximityDomainInfo,
}
const _: () = assert!(size_of::<WithdrawMemoryInput>() == 16);

/// Input of `HvCallGetMemoryBalance`.
pub type GetMemoryBalanceInput = WithdrawMemoryInput;

/// Output of `HvCallGetMemoryBalance`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetMemoryBalanceOutput {
    /// Pages of the pool that are free.
    pub pages_available: u64,
    /// Pages of the pool that are in use.
    pub pages_in_use: u64,
}
const _: () = assert!(size_of::<GetMemoryBalanceOutput>() == 16);

/// The header of `HvCallMapGpaPages`; page numbers (`u64`) of the caller follow, one per 4 KiB page, or per
/// 2 MiB page with [`MapGpaFlags::LARGE_PAGE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapGpaPagesInput {
    /// Into which partition.
    pub target_partition_id: PartitionId,
    /// The first GPA page number there, in units of 4 KiB.
    pub target_gpa_base: u64,
    /// How.
    pub map_flags: MapGpaFlags,
    /// Ignored: Linux does not zero it.
    pub padding: u32,
}
const _: () = assert!(size_of::<MapGpaPagesInput>() == 24);

/// How pages are mapped (`HV_MAP_GPA_FLAGS`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapGpaFlags(pub u32);

bitflags! {
    impl MapGpaFlags: u32 {
        /// The guest may read.
        const READABLE = 1 << 0;
        /// The guest may write.
        const WRITABLE = 1 << 1;
        /// The guest's kernel may execute.
        const KERNEL_EXECUTABLE = 1 << 2;
        /// The guest's user mode may execute.
        const USER_EXECUTABLE = 1 << 3;
        /// The mapping may be changed by later maps.
        const ADJUSTABLE = 1 << 15;
        /// Nothing is mapped, but the range is known: an access is a `GPA_INTERCEPT`.
        const NO_ACCESS = 1 << 16;
        /// The page of zeroes. Together with `NO_ACCESS`: the page of ones.
        const ZEROED = 1 << 17;
        /// No overlay page may lie here.
        const NO_OVERLAY = 1 << 20;
        /// Uncached.
        const NOT_CACHED = 1 << 21;
        /// Clears the accessed bit.
        const CLEAR_ACCESSED = 1 << 24;
        /// Sets the accessed bit.
        const SET_ACCESSED = 1 << 25;
        /// Clears the dirty bit.
        const CLEAR_DIRTY = 1 << 26;
        /// Sets the dirty bit.
        const SET_DIRTY = 1 << 27;
        /// Leaves the range's accessed bit.
        const DONT_SET_RANGE_ACCESSED = 1 << 28;
        /// Each element is a page of 2 MiB.
        const LARGE_PAGE = 1 << 31;
    }
}

impl MapGpaFlags {
    /// All four rights.
    pub const PERMISSIONS: Self = Self(0xF);
    /// Both rights to execute.
    pub const EXECUTABLE: Self = Self(0xC);
}

/// The header of `HvCallUnmapGpaPages`; the range is `rep count` pages long.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapGpaPagesInput {
    /// From which partition.
    pub target_partition_id: PartitionId,
    /// The first GPA page number, in units of 4 KiB.
    pub target_gpa_base: u64,
    /// How.
    pub unmap_flags: UnmapGpaFlags,
    /// Ignored.
    pub padding: u32,
}
const _: () = assert!(size_of::<UnmapGpaPagesInput>() == 24);

/// How pages are unmapped (`HV_UNMAP_GPA_FLAGS`). The values are Linux's.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapGpaFlags(pub u32);

bitflags! {
    impl UnmapGpaFlags: u32 {
        /// Pages stay committed.
        const KEEP_PRECOMMITTED = 1 << 0;
        /// The rep count is in units of 2 MiB.
        const LARGE_PAGE = 1 << 1;
    }
}

/// The header of `HvCallGetGpaPagesAccessStates`; the output is one [`GpaPageAccessState`] per page.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetGpaPagesAccessStatesInput {
    /// Of which partition.
    pub partition_id: PartitionId,
    /// What to change after reading.
    pub flags: GpaPageAccessStateFlags,
    /// The first GPA page number.
    pub gpa_page_number: u64,
}
const _: () = assert!(size_of::<GetGpaPagesAccessStatesInput>() == 24);

/// What to change (`HV_GPA_PAGE_ACCESS_STATE_FLAGS`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GpaPageAccessStateFlags(pub u64);

bitflags! {
    impl GpaPageAccessStateFlags: u64 {
        /// Clears the accessed bits.
        const CLEAR_ACCESSED = 1 << 0;
        /// Sets the accessed bits.
        const SET_ACCESSED = 1 << 1;
        /// Clears the dirty bits.
        const CLEAR_DIRTY = 1 << 2;
        /// Sets the dirty bits.
        const SET_DIRTY = 1 << 3;
    }
}

/// What happened to a page before the change (`HV_GPA_PAGE_ACCESS_STATE`).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GpaPageAccessState {
    /// It was read, written or executed.
    pub accessed: bool,
    /// It was written.
    pub dirty: bool,
    /// Zero.
    #[bits(6)]
    pub reserved: u8,
}
