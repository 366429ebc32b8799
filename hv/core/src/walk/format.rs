//! The layouts of page tables in the paging modes.

use super::{GuestMemory, Paging, Translation, WalkFault};

/// The deepest tree there is.
pub(super) const LEVELS: usize = 5;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits that hold an address in 64-bit entries.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// An entry as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    value: u64,
    gpa: u64,
}

impl Entry {
    pub fn is_present(self) -> bool {
        self.value & PRESENT != 0
    }

    pub fn is_writable(self) -> bool {
        self.value & WRITABLE != 0
    }

    pub fn is_user(self) -> bool {
        self.value & USER != 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Two levels of 32-bit entries.
    Bits32 {
        /// CR4.PSE: 4 MiB pages exist.
        large: bool,
    },
    /// Three levels of 64-bit entries, the top one with four.
    Pae,
    /// Four or five levels.
    Long,
}

/// How the tables look that translate an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    kind: Kind,
    /// The top table.
    pub root: u64,
    pub levels: u8,
    /// Address bits that must be zero.
    beyond: u64,
    execute_disable: bool,
}

impl Format {
    /// The layout for `gva`; `None` without paging.
    pub fn of(paging: &Paging, gva: u64) -> Result<Option<Self>, WalkFault> {
        let Paging { cr0, cr3, cr4, efer, physical_bits, .. } = *paging;
        if cr0 & 1 << 31 == 0 {
            return Ok(None);
        }
        let (kind, root, levels) = if efer & 1 << 10 != 0 {
            (Kind::Long, cr3 & ADDRESS, if cr4 & 1 << 12 != 0 { 5 } else { 4 })
        } else if cr4 & 1 << 5 != 0 {
            (Kind::Pae, cr3 & 0xFFFF_FFE0, 3)
        } else {
            (Kind::Bits32 { large: cr4 & 1 << 4 != 0 }, cr3 & 0xFFFF_F000, 2)
        };
        if kind == Kind::Long && !is_canonical(gva, levels) {
            return Err(WalkFault::NotCanonical);
        }
        let beyond = ADDRESS & u64::MAX.checked_shl(physical_bits.into()).unwrap_or(0);
        Ok(Some(Self { kind, root, levels, beyond, execute_disable: efer & 1 << 11 != 0 }))
    }

    /// Bytes of an entry.
    fn width(&self) -> u64 {
        if matches!(self.kind, Kind::Bits32 { .. }) { 4 } else { 8 }
    }

    /// The lowest address bit that selects an entry at `level`.
    fn shift(&self, level: u8) -> u8 {
        12 + level * if self.width() == 4 { 10 } else { 9 }
    }

    /// Reads the entry for `gva` of the table at `table`.
    pub fn read<G: GuestMemory + ?Sized>(
        &self,
        memory: &G,
        table: u64,
        level: u8,
        gva: u64,
    ) -> Result<Entry, WalkFault> {
        let entries = match self.kind {
            Kind::Bits32 { .. } => 1 << 10,
            Kind::Pae if level == 2 => 1 << 2,
            _ => 1 << 9,
        };
        let index = gva >> self.shift(level) & (entries - 1);
        // A table is aligned at least as the top one of PAE is, to 32 bytes, and an address has 52 bits: no overflow.
        let gpa = table + index * self.width();
        let mut bytes = [0; 8];
        let part = &mut bytes[..if self.width() == 4 { 4 } else { 8 }];
        memory.read(gpa, part).map_err(|fault| WalkFault::Table { gpa: fault.0, write: false })?;
        Ok(Entry { value: u64::from_le_bytes(bytes), gpa })
    }

    /// Whether entries at `level` carry rights and an accessed bit. The top ones of PAE do not.
    pub fn has_rights(&self, level: u8) -> bool {
        !(self.kind == Kind::Pae && level == 2)
    }

    /// Whether entries can forbid fetches, if EFER.NXE says so.
    pub fn has_execute_disable(&self) -> bool {
        !matches!(self.kind, Kind::Bits32 { .. })
    }

    pub fn is_no_execute(&self, entry: Entry) -> bool {
        self.has_execute_disable() && self.execute_disable && entry.value & NO_EXECUTE != 0
    }

