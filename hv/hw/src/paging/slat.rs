//! A partition's second-level address translation: a tree of four levels of tables with 512 entries, in the
//! vendor's entry format.
//!
//! The tree is also the only record of what is mapped where. Pages come into it as core's tokens, are stored in leaves as
//! numbers, and leave it as tokens when their leaf is cleared. What an entry can be:
//!
//! * *uniform*: all pages under it are empty, or all are without access until the parent supplies them. One word at the
//!   highest level possible; a table all of whose entries became the same uniform value is given back;
//! * a *leaf*: a page, or a large one of 512 or 512 * 512 pages. Every large leaf of memory has the tables set aside that
//!   splitting it down to single pages would take, so taking a page away never fails;
//! * a *table*.
//!
//! Processors walk the tree while it changes: entries are written whole, a table is complete before it is linked, and
//! accessed and dirty bits are changed by atomic operations. Cached translations, those to tables included, are core's
//! to flush before it lets a page or a table that came out of the tree go elsewhere.

mod entry;
mod format;
#[cfg(test)]
mod tests;
mod tree;

use core::sync::atomic::Ordering::SeqCst;

use parterre_core::machine::{
    Access, GpaFault, Mapping, OutOfTables, PageState, PageStateChange, Released, Run, Slat, TableSource,
};
use parterre_core::memory::{Frame, Lent, entry as token};

pub use format::Format;

use crate::physical::{self, PAGE_SIZE};
use entry::{Entry, Leaf, Owner};

/// A stretch of physical memory that the parent has at its own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityRange {
    /// The first page.
    pub first: u64,
    /// How many pages.
    pub pages: u64,
    /// Device registers and unpopulated addresses: the partition may access them, [`Slat::read`] and [`Slat::write`] may
    /// not, and taking them away gives nothing back.
    pub device: bool,
    /// The memory type, where the format has such ([`crate::cpu::mtrr::kind`]).
    pub kind: u8,
}

/// Pages in the address space: 48 bits of address.
pub const SPACE_PAGES: u64 = 1 << 36;

/// A guest-physical address space.
#[derive(Debug)]
pub struct Space {
    root: u64,
    format: Format,
}

impl Space {
    /// An empty address space with the zeroed frame `root` as top table.
    pub fn new(format: Format, root: Frame) -> Self {
        Self { root: token::store(root), format }
    }

    /// The parent's address space: `ranges` mapped onto themselves with all rights, by leaves as large as can be (up to
    /// 1 GiB if `gigabyte_pages`). The ranges do not overlap, and their memory is the parent's own.
    pub fn identity(
        format: Format,
        root: Frame,
        ranges: &[IdentityRange],
        gigabyte_pages: bool,
        tables: &mut dyn TableSource,
    ) -> Result<Self, OutOfTables> {
        let space = Self::new(format, root);
        for range in ranges {
            let format = format.of_type(range.kind);
            let owner = if range.device { Owner::Device } else { Owner::Lent };
            let end = range.first.saturating_add(range.pages).min(SPACE_PAGES);
            let mut page = range.first;
            while page < end {
                let level = largest_level(page, page, end - page, if gigabyte_pages { 3 } else { 2 });
                let leaf = Leaf { frame: page, access: Access::all(), owner };
                tree::place(format, space.root, page, level, leaf, tables, &mut |_| {})?;
                page += tree::pages_of(level);
            }
        }
        Ok(space)
    }

    /// How its entries look.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The number of the top table's frame.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Ends an address space that maps nothing any more ([`Slat::clear_all`]).
    pub fn into_root(self) -> Frame {
        token::take(self.root)
    }

    fn set_lent(
        &mut self,
        page: u64,
        lent: Lent,
        access: Access,
        tables: &mut dyn TableSource,
        released: &mut dyn FnMut(Released),
    ) -> Result<(), OutOfTables> {
        let (mut page, mut rest) = (page, Some(lent));
        while let Some(lent) = rest {
            let (first, pages) = (lent.first(), u64::from(lent.pages()));
            let level = largest_level(page, first, pages, 2);
            let now = tree::pages_of(level) as u32;
            let (piece, remaining) = match lent.split(now) {
                Ok((piece, remaining)) => (piece, Some(remaining)),
                Err(all) => (all, None),
            };
            let leaf = Leaf { frame: first, access, owner: Owner::Lent };
            if let Err(error) = tree::place(self.format, self.root, page, level, leaf, tables, released) {
                released(Released::Lent(piece));
                remaining.into_iter().for_each(|lent| released(Released::Lent(lent)));
                return Err(error);
            }
            token::store_lent(piece);
            page += u64::from(now);
            rest = remaining;
        }
        Ok(())
    }

    fn set_owned(
        &mut self,
        page: u64,
        frame: Frame,
        access: Access,
        tables: &mut dyn TableSource,
        released: &mut dyn FnMut(Released),
    ) -> Result<(), OutOfTables> {
        let leaf = Leaf { frame: frame.number(), access, owner: Owner::Frame };
        match tree::place(self.format, self.root, page, 1, leaf, tables, released) {
            Ok(()) => {
                token::store(frame);
                Ok(())
            }
            Err(error) => {
                released(Released::Owned(frame));
                Err(error)
            }
        }
    }
}

/// The largest level (1: single pages) at which a leaf for `page` and `frame` is aligned, and no longer than `pages`.
fn largest_level(page: u64, frame: u64, pages: u64, highest: u32) -> u32 {
    let fits = |level: &u32| {
        let size = tree::pages_of(*level);
        (page | frame) & (size - 1) == 0 && pages >= size
    };
    (2..=highest).rev().find(fits).unwrap_or(1)
}

