//! Second-level address translation as a plain model: a map from 2 MiB regions to what they hold.
//!
//! A region is empty, held as no access, one large entry (with one table set aside), or a table of 512 entries, which
//! takes one frame. Upper levels take none.

use std::{boxed::Box, collections::BTreeMap, sync::Arc, vec::Vec};

use super::lock::Lock;
use super::memory::{FakeMemory, PAGE};
use crate::machine::{
    Access, GpaFault, Mapping, OutOfTables, PageState, PageStateChange, Released, Run, Slat, TableSource,
};
use crate::memory::{Frame, Lent};

const PAGES: u64 = 512;

/// One mapped page, or the 512 of a large entry.
#[derive(Debug)]
struct Leaf {
    token: Token,
    access: Access,
    state: PageState,
}

#[derive(Debug)]
enum Token {
    Lent(Lent),
    Owned(Frame),
}

impl Leaf {
    fn frame(&self) -> u64 {
        match &self.token {
            Token::Lent(lent) => lent.first(),
            Token::Owned(frame) => frame.number(),
        }
    }

    fn release(self, released: &mut dyn FnMut(Released)) {
        released(match self.token {
            Token::Lent(lent) => Released::Lent(lent),
            Token::Owned(frame) => Released::Owned(frame),
        });
    }
}

#[derive(Debug)]
enum Entry {
    Empty,
    NoAccess,
    Leaf(Leaf),
}

impl Entry {
    fn release(self, released: &mut dyn FnMut(Released)) {
        if let Self::Leaf(leaf) = self {
            leaf.release(released);
        }
    }
}

#[derive(Debug)]
enum Region {
    NoAccess,
    Large(Leaf),
    Table(Frame, Box<[Entry; PAGES as usize]>),
}

#[derive(Debug, Default)]
struct Regions(BTreeMap<u64, Region>);

impl Regions {
    /// Makes region `index` a table, filled with what the region was.
    fn split(
        &mut self,
        index: u64,
        tables: &mut dyn TableSource,
    ) -> Result<&mut [Entry; PAGES as usize], OutOfTables> {
        let frame = match self.0.get(&index) {
            Some(Region::Table(..)) => None,
            Some(Region::Large(_)) => Some(tables.take_reserved().ok_or(OutOfTables)?),
            Some(Region::NoAccess) | None => Some(tables.take().ok_or(OutOfTables)?),
        };
        if let Some(frame) = frame {
            let entries: Vec<Entry> = match self.0.remove(&index) {
                Some(Region::Large(leaf)) => small_leaves(leaf).map(Entry::Leaf).collect(),
                Some(Region::NoAccess) => (0..PAGES).map(|_| Entry::NoAccess).collect(),
                _ => (0..PAGES).map(|_| Entry::Empty).collect(),
            };
            let entries = entries.try_into().expect("a table has 512 entries");
            self.0.insert(index, Region::Table(frame, entries));
        }
        match self.0.get_mut(&index) {
            Some(Region::Table(_, entries)) => Ok(entries),
            _ => unreachable!("the region has just been split"),
        }
    }

    /// Removes whatever region `index` holds.
    fn clear(&mut self, index: u64, tables: &mut dyn TableSource, released: &mut dyn FnMut(Released)) {
        match self.0.remove(&index) {
            None | Some(Region::NoAccess) => (),
            Some(Region::Large(leaf)) => {
                leaf.release(released);
                tables.unreserve();
            }
            Some(Region::Table(frame, entries)) => {
                entries.into_iter().for_each(|entry| entry.release(released));
                tables.give(frame);
            }
        }
    }

    /// Makes region `index` empty or no access as a whole.
    fn replace(
        &mut self,
        index: u64,
        no_access: bool,
        tables: &mut dyn TableSource,
        released: &mut dyn FnMut(Released),
    ) {
        self.clear(index, tables, released);
        if no_access {
            self.0.insert(index, Region::NoAccess);
        }
    }

    /// Takes a table away that says nothing which the region could not say without.
    fn collapse(&mut self, index: u64, tables: &mut dyn TableSource) {
        let Some(Region::Table(_, entries)) = self.0.get(&index) else { return };
        let empty = entries.iter().all(|entry| matches!(entry, Entry::Empty));
        let no_access = entries.iter().all(|entry| matches!(entry, Entry::NoAccess));
        if empty || no_access {
            self.replace(index, no_access, tables, &mut |_| ());
        }
    }

