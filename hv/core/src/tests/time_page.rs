//! The life of the reference TSC page (TLFS "Partition Reference TSC Mechanism"): wherever a guest lays it, moves it to or takes
//! it from, whatever becomes of the memory below, and whenever the parent sets the time, it says what the register says, and
//! nobody writes what is not the page.

use super::{child_registers::Child, steps::*};
use crate::fake::Flow;
use crate::machine::Exit;
use parterre_abi::{
    hypercall::{HypercallCode as Code, SetPartitionPropertyInput, UnmapGpaFlags},
    msr,
    property::PartitionPropertyCode as Property,
    status::HvStatus,
    types::PartitionId,
};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};
use zerocopy::FromZeros;

/// The guest's pages that are played with.
const FIRST: u64 = 4;
const PAGES: usize = 4;
/// How much of a page is looked at: what the reference TSC page has at its start.
const SIZE: usize = 24;

/// A guest that has the page somewhere.
struct Guest {
    child: Child,
    /// The parent's pages, and whether each is mapped.
    frames: [(u64, bool); PAGES],
    place: Option<usize>,
    frozen: bool,
}

impl Guest {
    fn new() -> Self {
        let mut child = Child::new();
        let frames = core::array::from_fn(|_| child.rig.pages(1)[0]);
        let mut guest = Self { child, frames: frames.map(|frame| (frame, true)), place: None, frozen: false };
        for (index, frame) in frames.into_iter().enumerate() {
            guest.child.rig.machine.memory().write(frame, 0, &pattern(index));
            guest.unmap(index);
            guest.map(index);
        }
        guest
    }

    fn set_property(&mut self, property: Property, value: u64) {
        let mut input = SetPartitionPropertyInput::new_zeroed();
        (input.partition_id, input.property_code) = (self.child.id, property);
        input.property_value = value;
        assert_eq!(self.child.rig.cpu().simple(Code::SET_PARTITION_PROPERTY, &input), Ok(()));
    }

    fn lay(&mut self, place: Option<usize>) {
        let value = place.map_or(0x9000, |index| gpa(index) | 1);
        assert_eq!(self.child.write(msr::REFERENCE_TSC, value), Ok(()));
        self.place = place;
    }

    fn map(&mut self, index: usize) {
        let (id, frame) = (self.child.id, self.frames[index].0);
        let done = self.child.rig.cpu().map(id, FIRST + index as u64, RWX, &[frame]);
        assert_eq!(done, (HvStatus::SUCCESS, 1));
        self.frames[index].1 = true;
    }

    fn unmap(&mut self, index: usize) {
        let (id, page) = (self.child.id, FIRST + index as u64);
        assert_eq!(self.child.rig.unmap(id, page, 1, UnmapGpaFlags::empty()), (HvStatus::SUCCESS, 1));
        self.frames[index].1 = false;
    }

    /// What the guest reads at a page; `None` where there is nothing.
    fn read(&mut self, index: usize) -> Option<[u8; SIZE]> {
        let seen = Arc::new(Mutex::new(None));
        let out = seen.clone();
        self.child.rig.machine.script(1).code(move |vcpu| {
            let mut bytes = [0; SIZE];
            *out.lock().unwrap() = vcpu.read_memory(gpa(index), &mut bytes).is_ok().then_some(bytes);
            Flow::Exit(Exit::Pause)
        });
        assert_eq!(self.child.rig.cpu().dispatch(self.child.id, 0), READY);
        *seen.lock().unwrap()
    }

