//! Pools: what is free, in limbo, reserved, used.

use super::{pool_with, settle, tables};
use crate::fake::FakeMachine;
use crate::machine::TableSource;
use crate::memory::{PageOwner, Tables, withdraw};

#[test]
fn frames_come_zeroed_and_go_through_the_limbo() {
    let mut board = FakeMachine::builder().build();
    let mut pool = pool_with(&mut board, 1, 3);
    let mut tables = tables(&board, &mut pool);
    let frame = tables.take().expect("three");
    let number = frame.number();
    board.machine.memory().write(number, 9, &[9]);
    tables.give(frame);
    assert_eq!((pool.available(), pool.in_limbo(), pool.used(), pool.deposited()), (2, 1, 0, 3));
    settle(&board, &mut pool);
    assert_eq!((pool.available(), pool.in_limbo()), (3, 0));
    let mut tables = super::tables(&board, &mut pool);
    let frames = tables.take_frames(3).expect("three");
    assert!(frames.iter().flatten().all(|frame| board.machine.memory().is_zero(frame.number())));
    assert!(frames.iter().flatten().any(|frame| frame.number() == number));
    assert!(tables.take().is_none());
    tables.give_frames(frames);
    assert_eq!(pool.in_limbo(), 3);
}

#[test]
fn only_what_was_in_limbo_before_a_flush_is_free_after_it() {
    let mut board = FakeMachine::builder().build();
    let mut pool = pool_with(&mut board, 1, 2);
    let (first, second) = {
        let mut tables = tables(&board, &mut pool);
        (tables.take().expect("two"), tables.take().expect("two"))
    };
    let number = first.number();
    pool.give(&board.table, first).expect("it is this pool's");
    let mark = pool.mark();
    pool.give(&board.table, second).expect("it is this pool's");
    pool.settle(&board.table, mark);
    assert_eq!((pool.available(), pool.in_limbo()), (1, 1));
    assert_eq!(tables(&board, &mut pool).take().map(|frame| frame.number()), Some(number));
    pool.settle(&board.table, mark);
    assert_eq!(pool.in_limbo(), 1);
}

#[test]
fn many_or_none() {
    let mut board = FakeMachine::builder().build();
    let mut pool = pool_with(&mut board, 1, 3);
    let mut tables = tables(&board, &mut pool);
    assert!(tables.take_frames(4).is_none());
    assert!(tables.take_frames(9).is_none());
    assert_eq!(pool.available(), 3);
}

#[test]
fn reserved_frames_are_kept_for_splitting() {
    let mut board = FakeMachine::builder().build();
    let mut pool = pool_with(&mut board, 1, 2);
    let mut with = Tables { table: &board.table, pool: &mut pool, machine: &board.machine };
    assert!(with.take_reserved().is_none());
    assert!(with.reserve() && with.reserve() && !with.reserve());
    assert!(with.take().is_none());
    assert_eq!(withdraw(&mut with, &mut board.parent), None);
    let split = with.take_reserved().expect("two are set aside");
    assert!(with.take().is_none());
    with.unreserve();
    assert_eq!(pool.reserved(), 0);
    let mut with = Tables { table: &board.table, pool: &mut pool, machine: &board.machine };
    assert!(withdraw(&mut with, &mut board.parent).is_some());
    with.give(split);
    assert_eq!(withdraw(&mut with, &mut board.parent), None, "what is in limbo stays");
    assert_eq!(pool.deposited(), 1);
}

#[test]
fn a_pool_refuses_the_frames_of_another() {
    let mut board = FakeMachine::builder().build();
    let mut one = pool_with(&mut board, 1, 1);
    let mut other = pool_with(&mut board, 2, 1);
    let frame = tables(&board, &mut one).take().expect("one");
    let frame = other.give(&board.table, frame).expect_err("it is the first one's");
    assert_eq!(other.deposited(), 1);
    assert!(
        matches!(board.table.owner(frame.number()), PageOwner::Used { owner, .. } if owner == one.owner())
    );
    one.give(&board.table, frame).expect("it is its own");
}
