//! Overlay pages.

use super::{RW, RWX, settle, space_with, tables};
use crate::fake::{Board, FakeMachine};
use crate::machine::{Access, Mapping, PageStateChange, TableSource};
use crate::memory::{AddressSpace, OverlayId, PageOwner, PageSize, Placement, Pool, SpaceError, Visible};

const CODE: OverlayId = OverlayId::Hypercall;
const TIME: OverlayId = OverlayId::ReferenceTsc;

struct Fixture {
    board: Board,
    pool: Pool,
    space: AddressSpace<FakeMachine>,
}

impl Fixture {
    fn new(pages: u64) -> Self {
        let (board, pool, space) = space_with(pages);
        Self { board, pool, space }
    }

    fn frame(&mut self) -> Visible {
        tables(&self.board, &mut self.pool).take().map(Visible::new).expect("a page")
    }

    fn place(&mut self, id: OverlayId, page: u64, frame: &Visible) -> Result<Placement, SpaceError> {
        self.space.place_overlay(&mut tables(&self.board, &mut self.pool), id, page, frame, RW)
    }

    fn remove(&mut self, id: OverlayId) -> bool {
        self.space.remove_overlay(&mut tables(&self.board, &mut self.pool), id)
    }

    fn map(&mut self, page: u64, frames: &[u64], size: PageSize) -> Result<(), SpaceError> {
        self.space.map(&mut tables(&self.board, &mut self.pool), page, frames, RWX, size).result
    }

    fn frame_at(&self, page: u64) -> Option<u64> {
        match self.space.get(page) {
            Mapping::Memory { frame, .. } => Some(frame),
            _ => None,
        }
    }

    fn lends(&self, frame: u64) -> u64 {
        match self.board.table.owner(frame) {
            PageOwner::Parent { lends } => lends,
            other => panic!("{frame} is not the parent's but {other:?}"),
        }
    }
}

#[test]
fn what_lies_under_an_overlay_comes_back() {
    let mut it = Fixture::new(8);
    let frame = it.frame();
    it.map(5, &[100], PageSize::Small).expect("there are tables");
    assert_eq!(it.place(CODE, 5, &frame), Ok(Placement::Shown));
    assert_eq!(it.frame_at(5), Some(frame.number()));
    assert_eq!(it.lends(100), 1, "the loan goes on");
    it.map(5, &[101], PageSize::Small).expect("under the overlay");
    assert_eq!(it.frame_at(5), Some(frame.number()));
    assert_eq!((it.lends(100), it.lends(101)), (0, 1));
    assert!(it.remove(CODE) && !it.remove(CODE));
    assert_eq!(it.frame_at(5), Some(101));
    tables(&it.board, &mut it.pool).give_visible(frame).expect("nobody sees it");
}

#[test]
fn access_is_taken_away_under_an_overlay() {
    let mut it = Fixture::new(8);
    let frame = it.frame();
    it.map(4, &[100, 101, 102], PageSize::Small).expect("there are tables");
    it.place(CODE, 5, &frame).expect("inside");
    let progress = it.space.no_access(&mut tables(&it.board, &mut it.pool), 0, 512, PageSize::Small);
    assert_eq!((progress.done, progress.result), (512, Ok(())));
    assert_eq!((it.lends(100), it.lends(101), it.lends(102)), (0, 0, 0));
    assert_eq!(it.frame_at(5), Some(frame.number()));
    assert_eq!(it.space.get(4), Mapping::NoAccess);
    assert!(it.remove(CODE));
    assert_eq!(it.space.get(5), Mapping::NoAccess);
    it.place(CODE, 5, &frame).expect("inside");
    let progress = it.space.unmap(&mut tables(&it.board, &mut it.pool), 0, 1, PageSize::Large);
    assert_eq!(progress.result, Ok(()));
    it.remove(CODE);
    assert_eq!(it.space.get(5), Mapping::Empty);
}

#[test]
fn a_large_page_is_mapped_around_an_overlay() {
    let mut it = Fixture::new(8);
    let frame = it.frame();
    it.map(0, &[512], PageSize::Large).expect("there are tables");
    it.place(CODE, 7, &frame).expect("inside");
    assert_eq!(
        (it.frame_at(6), it.frame_at(7), it.frame_at(8)),
        (Some(518), Some(frame.number()), Some(520))
    );
    assert_eq!(it.lends(519), 1);
    it.map(0, &[1024], PageSize::Large).expect("there are tables");
    assert_eq!(
        (it.frame_at(6), it.frame_at(7), it.frame_at(8)),
        (Some(1030), Some(frame.number()), Some(1032))
    );
    assert_eq!((it.lends(519), it.lends(1031)), (0, 1));
    it.remove(CODE);
    assert_eq!(it.frame_at(7), Some(1031));
}

#[test]
fn the_newest_of_several_overlays_is_seen() {
    let mut it = Fixture::new(8);
    let (one, two) = (it.frame(), it.frame());
    it.map(9, &[100], PageSize::Small).expect("there are tables");
    it.place(CODE, 9, &one).expect("inside");
    it.place(TIME, 9, &two).expect("inside");
    assert_eq!(it.frame_at(9), Some(two.number()));
    // The lower one goes and nobody notices; it comes back as the newest.
    it.remove(CODE);
    assert_eq!(it.frame_at(9), Some(two.number()));
    it.place(CODE, 9, &one).expect("inside");
    assert_eq!(it.frame_at(9), Some(one.number()));
    it.remove(CODE);
    assert_eq!(it.frame_at(9), Some(two.number()));
    it.remove(TIME);
    assert_eq!(it.frame_at(9), Some(100));
    assert_eq!(it.lends(100), 1);
}

