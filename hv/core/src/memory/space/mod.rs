//! A child's guest-physical address space: what the parent lent it, and overlay pages of the hypervisor on top.
//!
//! Changes do not reach processors by themselves. Whenever a change took something away, [`AddressSpace::generation`]
//! goes up; a processor that enters with an older generation drops cached translations first, and a hypercall that took
//! memory away waits until no processor runs with an older one. A page that was lent can be deposited at once
//! nevertheless, because a deposit flushes too ([`Claim`](super::Claim)).

mod change;
mod kept;
mod list;
mod overlay;

use core::sync::atomic::{AtomicU64, Ordering};

pub use overlay::{OverlayId, Placement};

use super::pool::Tables;
use crate::machine::{
    GpaFault, Machine, Mapping, OutOfTables, PageState, PageStateChange, Released, Slat, TableSource,
};
use kept::KeptDirty;
use list::OverlayList;

/// The unit in which a hypercall counts pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB; its GPA page and frame are multiples of 512.
    Large,
}

impl PageSize {
    /// How many 4 KiB pages make one.
    pub const fn pages(self) -> u64 {
        match self {
            Self::Small => 1,
            Self::Large => 512,
        }
    }
}

/// Why a change of an address space stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceError {
    /// This GPA page lies behind the partition's physical address width.
    Outside(u64),
    /// This GPA page or frame of a large page is no multiple of 512.
    Unaligned(u64),
    /// This frame is not RAM of the parent, so the parent cannot lend it.
    NotParent(u64),
    /// Memory that cannot be read cannot be mapped.
    Unreadable,
    /// The partition's pool has no frames for tables: deposit pages and go on.
    OutOfTables,
}

impl From<OutOfTables> for SpaceError {
    fn from(_: OutOfTables) -> Self {
        Self::OutOfTables
    }
}

/// How far a change of many pages came. What is done stays done; what is not can be asked for again.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Pages done, in the unit asked for.
    pub done: u64,
    /// Why the next page was not.
    pub result: Result<(), SpaceError>,
}

/// A child's address space.
pub struct AddressSpace<M: Machine> {
    slat: M::Slat,
    /// The first GPA page that does not exist.
    limit: u64,
    tracking: bool,
    overlays: OverlayList<M>,
    kept: KeptDirty<M>,
    /// Goes up whenever the partition lost access to something, or the states of pages were cleared.
    pub generation: AtomicU64,
}

impl<M: Machine> AddressSpace<M> {
    /// Makes an empty address space with GPAs of `address_width` bits.
    pub fn new(tables: &mut Tables<'_, M>, address_width: u8) -> Result<Self, OutOfTables> {
        let root = tables.take().ok_or(OutOfTables)?;
        let limit = 1 << address_width.clamp(12, 52).saturating_sub(12);
        Ok(Self {
            slat: tables.machine.new_slat(root),
            limit,
            tracking: false,
            overlays: OverlayList::new(),
            kept: KeptDirty::new(),
            generation: AtomicU64::new(0),
        })
    }

    /// The translation itself, to run virtual processors in.
    pub fn slat(&self) -> &M::Slat {
        &self.slat
    }

    /// How many GPA pages there are.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// What GPA page `page` is.
    pub fn get(&self, page: u64) -> Mapping {
        if page < self.limit { self.slat.get(page) } else { Mapping::Empty }
    }

