//! Mapping and unmapping (TLFS: `HvCallMapGpaPages`, `HvCallUnmapGpaPages`), around the overlays.

use core::ops::Range;

use super::overlay::Under;
use super::{AddressSpace, PageSize, Progress, SpaceError};
use crate::machine::{
    Access, Machine, Mapping, OutOfTables, PageState, PageStateChange, Released, Run, Slat,
};
use crate::memory::ownership::LendError;
use crate::memory::pool::Tables;
use crate::memory::{Frame, Lent};

/// What a range of GPA pages without memory is.
#[derive(Clone, Copy)]
enum Vacancy {
    Empty,
    NoAccess,
}

impl Vacancy {
    fn run(self) -> Run {
        match self {
            Self::Empty => Run::Empty,
            Self::NoAccess => Run::NoAccess,
        }
    }

    fn under(self) -> Under {
        match self {
            Self::Empty => Under::Empty,
            Self::NoAccess => Under::NoAccess,
        }
    }
}

impl<M: Machine> AddressSpace<M> {
    /// Maps `frames` of the parent's RAM from GPA page `page` on, with the rights `access`. What was mapped there goes
    /// back to the parent. Large pages are kept large unless page states are tracked or an overlay lies in them.
    pub fn map(
        &mut self,
        tables: &mut Tables<'_, M>,
        page: u64,
        frames: &[u64],
        access: Access,
        size: PageSize,
    ) -> Progress {
        let mut done = 0;
        if !access.contains(Access::READ) {
            return Progress { done, result: Err(SpaceError::Unreadable) };
        }
        let pages = (frames.len() as u64).saturating_mul(size.pages());
        let near = self.overlays.any_in(&(page..page.saturating_add(pages)));
        for &frame in frames {
            let result = self
                .target(page, done, size)
                .and_then(|range| self.map_one(tables, range, frame, access, near));
            if result.is_err() {
                return Progress { done, result };
            }
            done += 1;
        }
        Progress { done, result: Ok(()) }
    }

    /// Leaves nothing at `count` pages of `size` from `page` on; what was mapped there goes back to the parent.
    pub fn unmap(&mut self, tables: &mut Tables<'_, M>, page: u64, count: u64, size: PageSize) -> Progress {
        self.vacate(tables, page, count, size, Vacancy::Empty)
    }

    /// Makes `count` pages of `size` from `page` on memory that the parent supplies when it is touched; what was
    /// mapped there goes back to the parent. Never runs out of tables where there was memory.
    pub fn no_access(
        &mut self,
        tables: &mut Tables<'_, M>,
        page: u64,
        count: u64,
        size: PageSize,
    ) -> Progress {
        self.vacate(tables, page, count, size, Vacancy::NoAccess)
    }

    /// The GPA pages of repetition `index` of a call that begins at `page`.
    fn target(&self, page: u64, index: u64, size: PageSize) -> Result<Range<u64>, SpaceError> {
        let start = index.saturating_mul(size.pages()).saturating_add(page);
        let end = start.saturating_add(size.pages());
        if !start.is_multiple_of(size.pages()) {
            return Err(SpaceError::Unaligned(start));
        }
        if end > self.limit { Err(SpaceError::Outside(start)) } else { Ok(start..end) }
    }

    fn map_one(
        &mut self,
        tables: &mut Tables<'_, M>,
        range: Range<u64>,
        frame: u64,
        access: Access,
        near_overlay: bool,
    ) -> Result<(), SpaceError> {
        let pages = range.end - range.start;
        if !frame.is_multiple_of(pages) {
            return Err(SpaceError::Unaligned(frame));
        }
        if near_overlay {
            self.show_deferred(tables, range.clone())?;
        }
        let mut rest = tables.table.lend(frame, pages as u32).map_err(|error| match error {
            LendError::NotParent(page) | LendError::TooOften(page) => SpaceError::NotParent(page),
        })?;
        let overlaid = near_overlay && self.overlays.next_shown(range.start, range.end).is_some();
        if pages > 1 && !overlaid && !self.tracking {
            return Ok(self.set(tables, range.start, Run::Lent(rest, access))?);
        }
        let mut page = range.start;
        while rest.pages() > 1 {
            let Ok((one, others)) = rest.split(1) else { return Ok(()) };
            rest = others;
            if let Err(error) = self.put(tables, page, one, access, overlaid) {
                tables.table.unlend(rest);
                return Err(error.into());
            }
            page += 1;
        }
        Ok(self.put(tables, page, rest, access, overlaid)?)
    }

    /// Maps one page, under the overlay if there is one.
    fn put(
        &mut self,
        tables: &mut Tables<'_, M>,
        page: u64,
        lent: Lent,
        access: Access,
        overlaid: bool,
    ) -> Result<(), OutOfTables> {
        if overlaid && let Some(overlay) = self.overlays.shown_at(page) {
            if let Some(old) = overlay.replace_under(Under::Lent(lent, access)) {
                tables.table.unlend(old);
            }
            return Ok(());
        }
        // The content of a GPA page is not new because the parent moved it to another frame.
        let state = self.state_to_keep(page);
        self.set(tables, page, Run::Lent(lent, access))?;
        self.kept.remove(page);
        self.mark_state(page, state);
        Ok(())
    }

    /// The state of a page whose memory is about to change, if that matters.
    pub(super) fn state_to_keep(&mut self, page: u64) -> PageState {
        match self.slat.get(page) {
            _ if !self.tracking => PageState::default(),
            Mapping::NoAccess if self.kept.contains(page) => PageState { accessed: true, dirty: true },
            Mapping::Memory { .. } => self.slat.page_state(page, PageStateChange::default()),
            _ => PageState::default(),
        }
    }

