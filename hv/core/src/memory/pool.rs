//! A partition's pool of deposited pages, and the boot reserve for the parent.
//!
//! The lists of a pool run through the entries of the ownership table, so a pool needs no storage and has no limit. A
//! frame that comes back goes to the *limbo* first: a processor may still have a cached translation to it, or walk
//! tables through it. [`Pool::mark`] before a flush of all processors and [`Pool::settle`] after it bring it back among
//! the free ones. Frames are zeroed when they are taken or withdrawn, never before.

use super::entry_word::VALUE_MAX;
use super::frame::{Frame, Visible};
use super::ownership::{Owner, OwnershipTable};
use crate::machine::{Machine, TableSource};

/// No page: the end of a list. As a page number it would lie behind the 52-bit physical address space's last but one.
const NONE: u64 = VALUE_MAX;

/// A first-in, first-out list of pages.
#[derive(Debug)]
struct List {
    head: u64,
    tail: u64,
    count: u64,
}

impl List {
    const fn new() -> Self {
        Self { head: NONE, tail: NONE, count: 0 }
    }

    /// Appends a frame; gives it back if it is not `owner`'s or is shown somewhere.
    fn push(&mut self, table: &OwnershipTable, owner: Owner, frame: Frame) -> Result<(), Frame> {
        let page = table.park(frame, owner)?;
        if self.count == 0 {
            self.head = page;
        } else {
            table.link(self.tail, owner, page);
        }
        self.tail = page;
        self.count += 1;
        Ok(())
    }

    fn pop(&mut self, table: &OwnershipTable, owner: Owner) -> Option<Frame> {
        if self.count == 0 {
            return None;
        }
        let (frame, next) = table.unpark(self.head, owner)?;
        self.head = next;
        self.count -= 1;
        Some(frame)
    }
}

/// The pages deposited to one partition.
///
/// `free` and `limbo` hold pages, `used` are out as frames; `reserved` of the free ones wait for the splitting of large
/// entries and are given for nothing else.
#[derive(Debug)]
pub struct Pool {
    owner: Owner,
    free: List,
    limbo: List,
    reserved: u64,
    used: u64,
    /// How many frames ever left the limbo; with the limbo's length this numbers the frames in it.
    settled: u64,
}

impl Pool {
    /// An empty pool of partition `owner`.
    pub const fn new(owner: Owner) -> Self {
        Self { owner, free: List::new(), limbo: List::new(), reserved: 0, used: 0, settled: 0 }
    }

    /// The pool of the pages of kind [`Reserve`](super::PageKind::Reserve) among the `pages` from `first` on.
    pub fn of_reserve(table: &OwnershipTable, first: u64, pages: u64) -> Self {
        let mut pool = Self::new(Owner::HYPERVISOR);
        for page in first..first.saturating_add(pages).min(table.pages()) {
            if let Some(frame) = table.take_reserve(page) {
                pool.add(table, frame);
            }
        }
        pool
    }

    /// Whose pool this is.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Pages that could be taken now.
    pub fn available(&self) -> u64 {
        self.free.count.saturating_sub(self.reserved)
    }

    /// Pages set aside for splitting large entries.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Pages that wait for [`Pool::settle`].
    pub fn in_limbo(&self) -> u64 {
        self.limbo.count
    }

    /// Pages that are out as frames.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// All pages deposited and not yet withdrawn.
    pub fn deposited(&self) -> u64 {
        self.free.count + self.limbo.count + self.used
    }

    /// Adds a frame that is new to the pool.
    pub(super) fn add(&mut self, table: &OwnershipTable, frame: Frame) {
        let added = self.free.push(table, self.owner, frame);
        debug_assert!(added.is_ok(), "a new frame of a pool is shown somewhere");
    }

    /// Takes a frame, keeping what is reserved. Its content is whatever it was.
    fn pop(&mut self, table: &OwnershipTable) -> Option<Frame> {
        if self.available() == 0 {
            return None;
        }
        self.pop_any(table)
    }

    fn pop_any(&mut self, table: &OwnershipTable) -> Option<Frame> {
        let frame = self.free.pop(table, self.owner)?;
        self.used += 1;
        Some(frame)
    }

    /// Takes a frame in order to give it back to the parent.
    pub(super) fn take_for_withdrawal(&mut self, table: &OwnershipTable) -> Option<Frame> {
        self.pop(table)
    }

    /// Notes that a taken frame has left the pool for good.
    pub(super) fn forget_used(&mut self) {
        self.used = self.used.saturating_sub(1);
    }

