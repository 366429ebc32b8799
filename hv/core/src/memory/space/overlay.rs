//! Overlay pages (TLFS chapter "Partitions and GPA space", "GPA overlay pages"): a page of the hypervisor covers whatever
//! is mapped at a GPA page until it is taken off.
//!
//! Of several overlays at one GPA page the newest is seen. What lies under an overlay is kept up to date while it is
//! covered. An overlay that finds no tables is *deferred*: the guest faults there, the parent answers by mapping a
//! page, is asked for memory, and the overlay is laid before that page is mapped.

use core::ops::Range;

use super::{AddressSpace, SpaceError};
use crate::machine::{Access, Machine, Mapping, OutOfTables, PageState, PageStateChange, Slat};
use crate::memory::pool::Tables;
use crate::memory::{Lent, Visible};

/// Which overlay page of a partition; those of a virtual processor with its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OverlayId {
    /// `HV_X64_MSR_HYPERCALL`.
    Hypercall,
    /// `HV_X64_MSR_REFERENCE_TSC`.
    ReferenceTsc,
    /// `HV_X64_MSR_SIMP`.
    Messages(u32),
    /// `HV_X64_MSR_SIEFP`.
    EventFlags(u32),
    /// `HV_X64_MSR_SIRBP`.
    EventRing(u32),
    /// `HV_X64_MSR_VP_ASSIST_PAGE`.
    VpAssist(u32),
}

/// What became of an overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It is seen.
    Shown,
    /// There were no tables for it; it will be seen when the parent maps memory at its page.
    Deferred,
}

/// What lies under an overlay.
#[derive(Debug)]
pub(super) enum Under {
    Empty,
    NoAccess,
    Lent(Lent, Access),
}

/// An overlay.
#[derive(Debug)]
pub(super) struct Overlay {
    pub id: OverlayId,
    pub page: u64,
    /// Grows from one overlay to the next; the list sets it.
    pub born: u64,
    frame: u64,
    access: Access,
    /// What it covers; `None` while it is not seen itself.
    under: Option<(Under, PageState)>,
}

impl Overlay {
    pub fn shown(&self) -> bool {
        self.under.is_some()
    }

    pub fn frame(&self) -> u64 {
        self.frame
    }

    /// The state of the page it covers, before `change`.
    pub fn change_state(&mut self, change: PageStateChange) -> PageState {
        let Some((Under::Lent(..) | Under::NoAccess, state)) = &mut self.under else {
            return PageState::default();
        };
        let before = *state;
        state.accessed = change.accessed.unwrap_or(before.accessed);
        state.dirty = change.dirty.unwrap_or(before.dirty);
        before
    }

    /// Changes what it covers; gives what was lent.
    pub fn replace_under(&mut self, new: Under) -> Option<Lent> {
        let state = match (&new, &self.under) {
            (Under::Empty, _) | (_, None) => PageState::default(),
            (_, Some((_, state))) => *state,
        };
        match self.under.replace((new, state)) {
            Some((Under::Lent(lent, _), _)) => Some(lent),
            _ => None,
        }
    }

    /// Gives the lent page that it covers.
    pub fn into_under(self) -> Option<Lent> {
        match self.under {
            Some((Under::Lent(lent, _), _)) => Some(lent),
            _ => None,
        }
    }
}

impl<M: Machine> AddressSpace<M> {
    /// Makes room for `count` more overlays, so that [`AddressSpace::place_overlay`] does not need memory for its own
    /// list. For the creation of a partition and of a virtual processor.
    pub fn prepare_overlays(&mut self, tables: &mut Tables<'_, M>, count: usize) -> Result<(), OutOfTables> {
        self.overlays.make_room(tables, count)
    }

    /// Lays `frame` over GPA page `page` with the rights `access`. If overlay `id` lies elsewhere it is moved. The frame
    /// stays the caller's, and can be given back to its pool only after [`AddressSpace::remove_overlay`].
    pub fn place_overlay(
        &mut self,
        tables: &mut Tables<'_, M>,
        id: OverlayId,
        page: u64,
        frame: &Visible,
        access: Access,
    ) -> Result<Placement, SpaceError> {
        if page >= self.limit {
            return Err(SpaceError::Outside(page));
        }
        let same = |old: &Overlay| (old.page, old.frame, old.access) == (page, frame.number(), access);
        if let Some(old) = self.overlays.find(id).filter(|old| same(old)) {
            return Ok(if old.shown() { Placement::Shown } else { Placement::Deferred });
        }
        self.remove_overlay(tables, id);
        self.overlays.make_room(tables, 1)?;
        if !tables.table.share(frame) {
            return Err(SpaceError::OutOfTables);
        }
        self.overlays.push(Overlay { id, page, born: 0, frame: frame.number(), access, under: None });
        match self.show_newest(tables, page) {
            Ok(()) => Ok(Placement::Shown),
            Err(OutOfTables) => Ok(Placement::Deferred),
        }
    }

    /// Takes an overlay off; what it covered comes back. `false` if there is none.
    pub fn remove_overlay(&mut self, tables: &mut Tables<'_, M>, id: OverlayId) -> bool {
        let Some(overlay) = self.overlays.remove(id) else { return false };
        if let Some((under, state)) = overlay.under {
            self.uncover(tables, overlay.page, under, state);
        }
        tables.table.unshare(overlay.frame);
        true
    }

    /// Where overlay `id` lies.
    pub fn overlay_page(&self, id: OverlayId) -> Option<u64> {
        self.overlays.find(id).map(|overlay| overlay.page)
    }

    /// Lets what lay under a removed overlay be seen: the next overlay, or `under`.
    fn uncover(&mut self, tables: &mut Tables<'_, M>, page: u64, under: Under, state: PageState) {
        let next = self.overlays.newest_at(page).map(|overlay| (overlay.frame, overlay.access));
        if let Some((frame, access)) = next
            && self.lay(tables, page, frame, access).is_ok()
        {
            if let Some(overlay) = self.overlays.newest_at(page) {
                overlay.under = Some((under, state));
            }
            self.bump();
            return;
        }
        self.restore(tables, page, under, state);
    }

    /// Makes the newest overlay at `page` seen.
    fn show_newest(&mut self, tables: &mut Tables<'_, M>, page: u64) -> Result<(), OutOfTables> {
        let Some(overlay) = self.overlays.newest_at(page).filter(|overlay| !overlay.shown()) else {
            return Ok(());
        };
        let (frame, access) = (overlay.frame, overlay.access);
        let before = self.slat.get(page);
        let state = self.state_to_keep(page);
        let lent = self.lay(tables, page, frame, access)?;
        self.kept.remove(page);
        let covered = self.overlays.shown_at(page).and_then(|lower| lower.under.take());
        if covered.is_some() {
            self.bump();
        }
        let under = covered.unwrap_or_else(|| match (lent, before) {
            (Some(lent), Mapping::Memory { access, .. }) => (Under::Lent(lent, access), state),
            (_, Mapping::NoAccess) => (Under::NoAccess, state),
            _ => (Under::Empty, PageState::default()),
        });
        if let Some(overlay) = self.overlays.newest_at(page) {
            overlay.under = Some(under);
        }
        Ok(())
    }

    /// Shows the overlays in `range` that were deferred.
    pub(super) fn show_deferred(
        &mut self,
        tables: &mut Tables<'_, M>,
        range: Range<u64>,
    ) -> Result<(), OutOfTables> {
        let mut from = range.start;
        while let Some(page) = self.overlays.next_deferred(from, range.end) {
            self.show_newest(tables, page)?;
            from = page + 1;
        }
        Ok(())
    }
}
