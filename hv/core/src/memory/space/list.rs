//! The overlays of an address space, in pages of the partition's pool.

use core::ops::Range;

use arrayvec::ArrayVec;

use super::overlay::{Overlay, OverlayId};
use crate::machine::{Machine, OutOfTables, TableSource};
use crate::memory::pool::Tables;

/// How many overlays fit a page.
const PER_PAGE: usize = (4096 - 16) / size_of::<Overlay>();
/// How many pages the list may have: enough for 2 overlays of a partition and 5 of each of 256 virtual processors.
const PAGES: usize = 32;

const _: () = assert!(PER_PAGE * PAGES >= 2 + 5 * 256);

type Chunk = ArrayVec<Overlay, PER_PAGE>;

/// The list, in no order. All pages before the last one in use are full.
pub(super) struct OverlayList<M: Machine> {
    chunks: ArrayVec<M::Page<Chunk>, PAGES>,
    length: usize,
    /// How many overlays there ever were: the age of the next one.
    born: u64,
}

impl<M: Machine> OverlayList<M> {
    pub fn new() -> Self {
        Self { chunks: ArrayVec::new(), length: 0, born: 0 }
    }

    /// Makes room for `count` more.
    pub fn make_room(&mut self, tables: &mut Tables<'_, M>, count: usize) -> Result<(), OutOfTables> {
        while self.chunks.len() * PER_PAGE < self.length.saturating_add(count) {
            if self.chunks.is_full() {
                return Err(OutOfTables);
            }
            let frame = tables.take().ok_or(OutOfTables)?;
            self.chunks.push(tables.machine.emplace(frame, Chunk::new()));
        }
        Ok(())
    }

    /// Adds an overlay, for which there is room, as the newest.
    pub fn push(&mut self, mut overlay: Overlay) {
        overlay.born = self.born;
        if let Some(chunk) = self.chunks.get_mut(self.length / PER_PAGE) {
            chunk.push(overlay);
            self.length += 1;
            self.born += 1;
        }
    }

    /// Takes any overlay out.
    pub fn pop(&mut self) -> Option<Overlay> {
        let last = self.length.checked_sub(1)?;
        let overlay = self.chunks.get_mut(last / PER_PAGE)?.pop();
        self.length = last;
        overlay
    }

    /// Takes overlay `id` out.
    pub fn remove(&mut self, id: OverlayId) -> Option<Overlay> {
        self.find(id)?;
        let last = self.pop()?;
        if last.id == id {
            return Some(last);
        }
        self.iter_mut().find(|overlay| overlay.id == id).map(|hole| core::mem::replace(hole, last))
    }

    /// Gives the pages back; the list is empty.
    pub fn end(self, tables: &mut Tables<'_, M>) {
        for chunk in self.chunks {
            let frame = tables.machine.dissolve(chunk);
            tables.give(frame);
        }
    }

    pub fn find(&self, id: OverlayId) -> Option<&Overlay> {
        self.iter().find(|overlay| overlay.id == id)
    }

    /// Whether any overlay, seen or not, lies in `pages`.
    pub fn any_in(&self, pages: &Range<u64>) -> bool {
        self.iter().any(|overlay| pages.contains(&overlay.page))
    }

    /// The first page of a range that an overlay is seen at.
    pub fn next_shown(&self, start: u64, end: u64) -> Option<u64> {
        let inside = self.iter().filter(|overlay| overlay.shown() && (start..end).contains(&overlay.page));
        inside.map(|overlay| overlay.page).min()
    }

    /// The first page of a range where the newest overlay is not seen.
    pub fn next_deferred(&self, start: u64, end: u64) -> Option<u64> {
        let inside = self.iter().filter(|overlay| !overlay.shown() && (start..end).contains(&overlay.page));
        let newer = |than: &Overlay| {
            self.iter().any(|other| other.shown() && other.page == than.page && other.born > than.born)
        };
        inside.filter(|overlay| !newer(overlay)).map(|overlay| overlay.page).min()
    }

    pub fn shown_at(&mut self, page: u64) -> Option<&mut Overlay> {
        self.iter_mut().find(|overlay| overlay.page == page && overlay.shown())
    }

    pub fn newest_at(&mut self, page: u64) -> Option<&mut Overlay> {
        self.iter_mut().filter(|overlay| overlay.page == page).max_by_key(|overlay| overlay.born)
    }

    fn iter(&self) -> impl Iterator<Item = &Overlay> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Overlay> {
        self.chunks.iter_mut().flat_map(|chunk| chunk.iter_mut())
    }
}
