//! Mapping and unmapping.

use core::sync::atomic::Ordering;

use super::{RW, RWX, settle, space_with, tables};
use crate::machine::{Access, GpaFault, Mapping, PageState, PageStateChange, Slat};
use crate::memory::{PageOwner, PageSize, Progress, SpaceError};

const CLEAR: PageStateChange = PageStateChange { accessed: Some(false), dirty: Some(false) };
const LOOK: PageStateChange = PageStateChange { accessed: None, dirty: None };

fn done(done: u64) -> Progress {
    Progress { done, result: Ok(()) }
}

fn failed(done: u64, error: SpaceError) -> Progress {
    Progress { done, result: Err(error) }
}

#[test]
fn small_pages_are_lent_and_given_back() {
    let (board, mut pool, mut space) = space_with(4);
    let cx = &mut tables(&board, &mut pool);
    assert_eq!(space.map(cx, 5, &[100, 200], RW, PageSize::Small), done(2));
    assert_eq!(space.get(6), Mapping::Memory { frame: 200, access: RW, large: false });
    assert_eq!(board.table.owner(200), PageOwner::Parent { lends: 1 });
    space.write(0x6ffc, &[1; 4]).expect("it may be written");
    assert_eq!(space.write(0x6ffc, &[1; 5]), Err(GpaFault(0x7000)));
    let generation = space.generation.load(Ordering::SeqCst);
    assert_eq!(space.map(cx, 6, &[300], RWX, PageSize::Small), done(1));
    assert_eq!(board.table.owner(200), PageOwner::Parent { lends: 0 });
    assert!(space.generation.load(Ordering::SeqCst) > generation);
    assert_eq!(space.unmap(cx, 0, 10, PageSize::Small), done(10));
    assert_eq!(board.table.owner(300), PageOwner::Parent { lends: 0 });
    assert_eq!(space.get(5), Mapping::Empty);
    space.end(cx);
    settle(&board, &mut pool);
    assert_eq!((pool.available(), pool.used()), (4, 0));
}

#[test]
fn what_the_parent_does_not_own_is_refused_where_it_stands() {
    let (board, mut pool, mut space) = space_with(4);
    let own =
        (16..board.ram).find(|&p| matches!(board.table.owner(p), PageOwner::Deposited(_))).expect("some");
    let cx = &mut tables(&board, &mut pool);
    for bad in [3, board.ram, board.ram + 20, own, 1 << 30, u64::MAX] {
        let result = space.map(cx, 0, &[100, bad, 101], RW, PageSize::Small);
        assert_eq!(result, failed(1, SpaceError::NotParent(bad)));
        assert_eq!(space.get(1), Mapping::Empty);
    }
    assert_eq!(board.table.owner(100), PageOwner::Parent { lends: 1 });
    // One page of the hypervisor's makes a large frame bad.
    let large = own & !511;
    let result = space.map(cx, 512, &[large], RW, PageSize::Large);
    assert!(matches!(result, Progress { done: 0, result: Err(SpaceError::NotParent(_)) }));
    assert_eq!(board.table.owner(large), PageOwner::Parent { lends: 0 });
}

#[test]
fn addresses_and_rights_are_checked() {
    let (board, mut pool, mut space) = space_with(6);
    let cx = &mut tables(&board, &mut pool);
    let limit = space.limit();
    assert_eq!(limit, 2048);
    let outside = |page| SpaceError::Outside(page);
    assert_eq!(space.map(cx, 2047, &[100, 101], RW, PageSize::Small), failed(1, outside(2048)));
    assert_eq!(space.map(cx, u64::MAX, &[100], RW, PageSize::Small), failed(0, outside(u64::MAX)));
    assert_eq!(space.map(cx, 7, &[512], RW, PageSize::Large), failed(0, SpaceError::Unaligned(7)));
    assert_eq!(space.map(cx, 512, &[513], RW, PageSize::Large), failed(0, SpaceError::Unaligned(513)));
    assert_eq!(space.map(cx, 0, &[100], Access::WRITE, PageSize::Small), failed(0, SpaceError::Unreadable));
    assert_eq!(space.unmap(cx, 2040, 20, PageSize::Small), failed(8, outside(2048)));
    assert_eq!(space.unmap(cx, 1536, 2, PageSize::Large), failed(1, outside(2048)));
    assert_eq!(space.no_access(cx, 5, 1, PageSize::Large), failed(0, SpaceError::Unaligned(5)));
    assert_eq!(space.no_access(cx, 5000, 4, PageSize::Small), failed(0, outside(5000)));
    assert_eq!(space.unmap(cx, 0, u64::MAX, PageSize::Large).done, 4);
    assert_eq!(space.unmap(cx, 1 << 60, u64::MAX, PageSize::Small).done, 0);
    assert_eq!(space.get(u64::MAX), Mapping::Empty);
    assert_eq!(space.read(u64::MAX, &mut [0; 2]), Err(GpaFault(u64::MAX)));
    assert_eq!(space.read(limit << 12, &mut [0]), Err(GpaFault(limit << 12)));
    assert!(matches!(space.page_states(2047, 3, LOOK, |_| ()), Progress { done: 1, result: Err(_) }));
    assert!(matches!(space.page_states(9999, 3, LOOK, |_| ()), Progress { done: 0, result: Err(_) }));
}

