//! The value that holds everything the hypervisor knows: the machine, whose every page is, the parent, its processors
//! and the children.
//!
//! There is one, made at boot and never moved. What grows with a partition lies in pages that were deposited for it; what
//! stands here has its size from the number of processors and partitions that the machine was started with.

use crate::{
    child::Child,
    hypercall::{DeviceInterrupt, DeviceInterrupts, Port, Ports},
    machine::Machine,
    memory::{Owner, OwnershipTable, ParentSpace, Pool, Visible},
    parent::{LogicalProcessor, ParentPartition, ParentStats, StatsPlace, SynicPages},
    time::Clock,
};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use parterre_abi::{
    status::{HvResult, HvStatus},
    types::PartitionId,
};
use spin::{Mutex, RwLock, RwLockReadGuard};

/// The parent's partition id.
pub(crate) const PARENT_ID: PartitionId = PartitionId(1);
/// Low bits of a child's id: its slot. The rest counts upwards, so that ids are not soon used again.
const SLOT_BITS: u32 = 12;
/// The most children that can exist at a time.
pub const MAX_CHILDREN: usize = (1 << SLOT_BITS) - 1;
/// The parent's place in the ownership table; children have their slot plus one.
pub(crate) const PARENT_OWNER: Owner = Owner(0);

/// Room for one child.
pub struct Slot<M: Machine>(pub(crate) RwLock<Option<M::Page<Child<M>>>>);

impl<M: Machine> Slot<M> {
    /// An empty slot.
    pub const fn new() -> Self {
        Self(RwLock::new(None))
    }
}

impl<M: Machine> Default for Slot<M> {
    fn default() -> Self {
        Self::new()
    }
}

/// What the machine layer supplies at boot.
pub struct Config<M: Machine> {
    /// The machine.
    pub machine: M,
    /// Whose every page is.
    pub table: OwnershipTable,
    /// The parent's address space, complete.
    pub parent_space: ParentSpace<M>,
    /// The page that the parent's hypercall page register names.
    pub hypercall_page: Visible,
    /// The page that the parent's reference TSC register names.
    pub reference_tsc_page: Visible,
    /// One for each processor, in order ([`LogicalProcessor::new`]).
    pub processors: &'static [LogicalProcessor<M>],
    /// As many slots as there shall be children at most, up to [`MAX_CHILDREN`].
    pub slots: &'static [Slot<M>],
    /// Places for the interrupts of the parent's devices, all `None`.
    pub device_interrupts: &'static mut [Option<DeviceInterrupt>],
    /// Places for the parent's ports, all `None`.
    pub ports: &'static mut [Option<Port>],
    /// Places for statistics pages, all `None`: one for the hypervisor and the parent each, two for each processor.
    pub stats: &'static mut [Option<StatsPlace>],
}

/// See the module.
pub struct Hypervisor<M: Machine> {
    /// The machine.
    pub machine: M,
    pub(crate) table: OwnershipTable,
    pub(crate) parent: ParentPartition<M>,
    pub(crate) processors: &'static [LogicalProcessor<M>],
    pub(crate) slots: &'static [Slot<M>],
    pub(crate) interrupts: Mutex<DeviceInterrupts>,
    pub(crate) ports: Mutex<Ports>,
    next_serial: AtomicU64,
}

/// A child that stays while this exists.
pub(crate) struct ChildRef<'a, M: Machine>(RwLockReadGuard<'a, Option<M::Page<Child<M>>>>);

