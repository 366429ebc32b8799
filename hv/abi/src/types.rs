//! Small types that several chapters share: identifiers, VP sets, proximity domains, page geometry.

use bitfield_struct::bitfield;
use bitflags::bitflags;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// log2 of the hypervisor's page size.
pub const PAGE_SHIFT: u32 = 12;
/// The hypervisor's page size in bytes; the unit of every GPA page number.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// log2 of the large page size (2 MiB).
pub const LARGE_PAGE_SHIFT: u32 = 21;
/// 4 KiB pages in a large page.
pub const PAGES_PER_LARGE_PAGE: u64 = 1 << (LARGE_PAGE_SHIFT - PAGE_SHIFT);
/// Processors in one bank of a sparse VP set.
pub const VPS_PER_BANK: u32 = 64;
/// Banks that a sparse VP set can name.
pub const MAX_SPARSE_BANKS: usize = 64;
/// The largest number of VPs of a partition, hence of a sparse set (`HV_MAXIMUM_PROCESSORS`).
pub const MAXIMUM_PROCESSORS: u32 = 2048;

/// A partition's identifier (`HV_PARTITION_ID`).
#[open_enum]
#[repr(u64)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub enum PartitionId {
    /// Names no partition.
    INVALID = 0,
    /// Names the caller's own partition.
    SELF = 0xFFFF_FFFF_FFFF_FFFF,
}

/// A virtual processor's index in its partition (`HV_VP_INDEX`).
#[open_enum]
#[repr(u32)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub enum VpIndex {
    /// Names any VP of the partition (`HV_ANY_VP`).
    ANY = 0xFFFF_FFFF,
    /// Names the calling VP (`HV_VP_INDEX_SELF`).
    SELF = 0xFFFF_FFFE,
}

/// A NUMA hint (`HV_PROXIMITY_DOMAIN_INFO`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ProximityDomainInfo {
    /// The ACPI proximity domain (SRAT).
    pub domain_id: u32,
    /// Whether and how the domain counts.
    pub flags: ProximityDomainFlags,
}
const _: () = assert!(size_of::<ProximityDomainInfo>() == 8);

/// How a [`ProximityDomainInfo`] is meant (`HV_PROXIMITY_DOMAIN_FLAGS`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ProximityDomainFlags(pub u32);

bitflags! {
    impl ProximityDomainFlags: u32 {
        /// The domain is a preference; another one will do.
        const PREFERRED = 1 << 0;
        /// `domain_id` is valid.
        const VALID = 1 << 31;
    }
}

impl ProximityDomainInfo {
    /// The domain, if the caller named one.
    pub const fn domain(&self) -> Option<u32> {
        if self.flags.contains(ProximityDomainFlags::VALID) { Some(self.domain_id) } else { None }
    }
}

/// The virtual trust level that a call means (`HV_INPUT_VTL`).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InputVtl {
    /// The level, when `use_target_vtl` is set.
    #[bits(4)]
    pub target_vtl: u8,
    /// Whether `target_vtl` counts; otherwise the caller's own level is meant.
    pub use_target_vtl: bool,
    /// Must be zero.
    #[bits(3)]
    pub reserved: u8,
}

impl InputVtl {
    /// Whether this names VTL 0, the only level a partition without VSM has.
    pub const fn is_vtl0(self) -> bool {
        self.reserved() == 0 && (!self.use_target_vtl() || self.target_vtl() == 0)
    }
}

/// How a VP set is written down (`HV_GENERIC_SET_FORMAT`).
#[open_enum]
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum GenericSetFormat {
    /// A mask of banks, followed by one 64-bit mask for each bank that is present.
    SPARSE_4K = 0,
    /// All VPs of the partition; no bank follows.
    ALL = 1,
}

/// The fixed part of a VP set (`HV_VP_SET`). One `u64` per bit of `valid_bank_mask` follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VpSet {
    /// Sparse, or all.
    pub format: GenericSetFormat,
    /// Bit N set: the bank for VPs `64 * N ..= 64 * N + 63` is present.
    pub valid_bank_mask: u64,
}
const _: () = assert!(size_of::<VpSet>() == 16);

impl VpSet {
    /// The number of banks that follow.
    pub const fn bank_count(&self) -> usize {
        match self.format {
            GenericSetFormat::SPARSE_4K => self.valid_bank_mask.count_ones() as usize,
            _ => 0,
        }
    }

    /// The VP indices in this set, ascending, given the banks that follow it; missing banks count as empty.
    /// For [`GenericSetFormat::ALL`] the caller has to know the VPs: the answer is empty.
    pub fn vps<'a>(&self, banks: &'a [u64]) -> impl Iterator<Item = VpIndex> + use<'a> {
        let mask = if self.format == GenericSetFormat::SPARSE_4K { self.valid_bank_mask } else { 0 };
        set_bits(mask)
            .zip(banks)
            .flat_map(|(bank, bits)| set_bits(*bits).map(move |bit| VpIndex(bank * VPS_PER_BANK + bit)))
    }
}

/// The positions of the bits set in `mask`, ascending.
pub fn set_bits(mask: u64) -> impl Iterator<Item = u32> {
    let mut rest = mask;
    core::iter::from_fn(move || {
        let bit = (rest != 0).then(|| rest.trailing_zeros())?;
        rest &= rest - 1;
        Some(bit)
    })
}

/// How memory is cached, in the encoding of the PAT (`HV_CACHE_TYPE`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum CacheType {
    /// Uncached.
    UNCACHED = 0,
    /// Write combining.
    WRITE_COMBINING = 1,
    /// Write through.
    WRITE_THROUGH = 4,
    /// Write protected.
    WRITE_PROTECTED = 5,
    /// Write back.
    WRITE_BACK = 6,
}
