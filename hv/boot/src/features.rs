//! Processor features that Parterre makes use of, or could, but does not need: for people who compare machines.
//!
//! Sources: AMD APM volume 3 (24594), appendix E; Intel SDM volume 2, CPUID.

use crate::requirements::{Leaf, Processor};

/// A feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The manufacturers' short name.
    pub name: &'static str,
    /// What it is good for.
    pub purpose: &'static str,
    /// Whether the processor has it.
    pub present: bool,
}

/// Which register of a leaf.
type Register = fn(&Leaf) -> u32;

const EAX: Register = |leaf| leaf.eax;
const EBX: Register = |leaf| leaf.ebx;
const ECX: Register = |leaf| leaf.ecx;
const EDX: Register = |leaf| leaf.edx;

/// Leaf, register, bit, name, purpose.
const FEATURES: [(u32, Register, u32, &str, &str); 16] = [
    (0x8000_0001, EDX, 26, "PDPE1GB", "pages of 1 GiB"),
    (0x8000_0001, EDX, 27, "RDTSCP", "time stamp and processor number at once"),
    (0x8000_0007, EDX, 8, "INVARIANT-TSC", "a clock that all power states keep"),
    (0x0000_0001, ECX, 24, "TSC-DEADLINE", "timer interrupts at a time stamp"),
    (0x0000_0007, EBX, 7, "SMEP", "the hypervisor never executes a guest's pages"),
    (0x0000_0007, EBX, 20, "SMAP", "the hypervisor never touches a guest's pages by mistake"),
    (0x0000_0007, ECX, 2, "UMIP", "descriptor tables hidden from user programs"),
    (0x0000_000d, EAX, 1, "XSAVEC", "compact saving of vector state"),
    (0x8000_000a, EDX, 3, "NRIPS", "exits tell where the next instruction is"),
    (0x8000_000a, EDX, 5, "VMCB-CLEAN", "entries reload only what changed"),
    (0x8000_000a, EDX, 6, "FLUSH-BY-ASID", "translations of one guest are flushed alone"),
    (0x8000_000a, EDX, 7, "DECODE-ASSISTS", "exits tell what the instruction was"),
    (0x8000_000a, EDX, 10, "PAUSE-FILTER", "a spinning processor gives way"),
    (0x8000_000a, EDX, 13, "AVIC", "interrupts reach a guest without an exit"),
    (0x8000_000a, EDX, 16, "VGIF", "nested guests mask interrupts without an exit"),
    (0x8000_000a, EDX, 18, "X2AVIC", "AVIC for guests in x2APIC mode"),
];

/// All features, in a fixed order.
pub fn features(processor: &impl Processor) -> [Feature; FEATURES.len()] {
    FEATURES.map(|(leaf, register, bit, name, purpose)| {
        // XSAVEC is told by the second subleaf; the others by the first.
        let subleaf = u32::from(leaf == 0xd);
        let present = has_leaf(processor, leaf) && register(&processor.cpuid(leaf, subleaf)) >> bit & 1 != 0;
        Feature { name, purpose, present }
    })
}

/// The highest leaf of a leaf's range is told by the range's first.
fn has_leaf(processor: &impl Processor, leaf: u32) -> bool {
    let first = leaf & 0x8000_0000;
    let highest = processor.cpuid(first, 0).eax;
    highest & 0xffff_0000 == first && leaf <= highest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with ones in the leaves up to the highest, and in those beyond.
    struct Ones {
        highest: u32,
        highest_extended: u32,
    }

    impl Processor for Ones {
        fn cpuid(&self, leaf: u32, subleaf: u32) -> Leaf {
            let all = Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
            match leaf {
                0 => Leaf { eax: self.highest, ..all },
                0x8000_0000 => Leaf { eax: self.highest_extended, ..all },
                0xd if subleaf == 0 => Leaf::default(),
                _ => all,
            }
        }

        fn msr(&self, _index: u32) -> Option<u64> {
            None
        }
    }

    fn present(highest: u32, highest_extended: u32) -> Vec<&'static str> {
        let processor = Ones { highest, highest_extended };
        features(&processor).iter().filter(|feature| feature.present).map(|feature| feature.name).collect()
    }

    #[test]
    fn leaves_beyond_the_highest_say_nothing() {
        assert_eq!(present(0xd, 0x8000_001f).len(), FEATURES.len());
        assert_eq!(present(1, 0), ["TSC-DEADLINE"]);
        assert_eq!(present(0, 0x8000_0008), ["PDPE1GB", "RDTSCP", "INVARIANT-TSC"]);
        assert_eq!(present(0, 0x1234_5678), [""; 0]);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = FEATURES.iter().map(|feature| feature.3).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FEATURES.len());
    }
}