    /// The page says what the register says.
    fn agrees(&mut self, page: [u8; SIZE]) {
        const TSC: u32 = 0x10;
        let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("8 bytes"));
        let sequence = word(0) as u32;
        assert!(sequence != 0 && sequence != u32::MAX, "nobody would use it");
        let tsc = self.child.read(TSC).expect("the register is there");
        let scaled = ((u128::from(tsc) * u128::from(word(8))) >> 64) as u64;
        let by_register = self.child.read(msr::TIME_REF_COUNT).expect("the register is there");
        let difference = by_register.wrapping_sub(scaled.wrapping_add(word(16)));
        assert!(difference <= 100, "the register is {difference} ahead");
    }

    fn check(&mut self) {
        for index in 0..PAGES {
            let (frame, mapped) = self.frames[index];
            let mut bytes = [0; SIZE];
            self.child.rig.machine.memory().read(frame, 0, &mut bytes);
            assert_eq!(bytes, pattern(index), "nobody has written the parent's page");
            let seen = self.read(index);
            if self.place == Some(index) {
                let page = seen.expect("the page is the hypervisor's");
                assert_ne!(page, pattern(index));
                if !self.frozen {
                    self.agrees(page);
                }
            } else {
                assert_eq!(seen, mapped.then(|| pattern(index)));
            }
        }
        self.child.rig.check();
    }
}

fn gpa(index: usize) -> u64 {
    (FIRST + index as u64) << 12
}

fn pattern(index: usize) -> [u8; SIZE] {
    [0xA0 + index as u8; SIZE]
}

#[test]
fn the_page_shows_a_time_that_was_set() {
    let mut guest = Guest::new();
    guest.lay(Some(1));
    let before = guest.read(1).expect("it is there");
    guest.set_property(Property::REFERENCE_TIME, 1_000_000_000);
    let after = guest.read(1).expect("it is there");
    assert_ne!(before[..4], after[..4], "its sequence has changed");
    assert!(guest.child.read(msr::TIME_REF_COUNT).unwrap().abs_diff(1_000_000_000) < 1000);
    guest.check();
}

#[test]
fn a_page_that_was_moved_or_taken_off_leaves_memory_alone() {
    let mut guest = Guest::new();
    for place in [Some(0), Some(3), Some(3), None, Some(2)] {
        guest.lay(place);
        guest.set_property(Property::REFERENCE_TIME, 77);
        guest.check();
    }
    // The memory below goes back to the parent while the page lies over it.
    guest.unmap(2);
    guest.set_property(Property::REFERENCE_TIME, 1 << 40);
    guest.check();
    guest.lay(None);
    guest.check();
    guest.map(2);
    guest.check();
}

#[test]
fn a_partition_ends_while_the_page_lies_over_nothing() {
    let mut guest = Guest::new();
    guest.lay(Some(0));
    guest.unmap(0);
    guest.set_property(Property::REFERENCE_TIME, 5);
    let id = guest.child.id;
    assert_eq!(guest.child.rig.end(id).len(), 208);
    assert_eq!(guest.child.rig.missing(), 1, "the parent's own deposit");
    assert_eq!(guest.child.rig.cpu().withdraw_all(PartitionId::SELF).len(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Lay(Option<usize>),
    Turn(usize),
    Set(u64),
    Pass(u64),
    Freeze,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::option::of(0..PAGES).prop_map(Step::Lay),
        (0..PAGES).prop_map(Step::Turn),
        prop_oneof![0..1000u64, 0..1u64 << 50].prop_map(Step::Set),
        (0..1u64 << 36).prop_map(Step::Pass),
        Just(Step::Freeze),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_page_is_right_wherever_it_lies(steps in prop::collection::vec(step(), 1..12)) {
        let mut guest = Guest::new();
        for step in steps {
            match step {
                Step::Lay(place) => guest.lay(place),
                Step::Turn(index) if guest.frames[index].1 => guest.unmap(index),
                Step::Turn(index) => guest.map(index),
                Step::Set(time) => guest.set_property(Property::REFERENCE_TIME, time),
                Step::Pass(ticks) => guest.child.rig.machine.pass(ticks),
                Step::Freeze => {
                    guest.frozen = !guest.frozen;
                    guest.set_property(Property::TIME_FREEZE, guest.frozen.into());
                }
            }
            guest.check();
        }
    }
}
