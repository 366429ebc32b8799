//! The ownership table.

use core::sync::atomic::AtomicU64;
use std::{boxed::Box, thread, vec::Vec};

use crate::memory::{LendError, Owner, OwnershipTable, PageKind, PageOwner, PageRange};

fn table(ranges: &[PageRange]) -> OwnershipTable {
    let entries: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(u64::MAX)).collect();
    OwnershipTable::new(Box::leak(entries.into_boxed_slice()), ranges)
}

fn range(first: u64, pages: u64, kind: PageKind) -> PageRange {
    PageRange { first, pages, kind }
}

#[test]
fn ranges_say_whose_pages_are() {
    let table = table(&[
        range(0, 32, PageKind::Parent),
        range(8, 4, PageKind::Hypervisor),
        range(60, u64::MAX, PageKind::Parent),
        range(u64::MAX, 5, PageKind::Parent),
    ]);
    assert_eq!(table.owner(7), PageOwner::Parent { lends: 0 });
    assert_eq!(table.owner(8), PageOwner::Hypervisor);
    assert_eq!(table.owner(12), PageOwner::Parent { lends: 0 });
    assert_eq!(table.owner(32), PageOwner::Absent);
    assert_eq!(table.owner(63), PageOwner::Parent { lends: 0 });
    assert_eq!(table.owner(64), PageOwner::Absent);
    assert_eq!(table.owner(u64::MAX), PageOwner::Absent);
}

#[test]
fn boot_pages_are_handed_out_once() {
    let table =
        table(&[range(10, 2, PageKind::Boot), range(20, 2, PageKind::Special), range(30, 1, PageKind::Boot)]);
    let boot: Vec<u64> = core::iter::from_fn(|| table.take_boot()).map(|frame| frame.number()).collect();
    assert_eq!(boot, [10, 11, 30]);
    let special: Vec<u64> = core::iter::from_fn(|| table.take_special()).map(|page| page.number()).collect();
    assert_eq!(special, [20, 21]);
    assert_eq!(table.owner(11), PageOwner::Used { owner: Owner::HYPERVISOR, shares: 0 });
    assert!(table.take_boot().is_none() && table.take_special().is_none());
}

#[test]
fn a_loan_is_whole_or_nothing() {
    let table = table(&[range(0, 16, PageKind::Parent), range(16, 4, PageKind::Hypervisor)]);
    assert_eq!(table.lend(12, 8), Err(LendError::NotParent(16)));
    assert_eq!(table.lend(u64::MAX, 2), Err(LendError::NotParent(u64::MAX)));
    assert_eq!(table.lend(1 << 50, 1), Err(LendError::NotParent(1 << 50)));
    assert!((0..16).all(|page| table.owner(page) == PageOwner::Parent { lends: 0 }));
    let lent = table.lend(12, 4).expect("all of it is the parent's");
    let again = table.lend(15, 1).expect("a page can be lent twice");
    assert_eq!(table.owner(15), PageOwner::Parent { lends: 2 });
    table.unlend(lent);
    assert_eq!(table.owner(15), PageOwner::Parent { lends: 1 });
    table.unlend(again);
    assert!((0..16).all(|page| table.owner(page) == PageOwner::Parent { lends: 0 }));
}

#[test]
fn processors_at_once_lose_no_count_and_share_no_claim() {
    let table = table(&[range(0, 64, PageKind::Parent)]);
    let claims: Vec<usize> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4u16)
            .map(|owner| {
                let table = &table;
                scope.spawn(move || {
                    for _ in 0..200 {
                        if let Ok(lent) = table.lend(0, 32) {
                            table.unlend(lent);
                        }
                    }
                    (32..64).filter(|&page| table.claim(page, Owner(owner)).is_ok()).count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(claims.iter().sum::<usize>(), 32);
    assert!((0..32).all(|page| table.owner(page) == PageOwner::Parent { lends: 0 }));
}
