//! Pages that were dirty when the parent took their memory away, while page states are tracked.
//!
//! The parent moves and reclaims memory of a partition at any time. What the guest wrote must be told all the same when
//! states are asked for next, or a migration would lose it; an entry without memory has no state. These pages
//! are few. Should there be no room to remember one, every page without access counts as dirty.

use arrayvec::ArrayVec;

use crate::machine::{Machine, TableSource};
use crate::memory::pool::Tables;

/// Page numbers that fit a page of the list.
const PER_PAGE: usize = (4096 - 16) / size_of::<u64>();
/// Pages of the list. Looking something up goes through all of them.
const PAGES: usize = 8;

type Chunk = ArrayVec<u64, PER_PAGE>;

/// The set of these pages.
pub(super) struct KeptDirty<M: Machine> {
    chunks: ArrayVec<M::Page<Chunk>, PAGES>,
    overflown: bool,
}

impl<M: Machine> KeptDirty<M> {
    pub fn new() -> Self {
        Self { chunks: ArrayVec::new(), overflown: false }
    }

    /// Whether no page could be in it.
    pub fn is_empty(&self) -> bool {
        !self.overflown && self.chunks.iter().all(|chunk| chunk.is_empty())
    }

    pub fn contains(&self, page: u64) -> bool {
        self.overflown || self.chunks.iter().any(|chunk| chunk.contains(&page))
    }

    pub fn insert(&mut self, tables: &mut Tables<'_, M>, page: u64) {
        if self.contains(page) {
            return;
        }
        if self.chunks.iter().all(|chunk| chunk.is_full()) && !self.grow(tables) {
            self.overflown = true;
            return;
        }
        if let Some(chunk) = self.chunks.iter_mut().find(|chunk| !chunk.is_full()) {
            chunk.push(page);
        }
    }

    fn grow(&mut self, tables: &mut Tables<'_, M>) -> bool {
        if self.chunks.is_full() {
            return false;
        }
        let Some(frame) = tables.take() else { return false };
        self.chunks.push(tables.machine.emplace(frame, Chunk::new()));
        true
    }

    /// Takes a page out; says whether it counted as dirty.
    pub fn remove(&mut self, page: u64) -> bool {
        for chunk in &mut self.chunks {
            if let Some(index) = chunk.iter().position(|&kept| kept == page) {
                chunk.swap_remove(index);
                return true;
            }
        }
        self.overflown
    }

    /// Forgets all pages and gives the list's memory back.
    pub fn clear(&mut self, tables: &mut Tables<'_, M>) {
        for chunk in self.chunks.drain(..) {
            let frame = tables.machine.dissolve(chunk);
            tables.give(frame);
        }
        self.overflown = false;
    }
}
