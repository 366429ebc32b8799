//! The 64-bit word that the ownership table holds for each page.
//!
//! ```text
//!   63    60 59                               20 19            4 3      0
//!  ┌────────┬───────────────────────────────────┬───────────────┬────────┐
//!  │ 0      │ value: lends, shares or next page │ slot          │ state  │
//!  └────────┴───────────────────────────────────┴───────────────┴────────┘
//! ```
//!
//! The value has 40 bits, so it can hold any number of a 4 KiB page in a 52-bit physical address space. A word of zeros
//! is a page that does not exist.

/// What kind of owner a page has; the low four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// No RAM: a hole, device registers, firmware's.
    Absent = 0,
    /// The hypervisor's since boot, and not for any partition.
    Hypervisor = 1,
    /// The parent's; the value counts loans to children.
    Parent = 2,
    /// Taken from the parent by a deposit that is under way.
    Claimed = 3,
    /// In a pool; the value is the next page of its list.
    Deposited = 4,
    /// Out of a pool as a frame; the value counts the address spaces that show it.
    Used = 5,
    /// Set aside at boot for the parent's special pages.
    Special = 6,
    /// Set aside at boot for splitting the parent's large entries.
    Reserve = 7,
    /// Set aside at boot for the hypervisor's own objects.
    Boot = 8,
}

impl State {
    fn from_bits(bits: u64) -> Self {
        match bits & 0xf {
            1 => Self::Hypervisor,
            2 => Self::Parent,
            3 => Self::Claimed,
            4 => Self::Deposited,
            5 => Self::Used,
            6 => Self::Special,
            7 => Self::Reserve,
            8 => Self::Boot,
            _ => Self::Absent,
        }
    }
}

/// The largest value.
pub(super) const VALUE_MAX: u64 = (1 << 40) - 1;

/// An entry of the table, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub state: State,
    pub slot: u16,
    pub value: u64,
}

impl Word {
    pub fn new(state: State) -> Self {
        Self { state, slot: 0, value: 0 }
    }

    pub fn owned(state: State, slot: u16, value: u64) -> Self {
        Self { state, slot, value }
    }

    pub fn pack(self) -> u64 {
        (self.state as u64) | u64::from(self.slot) << 4 | (self.value & VALUE_MAX) << 20
    }

    /// Whether the state in a packed word is any but [`State::Absent`].
    #[inline]
    pub fn is_ram(word: u64) -> bool {
        matches!(word & 0xf, 1..=8)
    }

    pub fn unpack(bits: u64) -> Self {
        Self {
            state: State::from_bits(bits),
            slot: (bits >> 4 & 0xffff) as u16,
            value: bits >> 20 & VALUE_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_survive_packing(state in 0u64..9, slot: u16, value in 0..=VALUE_MAX) {
            let word = Word { state: State::from_bits(state), slot, value };
            prop_assert_eq!(word.state as u64, state);
            prop_assert_eq!(Word::unpack(word.pack()), word);
        }
    }

    #[test]
    fn zero_is_absent() {
        assert_eq!(Word::unpack(0), Word::new(State::Absent));
        assert_eq!(Word::unpack(0xf).state, State::Absent);
    }
}
