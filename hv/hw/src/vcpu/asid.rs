//! Address space identifiers: which translations in a processor's cache are whose (AMD APM volume 2, 15.16).
//!
//! The hypervisor has 0, the parent 1 on every processor. Children get theirs from the processor they are loaded on; when
//! it has given out all, it flushes everything and starts again, with a new generation.

/// The first identifier for children.
const FIRST: u32 = 2;

/// One processor's supply. Zeroed memory is a valid one.
#[derive(Debug, Default)]
pub struct Allocator {
    generation: u64,
    used: u32,
}

/// The identifier that a virtual processor has, and where.
#[derive(Debug)]
pub struct AddressSpaceId {
    asid: u32,
    processor: Option<usize>,
    /// `None` for identifiers that no generation ends.
    generation: Option<u64>,
}

/// What [`AddressSpaceId::assign`] gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The identifier.
    pub asid: u32,
    /// All translations must be flushed before it is used.
    pub flush_all: bool,
}

impl AddressSpaceId {
    /// The parent's.
    pub fn parent() -> Self {
        Self { asid: 1, processor: None, generation: None }
    }

    /// A child's before it is loaded.
    pub fn none() -> Self {
        Self { asid: 0, processor: None, generation: Some(u64::MAX) }
    }

    /// Whether it holds on `processor`, and nothing needs to be known about the last one.
    pub fn is_current(&self, allocator: &Allocator, processor: usize) -> bool {
        self.processor == Some(processor)
            && self.generation.is_none_or(|generation| generation == allocator.generation)
    }

    /// Takes an identifier for `processor`, which has `count` of them.
    pub fn assign(&mut self, allocator: &mut Allocator, processor: usize, count: u32) -> Assigned {
        self.processor = Some(processor);
        if self.generation.is_none() {
            return Assigned { asid: self.asid, flush_all: false };
        }
        let mut flush_all = false;
        // With less than three identifiers children share one, and every assignment flushes.
        if FIRST + allocator.used >= count.max(FIRST + 1) {
            allocator.generation += 1;
            allocator.used = 0;
            flush_all = true;
        }
        self.asid = FIRST.min(count - 1) + allocator.used;
        self.generation = Some(allocator.generation);
        allocator.used += 1;
        Assigned { asid: self.asid, flush_all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_has_its_own_until_all_are_flushed() {
        let mut allocator = Allocator::default();
        let mut first = AddressSpaceId::none();
        assert!(!first.is_current(&allocator, 0));
        assert_eq!(first.assign(&mut allocator, 0, 4), Assigned { asid: 2, flush_all: false });
        assert!(first.is_current(&allocator, 0) && !first.is_current(&allocator, 1));
        let mut second = AddressSpaceId::none();
        assert_eq!(second.assign(&mut allocator, 0, 4), Assigned { asid: 3, flush_all: false });
        let mut third = AddressSpaceId::none();
        assert_eq!(third.assign(&mut allocator, 0, 4), Assigned { asid: 2, flush_all: true });
        assert!(!first.is_current(&allocator, 0) && !second.is_current(&allocator, 0));
        assert!(third.is_current(&allocator, 0));
    }

    #[test]
    fn the_parent_keeps_its_own_everywhere() {
        let mut allocator = Allocator::default();
        let mut parent = AddressSpaceId::parent();
        assert_eq!(parent.assign(&mut allocator, 3, 16), Assigned { asid: 1, flush_all: false });
        assert!(parent.is_current(&Allocator { generation: 9, used: 1 }, 3));
    }

    #[test]
    fn a_machine_with_two_identifiers_flushes_each_time() {
        let mut allocator = Allocator::default();
        for _ in 0..3 {
            let mut child = AddressSpaceId::none();
            child.assign(&mut allocator, 0, 2);
            assert!(child.asid == 1);
        }
        assert_eq!(
            AddressSpaceId::none().assign(&mut allocator, 0, 2),
            Assigned { asid: 1, flush_all: true }
        );
    }
}
