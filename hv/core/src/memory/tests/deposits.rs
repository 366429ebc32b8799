//! Deposits and withdrawals, and the parent's address space.

use std::vec::Vec;

use super::{RW, pool_with, settle, tables};
use crate::fake::FakeMachine;
use crate::machine::{Access, GpaFault, Machine, Mapping, TableSource};
use crate::memory::{Claim, DepositError, Owner, PageOwner, Pool, Tables, Visible, deposit, withdraw};

fn large(mapping: Mapping) -> bool {
    matches!(mapping, Mapping::Memory { large: true, .. })
}

#[test]
fn deposited_pages_vanish_from_the_parent_and_come_back_zeroed() {
    let mut board = FakeMachine::builder().build();
    let before = board.parent.reserve().available();
    board.machine.memory().write(1030, 0, &[1, 2, 3]);
    let mut pool = Pool::new(Owner(3));
    let mut flushed = false;
    let mut with = Tables { table: &board.table, pool: &mut pool, machine: &board.machine };
    deposit(&mut with, &mut board.parent, &[1030, 1031], || flushed = true).expect("they are the parent's");
    assert!(flushed);
    assert_eq!(pool.deposited(), 2);
    assert_eq!(board.table.owner(1030), PageOwner::Deposited(Owner(3)));
    assert_eq!(board.parent.get(1030), Mapping::Empty);
    assert_eq!(board.parent.get(1032), Mapping::Memory { frame: 1032, access: Access::all(), large: false });
    assert_eq!(board.parent.read(&board.table, 1030 << 12, &mut [0]), Err(GpaFault(1030 << 12)));
    assert_eq!(board.parent.reserve().available(), before - 1);

    let mut with = Tables { table: &board.table, pool: &mut pool, machine: &board.machine };
    let mut back: Vec<u64> = core::iter::from_fn(|| withdraw(&mut with, &mut board.parent)).collect();
    back.sort();
    assert_eq!(back, [1030, 1031]);
    assert!(board.machine.memory().is_zero(1030));
    assert_eq!(board.table.owner(1030), PageOwner::Parent { lends: 0 });
    assert!(large(board.parent.get(1030)), "the large entry is whole again");
    let mark = board.parent.mark();
    board.parent.settle(&board.table, mark);
    assert_eq!(board.parent.reserve().available(), before);
    assert_eq!(pool.deposited(), 0);
}

#[test]
fn a_deposit_takes_all_or_nothing() {
    let mut board = FakeMachine::builder().build();
    let lent = board.table.lend(600, 1).expect("it is the parent's");
    let ram = board.ram;
    let cases: [(&[u64], DepositError); 6] = [
        (&[500, 501, 600], DepositError::Lent(600)),
        (&[500, 500], DepositError::NotParent(500)),
        (&[500, 3], DepositError::NotParent(3)),
        (&[500, ram], DepositError::NotParent(ram)),
        (&[500, 1 << 40], DepositError::NotParent(1 << 40)),
        (&[500, u64::MAX], DepositError::NotParent(u64::MAX)),
    ];
    let mut pool = Pool::new(Owner(1));
    for (pages, error) in cases {
        let mut with = Tables { table: &board.table, pool: &mut pool, machine: &board.machine };
        let result = deposit(&mut with, &mut board.parent, pages, || panic!("nothing was claimed"));
        assert_eq!(result, Err(error));
        assert_eq!(board.table.owner(500), PageOwner::Parent { lends: 0 });
        assert!(large(board.parent.get(500)));
    }
    assert_eq!(pool.deposited(), 0);
    board.table.unlend(lent);
}

#[test]
fn without_tables_for_the_parent_nothing_is_taken() {
    let mut board = FakeMachine::builder().reserve(1).build();
    let mut pool = Pool::new(Owner(1));
    let mut with = Tables { table: &board.table, pool: &mut pool, machine: &board.machine };
    let result = deposit(&mut with, &mut board.parent, &[600, 601, 1100], || ());
    assert_eq!(result, Err(DepositError::OutOfTables));
    for page in [600, 601, 1100] {
        assert_eq!(board.table.owner(page), PageOwner::Parent { lends: 0 });
        assert!(large(board.parent.get(page)));
    }
}

#[test]
fn a_claim_can_be_cancelled() {
    let mut board = FakeMachine::builder().build();
    let pool = Pool::new(Owner(1));
    let claim = Claim::new(&board.machine, &board.table, &mut board.parent, &pool, &[700, 701])
        .expect("the parent's");
    assert_eq!(board.table.owner(700), PageOwner::Claimed(Owner(1)));
    assert_eq!(board.parent.get(700), Mapping::Empty);
    assert!(board.table.lend(700, 1).is_err());
    claim.cancel(&board.machine, &board.table, &mut board.parent);
    assert_eq!(board.table.owner(700), PageOwner::Parent { lends: 0 });
    assert!(large(board.parent.get(701)));
}

#[test]
fn shared_pages_of_the_hypervisor_are_seen_until_unshared() {
    let mut board = FakeMachine::builder().build();
    let mut pool = pool_with(&mut board, 1, 2);
    let page = tables(&board, &mut pool).take().map(Visible::new).expect("two pages");
    let number = page.number();
    board.parent.share(&board.machine, &board.table, &page, RW).expect("the leaf is there");
    board.machine.write_frame(page.frame(), 0, b"seen");
    let mut bytes = [0; 4];
    board.parent.read(&board.table, number << 12, &mut bytes).expect("it is shared");
    assert_eq!(&bytes, b"seen");
    let page = tables(&board, &mut pool).give_visible(page).expect_err("the parent sees it");
    let generation = board.parent.generation.load(core::sync::atomic::Ordering::SeqCst);
    board.parent.unshare(&board.machine, &board.table, &page);
    assert!(board.parent.generation.load(core::sync::atomic::Ordering::SeqCst) > generation);
    assert_eq!(board.parent.get(number), Mapping::Empty);
    tables(&board, &mut pool).give_visible(page).expect("nobody sees it");
    assert_eq!(pool.in_limbo(), 1);
    settle(&board, &mut pool);
    assert_eq!(pool.available(), 2);
}

#[test]
fn special_pages_are_shown_where_they_are() {
    let mut board = FakeMachine::builder().build();
    let page = board.table.take_special().expect("there are some");
    board.parent.share(&board.machine, &board.table, &page, RW).expect("the reserve has a table");
    assert!(
        matches!(board.parent.get(page.number()), Mapping::Memory { frame, .. } if frame == page.number())
    );
    board.parent.write(&board.table, page.number() << 12, &[7]).expect("it may be written");
}

#[test]
fn the_parents_device_registers_are_not_touched_for_it() {
    let board = FakeMachine::builder().build();
    assert!(matches!(board.parent.get(3), Mapping::Memory { .. }), "the parent itself may");
    assert_eq!(board.parent.read(&board.table, 0x3008, &mut [0; 8]), Err(GpaFault(0x3008)));
    assert_eq!(board.parent.write(&board.table, 0x3008, &[0; 8]), Err(GpaFault(0x3008)));
    assert_eq!(board.parent.compare_exchange(&board.table, 0x3008, 0, 1), Err(GpaFault(0x3008)));
    assert_eq!(board.parent.read(&board.table, u64::MAX, &mut [0; 8]), Err(GpaFault(u64::MAX)));
    let end = board.ram << 12;
    assert_eq!(board.parent.read(&board.table, end - 4, &mut [0; 8]), Err(GpaFault(end)));
}
