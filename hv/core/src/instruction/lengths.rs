//! Lengths of instructions that exited lately, so that a loop of them is decoded once.
//!
//! Only for machines that do not tell lengths. An entry is found by where the instruction lies and what it is; that it is
//! there, the exit has just shown. The bytes are not looked at again: a guest that puts the same instruction with other
//! (superfluous) prefixes in the same place, and nobody else, finds its instruction pointer off. The upper half of the
//! address space counts as one in all address spaces, because kernels lie there.

use super::Exiting;

/// The sets that entries are kept in, each for two: a kernel has some dozen places that exit often. A power of two.
const SETS: usize = 1 << SET_BITS;
const SET_BITS: u32 = 5;

/// An instruction in 64-bit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    rip: u64,
    /// CR3, 0 in the upper half.
    cr3: u64,
    what: Exiting,
}

impl Place {
    /// The place of an instruction of the kind `what` at `rip`, in the address space that `cr3` names.
    pub fn new(rip: u64, cr3: u64, what: Exiting) -> Self {
        let upper_half = rip >> 63 != 0;
        Self { rip, cr3: if upper_half { 0 } else { cr3 }, what }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths([[Option<(Place, u8)>; 2]; SETS]);

impl Lengths {
    /// The length of the instruction at `place`, if it is known.
    #[inline]
    pub fn find(&self, place: &Place) -> Option<u8> {
        let entry = self.0[set(place)].iter().flatten().find(|(known, _)| known == place);
        entry.map(|(_, length)| *length)
    }

    /// Remembers the length of the instruction at `place`, instead of that which came into its set before the last.
    pub fn insert(&mut self, place: Place, length: u8) {
        let [newer, older] = &mut self.0[set(&place)];
        *older = newer.replace((place, length));
    }
}

/// Spreads what lies close together (Fibonacci hashing: the multiplier is 2^64 divided by the golden ratio).
fn set(place: &Place) -> usize {
    (place.rip.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - SET_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_instruction_in_the_same_place_is_known() {
        let cpuid = |rip, cr3| Place::new(rip, cr3, Exiting::Cpuid);
        let mut lengths = Lengths::default();
        assert_eq!(lengths.find(&cpuid(0x1234, 0x1000)), None);
        lengths.insert(cpuid(0x1234, 0x1000), 3);
        assert_eq!(lengths.find(&cpuid(0x1234, 0x1000)), Some(3));
        assert_eq!(lengths.find(&cpuid(0x1235, 0x1000)), None);
        assert_eq!(lengths.find(&cpuid(0x1234, 0x2000)), None);
        assert_eq!(lengths.find(&Place::new(0x1234, 0x1000, Exiting::ReadMsr)), None);
        lengths.insert(cpuid(0x1234, 0x2000), 2);
        assert_eq!(lengths.find(&cpuid(0x1234, 0x1000)), Some(3));
        lengths.insert(cpuid(0x1234, 0x3000), 2);
        assert_eq!(lengths.find(&cpuid(0x1234, 0x1000)), None);
    }

    #[test]
    fn kernels_are_in_all_address_spaces() {
        let mut lengths = Lengths::default();
        lengths.insert(Place::new(0xFFFF_FFFF_8100_0000, 0x1000, Exiting::Halt), 1);
        assert_eq!(lengths.find(&Place::new(0xFFFF_FFFF_8100_0000, 0x2000, Exiting::Halt)), Some(1));
    }

    #[test]
    fn places_close_together_do_not_push_each_other_out() {
        let mut lengths = Lengths::default();
        let places: [Place; 8] =
            core::array::from_fn(|n| Place::new(0x40_0000 + n as u64 * 5, 0x1000, Exiting::ReadMsr));
        places.iter().for_each(|place| lengths.insert(*place, 2));
        assert!(places.iter().all(|place| lengths.find(place) == Some(2)));
    }
}
