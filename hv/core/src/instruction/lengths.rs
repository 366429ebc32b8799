//! Lengths of instructions that exited lately, so that a loop of them is decoded once.
//!
//! Only for machines that do not tell lengths. An entry is found by where the instruction lies and what it is; that it is
//! there, the exit has just shown. The bytes are not looked at again: a guest that puts the same instruction with other
//! (superfluous) prefixes in the same place, and nobody else, finds its instruction pointer off.

use super::Exiting;

/// How many are kept; a power of two.
const ENTRIES: usize = 8;

/// An instruction in 64-bit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// RIP.
    pub rip: u64,
    /// CR3.
    pub cr3: u64,
    /// What is there.
    pub what: Exiting,
}

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths([Option<(Place, u8)>; ENTRIES]);

impl Lengths {
    /// The length of the instruction at `place`, if it is known.
    #[inline]
    pub fn find(&self, place: &Place) -> Option<u8> {
        self.0[index(place)].filter(|(known, _)| known == place).map(|(_, length)| length)
    }

    /// Remembers the length of the instruction at `place`.
    pub fn insert(&mut self, place: Place, length: u8) {
        self.0[index(&place)] = Some((place, length));
    }
}

/// Neighbours get different entries.
fn index(place: &Place) -> usize {
    (place.rip ^ place.rip >> 3) as usize % ENTRIES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_instruction_in_the_same_place_is_known() {
        let place = Place { rip: 0x1234, cr3: 0x1000, what: Exiting::Cpuid };
        let mut lengths = Lengths::default();
        assert_eq!(lengths.find(&place), None);
        lengths.insert(place, 3);
        assert_eq!(lengths.find(&place), Some(3));
        assert_eq!(lengths.find(&Place { rip: 0x1235, ..place }), None);
        assert_eq!(lengths.find(&Place { cr3: 0x2000, ..place }), None);
        assert_eq!(lengths.find(&Place { what: Exiting::ReadMsr, ..place }), None);
        lengths.insert(Place { cr3: 0x2000, ..place }, 2);
        assert_eq!(lengths.find(&place), None);
    }
}
