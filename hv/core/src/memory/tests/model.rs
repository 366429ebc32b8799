//! Two partitions and the parent, next to a plain model of what each of them should see and own.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry};
use std::vec::Vec;

use super::{RW, RWX, settle};
use crate::fake::{Board, FakeMachine};
use crate::machine::{Access, Mapping, PageStateChange, TableSource};
use crate::memory::{
    AddressSpace, DepositError, OverlayId, Owner, PageOwner, PageSize, Placement, Pool, SpaceError, Tables,
    Visible, deposit, withdraw,
};

/// GPA bits of the partitions: 2048 pages.
const WIDTH: u8 = 23;
/// What clears the states of pages.
const CLEAR: PageStateChange = PageStateChange { accessed: Some(false), dirty: Some(false) };

/// What a GPA page is, overlays aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    NoAccess,
    Lent(u64, Access),
}

/// An overlay, in the order of placing.
#[derive(Clone, Copy, Debug)]
struct Laid {
    id: OverlayId,
    page: u64,
    frame: u64,
}

/// A partition, real and as it should be.
pub struct Partition {
    pool: Pool,
    space: Option<AddressSpace<FakeMachine>>,
    frames: BTreeMap<OverlayId, Visible>,
    shared: BTreeSet<OverlayId>,
    deposited: BTreeSet<u64>,
    cells: BTreeMap<u64, Cell>,
    overlays: Vec<Laid>,
    /// Pages whose overlays found no tables yet.
    deferred: BTreeSet<u64>,
    dirty: BTreeSet<u64>,
    /// Pages that had no memory for a while: where there was no room to remember which of those were dirty, all may be.
    doubtful: BTreeSet<u64>,
}

impl Partition {
    fn new(owner: u16) -> Self {
        Self {
            pool: Pool::new(Owner(owner)),
            space: None,
            frames: BTreeMap::new(),
            shared: BTreeSet::new(),
            deposited: BTreeSet::new(),
            cells: BTreeMap::new(),
            overlays: Vec::new(),
            deferred: BTreeSet::new(),
            dirty: BTreeSet::new(),
            doubtful: BTreeSet::new(),
        }
    }

    fn newest(&self, page: u64) -> Option<Laid> {
        self.overlays.iter().rfind(|laid| laid.page == page).copied()
    }

    /// What the guest should see at `page`.
    fn visible(&self, page: u64) -> Mapping {
        match (self.newest(page).filter(|_| !self.deferred.contains(&page)), self.cells.get(&page)) {
            (Some(laid), _) => Mapping::Memory { frame: laid.frame, access: RW, large: false },
            (None, None) => Mapping::Empty,
            (None, Some(Cell::NoAccess)) => Mapping::NoAccess,
            (None, Some(&Cell::Lent(frame, access))) => Mapping::Memory { frame, access, large: false },
        }
    }

    fn covered(&self, page: u64) -> bool {
        self.newest(page).is_some() && !self.deferred.contains(&page)
    }
}

/// The whole.
pub struct World {
    board: Board,
    parts: [Partition; 2],
}

impl World {
    pub fn new() -> Self {
        Self { board: FakeMachine::builder().build(), parts: [Partition::new(1), Partition::new(2)] }
    }

    fn split(&mut self, index: usize) -> (&mut Board, &mut Partition) {
        (&mut self.board, &mut self.parts[index])
    }

    pub fn deposit(&mut self, index: usize, pages: &[u64]) {
        let possible = pages.iter().enumerate().find(|&(place, &page)| {
            self.board.table.owner(page) != PageOwner::Parent { lends: 0 } || pages[..place].contains(&page)
        });
        let expected = match possible {
            None => Ok(()),
            Some((_, &page)) => match self.board.table.owner(page) {
                PageOwner::Parent { lends: 1.. } => Err(DepositError::Lent(page)),
                _ => Err(DepositError::NotParent(page)),
            },
        };
        let (Board { machine, table, parent, .. }, part) = self.split(index);
        let mut tables = Tables { table, pool: &mut part.pool, machine };
        let mut flushed = false;
        assert_eq!(deposit(&mut tables, parent, pages, || flushed = true), expected);
        assert_eq!(flushed, expected.is_ok());
        if expected.is_ok() {
            part.deposited.extend(pages);
        }
    }