#[test]
fn progress_is_exact_when_tables_run_out() {
    let (board, mut pool, mut space) = space_with(2);
    let cx = &mut tables(&board, &mut pool);
    // The second table's region finds no table: two pages lie in the first one's.
    let result = space.map(cx, 510, &[100, 101, 102, 103], RW, PageSize::Small);
    assert_eq!(result, failed(2, SpaceError::OutOfTables));
    assert_eq!(board.table.owner(102), PageOwner::Parent { lends: 0 });
    assert_eq!(space.map(cx, 1024, &[1024], RW, PageSize::Large), failed(0, SpaceError::OutOfTables));
    assert_eq!(board.table.owner(1024), PageOwner::Parent { lends: 0 });
    assert_eq!(space.no_access(cx, 1000, 30, PageSize::Small), failed(0, SpaceError::OutOfTables));
    assert_eq!(space.no_access(cx, 500, 100, PageSize::Small), failed(12, SpaceError::OutOfTables));
    assert_eq!(space.no_access(cx, 1024, 1, PageSize::Large), done(1));
    assert_eq!(board.table.owner(100), PageOwner::Parent { lends: 0 });
}

#[test]
fn a_large_page_gives_part_of_itself_back_without_memory() {
    let (board, mut pool, mut space) = space_with(2);
    assert_eq!(space.map(&mut tables(&board, &mut pool), 512, &[1024], RWX, PageSize::Large), done(1));
    assert_eq!((pool.reserved(), pool.available()), (1, 0));
    assert_eq!(space.get(600), Mapping::Memory { frame: 1024 + 88, access: RWX, large: true });
    assert_eq!(space.no_access(&mut tables(&board, &mut pool), 600, 2, PageSize::Small), done(2));
    assert_eq!(pool.reserved(), 0);
    assert_eq!(space.get(600), Mapping::NoAccess);
    assert_eq!(space.get(602), Mapping::Memory { frame: 1024 + 90, access: RWX, large: false });
    assert_eq!(board.table.owner(1024 + 88), PageOwner::Parent { lends: 0 });
    assert_eq!(board.table.owner(1024 + 90), PageOwner::Parent { lends: 1 });
    assert_eq!(space.no_access(&mut tables(&board, &mut pool), 512, 1, PageSize::Large), done(1));
    assert!((1024..1536).all(|page| board.table.owner(page) == PageOwner::Parent { lends: 0 }));
    settle(&board, &mut pool);
    assert_eq!(pool.available(), 1, "the table is free again");
}

#[test]
fn tracking_splits_what_is_large_and_what_comes() {
    let (board, mut pool, mut space) = space_with(6);
    let cx = &mut tables(&board, &mut pool);
    assert_eq!(space.map(cx, 0, &[512], RWX, PageSize::Large), done(1));
    space.set_tracking(cx, true).expect("a table is set aside");
    assert_eq!(space.map(cx, 512, &[1024], RWX, PageSize::Large), done(1));
    assert!((0..1024).all(|page| matches!(space.get(page), Mapping::Memory { large: false, .. })));
    assert_eq!(space.page_states(0, 1024, CLEAR, |_| ()), done(1024));
    space.write(0x20_5000, &[1]).expect("mapped");
    let mut dirty = std::vec::Vec::new();
    let mut page = 0;
    let progress = space.page_states(0, 2048, CLEAR, |state| {
        if state.dirty {
            dirty.push(page);
        }
        page += 1;
    });
    assert_eq!((progress, dirty), (done(2048), std::vec![0x205]));
    assert_eq!(space.page_states(0x205, 1, LOOK, |state| assert_eq!(state, PageState::default())), done(1));
    space.set_tracking(cx, false).expect("nothing is needed");
    assert_eq!(space.map(cx, 512, &[1536], RWX, PageSize::Large), done(1));
    assert!(matches!(space.get(512), Mapping::Memory { large: true, .. }));
}

