//! The tree of tables: finding, placing, clearing and splitting entries.
//!
//! Levels count from 1 (tables whose entries map single pages) to 4 (the top table). Tables are named by their frame's
//! number; a number in here is always that of a table of the tree at hand.

use core::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};

use parterre_core::machine::{Access, OutOfTables, PageState, PageStateChange, Released, TableSource};
use parterre_core::memory::entry as token;

use super::entry::{self, EMPTY, Entry, Leaf, NO_ACCESS, Owner};
use super::{Format, SPACE_PAGES, format};
use crate::physical;

/// The level of the top table's entries.
const TOP: u32 = 4;
const ENTRIES: usize = 512;

/// How many pages an entry of `level` covers.
pub fn pages_of(level: u32) -> u64 {
    1 << (9 * (level - 1))
}

/// How many tables splitting a leaf of `level` down to single pages takes.
fn tables_to_split(level: u32) -> u64 {
    match level {
        1 => 0,
        2 => 1,
        _ => 1 + ENTRIES as u64 * tables_to_split(level - 1),
    }
}

/// Entry `index` of a table.
#[inline]
fn slot(table: u64, index: usize) -> &'static AtomicU64 {
    debug_assert!(index < ENTRIES);
    // SAFETY: `table` is a frame that the tree owns, mapped and used for nothing but entries until it is given back; no
    // reference made here outlives the call that walks the tree. The index lies in the page.
    unsafe { AtomicU64::from_ptr(physical::page(table).cast::<u64>().add(index)) }
}

/// The index for `page` in a table of `level`.
#[inline]
fn index(page: u64, level: u32) -> usize {
    (page >> (9 * (level - 1))) as usize % ENTRIES
}

/// The lowest entry that covers `page`, and its level.
#[inline]
fn find_slot(root: u64, page: u64) -> Option<(&'static AtomicU64, u32)> {
    if page >= SPACE_PAGES {
        return None;
    }
    let (mut table, mut level) = (root, TOP);
    loop {
        let slot = slot(table, index(page, level));
        match Entry::decode(slot.load(Acquire)) {
            Entry::Table(next) if level > 1 => (table, level) = (next, level - 1),
            _ => return Some((slot, level)),
        }
    }
}

/// What covers `page` (never a table), and at which level. Of a large leaf the frame is that of `page`.
#[inline]
pub fn find(root: u64, page: u64) -> (Entry, u32) {
    let Some((slot, level)) = find_slot(root, page) else { return (Entry::Empty, TOP) };
    match Entry::decode(slot.load(Acquire)) {
        Entry::Leaf(leaf) => {
            let frame = leaf.frame + (page & (pages_of(level) - 1));
            (Entry::Leaf(Leaf { frame, ..leaf }), level)
        }
        other => (other, level),
    }
}

/// The frame of `page` if it is memory with all of these rights: what [`find`] would say, in a few instructions.
#[inline]
pub fn find_memory(root: u64, page: u64, wanted: Access) -> Option<u64> {
    if page >= SPACE_PAGES {
        return None;
    }
    // By how much the index lies above the lowest bit: cheaper here than the level.
    let (mut table, mut shift) = (root, 9 * (TOP - 1));
    loop {
        let entry = slot(table, (page >> shift) as usize % ENTRIES).load(Acquire);
        match entry::table_in(entry) {
            Some(_) if shift == 0 => return None,
            Some(next) => (table, shift) = (next, shift - 9),
            None => {
                let within = page & ((1 << shift) - 1);
                return entry::memory_in(entry, wanted).map(|frame| frame + within);
            }
        }
    }
}