    /// Copies bytes of the partition's memory, as it sees it; every page must allow reading.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault> {
        self.inside(gpa, bytes.len())?;
        self.slat.read(gpa, bytes)
    }

    /// Copies bytes into the partition's memory, as it sees it; every page must allow writing.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), GpaFault> {
        self.inside(gpa, bytes.len())?;
        self.slat.write(gpa, bytes)
    }

    /// Atomically replaces the aligned 64-bit word at `gpa` if it is `current`; gives what was there.
    pub fn compare_exchange(&self, gpa: u64, current: u64, new: u64) -> Result<u64, GpaFault> {
        self.inside(gpa, 8)?;
        self.slat.compare_exchange(gpa, current, new)
    }

    fn inside(&self, gpa: u64, length: usize) -> Result<(), GpaFault> {
        let last = gpa.checked_add((length as u64).saturating_sub(1)).ok_or(GpaFault(gpa))?;
        if last >> 12 < self.limit { Ok(()) } else { Err(GpaFault(gpa.max(self.limit << 12))) }
    }

    /// Whether small pages are kept so that page states are exact.
    pub fn tracking(&self) -> bool {
        self.tracking
    }

    /// Begins or ends the tracking of page states. Large entries are split for it, and stay split afterwards.
    pub fn set_tracking(&mut self, tables: &mut Tables<'_, M>, tracking: bool) -> Result<(), OutOfTables> {
        if tracking {
            self.slat.split_all(tables)?;
            self.bump();
        } else {
            self.kept.clear(tables);
        }
        self.tracking = tracking;
        Ok(())
    }

    /// Tells the states of `count` GPA pages from `page` on, one by one, and changes each as `change` says. Pages without
    /// memory have no state, but what was dirty before its memory was taken away stays so; an overlaid page has the state
    /// of what lies under the overlay. A large entry answers for
    /// all of its pages, and changes only when all of them are asked for at once.
    pub fn page_states(
        &mut self,
        page: u64,
        count: u64,
        change: PageStateChange,
        mut tell: impl FnMut(PageState),
    ) -> Progress {
        let end = page.saturating_add(count).min(self.limit);
        let overlaid = self.overlays.next_shown(page, end).is_some();
        for current in page..end {
            tell(match overlaid.then(|| self.overlays.shown_at(current)).flatten() {
                Some(overlay) => overlay.change_state(change),
                None => self.slat_state(page, current, end, change),
            });
        }
        if change.accessed == Some(false) || change.dirty == Some(false) {
            self.bump();
        }
        let done = end.saturating_sub(page);
        let result = if done == count { Ok(()) } else { Err(SpaceError::Outside(self.limit.max(page))) };
        Progress { done, result }
    }

    /// The state of `page` in a question for the pages from `first` to `end`.
    fn slat_state(&mut self, first: u64, page: u64, end: u64, change: PageStateChange) -> PageState {
        match self.slat.get(page) {
            Mapping::Memory { large: true, .. } => {
                let last = page | (PageSize::Large.pages() - 1);
                let whole = first <= last + 1 - PageSize::Large.pages() && last < end;
                let change = if whole && page == last { change } else { PageStateChange::default() };
                self.slat.page_state(page, change)
            }
            Mapping::Memory { .. } => self.slat.page_state(page, change),
            Mapping::NoAccess if self.kept.contains(page) => {
                if change.dirty == Some(false) {
                    self.kept.remove(page);
                }
                PageState { accessed: true, dirty: true }
            }
            _ => PageState::default(),
        }
    }

    /// Unmaps everything, overlays included, and gives back the tables. The address space is as it was when it was new;
    /// nothing may run in it.
    pub fn clear_all(&mut self, tables: &mut Tables<'_, M>) {
        let table = tables.table;
        self.slat.clear_all(tables, &mut |released| {
            // An owned page is the leaf's half of an overlay, which is taken off below.
            if let Released::Lent(lent) = released {
                table.unlend(lent);
            }
        });
        while let Some(overlay) = self.overlays.pop() {
            table.unshare(overlay.frame());
            overlay.into_under().into_iter().for_each(|lent| table.unlend(lent));
        }
        self.kept.clear(tables);
        self.bump();
    }

    /// Ends the address space and gives all its frames back to the pool.
    pub fn end(mut self, tables: &mut Tables<'_, M>) {
        self.clear_all(tables);
        self.overlays.end(tables);
        let root = tables.machine.end_slat(self.slat);
        tables.give(root);
    }

    fn bump(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }
}
