//! The vendors' entries of second-level page tables: SVM's nested page tables (AMD APM volume 2, 15.25), which are those
//! of ordinary long-mode paging, and VMX's EPT (Intel SDM volume 3C, 30.3.2).
//!
//! Software needs to know whose they are only when it makes a leaf and when it looks at accessed and dirty bits. The rest
//! is the same: the frame, the mark of a large leaf, reading and writing in bits 0 and 1, all of bits 2:0 in an entry
//! that points to a table. The right to execute is a cleared bit 63 there and a set bit 2 here, so software keeps a bit
//! of its own for it.

use parterre_core::machine::Access;

/// Whose entries they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// AMD's.
    Npt,
    /// Intel's.
    Ept {
        /// The processor keeps accessed and dirty bits.
        accessed_dirty: bool,
    },
}

/// Flags of an entry that points to a table. Guest accesses count as user accesses in nested page tables.
pub const TABLE: u64 = READ | WRITE | USER_OR_EXECUTE;
const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER_OR_EXECUTE: u64 = 1 << 2;
/// Software's own: the page may be executed.
const EXECUTABLE: u64 = 1 << 56;
const NPT_NO_EXECUTE: u64 = 1 << 63;
const NPT_ACCESSED: u64 = 1 << 5;
const NPT_DIRTY: u64 = 1 << 6;
const EPT_WRITE_BACK: u64 = 6 << 3;
const EPT_ACCESSED: u64 = 1 << 8;
const EPT_DIRTY: u64 = 1 << 9;

impl Format {
    /// Flags of a leaf with these rights, not accessed and not dirty. Without the right to read a page is not present at
    /// all: what the processor cannot express becomes less, never more.
    ///
    /// In nested page tables the memory type is write-back, and the guest's PAT and the MTRRs decide. EPT does without the
    /// MTRRs: device registers are uncached there (which the guest's PAT can still make write-combining), memory is
    /// write-back.
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
            Self::Ept { .. } => {
                entry |= if execute { USER_OR_EXECUTE } else { 0 };
                entry |= if device { 0 } else { EPT_WRITE_BACK };
            }
        }
        entry
    }

    /// The bit that the processor sets in a leaf when it uses it, and the one that it sets when it writes to the page; `None`
    /// if it does neither.
    pub fn state_bits(self) -> Option<(u64, u64)> {
        match self {
            Self::Npt => Some((NPT_ACCESSED, NPT_DIRTY)),
            Self::Ept { accessed_dirty: true } => Some((EPT_ACCESSED, EPT_DIRTY)),
            Self::Ept { accessed_dirty: false } => None,
        }
    }
}

/// The rights that the flags of a leaf give.
#[inline]
pub fn access(leaf: u64) -> Access {
    if leaf & READ == 0 {
        return Access::empty();
    }
    let mut access = Access::READ;
    access.set(Access::WRITE, leaf & WRITE != 0);
    access.set(Access::EXECUTE, leaf & EXECUTABLE != 0);
    access
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [Format; 2] = [Format::Npt, Format::Ept { accessed_dirty: true }];

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
}
