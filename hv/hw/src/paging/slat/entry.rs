//! One entry of a table: what it says, and how that is written.

use parterre_core::machine::Access;

use super::format::{self, Format, TABLE};

/// A uniform entry: nothing is there.
pub const EMPTY: u64 = 0;
/// A uniform entry: memory without access until the parent supplies it. No format calls a lone bit 55 present.
pub const NO_ACCESS: u64 = 1 << 55;

/// Marks a leaf, also one that the processor sees as not present because it gives no rights.
const LEAF: u64 = 1 << 52;
/// Marks a leaf with a page of the hypervisor's.
const OWNED: u64 = 1 << 53;
/// Marks a leaf with device registers.
const DEVICE: u64 = 1 << 54;
/// Marks a large leaf, for the processor.
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Whose what a leaf maps is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The parent's, lent.
    Lent,
    /// The hypervisor's.
    Frame,
    /// Device registers, which nobody keeps account of.
    Device,
}

/// What a leaf maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The (first) frame's number.
    pub frame: u64,
    /// The rights.
    pub access: Access,
    /// Whose it is.
    pub owner: Owner,
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// [`EMPTY`].
    Empty,
    /// [`NO_ACCESS`].
    NoAccess,
    /// A page, or several.
    Leaf(Leaf),
    /// A table in this frame.
    Table(u64),
}

impl Entry {
    /// Reads an entry of a table that the tree has written.
    #[inline]
    pub fn decode(entry: u64) -> Self {
        let frame = (entry & FRAME) >> 12;
        if entry & LEAF != 0 {
            let owner = match entry & (OWNED | DEVICE) {
                0 => Owner::Lent,
                OWNED => Owner::Frame,
                _ => Owner::Device,
            };
            Self::Leaf(Leaf { frame, access: format::access(entry), owner })
        } else if entry == EMPTY {
            Self::Empty
        } else if entry == NO_ACCESS {
            Self::NoAccess
        } else {
            Self::Table(frame)
        }
    }
}

/// The table that an entry points to, if it does. Only such entries have the flags of a table without the mark of a leaf.
#[inline]
pub fn table_in(entry: u64) -> Option<u64> {
    (entry & (LEAF | TABLE) == TABLE).then_some((entry & FRAME) >> 12)
}

/// The first frame of the memory that an entry maps, if it is a leaf of memory (not of device registers) that gives all of
/// these rights.
#[inline]
pub fn memory_in(entry: u64, wanted: Access) -> Option<u64> {
    let usable = entry & (LEAF | DEVICE) == LEAF && format::access(entry).contains(wanted);
    usable.then_some((entry & FRAME) >> 12)
}

/// An entry that points to the table in `frame`.
pub fn table(frame: u64) -> u64 {
    frame << 12 & FRAME | TABLE
}

impl Leaf {
    /// The entry for it at `level`, not accessed and not dirty.
    pub fn encode(self, format: Format, level: u32) -> u64 {
        let owner = match self.owner {
            Owner::Lent => 0,
            Owner::Frame => OWNED,
            Owner::Device => DEVICE,
        };
        let large = if level > 1 { LARGE } else { 0 };
        self.frame << 12 & FRAME
            | format.leaf(self.access, self.owner == Owner::Device)
            | LEAF
            | owner
            | large
    }
}

/// The entry for part `index` of the leaf `entry`, once that (at `level`) is split into 512.
pub fn part_of(entry: u64, level: u32, index: u64) -> u64 {
    let entry = if level == 2 { entry & !LARGE } else { entry };
    entry + (index << 12 << (9 * (level - 2)))
}