impl<M: Machine> core::ops::Deref for ChildRef<'_, M> {
    type Target = Child<M>;

    fn deref(&self) -> &Child<M> {
        match &*self.0 {
            Some(child) => child,
            // `Hypervisor::child_in` makes no reference to an empty slot, and the guard keeps it as it is.
            None => unreachable!("a reference to an empty slot"),
        }
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Puts the hypervisor together.
    pub fn new(config: Config<M>) -> Self {
        let clock = Clock::physical(config.machine.tsc_frequency(), config.machine.tsc());
        let parent = ParentPartition::new(
            &config.machine,
            config.parent_space,
            config.hypercall_page,
            config.reference_tsc_page,
            clock,
            ParentStats(config.stats),
        );
        Self {
            table: config.table,
            parent,
            processors: config.processors,
            slots: config.slots,
            interrupts: Mutex::new(DeviceInterrupts(config.device_interrupts)),
            ports: Mutex::new(Ports(config.ports)),
            next_serial: AtomicU64::new(1),
            machine: config.machine,
        }
    }

    /// The child with this id.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARTITION_ID`]: there is none.
    pub(crate) fn child(&self, id: PartitionId) -> HvResult<ChildRef<'_, M>> {
        let slot = slot_of(id).ok_or(HvStatus::INVALID_PARTITION_ID)?;
        let child = self.child_in(slot).ok_or(HvStatus::INVALID_PARTITION_ID)?;
        if child.id == id { Ok(child) } else { Err(HvStatus::INVALID_PARTITION_ID) }
    }

    /// The child in this slot.
    pub(crate) fn child_in(&self, slot: u16) -> Option<ChildRef<'_, M>> {
        let guard = self.slots.get(usize::from(slot))?.0.read();
        guard.is_some().then_some(ChildRef(guard))
    }

    /// All children there are.
    pub(crate) fn children(&self) -> impl Iterator<Item = ChildRef<'_, M>> {
        (0..self.slots.len() as u16).filter_map(|slot| self.child_in(slot))
    }

    /// An id for a child in `slot` that was not in use before.
    pub(crate) fn new_id(&self, slot: u16) -> PartitionId {
        let serial = self.next_serial.fetch_add(1, SeqCst);
        PartitionId(serial << SLOT_BITS | (u64::from(slot) + 1))
    }

    /// Whether `id` names the parent.
    pub(crate) fn is_parent(id: PartitionId) -> bool {
        id == PARENT_ID || id == PartitionId::SELF
    }

    /// The processor that runs the parent's virtual processor `vp`.
    pub(crate) fn processor_of_vp(&self, vp: u32) -> Option<&'static LogicalProcessor<M>> {
        self.processors.iter().find(|lp| lp.vp_index() == Some(vp))
    }

    /// Runs `action` on the pool of deposited memory of a partition.
    pub(crate) fn with_pool<T>(
        &self,
        id: PartitionId,
        action: impl FnOnce(&mut Pool) -> HvResult<T>,
    ) -> HvResult<T> {
        if Self::is_parent(id) {
            return action(&mut self.parent.pool.lock());
        }
        action(&mut self.child(id)?.pool.lock())
    }

    /// Makes pages that a partition's pool got back usable again: nobody's cached translations know them afterwards.
    pub(crate) fn settle(&self, lp: usize, id: PartitionId) -> HvResult<()> {
        let mark = self.with_pool(id, |pool| Ok((pool.in_limbo() != 0).then(|| pool.mark())))?;
        let Some(mark) = mark else { return Ok(()) };
        if !Self::is_parent(id) {
            self.child(id)?.flush(self, lp);
        }
        self.flush_parent(lp);
        self.with_pool(id, |pool| {
            pool.settle(&self.table, mark);
            Ok(())
        })
    }

    /// Makes every processor forget cached translations, of the parent and of all children. For pages that change hands: a
    /// child may have had one a moment ago.
    pub(crate) fn flush_everyone(&self, lp: usize) {
        for child in self.children() {
            child.flush(self, lp);
        }
        self.flush_parent(lp);
    }

    /// The same as [`Hypervisor::settle`] for a child that is at hand.
    pub(crate) fn settle_child(&self, lp: usize, child: &Child<M>) {
        let mark = child.pool.lock().mark();
        self.flush_parent(lp);
        child.pool.lock().settle(&self.table, mark);
    }

    /// Makes the parent's processors forget cached translations, and waits until they have.
    pub(crate) fn flush_parent(&self, current: usize) {
        let generation = self.parent.translations.advance();
        for lp in self.processors.iter().filter(|lp| lp.index != current) {
            if lp.guest.is_older(generation) {
                self.machine.kick(lp.index);
            }
        }
        for lp in self.processors.iter().filter(|lp| lp.index != current) {
            while lp.guest.is_older(generation) {
                self.machine.relax();
            }
        }
    }
}

fn slot_of(id: PartitionId) -> Option<u16> {
    let slot = (id.0 & ((1 << SLOT_BITS) - 1)) as u16;
    if id.0 >> SLOT_BITS == 0 { None } else { slot.checked_sub(1) }
}

/// How a set of processors learns that cached translations are void.
///
/// Whoever takes rights away advances the generation, kicks the processors that are in guest mode since an older one, and
/// waits until none is. A processor that enters guest mode compares generations and flushes first ([`Presence::enter`]).
#[derive(Default)]
pub(crate) struct Translations(AtomicU64);

impl Translations {
    /// Declares all cached translations void; gives the new generation.
    pub fn advance(&self) -> u64 {
        self.0.fetch_add(1, SeqCst) + 1
    }

    /// The present generation.
    pub fn generation(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

/// Whether a processor is in guest mode, and with translations of which generation.
#[derive(Default)]
pub(crate) struct Presence(AtomicU64);

impl Presence {
    const OUTSIDE: u64 = 0;

    /// Enters guest mode: calls `flush` if translations have become void since `seen`, until none have while entering.
    /// `now` gives their present generation.
    pub fn enter(&self, now: impl Fn() -> u64, seen: &mut u64, mut flush: impl FnMut()) {
        loop {
            let generation = now();
            if generation != *seen {
                flush();
                *seen = generation;
            }
            self.0.store(generation + 1, SeqCst);
            if now() == generation {
                return;
            }
        }
    }

    /// Has left guest mode.
    pub fn leave(&self) {
        self.0.store(Self::OUTSIDE, SeqCst);
    }

    /// Whether the processor is in guest mode since before `generation`.
    pub fn is_older(&self, generation: u64) -> bool {
        let present = self.0.load(SeqCst);
        present != Self::OUTSIDE && present <= generation
    }
}

/// The pages and the local memory of one processor of the parent, which the machine layer supplies.
pub struct ProcessorConfig {
    /// Its index.
    pub index: usize,
    /// Its SynIC's pages.
    pub synic: SynicPages,
    /// Its VP assist page.
    pub assist: Visible,
}