    /// Takes back a frame that this pool gave. Refuses, and gives it back, while an address space shows it or if it is
    /// another's.
    pub fn give(&mut self, table: &OwnershipTable, frame: Frame) -> Result<(), Frame> {
        self.limbo.push(table, self.owner, frame)?;
        self.used = self.used.saturating_sub(1);
        Ok(())
    }

    /// Says how far the limbo reaches now. Then flush: every processor has to leave guest mode once and to drop
    /// cached translations of this partition (and of the parent, if it was shown frames of this pool) before it
    /// goes back.
    pub fn mark(&self) -> u64 {
        self.settled + self.limbo.count
    }

    /// After the flush that followed [`Pool::mark`]: what was in the limbo then is free.
    pub fn settle(&mut self, table: &OwnershipTable, mark: u64) {
        while self.settled < mark {
            let Some(frame) = self.limbo.pop(table, self.owner) else { break };
            self.settled += 1;
            self.add(table, frame);
        }
    }
}

/// A partition's pool with all that is needed to work with it.
pub struct Tables<'a, M: Machine> {
    /// Whose pages are whose.
    pub table: &'a OwnershipTable,
    /// The partition's pool.
    pub pool: &'a mut Pool,
    /// The machine.
    pub machine: &'a M,
}

impl<M: Machine> Tables<'_, M> {
    /// The same for a shorter time.
    pub fn again(&mut self) -> Tables<'_, M> {
        Tables { table: self.table, pool: self.pool, machine: self.machine }
    }

    /// Takes `count` zeroed frames (at most 8), or none of them.
    pub fn take_frames(&mut self, count: usize) -> Option<[Option<Frame>; 8]> {
        let mut frames = [const { None }; 8];
        if count > frames.len() || self.pool.available() < count as u64 {
            return None;
        }
        frames.iter_mut().take(count).for_each(|frame| *frame = self.take());
        Some(frames)
    }

    /// Gives back frames as they came from [`Tables::take_frames`].
    pub fn give_frames(&mut self, frames: [Option<Frame>; 8]) {
        frames.into_iter().flatten().for_each(|frame| self.give(frame));
    }

    /// Gives back a page that partitions could see. Refuses, and gives it back, while an address space shows it.
    pub fn give_visible(&mut self, page: Visible) -> Result<(), Visible> {
        self.pool.give(self.table, page.into_frame()).map_err(Visible::new)
    }

    fn zeroed(&self, mut frame: Frame) -> Frame {
        self.machine.zero(&mut frame);
        frame
    }
}

impl<M: Machine> TableSource for Tables<'_, M> {
    fn take(&mut self) -> Option<Frame> {
        self.pool.pop(self.table).map(|frame| self.zeroed(frame))
    }

    fn give(&mut self, frame: Frame) {
        let given = self.pool.give(self.table, frame);
        // A frame that is still shown stays in use for ever: a lost page, but never a page with two uses.
        debug_assert!(given.is_ok(), "{given:?} came back while in use");
    }

    fn reserve(&mut self) -> bool {
        let available = self.pool.available() > 0;
        self.pool.reserved += u64::from(available);
        available
    }

    fn take_reserved(&mut self) -> Option<Frame> {
        if self.pool.reserved == 0 {
            return None;
        }
        let frame = self.pool.pop_any(self.table)?;
        self.pool.reserved -= 1;
        Some(self.zeroed(frame))
    }

    fn unreserve(&mut self) {
        debug_assert!(self.pool.reserved > 0, "gave up a table that was not set aside");
        self.pool.reserved = self.pool.reserved.saturating_sub(1);
    }
}

/// The boot reserve as a source of tables for the parent's address space. It was sized for splitting every large entry,
/// so nothing is counted.
pub struct ReserveTables<'a, M: Machine> {
    /// Whose pages are whose.
    pub table: &'a OwnershipTable,
    /// The reserve.
    pub pool: &'a mut Pool,
    /// The machine.
    pub machine: &'a M,
}

impl<M: Machine> TableSource for ReserveTables<'_, M> {
    fn take(&mut self) -> Option<Frame> {
        let mut frame = self.pool.pop(self.table)?;
        self.machine.zero(&mut frame);
        Some(frame)
    }

    /// Tables that were made at boot, out of other memory, stay in the reserve from now on.
    fn give(&mut self, frame: Frame) {
        self.pool.used += u64::from(self.table.adopt(&frame));
        let given = self.pool.give(self.table, frame);
        debug_assert!(given.is_ok(), "{given:?} came back while in use");
    }

    fn reserve(&mut self) -> bool {
        true
    }

    fn take_reserved(&mut self) -> Option<Frame> {
        self.take()
    }

    fn unreserve(&mut self) {}
}