#[test]
fn a_large_page_that_finds_no_table_while_tracking_is_not_lent() {
    let (board, mut pool, mut space) = space_with(1);
    let cx = &mut tables(&board, &mut pool);
    space.set_tracking(cx, true).expect("nothing to split");
    assert_eq!(space.map(cx, 0, &[512], RWX, PageSize::Large), failed(0, SpaceError::OutOfTables));
    assert!((512..1024).all(|page| board.table.owner(page) == PageOwner::Parent { lends: 0 }));
}

#[test]
fn without_room_to_remember_them_all_pages_without_access_count_as_dirty() {
    let (board, mut pool, mut space) = space_with(2);
    let cx = &mut tables(&board, &mut pool);
    space.set_tracking(cx, true).expect("nothing to split");
    assert_eq!(space.no_access(cx, 0, 4, PageSize::Large), done(4));
    assert_eq!(space.map(cx, 0, &[100, 101], RWX, PageSize::Small), done(2));
    space.write(0, &[1]).expect("mapped");
    assert_eq!(space.no_access(cx, 0, 2, PageSize::Small), done(2));
    let mut dirty = 0;
    let mut count = |state: PageState| dirty += u32::from(state.dirty);
    assert_eq!(space.page_states(0, 2048, CLEAR, &mut count), done(2048));
    assert_eq!(dirty, 2048, "told too much rather than too little");
    space.set_tracking(cx, false).expect("nothing is needed");
    space.set_tracking(cx, true).expect("nothing to split");
    let mut count = |state: PageState| assert!(!state.dirty);
    assert_eq!(space.page_states(0, 2048, CLEAR, &mut count), done(2048));
}

#[test]
fn a_page_that_the_parent_moves_while_tracking_stays_dirty() {
    let (board, mut pool, mut space) = space_with(6);
    let cx = &mut tables(&board, &mut pool);
    space.set_tracking(cx, true).expect("nothing to split");
    assert_eq!(space.map(cx, 3, &[100], RWX, PageSize::Small), done(1));
    space.write(0x3000, &[1]).expect("mapped");
    assert_eq!(space.no_access(cx, 3, 1, PageSize::Small), done(1));
    assert_eq!(space.map(cx, 3, &[101], RWX, PageSize::Small), done(1));
    let mut dirty = false;
    assert_eq!(space.page_states(3, 1, CLEAR, |state| dirty = state.dirty), done(1));
    assert!(dirty);
    assert_eq!(space.page_states(3, 1, CLEAR, |state| dirty = state.dirty), done(1));
    assert!(!dirty);
}

#[test]
fn a_large_entry_changes_its_state_as_a_whole_only() {
    let (board, mut pool, mut space) = space_with(6);
    let cx = &mut tables(&board, &mut pool);
    assert_eq!(space.map(cx, 512, &[512], RWX, PageSize::Large), done(1));
    space.write(0x20_0000, &[1]).expect("mapped");
    let mut count = 0;
    let mut ask = |space: &mut crate::memory::AddressSpace<_>, first, pages| {
        count = 0;
        let _ = space.page_states(first, pages, CLEAR, |state| count += u32::from(state.dirty));
        count
    };
    assert_eq!(ask(&mut space, 512, 100), 100);
    assert_eq!(ask(&mut space, 600, 424), 424);
    assert_eq!(ask(&mut space, 400, 800), 512);
    assert_eq!(ask(&mut space, 512, 512), 0);
}

#[test]
fn the_end_gives_everything_back() {
    let (board, mut pool, mut space) = space_with(8);
    let cx = &mut tables(&board, &mut pool);
    assert_eq!(space.map(cx, 0, &[512, 1024], RWX, PageSize::Large), done(2));
    assert_eq!(space.map(cx, 700, &[100, 100], RW, PageSize::Small), done(2));
    assert_eq!(space.no_access(cx, 1500, 100, PageSize::Small), done(100));
    assert_eq!(board.table.owner(100), PageOwner::Parent { lends: 2 });
    space.clear_all(cx);
    assert!(space.slat().mapped().is_empty());
    assert!((16..1600).all(|page| board.table.owner(page) == PageOwner::Parent { lends: 0 }));
    assert_eq!(space.slat().get(1500), Mapping::Empty);
    space.end(cx);
    settle(&board, &mut pool);
    assert_eq!((pool.available(), pool.reserved(), pool.used()), (8, 0, 0));
}