/// Puts a leaf of `level` at `page` (aligned to it), in place of what is there.
pub fn place(
    format: Format,
    root: u64,
    page: u64,
    level: u32,
    leaf: Leaf,
    tables: &mut dyn TableSource,
    released: &mut dyn FnMut(Released),
) -> Result<(), OutOfTables> {
    if page >= SPACE_PAGES {
        return Err(OutOfTables);
    }
    let mut table = root;
    for above in (level + 1..=TOP).rev() {
        table = descend(slot(table, index(page, above)), above, tables)?;
    }
    if leaf.owner != Owner::Device {
        reserve(tables_to_split(level), tables)?;
    }
    let old = slot(table, index(page, level)).swap(leaf.encode(format, level), AcqRel);
    free(old, level, tables, released);
    Ok(())
}

/// Sets tables aside; all of them or none.
fn reserve(count: u64, tables: &mut dyn TableSource) -> Result<(), OutOfTables> {
    for done in 0..count {
        if !tables.reserve() {
            (0..done).for_each(|_| tables.unreserve());
            return Err(OutOfTables);
        }
    }
    Ok(())
}

/// The table under an entry of `level` (2 or more), made if there is none.
fn descend(slot: &AtomicU64, level: u32, tables: &mut dyn TableSource) -> Result<u64, OutOfTables> {
    let old = slot.load(Acquire);
    match Entry::decode(old) {
        Entry::Table(table) => Ok(table),
        Entry::Leaf(_) => split(slot, level, tables),
        Entry::Empty | Entry::NoAccess => {
            let table = token::store(tables.take().ok_or(OutOfTables)?);
            if old != EMPTY {
                (0..ENTRIES).for_each(|index| self::slot(table, index).store(old, Release));
            }
            slot.store(entry::table(table), Release);
            Ok(table)
        }
    }
}

/// Splits a leaf of `level` (2 or more) into a table of 512, which keep its accessed and dirty bits.
fn split(slot: &AtomicU64, level: u32, tables: &mut dyn TableSource) -> Result<u64, OutOfTables> {
    let old = slot.load(Acquire);
    let device = matches!(Entry::decode(old), Entry::Leaf(Leaf { owner: Owner::Device, .. }));
    let frame = if device { tables.take() } else { tables.take_reserved() };
    let table = token::store(frame.ok_or(OutOfTables)?);
    let mut current = old;
    loop {
        for part in 0..ENTRIES {
            self::slot(table, part).store(entry::part_of(current, level, part as u64), Release);
        }
        // A processor may have set accessed or dirty bits in between.
        match slot.compare_exchange(current, entry::table(table), AcqRel, Acquire) {
            Ok(_) => return Ok(table),
            Err(found) => current = found,
        }
    }
}

/// Gives back everything that hangs on an entry of `level` which is in the tree no more.
fn free(entry: u64, level: u32, tables: &mut dyn TableSource, released: &mut dyn FnMut(Released)) {
    match Entry::decode(entry) {
        Entry::Empty | Entry::NoAccess => {}
        Entry::Leaf(Leaf { owner: Owner::Device, .. }) => {}
        Entry::Leaf(Leaf { owner: Owner::Frame, frame, .. }) => {
            released(Released::Owned(token::take(frame)));
        }
        Entry::Leaf(Leaf { owner: Owner::Lent, frame, .. }) => {
            (0..tables_to_split(level)).for_each(|_| tables.unreserve());
            released(Released::Lent(token::take_lent(frame, pages_of(level) as u32)));
        }
        Entry::Table(table) => {
            for index in 0..ENTRIES {
                free(slot(table, index).load(Acquire), level - 1, tables, released);
            }
            tables.give(token::take(table));
        }
    }
}

/// Turns `pages` pages from `page` on into `value` ([`EMPTY`] or [`NO_ACCESS`]). Goes on to the end even when a uniform
/// entry at an edge could not be divided for want of tables.
pub fn fill(
    root: u64,
    page: u64,
    pages: u64,
    value: u64,
    tables: &mut dyn TableSource,
    released: &mut dyn FnMut(Released),
) -> Result<(), OutOfTables> {
    debug_assert!(value == EMPTY || value == NO_ACCESS);
    let start = page.min(SPACE_PAGES);
    let end = page.saturating_add(pages).min(SPACE_PAGES);
    let mut fill = Fill { start, end, value, tables, released };
    if start == end { Ok(()) } else { fill.table(root, TOP, 0) }
}

