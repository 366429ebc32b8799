//! The parent's address space: the identity, less what it has deposited, plus the hypervisor's pages that it is shown.
//!
//! The machine layer builds it at boot in the largest entries there are. What is taken out later splits entries with
//! tables of the boot reserve, and what comes back joins them again.

use core::sync::atomic::{AtomicU64, Ordering};

use super::frame::{Frame, Lent, Visible};
use super::ownership::{OwnershipTable, PageOwner};
use super::pool::{Pool, ReserveTables};
use crate::machine::{Access, GpaFault, Machine, Mapping, OutOfTables, Released, Run, Slat};

/// Pages of a large entry.
const LARGE: u64 = 512;

/// The parent's address space.
pub struct ParentSpace<M: Machine> {
    slat: M::Slat,
    reserve: Pool,
    /// Goes up whenever the parent lost access to something; see [`AddressSpace`](super::AddressSpace).
    pub generation: AtomicU64,
}

impl<M: Machine> ParentSpace<M> {
    /// Takes over the identity map that the machine layer built: everything the table calls the parent's, and what is
    /// absent from it, is mapped; nothing of the hypervisor's is. `reserve` holds a table for each large entry.
    pub fn new(slat: M::Slat, reserve: Pool) -> Self {
        Self { slat, reserve, generation: AtomicU64::new(0) }
    }

    /// The translation itself, to run virtual processors in.
    pub fn slat(&self) -> &M::Slat {
        &self.slat
    }

    /// The boot reserve, for its numbers.
    pub fn reserve(&self) -> &Pool {
        &self.reserve
    }

    /// See [`Pool::mark`].
    pub fn mark(&self) -> u64 {
        self.reserve.mark()
    }

    /// See [`Pool::settle`].
    pub fn settle(&mut self, table: &OwnershipTable, mark: u64) {
        self.reserve.settle(table, mark);
    }

    /// What `page` is for the parent.
    pub fn get(&self, page: u64) -> Mapping {
        self.slat.get(page)
    }

    /// Copies bytes of the parent's memory, as it sees it. Faults where there is no RAM: the hypervisor does not touch
    /// device registers on the parent's behalf.
    pub fn read(&self, table: &OwnershipTable, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault> {
        only_ram(table, gpa, bytes.len())?;
        self.slat.read(gpa, bytes)
    }

    /// Copies bytes into the parent's memory, where [`ParentSpace::read`] would read.
    pub fn write(&self, table: &OwnershipTable, gpa: u64, bytes: &[u8]) -> Result<(), GpaFault> {
        only_ram(table, gpa, bytes.len())?;
        self.slat.write(gpa, bytes)
    }

    /// Atomically replaces the aligned 64-bit word at `gpa` if it is `current`; gives what was there.
    pub fn compare_exchange(
        &self,
        table: &OwnershipTable,
        gpa: u64,
        current: u64,
        new: u64,
    ) -> Result<u64, GpaFault> {
        only_ram(table, gpa, 8)?;
        self.slat.compare_exchange(gpa, current, new)
    }

    /// Shows the parent a page of the hypervisor, at its own address. It can be given back to its pool only after
    /// [`ParentSpace::unshare`].
    pub fn share(
        &mut self,
        machine: &M,
        table: &OwnershipTable,
        shown: &Visible,
        access: Access,
    ) -> Result<(), OutOfTables> {
        let page = shown.number();
        if self.is_shared(page) {
            return Ok(());
        }
        if !table.share(shown) {
            return Err(OutOfTables);
        }
        let result = self.set(machine, table, page, 1, Run::Owned(Frame::mint(page), access));
        if result.is_err() {
            table.unshare(page);
        }
        result
    }

    /// Takes a page of the hypervisor out of the parent's sight. Flush before it is used for anything else.
    pub fn unshare(&mut self, machine: &M, table: &OwnershipTable, shown: &Visible) {
        let page = shown.number();
        if self.is_shared(page) && self.set(machine, table, page, 1, Run::Empty).is_ok() {
            table.unshare(page);
            self.bump();
        }
    }

    /// Whether the parent sees the page of the hypervisor with number `page`. What is mapped at a page that the table
    /// does not call the parent's or absent can only be a shared one.
    fn is_shared(&self, page: u64) -> bool {
        self.slat.get(page) != Mapping::Empty
    }

    /// Takes a claimed page out of the parent's sight.
    pub(super) fn hide(&mut self, machine: &M, table: &OwnershipTable, page: u64) -> Result<(), OutOfTables> {
        self.set(machine, table, page, 1, Run::Empty)?;
        self.bump();
        Ok(())
    }

    /// Maps a page that is the parent's again, or is about to be.
    pub(super) fn show(&mut self, machine: &M, table: &OwnershipTable, page: u64) -> Result<(), OutOfTables> {
        self.set(machine, table, page, 1, Run::Lent(Lent::mint(page, 1), Access::all()))
    }

    /// Joins the small entries around `page` into a large one, if all of its pages are the parent's. Nothing
    /// depends on it, so it cannot fail.
    pub(super) fn join(&mut self, machine: &M, table: &OwnershipTable, page: u64) {
        let first = page & !(LARGE - 1);
        let whole = (first..first + LARGE).all(|page| matches!(table.owner(page), PageOwner::Parent { .. }));
        if whole && !matches!(self.slat.get(page), Mapping::Memory { large: true, .. }) {
            let run = Run::Lent(Lent::mint(first, LARGE as u32), Access::all());
            let _ = self.set(machine, table, first, LARGE, run);
        }
    }

    /// Changes the translation. What it releases are the parent's own pages, which no loan was counted for, and
    /// aliases, which the callers count.
    fn set(
        &mut self,
        machine: &M,
        table: &OwnershipTable,
        page: u64,
        pages: u64,
        run: Run,
    ) -> Result<(), OutOfTables> {
        let mut tables = ReserveTables { table, pool: &mut self.reserve, machine };
        let mut released = |_: Released| ();
        self.slat.set(page, pages, run, &mut tables, &mut released)
    }

    fn bump(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// Faults at the first page of the range that is no RAM.
#[inline]
fn only_ram(table: &OwnershipTable, gpa: u64, length: usize) -> Result<(), GpaFault> {
    let last = gpa.checked_add((length as u64).saturating_sub(1)).ok_or(GpaFault(gpa))?;
    if gpa >> 12 == last >> 12 {
        return if table.is_ram(gpa >> 12) { Ok(()) } else { Err(GpaFault(gpa)) };
    }
    only_ram_across(table, gpa, last)
}

#[cold]
fn only_ram_across(table: &OwnershipTable, gpa: u64, last: u64) -> Result<(), GpaFault> {
    match (gpa >> 12..=last >> 12).find(|&page| !table.is_ram(page)) {
        Some(page) => Err(GpaFault(gpa.max(page << 12))),
        None => Ok(()),
    }
}