    /// Whether `entry` maps a page, not a table.
    pub fn is_leaf(&self, entry: Entry, level: u8) -> bool {
        let large = entry.value & LARGE != 0;
        match (self.kind, level) {
            (_, 0) => true,
            (Kind::Bits32 { large: exists }, 1) => large && exists,
            (Kind::Pae, 1) | (Kind::Long, 1 | 2) => large,
            _ => false,
        }
    }

    /// Whether reserved bits are set (SDM 3A tables 5-4 to 5-20).
    pub fn is_malformed(&self, entry: Entry, level: u8) -> bool {
        let leaf = self.is_leaf(entry, level);
        let no_execute = if self.execute_disable { 0 } else { NO_EXECUTE };
        let reserved = match self.kind {
            // Bits 20:13 are address bits 39:32 of a large page, 21 is reserved.
            Kind::Bits32 { .. } if leaf && level == 1 => 1 << 21 | self.beyond >> 19 & 0x001F_E000,
            Kind::Bits32 { .. } => 0,
            Kind::Pae if level == 2 => 0xFFF0_0000_0000_01E6 | self.beyond,
            Kind::Pae => 0x7FF0_0000_0000_0000 | self.beyond | no_execute | self.low_reserved(leaf, level),
            // Large entries exist below the fourth level only.
            Kind::Long if level > 2 => LARGE | self.beyond | no_execute,
            Kind::Long => self.beyond | no_execute | self.low_reserved(leaf, level),
        };
        entry.value & reserved != 0
    }

    /// The address bits below a large page, except bit 12, which is its PAT bit.
    fn low_reserved(&self, leaf: bool, level: u8) -> u64 {
        if leaf && level > 0 { (1 << self.shift(level)) - (1 << 13) } else { 0 }
    }

    /// The table that `entry` leads to.
    pub fn table(&self, entry: Entry) -> u64 {
        if self.width() == 4 { entry.value & 0xFFFF_F000 } else { entry.value & ADDRESS }
    }

    /// Where `gva` lies in the page that leaf `entry` maps.
    pub fn translation(&self, entry: Entry, level: u8, gva: u64) -> Translation {
        let offset_mask = (1u64 << self.shift(level)) - 1;
        let base = match self.kind {
            Kind::Bits32 { .. } if level == 1 => entry.value & 0xFFC0_0000 | (entry.value >> 13 & 0xFF) << 32,
            Kind::Bits32 { .. } => entry.value & 0xFFFF_F000,
            _ => entry.value & ADDRESS & !offset_mask,
        };
        let pat = if level == 0 { entry.value >> 7 } else { entry.value >> 12 };
        // PWT is bit 3, PCD bit 4.
        let pat_index = (entry.value >> 3 & 3) as u8 | ((pat & 1) as u8) << 2;
        Translation { gpa: base | gva & offset_mask, pat_index }
    }

    /// Sets the accessed bit, and the dirty bit if so asked; `false` if the entry is no longer what was read.
    pub fn mark<G: GuestMemory + ?Sized>(
        &self,
        memory: &G,
        entry: Entry,
        dirty: bool,
    ) -> Result<bool, WalkFault> {
        let wanted = entry.value | ACCESSED | if dirty { DIRTY } else { 0 };
        if wanted == entry.value {
            return Ok(true);
        }
        let denied = |fault: crate::machine::GpaFault| WalkFault::Table { gpa: fault.0, write: true };
        if self.width() == 8 {
            let seen = memory.compare_exchange(entry.gpa, entry.value, wanted).map_err(denied)?;
            return Ok(seen == entry.value);
        }
        // The word that holds the 32-bit entry and its neighbour.
        let word = entry.gpa & !7;
        let shift = if entry.gpa & 4 == 0 { 0 } else { 32 };
        let mut bytes = [0; 8];
        memory.read(word, &mut bytes).map_err(denied)?;
        let current = u64::from_le_bytes(bytes);
        if current >> shift & 0xFFFF_FFFF != entry.value {
            return Ok(false);
        }
        let new = current & !(0xFFFF_FFFF << shift) | wanted << shift;
        Ok(memory.compare_exchange(word, current, new).map_err(denied)? == current)
    }
}

/// Whether the bits above those that are translated repeat the highest of them.
fn is_canonical(gva: u64, levels: u8) -> bool {
    let unused = if levels == 5 { 7 } else { 16 };
    ((gva << unused) as i64 >> unused) as u64 == gva
}
