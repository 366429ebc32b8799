//! A machine put together: processors, memory with its owners, and the parent's address space.
//!
//! ```text
//!   0            16          ram                                        end
//!   ├── absent ──┼── parent ──┼ hypervisor │ special │ boot │ reserve ──┤  absent
//! ```

use std::{boxed::Box, sync::Arc, sync::atomic::AtomicU64, vec, vec::Vec};

use super::lock::Lock;
use super::platform::{FakeMachine, Inner, VCPU_FRAMES};
use super::processor::Local;
use super::slat::FakeSlat;
use super::vcpu::FakeVcpu;
use crate::machine::{Access, Run, Slat};
use crate::memory::{OwnershipTable, PageKind, PageRange, ParentSpace, Pool, ReserveTables, entry};

/// Pages at the beginning that are no RAM.
pub(super) const ABSENT: u64 = 16;
const HYPERVISOR: u64 = 16;
const SPECIAL: u64 = 64;

/// What a machine shall be like.
#[derive(Clone, Debug)]
pub struct Builder {
    processors: usize,
    ram: u64,
    boot: u64,
    reserve: Option<u64>,
    tsc_frequency: u64,
    apic_frequency: u64,
}

/// A machine with what the machine layer hands to core at boot.
pub struct Board {
    /// The machine.
    pub machine: FakeMachine,
    /// Whose every page is.
    pub table: OwnershipTable,
    /// The parent's address space.
    pub parent: ParentSpace<FakeMachine>,
    /// The first page that is not the parent's RAM.
    pub ram: u64,
}

impl FakeMachine {
    /// A machine with one processor, 16 MiB of RAM, a time stamp counter of 1 GHz and an APIC timer of 100 MHz.
    pub fn builder() -> Builder {
        Builder {
            processors: 1,
            ram: 4096,
            boot: 256,
            reserve: None,
            tsc_frequency: 1_000_000_000,
            apic_frequency: 100_000_000,
        }
    }
}

impl Builder {
    /// How many processors there are. Their APIC ids are twice their indices.
    pub fn processors(mut self, processors: usize) -> Self {
        self.processors = processors;
        self
    }

    /// How many pages of RAM there are before the hypervisor's; rounded up to large pages.
    pub fn ram(mut self, pages: u64) -> Self {
        self.ram = pages.next_multiple_of(512);
        self
    }

    /// How many pages are set aside for the hypervisor's own objects.
    pub fn boot(mut self, pages: u64) -> Self {
        self.boot = pages;
        self
    }

    /// How many tables there are for splitting the parent's entries; enough for all, if this is not said.
    pub fn reserve(mut self, pages: u64) -> Self {
        self.reserve = Some(pages);
        self
    }

    /// Ticks of the time stamp counter and of the undivided APIC timer per second.
    pub fn frequencies(mut self, tsc: u64, apic: u64) -> Self {
        (self.tsc_frequency, self.apic_frequency) = (tsc, apic);
        self
    }

    /// Puts the machine together. Its ownership table lives until the end of the program.
    pub fn build(self) -> Board {
        let locals = (0..self.processors)
            .map(|index| Arc::new(Local { apic_id: 2 * index as u32, ..Local::default() }));
        let machine = FakeMachine(Arc::new(Inner {
            locals: locals.collect(),
            tsc_frequency: self.tsc_frequency,
            apic_frequency: self.apic_frequency,
            scripts: Lock::default(),
            ..Inner::default()
        }));
        let special = self.ram + HYPERVISOR;
        let boot = special + SPECIAL;
        let first_reserve = boot + self.boot;
        let reserve = self.reserve.unwrap_or(self.ram / 512 + 8);
        let range = |first, pages, kind| PageRange { first, pages, kind };
        let ranges = [
            range(0, ABSENT, PageKind::Absent),
            range(ABSENT, self.ram - ABSENT, PageKind::Parent),
            range(self.ram, HYPERVISOR, PageKind::Hypervisor),
            range(special, SPECIAL, PageKind::Special),
            range(boot, self.boot, PageKind::Boot),
            range(first_reserve, reserve, PageKind::Reserve),
        ];
        let entries: Vec<AtomicU64> = (0..first_reserve + reserve).map(|_| AtomicU64::new(0)).collect();
        let table = OwnershipTable::new(Box::leak(entries.into_boxed_slice()), &ranges);
        let mut pool = Pool::of_reserve(&table, first_reserve, reserve);
        let slat = identity(&machine, &table, &mut pool, self.ram);
        Board { machine, table, parent: ParentSpace::new(slat, pool), ram: self.ram }
    }
}

/// The parent's address space as it is at boot: all RAM, what is absent below it, nothing of the hypervisor's.
fn identity(machine: &FakeMachine, table: &OwnershipTable, pool: &mut Pool, ram: u64) -> FakeSlat {
    let mut slat = FakeSlat::new(machine.0.memory.clone(), None);
    let mut tables = ReserveTables { table, pool, machine };
    for first in (0..ram).step_by(512) {
        let run = Run::Lent(entry::take_lent(first, 512), Access::all());
        slat.set(first, 512, run, &mut tables, &mut |_| ()).expect("the reserve needs no counting");
    }
    slat
}

impl Board {
    /// A virtual processor of the parent, from pages set aside at boot.
    pub fn parent_vcpu(&self) -> FakeVcpu {
        let frames =
            core::array::from_fn(|index| (index < VCPU_FRAMES).then(|| self.table.take_boot()).flatten());
        FakeVcpu::new(frames, &self.machine, self.parent.slat(), true)
    }

    /// `count` pages of the parent's, from its last one down.
    pub fn parent_pages(&self, count: u64) -> Vec<u64> {
        let mut pages: Vec<u64> = vec![];
        pages.extend((ABSENT..self.ram).rev().take(count as usize));
        pages
    }
}
