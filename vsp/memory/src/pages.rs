//! Which pages a guest has given up: one bit for each page of its RAM, so that whatever a guest says takes no more room.

use crate::wire::{MAX_RANGE_PAGES, PageRange};

const BITS: u64 = u64::BITS as u64;

/// Why a guest cannot give up a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotYours {
    /// It is not RAM.
    #[error("the guest gives up {count} pages from {first:#x} on, which are not its memory")]
    Outside {
        /// First page that was named.
        first: u64,
        /// How many were.
        count: u64,
    },
    /// It has been given up before.
    #[error("the guest gives up page {0:#x} a second time")]
    Twice(u64),
}

/// Pages of one range of RAM.
struct Part {
    ram: PageRange,
    bits: Vec<u64>,
    /// No bit is set in the words before this one.
    from: usize,
}

/// A set of pages of RAM.
pub struct PageSet {
    parts: Vec<Part>,
    count: u64,
}

impl PageSet {
    /// The empty set of pages of these ranges, which must not overlap.
    pub fn new(ram: &[PageRange]) -> PageSet {
        let part =
            |ram: &PageRange| Part { ram: *ram, bits: vec![0; ram.count.div_ceil(BITS) as usize], from: 0 };
        PageSet { parts: ram.iter().map(part).collect(), count: 0 }
    }

    /// Number of pages in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Number of pages of RAM.
    pub fn ram(&self) -> u64 {
        self.parts.iter().map(|part| part.ram.count).sum()
    }

    /// Adds pages.
    ///
    /// # Errors
    /// They are not all RAM, or not all new. Then some may have been added.
    pub fn insert(&mut self, range: PageRange) -> Result<(), NotYours> {
        let PageRange { first, count } = range;
        let outside = NotYours::Outside { first, count };
        let part = self.parts.iter_mut().find(|part| part.holds(range)).ok_or(outside)?;
        let start = first - part.ram.first;
        for index in start..start + count {
            let word = &mut part.bits[(index / BITS) as usize];
            if *word & 1 << (index % BITS) != 0 {
                return Err(NotYours::Twice(part.ram.first + index));
            }
            *word |= 1 << (index % BITS);
            self.count += 1;
        }
        part.from = part.from.min((start / BITS) as usize);
        Ok(())
    }

    /// Takes the lowest pages out: at most so many, in at most so many ranges that a message can name.
    pub fn take(&mut self, pages: u64, ranges: usize) -> Vec<PageRange> {
        let mut taken = Vec::new();
        let mut left = pages;
        for part in &mut self.parts {
            while left > 0
                && taken.len() < ranges
                && let Some(range) = part.take_first(left.min(MAX_RANGE_PAGES))
            {
                left -= range.count;
                self.count -= range.count;
                taken.push(range);
            }
        }
        taken
    }
}

impl Part {
    fn holds(&self, range: PageRange) -> bool {
        let end = self.ram.first + self.ram.count;
        range.first >= self.ram.first
            && range.first.checked_add(range.count).is_some_and(|range_end| range_end <= end)
    }

    fn is_set(&self, index: u64) -> bool {
        self.bits.get((index / BITS) as usize).is_some_and(|word| word & 1 << (index % BITS) != 0)
    }

    /// Takes out the first pages that follow each other, at most so many.
    fn take_first(&mut self, most: u64) -> Option<PageRange> {
        let ahead = self.bits[self.from..].iter().position(|word| *word != 0);
        self.from = ahead.map_or(self.bits.len(), |words| self.from + words);
        let word = self.bits.get(self.from)?;
        let start = self.from as u64 * BITS + u64::from(word.trailing_zeros());
        let mut count = 0;
        while count < most && self.is_set(start + count) {
            let index = start + count;
            self.bits[(index / BITS) as usize] &= !(1 << (index % BITS));
            count += 1;
        }
        Some(PageRange { first: self.ram.first + start, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const RAM: [PageRange; 2] = [PageRange { first: 0, count: 200 }, PageRange { first: 1000, count: 70 }];

    #[test]
    fn only_ram_can_be_given_up_and_only_once() {
        let mut set = PageSet::new(&RAM);
        let insert = |set: &mut PageSet, first, count| set.insert(PageRange { first, count });
        assert_eq!(insert(&mut set, 190, 10), Ok(()));
        assert!(matches!(insert(&mut set, 195, 10), Err(NotYours::Outside { first: 195, count: 10 })));
        assert!(matches!(insert(&mut set, 300, 1), Err(NotYours::Outside { .. })));
        assert!(matches!(insert(&mut set, u64::MAX, 2), Err(NotYours::Outside { .. })));
        assert_eq!(insert(&mut set, 185, 10), Err(NotYours::Twice(190)));
        assert_eq!(set.count(), 15);
        assert_eq!((set.ram(), set.take(100, 100)), (270, vec![PageRange { first: 185, count: 15 }]));
    }

    proptest! {
        #[test]
        fn the_set_is_a_set(
            inserted in prop::collection::vec((0u64..1100, 0u64..90), 0..30),
            takes in prop::collection::vec((0u64..300, 0usize..5), 0..10),
        ) {
            let mut set = PageSet::new(&RAM);
            let mut model = BTreeSet::new();
            for (first, count) in inserted {
                let pages: Vec<u64> = (first..first + count).collect();
                let ram = RAM.iter().any(|ram| first >= ram.first && first + count <= ram.first + ram.count);
                let fits = ram && pages.iter().all(|page| !model.contains(page));
                let added = set.insert(PageRange { first, count });
                prop_assert_eq!(added.is_ok(), fits);
                match added {
                    Ok(()) => model.extend(pages),
                    // Up to the page that was there twice.
                    Err(NotYours::Twice(page)) => model.extend(first..page),
                    Err(_) => {}
                }
                prop_assert_eq!(set.count(), model.len() as u64);
            }
            for (pages, ranges) in takes {
                let taken = set.take(pages, ranges);
                prop_assert!(taken.len() <= ranges);
                prop_assert!(taken.iter().map(|range| range.count).sum::<u64>() <= pages);
                for page in taken.iter().flat_map(|range| range.first..range.first + range.count) {
                    prop_assert_eq!(Some(page), model.pop_first());
                }
                prop_assert_eq!(set.count(), model.len() as u64);
            }
        }
    }
}