/// The word at `gpa` (a multiple of 8) of the memory that the tables below frame `root` map, where it is readable memory.
///
/// # Safety
/// The tables stay what they are meanwhile: the processor that this runs on counts as running in their address space.
pub unsafe fn read_word(root: u64, gpa: u64) -> Option<u64> {
    let frame = tree::find_memory(root, gpa >> 12, Access::READ)?;
    let address = (frame << 12) + (gpa & 0xff8);
    // SAFETY: that is memory of a partition; the address is a multiple of 8.
    Some(unsafe { physical::pointer(address).cast::<u64>().read_volatile() })
}

/// Notes a write to `gpa` below frame `root` that the processor was kept from only so that the write is noticed; `false` if
/// there is another reason. The processor's cached translation of the page is void after it.
///
/// # Safety
/// As for [`read_word`].
pub unsafe fn note_write(root: u64, gpa: u64) -> bool {
    tree::note_write(root, gpa >> 12)
}

impl Slat for Space {
    /// As the trait says; a run that could not be placed for want of tables comes back through `released`.
    fn set(
        &mut self,
        page: u64,
        pages: u64,
        run: Run,
        tables: &mut dyn TableSource,
        released: &mut dyn FnMut(Released),
    ) -> Result<(), OutOfTables> {
        match run {
            Run::Empty => tree::fill(self.root, page, pages, entry::EMPTY, tables, released),
            Run::NoAccess => tree::fill(self.root, page, pages, entry::NO_ACCESS, tables, released),
            Run::Lent(lent, access) => self.set_lent(page, lent, access, tables, released),
            Run::Owned(frame, access) => self.set_owned(page, frame, access, tables, released),
        }
    }

    fn clear_all(&mut self, tables: &mut dyn TableSource, released: &mut dyn FnMut(Released)) {
        tree::clear(self.root, tables, released);
    }

    fn get(&self, page: u64) -> Mapping {
        match tree::find(self.root, page) {
            (Entry::Leaf(leaf), level) => {
                Mapping::Memory { frame: leaf.frame, access: leaf.access, large: level > 1 }
            }
            (Entry::NoAccess, _) => Mapping::NoAccess,
            (Entry::Empty | Entry::Table(_), _) => Mapping::Empty,
        }
    }

    #[inline]
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault> {
        if !is_within_page(gpa, bytes.len()) {
            return self.read_across(gpa, bytes);
        }
        let (address, _) = self.accessible(gpa, 0, bytes.len(), Access::READ)?;
        // SAFETY: `accessible` found memory that belongs to the partition, and the bytes do not leave its page.
        unsafe { physical::read(address, bytes) };
        Ok(())
    }

    #[inline]
    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), GpaFault> {
        if !is_within_page(gpa, bytes.len()) {
            return self.write_across(gpa, bytes);
        }
        let (address, _) = self.accessible(gpa, 0, bytes.len(), Access::WRITE)?;
        // SAFETY: as in `read`.
        unsafe { physical::write(address, bytes) };
        Ok(())
    }

    fn compare_exchange(&self, gpa: u64, current: u64, new: u64) -> Result<u64, GpaFault> {
        let (address, _) = self.accessible(gpa, 0, 8, Access::WRITE)?;
        // SAFETY: as in `read`; `physical::read` and `write` are volatile.
        let word = unsafe { physical::atomic64(address) }.ok_or(GpaFault(gpa))?;
        Ok(word.compare_exchange(current, new, SeqCst, SeqCst).unwrap_or_else(|found| found))
    }

    fn page_state(&mut self, page: u64, change: PageStateChange) -> PageState {
        tree::page_state(self.format, self.root, page, change)
    }

    fn split_all(&mut self, tables: &mut dyn TableSource) -> Result<(), OutOfTables> {
        tree::split_all(self.root, tables)
    }
}

/// Whether there is something to copy at `gpa`, and it does not cross the end of a page.
#[inline]
fn is_within_page(gpa: u64, length: usize) -> bool {
    length.wrapping_sub(1) < PAGE_SIZE - gpa as usize % PAGE_SIZE
}

impl Space {
    #[cold]
    fn read_across(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault> {
        let mut done = 0;
        while done < bytes.len() {
            let (address, length) = self.accessible(gpa, done, bytes.len(), Access::READ)?;
            // SAFETY: `accessible` found memory of that length that belongs to the partition.
            unsafe { physical::read(address, &mut bytes[done..done + length]) };
            done += length;
        }
        Ok(())
    }

    #[cold]
    fn write_across(&self, gpa: u64, bytes: &[u8]) -> Result<(), GpaFault> {
        let mut done = 0;
        while done < bytes.len() {
            let (address, length) = self.accessible(gpa, done, bytes.len(), Access::WRITE)?;
            // SAFETY: as in `read_across`.
            unsafe { physical::write(address, &bytes[done..done + length]) };
            done += length;
        }
        Ok(())
    }

    /// Where byte `done` of an access of `length` bytes at `gpa` is in memory, and how many of the rest lie in that page.
    #[inline]
    fn accessible(
        &self,
        gpa: u64,
        done: usize,
        length: usize,
        wanted: Access,
    ) -> Result<(u64, usize), GpaFault> {
        let gpa = gpa.checked_add(done as u64).ok_or(GpaFault(gpa))?;
        let frame = tree::find_memory(self.root, gpa >> 12, wanted).ok_or(GpaFault(gpa))?;
        let offset = gpa as usize % PAGE_SIZE;
        Ok(((frame << 12) + offset as u64, (PAGE_SIZE - offset).min(length - done)))
    }
}