struct Fill<'a> {
    start: u64,
    end: u64,
    value: u64,
    tables: &'a mut dyn TableSource,
    released: &'a mut dyn FnMut(Released),
}

impl Fill<'_> {
    /// Fills what of the range lies in a table of `level` whose first page is `base`.
    fn table(&mut self, table: u64, level: u32, base: u64) -> Result<(), OutOfTables> {
        let size = pages_of(level);
        let first = self.start.saturating_sub(base) / size;
        let last = (self.end - 1 - base).min(size * ENTRIES as u64 - 1) / size;
        let mut result = Ok(());
        for index in first..=last {
            let (slot, page) = (slot(table, index as usize), base + index * size);
            if self.start <= page && page + size <= self.end {
                if slot.load(Acquire) != self.value {
                    free(slot.swap(self.value, AcqRel), level, self.tables, self.released);
                }
            } else {
                result = result.and(self.part(slot, level, page));
            }
        }
        result
    }

    /// Fills part of what an entry of `level` covers from `page` on.
    fn part(&mut self, slot: &AtomicU64, level: u32, page: u64) -> Result<(), OutOfTables> {
        if slot.load(Acquire) == self.value {
            return Ok(());
        }
        let table = descend(slot, level, self.tables)?;
        let result = self.table(table, level - 1, page);
        if self.end >= page + pages_of(level) && self.is_uniform(table) {
            slot.store(self.value, Release);
            self.tables.give(token::take(table));
        }
        result
    }

    fn is_uniform(&self, table: u64) -> bool {
        (0..ENTRIES).all(|index| slot(table, index).load(Acquire) == self.value)
    }
}

/// Empties all tables and gives back all but the top one.
pub fn clear(root: u64, tables: &mut dyn TableSource, released: &mut dyn FnMut(Released)) {
    for index in 0..ENTRIES {
        free(slot(root, index).swap(EMPTY, AcqRel), TOP, tables, released);
    }
}

/// The state of a page, and a change of it.
pub fn page_state(format: Format, root: u64, page: u64, change: PageStateChange) -> PageState {
    let before = update_leaf(root, page, |leaf| Some(format.with_state(leaf, change)));
    before.map_or(PageState::default(), |leaf| format.state(leaf))
}

/// Notes a write to a page that was protected only so that the write is noticed; `false` if it was not.
pub fn note_write(root: u64, page: u64) -> bool {
    update_leaf(root, page, format::written).is_some()
}

/// Changes the leaf that covers `page`, unless `change` says no; gives what it was. Processors may change it meanwhile.
fn update_leaf(root: u64, page: u64, change: impl Fn(u64) -> Option<u64>) -> Option<u64> {
    let (slot, _) = find_slot(root, page)?;
    let is_leaf = |entry: u64| matches!(Entry::decode(entry), Entry::Leaf(_));
    slot.fetch_update(AcqRel, Acquire, |entry| change(entry).filter(|_| is_leaf(entry))).ok()
}

/// Splits all large leaves of memory down to single pages.
pub fn split_all(root: u64, tables: &mut dyn TableSource) -> Result<(), OutOfTables> {
    split_table(root, TOP, tables)
}

fn split_table(table: u64, level: u32, tables: &mut dyn TableSource) -> Result<(), OutOfTables> {
    for index in 0..ENTRIES {
        let slot = slot(table, index);
        let below = match Entry::decode(slot.load(Acquire)) {
            Entry::Table(below) => below,
            Entry::Leaf(leaf) if leaf.owner != Owner::Device => split(slot, level, tables)?,
            _ => continue,
        };
        if level > 2 {
            split_table(below, level - 1, tables)?;
        }
    }
    Ok(())
}
