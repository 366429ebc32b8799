//! Random sequences of everything that happens to memory, checked against the model after each step.

use std::vec;
use std::vec::Vec;

use proptest::collection::vec as many;
use proptest::prelude::*;

use super::model::World;
use crate::memory::{OverlayId, PageSize};

#[derive(Clone, Debug)]
enum Action {
    Deposit(Vec<u64>),
    Withdraw,
    Begin,
    Settle,
    Map { page: u64, frames: Vec<u64>, writable: bool },
    MapLarge { page: u64, frame: u64, writable: bool },
    Vacate { page: u64, count: u64, no_access: bool },
    VacateLarge { page: u64, count: u64, no_access: bool },
    Place(OverlayId, u64),
    Remove(OverlayId),
    Share(OverlayId),
    Write(u64),
    Track(bool),
    Query(bool),
    Finalize,
    Delete,
}

/// Pages of the parent around a few places, so that deposits and loans meet; now and then one that is not the parent's.
fn frame() -> impl Strategy<Value = u64> {
    prop_oneof![
        10 => 1024..1054u64,
        4 => 2048..2060u64,
        1 => prop_oneof![Just(3u64), Just(4096), Just(4100), Just(4200), Just(1 << 40), Just(u64::MAX)],
    ]
}

/// GPA pages around the edges of large pages, and the end of the address space.
fn page() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..5u64, 8 => 509..515u64, 1 => 1020..1028u64, 1 => 2040..2052u64]
}

fn overlay() -> impl Strategy<Value = OverlayId> {
    prop_oneof![
        Just(OverlayId::Hypercall),
        Just(OverlayId::ReferenceTsc),
        (0..3u32).prop_map(OverlayId::Messages),
        Just(OverlayId::VpAssist(0)),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let region = (0..4u64).prop_map(|region| region * 512);
    let large = prop_oneof![Just(512u64), Just(1024), Just(1536), Just(2048)];
    prop_oneof![
        4 => many(frame(), 1..4).prop_map(Action::Deposit),
        4 => (3000..3040u64).prop_map(|page| Action::Deposit(vec![page, page + 40])),
        4 => Just(Action::Withdraw),
        4 => Just(Action::Begin),
        3 => Just(Action::Settle),
        10 => (page(), many(frame(), 1..6), any::<bool>())
            .prop_map(|(page, frames, writable)| Action::Map { page, frames, writable }),
        6 => (region.clone(), large, any::<bool>())
            .prop_map(|(page, frame, writable)| Action::MapLarge { page, frame, writable }),
        8 => (page(), prop_oneof![1..8u64, 1..520u64], any::<bool>())
            .prop_map(|(page, count, no_access)| Action::Vacate { page, count, no_access }),
        4 => (region, 1..3u64, any::<bool>())
            .prop_map(|(page, count, no_access)| Action::VacateLarge { page, count, no_access }),
        10 => (overlay(), page()).prop_map(|(id, page)| Action::Place(id, page)),
        5 => overlay().prop_map(Action::Remove),
        3 => overlay().prop_map(Action::Share),
        3 => (0..2048u64).prop_map(Action::Write),
        20 => page().prop_filter("inside", |page| *page < 2048).prop_map(Action::Write),
        2 => any::<bool>().prop_map(Action::Track),
        6 => any::<bool>().prop_map(Action::Query),
        1 => Just(Action::Finalize),
        1 => Just(Action::Delete),
    ]
}

fn apply(world: &mut World, part: usize, action: &Action) {
    match *action {
        Action::Deposit(ref pages) => world.deposit(part, pages),
        Action::Withdraw => world.withdraw(part),
        Action::Begin => world.begin(part),
        Action::Settle => world.settle(part),
        Action::Map { page, ref frames, writable } => {
            world.map(part, page, frames, writable, PageSize::Small);
        }
        Action::MapLarge { page, frame, writable } => {
            world.map(part, page, &[frame], writable, PageSize::Large);
        }
        Action::Vacate { page, count, no_access } => {
            world.vacate(part, page, count, PageSize::Small, no_access);
        }
        Action::VacateLarge { page, count, no_access } => {
            world.vacate(part, page, count, PageSize::Large, no_access);
        }
        Action::Place(id, page) => world.place(part, id, page),
        Action::Remove(id) => world.remove(part, id),
        Action::Share(id) => world.share(part, id),
        Action::Write(page) => world.write(part, page),
        Action::Track(on) => world.track(part, on),
        Action::Query(clear) => world.query(part, clear),
        Action::Finalize => world.finalize(part),
        Action::Delete => world.delete(part),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_always_whose_it_should_be(
        pages in (4..12u64, 4..12u64),
        tracked: bool,
        actions in many((0..2usize, action()), 1..100),
    ) {
        let mut world = World::new();
        for (part, count) in [(0, pages.0), (1, pages.1)] {
            let first = 3500 + 100 * part as u64;
            world.deposit(part, &(first..first + count).collect::<Vec<_>>());
            world.begin(part);
            world.track(part, tracked);
        }
        for (part, action) in &actions {
            apply(&mut world, *part, action);
            world.check();
        }
        for part in 0..2 {
            world.delete(part);
            world.check();
        }
    }
}