    /// Remembers, or forgets, which pages without memory are dirty.
    fn keep_states(&mut self, tables: &mut Tables<'_, M>, range: Range<u64>, vacancy: Vacancy) {
        match vacancy {
            Vacancy::Empty if self.kept.is_empty() => (),
            Vacancy::Empty => range.for_each(|page| _ = self.kept.remove(page)),
            Vacancy::NoAccess if !self.tracking => (),
            Vacancy::NoAccess => {
                for page in range {
                    if self.state_to_keep(page).dirty {
                        self.kept.insert(tables, page);
                    }
                }
            }
        }
    }

    /// Makes a freshly mapped page accessed and dirty again, if it was.
    fn mark_state(&mut self, page: u64, state: PageState) {
        if state != PageState::default() {
            let change = PageStateChange {
                accessed: state.accessed.then_some(true),
                dirty: state.dirty.then_some(true),
            };
            self.slat.page_state(page, change);
        }
    }

    fn vacate(
        &mut self,
        tables: &mut Tables<'_, M>,
        page: u64,
        count: u64,
        size: PageSize,
        vacancy: Vacancy,
    ) -> Progress {
        if !page.is_multiple_of(size.pages()) {
            return Progress { done: 0, result: Err(SpaceError::Unaligned(page)) };
        }
        let end = page.saturating_add(count.saturating_mul(size.pages()));
        let last = end.min(self.limit.max(page));
        let mut cursor = page;
        // Table by table, so that progress is known when tables run out.
        while cursor < last {
            let stop = (cursor | (PageSize::Large.pages() - 1)).saturating_add(1).min(last);
            if self.vacate_range(tables, cursor..stop, vacancy).is_err() {
                let done = (cursor - page) / size.pages();
                return Progress { done, result: Err(SpaceError::OutOfTables) };
            }
            cursor = stop;
        }
        let done = (last - page) / size.pages();
        Progress { done, result: if last == end { Ok(()) } else { Err(SpaceError::Outside(last)) } }
    }

    /// Vacates a range, which means under the overlay where there is one.
    fn vacate_range(
        &mut self,
        tables: &mut Tables<'_, M>,
        range: Range<u64>,
        vacancy: Vacancy,
    ) -> Result<(), OutOfTables> {
        let mut cursor = range.start;
        while cursor < range.end {
            let stop = self.overlays.next_shown(cursor, range.end).unwrap_or(range.end);
            if stop > cursor {
                self.keep_states(tables, cursor..stop, vacancy);
                self.set_pages(tables, cursor, stop - cursor, vacancy.run())?;
            }
            let old = self.overlays.shown_at(stop).filter(|_| stop < range.end);
            if let Some(lent) = old.and_then(|overlay| overlay.replace_under(vacancy.under())) {
                tables.table.unlend(lent);
            }
            cursor = stop + 1;
        }
        Ok(())
    }

    fn set(&mut self, tables: &mut Tables<'_, M>, page: u64, run: Run) -> Result<(), OutOfTables> {
        let pages = if let Run::Lent(lent, _) = &run { u64::from(lent.pages()) } else { 1 };
        self.set_pages(tables, page, pages, run)
    }

    /// Changes the translation and takes care of what it releases. A loan that found no place ends.
    fn set_pages(
        &mut self,
        tables: &mut Tables<'_, M>,
        page: u64,
        pages: u64,
        run: Run,
    ) -> Result<(), OutOfTables> {
        let table = tables.table;
        let loan = if let Run::Lent(lent, _) = &run { Some((lent.first(), lent.pages())) } else { None };
        let (mut shrank, mut returned) = (false, false);
        let result = self.slat.set(page, pages, run, tables, &mut |released| {
            shrank = true;
            if let Released::Lent(lent) = released {
                returned |= loan == Some((lent.first(), lent.pages()));
                table.unlend(lent);
            }
        });
        // Whether an address space that is out of tables releases the run itself or drops it: it ends once.
        if let (Err(OutOfTables), Some((first, pages)), false) = (result, loan, returned) {
            table.unlend(Lent::mint(first, pages));
        }
        if shrank {
            self.bump();
        }
        result
    }

    /// Makes the leaf of `page` what lay under an overlay. The leaf exists, so no table is needed; should there be none
    /// nevertheless, nothing is mapped, and a loan ends.
    pub(super) fn restore(&mut self, tables: &mut Tables<'_, M>, page: u64, under: Under, state: PageState) {
        let run = match under {
            Under::Empty => Run::Empty,
            Under::NoAccess => Run::NoAccess,
            Under::Lent(lent, access) => Run::Lent(lent, access),
        };
        let memory = matches!(run, Run::Lent(..));
        if self.set(tables, page, run).is_err() {
            let gone = self.set(tables, page, Run::Empty);
            debug_assert!(gone.is_ok(), "taking an overlay off needed a table");
        } else if memory {
            self.mark_state(page, state);
        } else if state.dirty && self.tracking {
            self.kept.insert(tables, page);
        }
        self.bump();
    }

    /// Makes the leaf of `page` the frame of an overlay; tells what lent memory it replaced.
    pub(super) fn lay(
        &mut self,
        tables: &mut Tables<'_, M>,
        page: u64,
        frame: u64,
        access: Access,
    ) -> Result<Option<Lent>, OutOfTables> {
        let mut lent = None;
        let run = Run::Owned(Frame::mint(frame), access);
        let result = self.slat.set(page, 1, run, tables, &mut |released| {
            if let Released::Lent(old) = released {
                lent = Some(old);
            }
        });
        if lent.is_some() {
            self.bump();
        }
        result.map(|()| lent)
    }
}