    /// Takes memory away from the pages `start..end` of region `index`.
    fn vacate(
        &mut self,
        index: u64,
        pages: core::ops::Range<usize>,
        no_access: bool,
        tables: &mut dyn TableSource,
        released: &mut dyn FnMut(Released),
    ) -> Result<(), OutOfTables> {
        match self.0.get(&index) {
            None if !no_access => return Ok(()),
            Some(Region::NoAccess) if no_access => return Ok(()),
            Some(Region::Table(..)) => (),
            _ if pages.len() == PAGES as usize => {
                self.replace(index, no_access, tables, released);
                return Ok(());
            }
            _ => (),
        }
        let entries = self.split(index, tables)?;
        for entry in &mut entries[pages] {
            let new = if no_access { Entry::NoAccess } else { Entry::Empty };
            core::mem::replace(entry, new).release(released);
        }
        self.collapse(index, tables);
        Ok(())
    }

    fn state_mut(&mut self, page: u64) -> Option<&mut PageState> {
        match self.0.get_mut(&(page / PAGES))? {
            Region::Large(leaf) => Some(&mut leaf.state),
            Region::Table(_, entries) => match &mut entries[(page % PAGES) as usize] {
                Entry::Leaf(leaf) => Some(&mut leaf.state),
                Entry::NoAccess | Entry::Empty => None,
            },
            Region::NoAccess => None,
        }
    }

    fn get(&self, page: u64) -> Mapping {
        match self.0.get(&(page / PAGES)) {
            None => Mapping::Empty,
            Some(Region::NoAccess) => Mapping::NoAccess,
            Some(Region::Large(leaf)) => {
                Mapping::Memory { frame: leaf.frame() + page % PAGES, access: leaf.access, large: true }
            }
            Some(Region::Table(_, entries)) => match &entries[(page % PAGES) as usize] {
                Entry::Empty => Mapping::Empty,
                Entry::NoAccess => Mapping::NoAccess,
                Entry::Leaf(leaf) => {
                    Mapping::Memory { frame: leaf.frame(), access: leaf.access, large: false }
                }
            },
        }
    }
}

fn small_leaves(leaf: Leaf) -> impl Iterator<Item = Leaf> {
    let Leaf { token: Token::Lent(mut lent), access, state } = leaf else {
        unreachable!("a large leaf maps lent memory");
    };
    let mut pages = Vec::new();
    loop {
        match lent.split(1) {
            Ok((one, rest)) => {
                pages.push(one);
                lent = rest;
            }
            Err(last) => {
                pages.push(last);
                break;
            }
        }
    }
    pages.into_iter().map(move |lent| Leaf { token: Token::Lent(lent), access, state })
}

/// What an address space and the virtual processors in it look at.
#[derive(Debug)]
pub(super) struct Space {
    regions: Lock<Regions>,
    memory: Arc<FakeMemory>,
}

impl Space {
    /// Calls `action` with frame, offset and part of `bytes` for each page that `gpa..gpa + length` touches, after
    /// checking all of them.
    fn access(
        &self,
        gpa: u64,
        length: usize,
        access: Access,
        mut action: impl FnMut(u64, usize, core::ops::Range<usize>),
    ) -> Result<(), GpaFault> {
        let mut regions = self.regions.get();
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < length {
            let address = gpa.checked_add(done as u64).ok_or(GpaFault(gpa))?;
            let offset = address as usize % PAGE;
            let count = (PAGE - offset).min(length - done);
            match regions.get(address / PAGE as u64) {
                Mapping::Memory { frame, access: allowed, .. } if allowed.contains(access) => {
                    pieces.push((frame, offset, done..done + count));
                }
                _ => return Err(GpaFault(address)),
            }
            done += count;
        }
        for (frame, offset, part) in pieces {
            let page = (gpa + part.start as u64) / PAGE as u64;
            if let Some(state) = regions.state_mut(page) {
                state.accessed = true;
                state.dirty |= access.contains(Access::WRITE);
            }
            action(frame, offset, part);
        }
        Ok(())
    }

    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault> {
        self.access(gpa, bytes.len(), Access::READ, |frame, offset, part| {
            self.memory.read(frame, offset, &mut bytes[part]);
        })
    }

    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), GpaFault> {
        self.access(gpa, bytes.len(), Access::WRITE, |frame, offset, part| {
            self.memory.write(frame, offset, &bytes[part]);
        })
    }
}

/// An address space.
#[derive(Debug)]
pub struct FakeSlat {
    pub(super) space: Arc<Space>,
    root: Option<Frame>,
}

impl FakeSlat {
    /// An empty address space; `root` stands for its top table.
    pub(super) fn new(memory: Arc<FakeMemory>, root: Option<Frame>) -> Self {
        Self { space: Arc::new(Space { regions: Lock::default(), memory }), root }
    }

    pub(super) fn into_root(self) -> Option<Frame> {
        assert!(self.space.regions.get().0.is_empty(), "an address space ended with something mapped");
        self.root
    }