#[test]
fn an_overlay_moves() {
    let mut it = Fixture::new(8);
    let frame = it.frame();
    it.map(1, &[100, 101], PageSize::Small).expect("there are tables");
    it.place(CODE, 1, &frame).expect("inside");
    it.place(CODE, 2, &frame).expect("inside");
    assert_eq!((it.frame_at(1), it.frame_at(2)), (Some(100), Some(frame.number())));
    assert_eq!(it.space.overlay_page(CODE), Some(2));
    assert_eq!(it.place(CODE, it.space.limit(), &frame), Err(SpaceError::Outside(2048)));
    assert_eq!(it.space.overlay_page(CODE), Some(2), "a refused move changes nothing");
    let frame = tables(&it.board, &mut it.pool).give_visible(frame).expect_err("it is seen");
    it.remove(CODE);
    tables(&it.board, &mut it.pool).give_visible(frame).expect("it is not");
}

#[test]
fn without_tables_an_overlay_waits_for_the_parent() {
    // Pages: top table, the overlays' list, the frame.
    let mut it = Fixture::new(3);
    let frame = it.frame();
    let tables_of = |it: &mut Fixture| it.space.prepare_overlays(&mut tables(&it.board, &mut it.pool), 1);
    tables_of(&mut it).expect("one is left");
    let progress = it.space.no_access(&mut tables(&it.board, &mut it.pool), 0, 1, PageSize::Large);
    assert_eq!(progress.result, Ok(()));
    assert_eq!(it.place(CODE, 3, &frame), Ok(Placement::Deferred));
    assert_eq!(it.space.get(3), Mapping::NoAccess);
    assert_eq!(it.map(3, &[100], PageSize::Small), Err(SpaceError::OutOfTables));
    assert_eq!(it.lends(100), 0);

    let mut more =
        crate::memory::Tables { table: &it.board.table, pool: &mut it.pool, machine: &it.board.machine };
    crate::memory::deposit(&mut more, &mut it.board.parent, &[2000], || ()).expect("the parent's");
    it.map(3, &[100], PageSize::Small).expect("now there is a table");
    assert_eq!(it.frame_at(3), Some(frame.number()));
    assert_eq!(it.lends(100), 1);
    it.remove(CODE);
    assert_eq!(it.frame_at(3), Some(100));
}

#[test]
fn a_deferred_overlay_can_be_removed() {
    let mut it = Fixture::new(3);
    let frame = it.frame();
    it.space.prepare_overlays(&mut tables(&it.board, &mut it.pool), 1).expect("one is left");
    assert_eq!(it.place(CODE, 3, &frame), Ok(Placement::Deferred));
    assert!(it.remove(CODE));
    assert_eq!(it.space.get(3), Mapping::Empty);
    tables(&it.board, &mut it.pool).give_visible(frame).expect("nobody sees it");
}

#[test]
fn the_state_of_a_covered_page_is_kept() {
    let mut it = Fixture::new(8);
    let frame = it.frame();
    it.space.set_tracking(&mut tables(&it.board, &mut it.pool), true).expect("nothing to split");
    it.map(5, &[100], PageSize::Small).expect("there are tables");
    it.space.write(0x5000, &[1]).expect("mapped");
    it.place(CODE, 5, &frame).expect("inside");
    let dirty = |it: &mut Fixture, change| {
        let mut dirty = false;
        let _ = it.space.page_states(5, 1, change, |state| dirty = state.dirty);
        dirty
    };
    let look = PageStateChange::default();
    let clear = PageStateChange { dirty: Some(false), ..look };
    assert!(dirty(&mut it, look));
    it.remove(CODE);
    assert!(dirty(&mut it, clear));
    it.place(CODE, 5, &frame).expect("inside");
    it.space.write(0x5000, &[2]).expect("the overlay may be written");
    assert!(!dirty(&mut it, look), "writing an overlay is not writing memory");
}

#[test]
fn there_is_room_for_the_overlays_of_256_processors() {
    let mut it = Fixture::new(48);
    let frame = it.frame();
    for vp in 0..256 {
        for id in [
            OverlayId::Messages(vp),
            OverlayId::EventFlags(vp),
            OverlayId::EventRing(vp),
            OverlayId::VpAssist(vp),
        ] {
            it.place(id, 1000 + u64::from(vp), &frame).expect("there is room");
        }
    }
    assert_eq!(
        it.board.table.owner(frame.number()),
        PageOwner::Used { owner: it.pool.owner(), shares: 1024 }
    );
    for vp in (0..256).rev() {
        assert!(it.remove(OverlayId::EventFlags(vp)));
    }
    it.space.clear_all(&mut tables(&it.board, &mut it.pool));
    assert_eq!(it.board.table.owner(frame.number()), PageOwner::Used { owner: it.pool.owner(), shares: 0 });
    let Fixture { board, mut pool, space } = it;
    let mut with = tables(&board, &mut pool);
    space.end(&mut with);
    with.give_visible(frame).expect("nobody sees it");
    settle(&board, &mut pool);
    assert_eq!((pool.available(), pool.used()), (48, 0));
    assert_eq!(board.machine.live_pages(), 0);
}

#[test]
fn the_rights_of_an_overlay_are_its_own() {
    let mut it = Fixture::new(8);
    let frame = it.frame();
    let cx = &mut tables(&it.board, &mut it.pool);
    it.space.place_overlay(cx, CODE, 5, &frame, Access::READ).expect("inside");
    assert!(it.space.read(0x5000, &mut [0]).is_ok());
    assert!(it.space.write(0x5000, &[0]).is_err());
}