    pub fn withdraw(&mut self, index: usize) {
        let (Board { machine, table, parent, .. }, part) = self.split(index);
        let possible = part.pool.available() > 0;
        let mut tables = Tables { table, pool: &mut part.pool, machine };
        let page = withdraw(&mut tables, parent);
        assert_eq!(page.is_some(), possible);
        if let Some(page) = page {
            assert!(part.deposited.remove(&page), "{page:#x} was not deposited to this partition");
            assert!(machine.memory().is_zero(page));
            // The parent writes something there, so that a page that is not zeroed is found out.
            machine.memory().write(page, 0, &[0xa5; 64]);
        }
    }

    pub fn begin(&mut self, index: usize) {
        let (board, part) = self.split(index);
        if part.space.is_none() {
            part.space = AddressSpace::new(&mut super::tables(board, &mut part.pool), WIDTH).ok();
        }
    }

    pub fn settle(&mut self, index: usize) {
        let (board, part) = self.split(index);
        settle(board, &mut part.pool);
    }

    pub fn map(&mut self, index: usize, page: u64, frames: &[u64], writable: bool, size: PageSize) {
        let (board, part) = self.split(index);
        let Some(space) = &mut part.space else { return };
        let access = if writable { RWX } else { Access::READ };
        let progress = space.map(&mut super::tables(board, &mut part.pool), page, frames, access, size);
        for (rep, frame) in frames.iter().take(progress.done as usize).enumerate() {
            for offset in 0..size.pages() {
                let target = page + rep as u64 * size.pages() + offset;
                if part.cells.insert(target, Cell::Lent(frame + offset, access)) == Some(Cell::NoAccess) {
                    part.doubtful.insert(target);
                }
                part.deferred.remove(&target);
            }
        }
        let failed = frames.get(progress.done as usize);
        match (progress.result, failed) {
            (Ok(()), failed) => assert_eq!(failed, None),
            (Err(_), None) => panic!("all was done, and yet it failed"),
            (Err(SpaceError::NotParent(bad)), Some(&frame)) => {
                assert!(bad.wrapping_sub(frame) < size.pages());
                assert!(!matches!(board.table.owner(bad), PageOwner::Parent { .. }));
            }
            (Err(SpaceError::OutOfTables), Some(_)) => assert_eq!(part.pool.available(), 0),
            (Err(SpaceError::Outside(bad)), Some(_)) => assert!(bad + size.pages() > space.limit()),
            (Err(error), Some(_)) => panic!("{error:?}"),
        }
        self.notice_deferred(index);
    }

    pub fn vacate(&mut self, index: usize, page: u64, count: u64, size: PageSize, no_access: bool) {
        let (board, part) = self.split(index);
        let Some(space) = &mut part.space else { return };
        let mut tables = super::tables(board, &mut part.pool);
        let progress = match no_access {
            true => space.no_access(&mut tables, page, count, size),
            false => space.unmap(&mut tables, page, count, size),
        };
        let left = count - progress.done;
        match progress.result {
            Ok(()) => assert_eq!(left, 0),
            Err(SpaceError::OutOfTables) => assert_eq!(part.pool.available(), 0),
            Err(SpaceError::Outside(_)) => assert!(page + count * size.pages() > space.limit()),
            Err(error) => panic!("{error:?}"),
        }
        for target in page..page + progress.done * size.pages() {
            if no_access {
                part.cells.insert(target, Cell::NoAccess);
            } else {
                part.cells.remove(&target);
                part.dirty.remove(&target);
            }
        }
    }

    pub fn place(&mut self, index: usize, id: OverlayId, page: u64) {
        let (board, part) = self.split(index);
        let Some(space) = &mut part.space else { return };
        let mut tables = super::tables(board, &mut part.pool);
        if let Entry::Vacant(place) = part.frames.entry(id) {
            let Some(frame) = tables.take() else { return };
            place.insert(Visible::new(frame));
        }
        let frame = &part.frames[&id];
        let same = part.overlays.iter().any(|laid| laid.id == id && laid.page == page);
        let result = space.place_overlay(&mut tables, id, page, frame, RW);
        if result == Err(SpaceError::Outside(page)) || same {
            assert!(same || page >= space.limit());
            return;
        }
        let number = frame.number();
        self.forget_overlay(index, id);
        let part = &mut self.parts[index];
        match result {
            Ok(placement) => {
                part.overlays.push(Laid { id, page, frame: number });
                match placement {
                    Placement::Shown => part.deferred.remove(&page),
                    Placement::Deferred => part.deferred.insert(page),
                };
            }
            Err(error) => assert_eq!((error, part.pool.available()), (SpaceError::OutOfTables, 0)),
        }
        self.notice_deferred(index);
    }

