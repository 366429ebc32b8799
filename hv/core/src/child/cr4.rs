//! Which bits of CR4 a child may set, and what a write to it comes to (Intel SDM volume 3A, 2.5; AMD APM volume 2, 3.1.3).
//!
//! A processor refuses bits that it does not have, not those that a hypervisor is silent about. So writes that set one of
//! those exit ([`Vcpu::refuse_cr4`]). Pure.
//!
//! [`Vcpu::refuse_cr4`]: crate::machine::Vcpu::refuse_cr4

use crate::events::EFER_LMA;

/// VME to OSXMMEXCPT: every processor with long mode has these.
const BASIC: u64 = 0x7FF;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const PGE: u64 = 1 << 7;
const LA57: u64 = 1 << 12;
const PCIDE: u64 = 1 << 17;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;
const PKE: u64 = 1 << 22;
const CET: u64 = 1 << 23;
const PKS: u64 = 1 << 24;
/// Bits whose changes drop cached translations.
const FLUSHING: u64 = PSE | PAE | PGE | LA57 | PCIDE | SMEP | SMAP | PKE | PKS;

/// Where CPUID tells of a bit: leaf, subleaf, register, bit.
type Place = (u32, u32, usize, u32);

/// Bits and where CPUID tells of them. CET: shadow stacks, or tracked branches.
const TOLD: [(u64, Place); 18] = [
    (1 << 11, (7, 0, 2, 2)), // UMIP
    (LA57, (7, 0, 2, 16)),
    (1 << 13, (1, 0, 2, 5)), // VMXE
    (1 << 14, (1, 0, 2, 6)), // SMXE
    (1 << 16, (7, 0, 1, 0)), // FSGSBASE
    (PCIDE, (1, 0, 2, 17)),
    (1 << 18, (1, 0, 2, 26)), // OSXSAVE
    (1 << 19, (7, 0, 2, 23)), // KL
    (SMEP, (7, 0, 1, 7)),
    (SMAP, (7, 0, 1, 20)),
    (PKE, (7, 0, 2, 3)),
    (CET, (7, 0, 2, 7)),
    (CET, (7, 0, 3, 20)),
    (PKS, (7, 0, 2, 31)),
    (1 << 25, (7, 0, 3, 5)),  // UINTR
    (1 << 27, (7, 1, 0, 6)),  // LASS
    (1 << 28, (7, 1, 0, 26)), // LAM_SUP
    (1 << 32, (7, 1, 0, 17)), // FRED
];

/// The bits that `cpuid`, asked for leaf and subleaf, tells of.
pub fn told(cpuid: impl Fn(u32, u32) -> [u32; 4]) -> u64 {
    let leaves = [(1, 0), (7, 0), (7, 1)].map(|(leaf, subleaf)| ((leaf, subleaf), cpuid(leaf, subleaf)));
    let tells = |(leaf, subleaf, register, bit): Place| {
        leaves.iter().any(|(asked, answer)| *asked == (leaf, subleaf) && answer[register] >> bit & 1 != 0)
    };
    TOLD.iter().filter(|(_, place)| tells(*place)).fold(BASIC, |bits, (bit, _)| bits | bit)
}

/// What decides whether CR4 can be written.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Context {
    pub old: u64,
    pub cr3: u64,
    pub efer: u64,
    /// Bits that may be set.
    pub allowed: u64,
}

/// Whether the guest can write `value`; otherwise the instruction raises #GP.
pub fn can_write(value: u64, context: &Context) -> bool {
    let long = context.efer & EFER_LMA != 0;
    let changed = value ^ context.old;
    let begins_ids = changed & value & PCIDE != 0;
    value & !context.allowed == 0
        && !(long && (value & PAE == 0 || changed & LA57 != 0))
        && !(begins_ids && (!long || context.cr3 & 0xFFF != 0))
}

/// Whether translations that were cached before are void after changing from `old` to `new`.
pub fn flushes(old: u64, new: u64) -> bool {
    (old ^ new) & FLUSHING != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_that_cpuid_tells_of() {
        assert_eq!(told(|_, _| [0; 4]), BASIC);
        assert_eq!(told(|leaf, _| if leaf == 1 { [0, 0, 1 << 26 | 1 << 5, 0] } else { [0; 4] }), 0x4_27FF);
        let all = told(|_, _| [u32::MAX; 4]);
        assert_eq!(all, TOLD.iter().fold(BASIC, |bits, (bit, _)| bits | bit));
        for (bit, (leaf, subleaf, register, place)) in TOLD {
            let one = told(|asked, sub| {
                let mut answer = [0; 4];
                answer[register] = u32::from((asked, sub) == (leaf, subleaf)) << place;
                answer
            });
            assert_eq!(one, BASIC | bit);
        }
    }

    #[test]
    fn what_is_allowed_has_its_conditions() {
        let long = Context { old: 0xA0, cr3: 0x1000, efer: EFER_LMA, allowed: BASIC | PCIDE | SMEP };
        assert!(can_write(0xA0 | PCIDE | SMEP, &long));
        assert!(!can_write(0xA0 | SMAP, &long), "not told of");
        assert!(!can_write(0xA0 | 1 << 40, &long));
        assert!(!can_write(0x80, &long), "PAE cannot be switched off in long mode");
        assert!(can_write(0x80, &Context { efer: 0, ..long }));
        assert!(!can_write(0xA0 | PCIDE, &Context { cr3: 0x1001, ..long }), "an identifier is in use");
        assert!(!can_write(0xA0 | PCIDE, &Context { efer: 0, ..long }));
        let with_ids = Context { old: 0xA0 | PCIDE, cr3: 0x1001, ..long };
        assert!(can_write(0xA0 | PCIDE | SMEP, &with_ids) && can_write(0xA0, &with_ids));
        assert!(!can_write(0xA0 | LA57, &Context { allowed: !0, ..long }));
    }

    #[test]
    fn translations_go_with_what_they_were_made_of() {
        assert!(flushes(0xA0, 0x20) && flushes(0x20, 0xA0) && flushes(0, PCIDE) && flushes(SMEP, 0));
        assert!(!flushes(0xA0, 0xA0 | 1 << 18) && !flushes(4, 0));
    }
}
