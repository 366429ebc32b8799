//! The vendors' entries of second-level page tables: SVM's nested page tables (AMD APM volume 2, 15.25), which are those
//! of ordinary long-mode paging, and VMX's EPT (Intel SDM volume 3C, 29.3.2).
//!
//! Software needs to know whose they are only when it makes a leaf and when it looks at accessed and dirty bits. The rest
//! is the same: the frame, the mark of a large leaf, reading and writing in bits 0 and 1, all of bits 2:0 in an entry
//! that points to a table. The right to execute is a cleared bit 63 there and a set bit 2 here, so software keeps a bit
//! of its own for it.

use parterre_core::machine::{Access, PageState, PageStateChange};

use crate::cpu::mtrr::kind;

/// Whose entries they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// AMD's.
    Npt,
    /// Intel's.
    Ept {
        /// The processor keeps accessed and dirty bits.
        accessed_dirty: bool,
        /// The bits of leaves that make the memory type.
        types: Types,
    },
}

/// Memory types of EPT, as bits of leaves (SDM volume 3C, 29.3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types {
    memory: u8,
    device: u8,
}

/// Flags of an entry that points to a table. Guest accesses count as user accesses in nested page tables.
pub const TABLE: u64 = READ | WRITE | USER_OR_EXECUTE;
const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER_OR_EXECUTE: u64 = 1 << 2;
/// Software's own: the page may be executed.
const EXECUTABLE: u64 = 1 << 56;
/// Software's own: the page may be written to, but bit 1 is clear so that the first write is noticed.
const PROTECTED: u64 = 1 << 57;
const NPT_NO_EXECUTE: u64 = 1 << 63;
const NPT_ACCESSED: u64 = 1 << 5;
const NPT_DIRTY: u64 = 1 << 6;
const EPT_IGNORE_PAT: u8 = 1 << 6;
const EPT_ACCESSED: u64 = 1 << 8;
const EPT_DIRTY: u64 = 1 << 9;

impl Format {
    /// EPT, with memory write-back and device registers uncached, unless the guest's PAT says otherwise.
    pub fn ept(accessed_dirty: bool) -> Self {
        let types = Types { memory: kind::WRITE_BACK << 3, device: kind::UNCACHED << 3 };
        Self::Ept { accessed_dirty, types }
    }

    /// For leaves of memory, or of device registers, that has type `kind` by the MTRRs.
    pub fn of_type(self, kind: u8) -> Self {
        let bits = kind << 3;
        self.with_types(Types { memory: bits, device: bits })
    }

    /// For a partition without devices: its memory is write-back, whatever its PAT says, so that it cannot make the same
    /// memory cached for one and uncached for another.
    pub fn of_child(self) -> Self {
        let memory = kind::WRITE_BACK << 3 | EPT_IGNORE_PAT;
        self.with_types(Types { memory, device: 0 })
    }

    fn with_types(self, types: Types) -> Self {
        match self {
            Self::Npt => self,
            Self::Ept { accessed_dirty, .. } => Self::Ept { accessed_dirty, types },
        }
    }

    /// Flags of a leaf with these rights, not accessed and not dirty where the processor would say so. Without the right to read a page is not present at
    /// all: what the processor cannot express becomes less, never more.
    ///
    /// In nested page tables the memory type is write-back, and the guest's PAT and the MTRRs decide. EPT does without the
    /// MTRRs, so the type is the format's.
    pub fn leaf(self, access: Access, device: bool) -> u64 {
        if !access.contains(Access::READ) {
            return 0;
        }
        let execute = access.contains(Access::EXECUTE);
        let mut entry = READ;
        if access.contains(Access::WRITE) {
            entry |= WRITE;
        }
        if execute {
            entry |= EXECUTABLE;
        }
        match self {
            Self::Npt => entry |= USER_OR_EXECUTE | if execute { 0 } else { NPT_NO_EXECUTE },
            Self::Ept { accessed_dirty, types } => {
                entry |= if execute { USER_OR_EXECUTE } else { 0 };
                entry |= u64::from(if device { types.device } else { types.memory });
                if !accessed_dirty {
                    entry |= EPT_ACCESSED | EPT_DIRTY;
                }
            }
        }
        entry
    }

    /// The state of the page or pages of a leaf.
    pub fn state(self, leaf: u64) -> PageState {
        let (accessed, dirty) = self.state_bits();
        PageState { accessed: leaf & accessed != 0, dirty: leaf & dirty != 0 }
    }

    /// The leaf with its state changed. Where the processor keeps no such state a page that is to be clean is protected
    /// from writing, until [`written`] says that it was written to; and every page counts as accessed.
    pub fn with_state(self, leaf: u64, change: PageStateChange) -> u64 {
        let (accessed, dirty) = self.state_bits();
        let changed = |leaf: u64, bit: u64, wanted: Option<bool>| match wanted {
            Some(true) => leaf | bit,
            Some(false) => leaf & !bit,
            None => leaf,
        };
        let tracked = !matches!(self, Self::Ept { accessed_dirty: false, .. });
        let leaf = if tracked { changed(leaf, accessed, change.accessed) } else { leaf };
        match change.dirty {
            Some(true) if !tracked => written(leaf).unwrap_or(leaf) | dirty,
            Some(false) if !tracked && leaf & WRITE != 0 => leaf & !(WRITE | dirty) | PROTECTED,
            wanted => changed(leaf, dirty, wanted),
        }
    }