    pub fn remove(&mut self, index: usize, id: OverlayId) {
        let (board, part) = self.split(index);
        let Some(space) = &mut part.space else { return };
        let known = part.overlays.iter().any(|laid| laid.id == id);
        assert_eq!(space.remove_overlay(&mut super::tables(board, &mut part.pool), id), known);
        self.forget_overlay(index, id);
        self.notice_deferred(index);
    }

    fn forget_overlay(&mut self, index: usize, id: OverlayId) {
        let part = &mut self.parts[index];
        part.overlays.retain(|laid| laid.id != id);
        let Partition { deferred, overlays, .. } = part;
        deferred.retain(|page| overlays.iter().any(|laid| laid.page == *page));
    }

    /// Overlays that were laid by the way, when tables were there again.
    fn notice_deferred(&mut self, index: usize) {
        let part = &mut self.parts[index];
        let Some(space) = &part.space else { return };
        let shown = |page: &u64| {
            let newest = part.overlays.iter().rfind(|laid| laid.page == *page).map(|laid| laid.frame);
            matches!(space.get(*page), Mapping::Memory { frame, .. } if Some(frame) == newest)
        };
        part.deferred.retain(|page| !shown(page));
    }

    /// Shows the parent a frame of an overlay, or hides it again.
    pub fn share(&mut self, index: usize, id: OverlayId) {
        let (Board { machine, table, parent, .. }, part) = self.split(index);
        let Some(frame) = part.frames.get(&id) else { return };
        if part.shared.remove(&id) {
            parent.unshare(machine, table, frame);
        } else if parent.share(machine, table, frame, RW).is_ok() {
            part.shared.insert(id);
        }
    }

    /// The guest writes a byte.
    pub fn write(&mut self, index: usize, page: u64) {
        let part = &mut self.parts[index];
        let Some(space) = &part.space else { return };
        let allowed =
            matches!(part.visible(page), Mapping::Memory { access, .. } if access.contains(Access::WRITE));
        assert_eq!(space.write(page << 12, &[1]).is_ok(), allowed);
        if allowed && space.tracking() && !part.covered(page) {
            part.dirty.insert(page);
        }
    }

    pub fn track(&mut self, index: usize, on: bool) {
        let (board, part) = self.split(index);
        let Some(space) = &mut part.space else { return };
        let result = space.set_tracking(&mut super::tables(board, &mut part.pool), on);
        assert_eq!(result, Ok(()), "tables for splitting are set aside");
        let progress = space.page_states(0, space.limit(), CLEAR, |_| ());
        assert_eq!(progress.result, Ok(()));
        part.dirty.clear();
        part.doubtful.clear();
    }

    /// Asks which pages are dirty.
    pub fn query(&mut self, index: usize, clear: bool) {
        let part = &mut self.parts[index];
        let Some(space) = part.space.as_mut().filter(|space| space.tracking()) else { return };
        let mut told = Vec::new();
        let change = if clear { CLEAR } else { PageStateChange::default() };
        let progress = space.page_states(0, space.limit(), change, |state| told.push(state.dirty));
        assert_eq!((progress.done, progress.result), (space.limit(), Ok(())));
        for &page in &part.dirty {
            assert!(told[page as usize], "the writing of page {page:#x} was lost");
        }
        // Too many dirty pages are allowed only where there was no room to remember which.
        let extra = (0..space.limit()).filter(|page| told[*page as usize] && !part.dirty.contains(page));
        for page in extra.filter(|page| !part.doubtful.contains(page)) {
            assert_eq!(part.cells.get(&page), Some(&Cell::NoAccess), "page {page:#x} was not written");
        }
        if clear {
            part.dirty.clear();
            part.doubtful.clear();
        }
    }

    /// `HvCallFinalizePartition`.
    pub fn finalize(&mut self, index: usize) {
        let (board, part) = self.split(index);
        let Some(space) = &mut part.space else { return };
        space.clear_all(&mut super::tables(board, &mut part.pool));
        part.cells.clear();
        part.overlays.clear();
        part.deferred.clear();
        part.dirty.clear();
    }

