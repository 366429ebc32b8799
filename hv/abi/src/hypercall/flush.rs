//! Calls that flush virtual address translations (TLFS chapter "Virtual MMU"), and the spin wait hint.

use crate::types::VpSet;
use bitfield_struct::bitfield;
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Input of `HvCallFlushVirtualAddressSpace`, and the header of `HvCallFlushVirtualAddressList`, where
/// [`GvaRange`]s follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlushVirtualAddressSpaceInput {
    /// Which address space: a CR3 value.
    pub address_space: u64,
    /// How.
    pub flags: FlushFlags,
    /// On which VPs: bit N is VP N.
    pub processor_mask: u64,
}
const _: () = assert!(size_of::<FlushVirtualAddressSpaceInput>() == 24);

/// The header of `HvCallFlushVirtualAddressList`.
pub type FlushVirtualAddressListInput = FlushVirtualAddressSpaceInput;

/// The fixed header of `HvCallFlushVirtualAddressSpaceEx` and `HvCallFlushVirtualAddressListEx`. The set's banks
/// follow and are the variable header; after them, in the list call, come [`GvaRange`]s.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlushVirtualAddressSpaceExInput {
    /// Which address space: a CR3 value.
    pub address_space: u64,
    /// How.
    pub flags: FlushFlags,
    /// On which VPs.
    pub processor_set: VpSet,
}
const _: () = assert!(size_of::<FlushVirtualAddressSpaceExInput>() == 32);

/// The fixed header of `HvCallFlushVirtualAddressListEx`.
pub type FlushVirtualAddressListExInput = FlushVirtualAddressSpaceExInput;

/// How to flush (`HV_FLUSH_FLAGS`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlushFlags(pub u64);

bitflags! {
    impl FlushFlags: u64 {
        /// On all VPs; the mask or set is ignored.
        const ALL_PROCESSORS = 1 << 0;
        /// In all address spaces.
        const ALL_VIRTUAL_ADDRESS_SPACES = 1 << 1;
        /// Global translations stay.
        const NON_GLOBAL_MAPPINGS_ONLY = 1 << 2;
        /// Ranges are in the format with large pages.
        const USE_EXTENDED_RANGE_FORMAT = 1 << 3;
    }
}

/// Consecutive pages of the guest's linear address space (`HV_GVA_RANGE`, simple format).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GvaRange {
    /// Pages after the first.
    #[bits(12)]
    pub additional_pages: u16,
    /// The first page's number.
    #[bits(52)]
    pub page_number: u64,
}

/// Consecutive pages, with page size (`HV_GVA_RANGE`, extended format).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GvaRangeExtended {
    /// Pages after the first.
    #[bits(11)]
    pub additional_pages: u16,
    /// The pages are large: then bit 12 tells 1 GiB from 2 MiB.
    pub large_page: bool,
    /// The first page's number; of large pages only bits 9 and above count, and bit 0 is the size.
    #[bits(52)]
    pub page_number: u64,
}

/// Input of `HvCallNotifyLongSpinWait` (fast).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NotifyLongSpinWaitInput {
    /// How often the guest has tried.
    pub spin_count: u32,
    /// Must be zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<NotifyLongSpinWaitInput>() == 8);