    /// The bit of a leaf that says that it was used, and the one that says that its page was written to.
    fn state_bits(self) -> (u64, u64) {
        match self {
            Self::Npt => (NPT_ACCESSED, NPT_DIRTY),
            Self::Ept { .. } => (EPT_ACCESSED, EPT_DIRTY),
        }
    }
}

/// The leaf after a write to a page that is protected only so that the write is noticed; `None` if it is not.
pub fn written(leaf: u64) -> Option<u64> {
    (leaf & PROTECTED != 0).then_some(leaf & !PROTECTED | WRITE | EPT_DIRTY)
}

/// The rights that the flags of a leaf give.
#[inline]
pub fn access(leaf: u64) -> Access {
    if leaf & READ == 0 {
        return Access::empty();
    }
    let mut access = Access::READ;
    access.set(Access::WRITE, leaf & (WRITE | PROTECTED) != 0);
    access.set(Access::EXECUTE, leaf & EXECUTABLE != 0);
    access
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: Types = Types { memory: 6 << 3, device: 0 };
    const FORMATS: [Format; 2] = [Format::Npt, Format::Ept { accessed_dirty: true, types: BARE }];

    #[test]
    fn rights_come_back_and_never_grow() {
        for (format, bits) in FORMATS.into_iter().flat_map(|format| (0..8).map(move |bits| (format, bits))) {
            let wanted = Access::from_bits_truncate(bits);
            let given = access(format.leaf(wanted, false));
            assert!(wanted.contains(given));
            assert_eq!(given == wanted, wanted.contains(Access::READ) || wanted.is_empty());
        }
    }

    #[test]
    fn bits_are_those_of_the_manuals() {
        let hardware = |format: Format, access, device| format.leaf(access, device) & !EXECUTABLE;
        assert_eq!(hardware(Format::Npt, Access::all(), false), 0b111);
        assert_eq!(hardware(Format::Npt, Access::READ, true), 1 << 63 | 0b101);
        assert_eq!(hardware(FORMATS[1], Access::all(), false), 6 << 3 | 0b111);
        assert_eq!(hardware(FORMATS[1], Access::READ, false), 6 << 3 | 0b001);
        assert_eq!(hardware(FORMATS[1], Access::READ | Access::WRITE, true), 0b011);
        for format in FORMATS {
            assert_eq!(format.leaf(Access::empty(), false), 0);
            assert_eq!(format.leaf(Access::WRITE | Access::EXECUTE, false), 0, "EPT would call it a mistake");
        }
    }

    #[test]
    fn memory_types_are_those_of_ept_only() {
        assert_eq!(FORMATS[1], Format::ept(true));
        let leaf = |format: Format, device| format.leaf(Access::READ, device) & (0xf << 3);
        assert_eq!(leaf(FORMATS[1].of_type(kind::WRITE_THROUGH), false), 4 << 3);
        assert_eq!(leaf(FORMATS[1].of_type(kind::WRITE_THROUGH), true), 4 << 3);
        assert_eq!(leaf(FORMATS[1].of_child(), false), 6 << 3 | 1 << 6, "the guest's PAT does not count");
        assert_eq!(FORMATS[0].of_type(kind::UNCACHED).of_child(), FORMATS[0]);
    }

    #[test]
    fn a_state_comes_back_as_it_was_set() {
        for format in FORMATS {
            let leaf = format.leaf(Access::all(), false);
            assert_eq!(format.state(leaf), PageState::default());
            for (accessed, dirty) in [(true, true), (true, false), (false, true), (false, false)] {
                let change = PageStateChange { accessed: Some(accessed), dirty: Some(dirty) };
                let changed = format.with_state(leaf, change);
                assert_eq!(format.state(changed), PageState { accessed, dirty });
                assert_eq!(access(changed), Access::all());
            }
            assert_eq!(format.with_state(leaf, PageStateChange::default()), leaf);
        }
    }

    #[test]
    fn without_dirty_bits_writing_is_noticed_by_protection() {
        let format = Format::ept(false);
        let leaf = format.leaf(Access::all(), false);
        assert_eq!(format.state(leaf), PageState { accessed: true, dirty: true }, "who knows");
        let clear = PageStateChange { accessed: Some(false), dirty: Some(false) };
        let clean = format.with_state(leaf, clear);
        assert_eq!(clean & WRITE, 0, "the processor may not write");
        assert_eq!((access(clean), format.state(clean).dirty), (Access::all(), false), "the partition may");
        let after = written(clean).expect("it was protected for this");
        assert_eq!((after & WRITE, format.state(after).dirty), (WRITE, true));
        assert_eq!(written(after), None);
        let set = PageStateChange { accessed: None, dirty: Some(true) };
        assert_eq!(format.with_state(clean, set), after);
        let read_only = format.leaf(Access::READ, false);
        assert_eq!(access(format.with_state(read_only, clear)), Access::READ, "no right grows");
    }
}