    /// The whole end of a partition: everything it had must come back.
    pub fn delete(&mut self, index: usize) {
        for id in self.parts[index].shared.clone() {
            self.share(index, id);
        }
        self.finalize(index);
        let (board, part) = self.split(index);
        let mut tables = super::tables(board, &mut part.pool);
        if let Some(space) = part.space.take() {
            space.end(&mut tables);
        }
        for frame in core::mem::take(&mut part.frames).into_values() {
            tables.give_visible(frame).expect("nobody sees it any more");
        }
        assert_eq!((part.pool.used(), part.pool.reserved()), (0, 0));
        self.settle(index);
        while self.parts[index].pool.available() > 0 {
            self.withdraw(index);
        }
        assert!(self.parts[index].deposited.is_empty());
        assert_eq!(self.parts[index].pool.deposited(), 0);
    }

    /// Holds everything real against the model, and the invariants of page ownership.
    pub fn check(&self) {
        self.parts.iter().for_each(|part| self.check_space(part));
        self.check_owners();
        self.check_pools();
    }

    fn check_space(&self, part: &Partition) {
        let Some(space) = &part.space else { return };
        for page in 0..space.limit() {
            let found = match space.get(page) {
                Mapping::Memory { frame, access, .. } => Mapping::Memory { frame, access, large: false },
                other => other,
            };
            assert_eq!(found, part.visible(page), "GPA page {page:#x}");
        }
        for (page, frame, _) in space.slat().mapped() {
            match self.board.table.owner(frame) {
                PageOwner::Parent { lends: 1.. } => (),
                PageOwner::Used { owner, shares: 1.. } if owner == part.pool.owner() => (),
                owner => panic!("{frame:#x} of {owner:?} is mapped at {page:#x}"),
            }
        }
    }

    fn check_owners(&self) {
        let mut lends: HashMap<u64, u64> = HashMap::new();
        let mut shares: HashMap<u64, u64> = HashMap::new();
        for part in &self.parts {
            for cell in part.cells.values() {
                if let Cell::Lent(frame, _) = cell {
                    *lends.entry(*frame).or_default() += 1;
                }
            }
            for laid in &part.overlays {
                *shares.entry(laid.frame).or_default() += 1;
            }
            for id in &part.shared {
                *shares.entry(part.frames[id].number()).or_default() += 1;
            }
        }
        let shared = |page| {
            self.parts.iter().any(|part| part.shared.iter().any(|id| part.frames[id].number() == page))
        };
        for page in 0..self.board.table.pages() {
            let seen = self.board.parent.get(page) != Mapping::Empty;
            match self.board.table.owner(page) {
                PageOwner::Absent => assert!(seen),
                PageOwner::Hypervisor => assert!(!seen),
                PageOwner::Claimed(_) => panic!("a claim was forgotten"),
                PageOwner::Parent { lends: count } => {
                    assert!(seen);
                    assert_eq!(count, lends.get(&page).copied().unwrap_or(0), "loans of {page:#x}");
                }
                PageOwner::Deposited(owner) => {
                    assert!(!seen);
                    self.check_deposited(page, owner);
                }
                PageOwner::Used { owner, shares: count } => {
                    assert_eq!(seen, shared(page));
                    assert_eq!(count, shares.get(&page).copied().unwrap_or(0), "shares of {page:#x}");
                    self.check_deposited(page, owner);
                }
            }
        }
    }

    fn check_deposited(&self, page: u64, owner: Owner) {
        match self.parts.iter().find(|part| part.pool.owner() == owner) {
            Some(part) => assert!(part.deposited.contains(&page)),
            None => assert!(page >= self.board.ram, "only the hypervisor's own pages have no partition"),
        }
    }

    fn check_pools(&self) {
        let mut used = 0;
        for part in &self.parts {
            assert_eq!(part.pool.deposited(), part.deposited.len() as u64);
            let (tables, large) = part.space.as_ref().map_or((0, 0), |space| space.slat().tables());
            assert_eq!(part.pool.reserved(), large, "one table is set aside for each large entry");
            assert!(part.pool.reserved() <= part.pool.deposited());
            used += part.pool.used() - tables - u64::from(part.space.is_some()) - part.frames.len() as u64;
        }
        assert_eq!(used, self.board.machine.live_pages() as u64, "frames in use that nobody has");
    }
}