    /// How many frames are in use as tables, and how many are set aside.
    pub fn tables(&self) -> (u64, u64) {
        let regions = self.space.regions.get();
        let count =
            |kind: fn(&Region) -> bool| regions.0.values().filter(|region| kind(region)).count() as u64;
        (
            count(|region| matches!(region, Region::Table(..))),
            count(|region| matches!(region, Region::Large(_))),
        )
    }

    /// All frames that are mapped, each as often as it is, with its rights.
    pub fn mapped(&self) -> Vec<(u64, u64, Access)> {
        let regions = self.space.regions.get();
        let pages = regions.0.keys().flat_map(|index| index * PAGES..(index + 1) * PAGES);
        pages
            .filter_map(|page| match regions.get(page) {
                Mapping::Memory { frame, access, .. } => Some((page, frame, access)),
                _ => None,
            })
            .collect()
    }
}

impl Slat for FakeSlat {
    fn set(
        &mut self,
        page: u64,
        pages: u64,
        run: Run,
        tables: &mut dyn TableSource,
        released: &mut dyn FnMut(Released),
    ) -> Result<(), OutOfTables> {
        let mut regions = self.space.regions.get();
        let (token, access) = match run {
            Run::Empty | Run::NoAccess => {
                let (mut page, end) = (page, page + pages);
                while page < end {
                    let stop = end.min((page / PAGES + 1) * PAGES);
                    let first = (page % PAGES) as usize;
                    let within = first..first + (stop - page) as usize;
                    let no_access = matches!(run, Run::NoAccess);
                    regions.vacate(page / PAGES, within, no_access, tables, released)?;
                    page = stop;
                }
                return Ok(());
            }
            Run::Lent(lent, access) => {
                assert_eq!(pages, u64::from(lent.pages()), "a lent run has its own length");
                (Token::Lent(lent), access)
            }
            Run::Owned(frame, access) => {
                assert_eq!(pages, 1, "an owned run is one page");
                (Token::Owned(frame), access)
            }
        };
        let leaf = Leaf { token, access, state: PageState::default() };
        if pages == PAGES {
            assert!(
                page.is_multiple_of(PAGES) && leaf.frame().is_multiple_of(PAGES),
                "a large entry is aligned"
            );
            if !tables.reserve() {
                leaf.release(released);
                return Err(OutOfTables);
            }
            regions.clear(page / PAGES, tables, released);
            regions.0.insert(page / PAGES, Region::Large(leaf));
            return Ok(());
        }
        assert_eq!(pages, 1, "memory is mapped by pages or by large pages");
        match regions.split(page / PAGES, tables) {
            Ok(entries) => {
                let old = core::mem::replace(&mut entries[(page % PAGES) as usize], Entry::Leaf(leaf));
                old.release(released);
                Ok(())
            }
            Err(OutOfTables) => {
                leaf.release(released);
                Err(OutOfTables)
            }
        }
    }

    fn clear_all(&mut self, tables: &mut dyn TableSource, released: &mut dyn FnMut(Released)) {
        let mut regions = self.space.regions.get();
        while let Some(index) = regions.0.keys().next().copied() {
            regions.clear(index, tables, released);
        }
    }

    fn get(&self, page: u64) -> Mapping {
        self.space.regions.get().get(page)
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault> {
        self.space.read(gpa, bytes)
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), GpaFault> {
        self.space.write(gpa, bytes)
    }

    fn compare_exchange(&self, gpa: u64, current: u64, new: u64) -> Result<u64, GpaFault> {
        assert!(gpa.is_multiple_of(8), "a compare-exchange is aligned");
        let mut before = 0;
        self.space.access(gpa, 8, Access::READ | Access::WRITE, |frame, offset, _| {
            let was =
                self.space.memory.compare_exchange(frame, offset, &current.to_le_bytes(), &new.to_le_bytes());
            before = u64::from_le_bytes(was.try_into().expect("eight bytes"));
        })?;
        Ok(before)
    }

    fn page_state(&mut self, page: u64, change: PageStateChange) -> PageState {
        let mut regions = self.space.regions.get();
        let Some(state) = regions.state_mut(page) else { return PageState::default() };
        let before = *state;
        state.accessed = change.accessed.unwrap_or(before.accessed);
        state.dirty = change.dirty.unwrap_or(before.dirty);
        before
    }

    fn split_all(&mut self, tables: &mut dyn TableSource) -> Result<(), OutOfTables> {
        let mut regions = self.space.regions.get();
        let large: Vec<u64> = regions
            .0
            .iter()
            .filter(|(_, region)| matches!(region, Region::Large(_)))
            .map(|(index, _)| *index)
            .collect();
        large.into_iter().try_for_each(|index| regions.split(index, tables).map(|_| ()))
    }
}
