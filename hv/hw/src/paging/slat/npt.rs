//! Entries of SVM's nested page tables (AMD APM volume 2, 15.25): those of ordinary long-mode paging. Guest accesses
//! count as user accesses there.

use parterre_core::machine::Access;

use super::Format;

/// The entry format of nested page tables.
#[derive(Debug)]
pub enum Npt {}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const NO_EXECUTE: u64 = 1 << 63;

impl Format for Npt {
    const TABLE: u64 = PRESENT | WRITABLE | USER;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;

    /// Without the right to read a page cannot be present at all. The memory type is write-back, so that the guest's PAT
    /// and the MTRRs decide.
    fn leaf(access: Access) -> u64 {
        let mut entry = USER;
        if access.contains(Access::READ) {
            entry |= PRESENT;
        }
        if access.contains(Access::WRITE) {
            entry |= WRITABLE;
        }
        if !access.contains(Access::EXECUTE) {
            entry |= NO_EXECUTE;
        }
        entry
    }

    fn access(leaf: u64) -> Access {
        if leaf & PRESENT == 0 {
            return Access::empty();
        }
        let mut access = Access::READ;
        access.set(Access::WRITE, leaf & WRITABLE != 0);
        access.set(Access::EXECUTE, leaf & NO_EXECUTE == 0);
        access
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_come_back_and_never_grow() {
        for bits in 0..8 {
            let access = Access::from_bits_truncate(bits);
            let given = Npt::access(Npt::leaf(access));
            assert!(access.contains(given));
            assert_eq!(given == access, access.contains(Access::READ) || access.is_empty());
        }
    }

    #[test]
    fn bits_are_those_of_the_manual() {
        assert_eq!(Npt::leaf(Access::all()), 0b111);
        assert_eq!(Npt::leaf(Access::READ), 1 << 63 | 0b101);
        assert_eq!(Npt::leaf(Access::empty()) & 1, 0);
    }
}
