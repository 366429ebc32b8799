//! MOV to a control register that exits because it would change a bit that is not the guest's (Intel SDM volume 2B,
//! "MOV - Move to/from Control Registers", and volume 3C, 26.1.3). Pure.

use super::capability::{CR0_CD, CR0_NW, CR0_PE, CR0_PG};

/// What decides whether CR0 can be written.
#[derive(Clone, Copy, Debug)]
pub struct Cr0Context {
    /// Its value before, as the guest sees it.
    pub old: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// CS has its L bit set.
    pub long_code: bool,
}

const CR0_ET: u64 = 1 << 4;
const CR0_EXISTING: u64 = 0xe005_003f;
/// CR4: entries of 8 bytes.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4: process-context identifiers.
pub const CR4_PCIDE: u64 = 1 << 17;
/// EFER: long mode when paging is on.
pub const EFER_LME: u64 = 1 << 8;
/// EFER: long mode.
pub const EFER_LMA: u64 = 1 << 10;

/// What the guest sees in CR0 after writing `value`; `None` if the instruction faults. Bits that do not exist are passed
/// over, in the upper half they fault.
pub fn write_cr0(value: u64, context: &Cr0Context) -> Option<u64> {
    let paging = value & CR0_PG != 0;
    let begins = paging && context.old & CR0_PG == 0;
    let ends = !paging && context.old & CR0_PG != 0;
    let long = context.efer & EFER_LME != 0;
    let faults = value >> 32 != 0
        || paging && value & CR0_PE == 0
        || value & CR0_NW != 0 && value & CR0_CD == 0
        || begins && long && (context.cr4 & CR4_PAE == 0 || context.long_code)
        || ends && (long && context.long_code || context.cr4 & CR4_PCIDE != 0);
    (!faults).then_some(value & CR0_EXISTING | CR0_ET)
}

/// Whether page tables begin with four entries that the processor keeps by itself: PAE paging.
pub fn has_pdptes(cr0: u64, cr4: u64, efer: u64) -> bool {
    cr0 & CR0_PG != 0 && cr4 & CR4_PAE != 0 && efer & EFER_LMA == 0
}

/// EFER with LMA as LME and paging make it.
pub fn with_long_mode(efer: u64, cr0: u64) -> u64 {
    let active = efer & EFER_LME != 0 && cr0 & CR0_PG != 0;
    efer & !EFER_LMA | if active { EFER_LMA } else { 0 }
}

/// What an exit because of a control register says (SDM table 28-3): the register written to and the general-purpose
/// register with the value, if it is a MOV to one.
pub fn moved_to(qualification: u64) -> Option<(u8, usize)> {
    const MOV_TO: u64 = 0;
    (qualification >> 4 & 3 == MOV_TO)
        .then_some(((qualification & 0xf) as u8, (qualification >> 8 & 0xf) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: Cr0Context = Cr0Context { old: 0x6000_0010, cr4: 0, efer: 0, long_code: false };

    #[test]
    fn caching_is_the_guests_to_see() {
        assert_eq!(write_cr0(0x10, &REAL), Some(0x10));
        assert_eq!(write_cr0(0x4000_0011, &REAL), Some(0x4000_0011));
        assert_eq!(write_cr0(0x2000_0011, &REAL), None, "NW without CD");
        assert_eq!(write_cr0(0x1_0000_0011, &REAL), None);
        assert_eq!(write_cr0(0x40, &REAL), Some(0x10), "bits that do not exist");
    }

    #[test]
    fn paging_has_its_conditions() {
        assert_eq!(write_cr0(0x8000_0010, &REAL), None, "without protection");
        assert_eq!(write_cr0(0x8000_0011, &REAL), Some(0x8000_0011));
        let long = Cr0Context { efer: EFER_LME, ..REAL };
        assert_eq!(write_cr0(0x8000_0011, &long), None, "without PAE");
        let long = Cr0Context { cr4: CR4_PAE, ..long };
        assert_eq!(write_cr0(0x8000_0011, &long), Some(0x8000_0011));
        assert_eq!(write_cr0(0x8000_0011, &Cr0Context { long_code: true, ..long }), None);
        let on = Cr0Context { old: 0x8000_0011, efer: EFER_LME | EFER_LMA, long_code: true, ..long };
        assert_eq!(write_cr0(0x11, &on), None, "out of 64-bit code");
        assert_eq!(write_cr0(0x11, &Cr0Context { long_code: false, ..on }), Some(0x11));
        let with_ids = Cr0Context { long_code: false, cr4: CR4_PAE | CR4_PCIDE, ..on };
        assert_eq!(write_cr0(0x11, &with_ids), None);
    }

    #[test]
    fn long_mode_follows_from_its_enable_and_paging() {
        assert_eq!(with_long_mode(EFER_LME, 0x8000_0001), EFER_LME | EFER_LMA);
        assert_eq!(with_long_mode(EFER_LME | EFER_LMA, 1), EFER_LME);
        assert!(has_pdptes(0x8000_0001, CR4_PAE, 0));
        assert!(!has_pdptes(0x8000_0001, CR4_PAE, EFER_LMA) && !has_pdptes(1, CR4_PAE, 0));
    }

    #[test]
    fn the_qualification_names_both_registers() {
        assert_eq!(moved_to(0x0f00), Some((0, 15)));
        assert_eq!(moved_to(0x0304), Some((4, 3)));
        assert_eq!(moved_to(0x0010), None, "from a control register");
        assert_eq!(moved_to(0x0030), None, "LMSW");
    }
}
