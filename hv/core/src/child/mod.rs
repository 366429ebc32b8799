//! A child partition: its memory, its clock, what the parent decided about it, its virtual processors.
//!
//! ```text
//!   create ─▶ Created ──initialize──▶ Active ──finalize──▶ Finalized ──delete──▶ (gone)
//! ```
//! Everything of it lies in pages that were deposited for it, but for [`Child`] itself, which lies in one of the parent's.

mod assist;
mod cpuid;
mod cr4;
mod intercept;
mod msr;
mod overlays;
mod pages;
mod policy;
mod privileges;
mod registers;
mod run;
mod schedule;
mod startup;
mod synic;
mod vp;

pub(crate) use cpuid::CpuidOverride;
pub(crate) use pages::{Page, VpPages};
pub(crate) use policy::Policy;
pub(crate) use privileges::ASSIGNABLE;
pub(crate) use registers::RegisterAccess;
pub(crate) use schedule::Woken;
pub(crate) use synic::VpSynic;
pub(crate) use vp::{Activity, Inner, Vp, VpRef, end as end_vp};

pub(crate) use crate::hypervisor::ChildRef;
use crate::{
    hypervisor::{Hypervisor, Translations},
    machine::{Machine, TableSource},
    memory::{AddressSpace, Owner, Pool, Tables, Visible},
    parent::Signal,
    time::Clock,
};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use parterre_abi::{
    cpuid::PrivilegeMask,
    hypercall::{InterceptAccessTypeMask, PartitionCreationFlags},
    property::SyntheticProcessorFeatures,
    status::{HvResult, HvStatus},
    types::{PartitionId, VpIndex},
};
use spin::{Mutex, Once, RwLock};
use vp::VpTable;

/// The most virtual processors of a partition.
pub(crate) const MAX_VPS: u32 = 256;
const VPS_PER_TABLE: usize = 128;
const TABLES: usize = MAX_VPS as usize / VPS_PER_TABLE;

/// Where a partition is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// It has an id and can be given memory and early properties.
    Created = 0,
    /// It can have virtual processors, and they can run.
    Active = 1,
    /// Its mappings and virtual processors are gone, and nothing runs any more.
    Finalized = 2,
}

/// The bit that stands for a register in [`Child::intercepts_msrs`].
fn bit_of_msr(msr: u32) -> u64 {
    1 << (msr % u64::BITS)
}

/// See the module.
pub struct Child<M: Machine> {
    pub(crate) id: PartitionId,
    pub(crate) slot: u16,
    pub(crate) policy: RwLock<Policy>,
    /// What it may do, and the features that this follows from; as in the policy.
    privileges: AtomicU64,
    features: AtomicU64,
    /// Bit n is set if the parent answers accesses to a register whose number ends in n (modulo 64); which, the policy says.
    intercepts_msrs: AtomicU64,
    /// How often what a virtual processor is told of changed. The first one sees 1.
    pub(crate) policy_changes: AtomicU32,
    stage: AtomicU8,
    /// What was deposited for it.
    pub(crate) pool: Mutex<Pool>,
    space: RwLock<Option<AddressSpace<M>>>,
    pub(crate) translations: Translations,
    pub(crate) clock: RwLock<Clock>,
    vps: [Once<M::Page<VpTable<M>>>; TABLES],
    /// Virtual processors from this index on have never been there.
    vps_end: AtomicU32,
    pub(crate) guest_os_id: AtomicU64,
    pub(crate) hypercall_msr: AtomicU64,
    pub(crate) reference_tsc_msr: AtomicU64,
    pub(crate) crash: [AtomicU64; 5],
    /// Bit 0: the guest knows how to live with an invariant time stamp counter, and is shown it.
    pub(crate) tsc_invariant: AtomicU64,
    /// The frames of the hypercall page and the reference TSC page.
    pub(crate) overlays: Mutex<[Option<Visible>; 2]>,
    /// The page of statistics that the parent has asked for.
    pub(crate) stats: Mutex<Option<Visible>>,
}

impl<M: Machine> Child<M> {
    /// A partition that has just been created.
    pub(crate) fn new(id: PartitionId, slot: u16, policy: Policy, clock: Clock) -> Self {
        Self {
            id,
            slot,
            privileges: AtomicU64::new(privileges::privileges(policy.features).bits()),
            features: AtomicU64::new(policy.features.bits()),
            intercepts_msrs: AtomicU64::new(0),
            policy: RwLock::new(policy),
            policy_changes: AtomicU32::new(1),
            stage: AtomicU8::new(Stage::Created as u8),
            pool: Mutex::new(Pool::new(Owner(slot + 1))),
            space: RwLock::new(None),
            translations: Translations::default(),
            clock: RwLock::new(clock),
            vps: [const { Once::new() }; TABLES],
            vps_end: AtomicU32::new(0),
            guest_os_id: AtomicU64::new(0),
            hypercall_msr: AtomicU64::new(0),
            reference_tsc_msr: AtomicU64::new(0),
            crash: [const { AtomicU64::new(0) }; 5],
            tsc_invariant: AtomicU64::new(0),
            overlays: Mutex::new([None, None]),
            stats: Mutex::new(None),
        }
    }

    /// Whether it has these privileges.
    pub(crate) fn may(&self, privileges: PrivilegeMask) -> bool {
        PrivilegeMask::from_bits_retain(self.privileges.load(SeqCst)).contains(privileges)
    }

    /// Gives it these synthetic features and no others; what cannot be given is left out.
    pub(crate) fn set_features(&self, features: SyntheticProcessorFeatures) {
        let features = features & ASSIGNABLE;
        self.policy.write().features = features;
        self.features.store(features.bits(), SeqCst);
        self.privileges.store(privileges::privileges(features).bits(), SeqCst);
    }

    /// Whether it has these synthetic features.
    pub(crate) fn has(&self, features: SyntheticProcessorFeatures) -> bool {
        SyntheticProcessorFeatures::from_bits_retain(self.features.load(SeqCst)).contains(features)
    }

    /// Has the parent answer these accesses to a register from now on. `false` if there are too many such registers.
    pub(crate) fn intercept_msr(&self, msr: u32, access: InterceptAccessTypeMask) -> bool {
        let mut policy = self.policy.write();
        let done = policy.intercept_msr(msr, access);
        let summary = policy.msrs.iter().fold(0, |bits, intercept| bits | bit_of_msr(intercept.msr));
        self.intercepts_msrs.store(summary, SeqCst);
        done
    }

    /// Whether the parent answers this kind of access to a register.
    pub(crate) fn intercepts_msr(&self, msr: u32, access: InterceptAccessTypeMask) -> bool {
        self.intercepts_msrs.load(SeqCst) & bit_of_msr(msr) != 0
            && self.policy.read().intercepts_msr(msr, access)
    }

    /// Where it is in its life.
    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(SeqCst) {
            0 => Stage::Created,
            1 => Stage::Active,
            _ => Stage::Finalized,
        }
    }

    /// Refuses what can be done only at `stage`.
    pub(crate) fn expect(&self, stage: Stage) -> HvResult<()> {
        if self.stage() == stage { Ok(()) } else { Err(HvStatus::INVALID_PARTITION_STATE) }
    }

    /// Whether 2 MiB pages may be mapped.
    pub(crate) fn allows_large_pages(&self) -> bool {
        self.policy.read().flags.contains(PartitionCreationFlags::GPA_SUPER_PAGES_ENABLED)
    }

    /// Runs `action` on the pool, with what is needed to work with it.
    pub(crate) fn with_tables<T>(
        &self,
        hv: &Hypervisor<M>,
        action: impl FnOnce(&mut Tables<'_, M>) -> T,
    ) -> T {
        let mut pool = self.pool.lock();
        action(&mut Tables { table: &hv.table, pool: &mut pool, machine: &hv.machine })
    }

    /// Runs `action` on the address space and the pool.
    ///
    /// # Errors
    /// What `action` says; [`HvStatus::INVALID_PARTITION_STATE`] before initialization and after finalization.
    pub(crate) fn with_space<T>(
        &self,
        hv: &Hypervisor<M>,
        action: impl FnOnce(&mut AddressSpace<M>, &mut Tables<'_, M>) -> HvResult<T>,
    ) -> HvResult<T> {
        let mut space = self.space.write();
        let space = space.as_mut().ok_or(HvStatus::INVALID_PARTITION_STATE)?;
        self.with_tables(hv, |tables| action(space, tables))
    }

    /// Runs `action` on the address space, which others may read at the same time.
    pub(crate) fn read_space<T>(&self, action: impl FnOnce(&AddressSpace<M>) -> T) -> Option<T> {
        self.space.read().as_ref().map(action)
    }

    /// Makes the address space and the tables of virtual processors, or nothing.
    pub(crate) fn initialize(&self, hv: &Hypervisor<M>) -> HvResult<()> {
        let width = self.policy.read().physical_bits;
        // The address space before the pool, as everywhere. With both held nobody else initializes.
        let mut place = self.space.write();
        self.with_tables(hv, |tables| {
            self.expect(Stage::Created)?;
            // The top table, a page for the list of overlays, the overlays themselves, the tables of virtual processors.
            if tables.pool.available() < 1 + 1 + 2 + TABLES as u64 {
                return Err(HvStatus::INSUFFICIENT_MEMORY);
            }
            let mut space = AddressSpace::new(tables, width).map_err(|_| HvStatus::INSUFFICIENT_MEMORY)?;
            if space.prepare_overlays(tables, 2).is_err() {
                space.end(tables);
                return Err(HvStatus::INSUFFICIENT_MEMORY);
            }
            let frames = tables.take_frames(2).ok_or(HvStatus::INSUFFICIENT_MEMORY)?;
            let mut frames = frames.into_iter().flatten().map(Visible::new);
            *self.overlays.lock() = [frames.next(), frames.next()];
            for table in &self.vps {
                let frame = tables.take().ok_or(HvStatus::INSUFFICIENT_MEMORY)?;
                table.call_once(|| hv.machine.emplace(frame, VpTable::new()));
            }
            *place = Some(space);
            self.stage.store(Stage::Active as u8, SeqCst);
            Ok(())
        })
    }

    /// Ends all virtual processors and mappings. What they lay in is free after [`Child::end_tables`].
    pub(crate) fn finalize(&self, hv: &Hypervisor<M>, lp: usize) -> HvResult<()> {
        let (active, finalized) = (Stage::Active as u8, Stage::Finalized as u8);
        let changed = self.stage.compare_exchange(active, finalized, SeqCst, SeqCst);
        changed.map_err(|_| HvStatus::INVALID_PARTITION_STATE)?;
        self.stop_all(hv);
        for index in 0..MAX_VPS {
            self.remove_vp(hv, index);
        }
        // No virtual processor is there any more that could be signalled.
        for processor in hv.processors {
            processor.drop_partition(self.id, self.slot);
        }
        let space = self.space.write().take();
        let frames = core::mem::take(&mut *self.overlays.lock());
        self.flush(hv, lp);
        self.with_tables(hv, |tables| {
            if let Some(space) = space {
                space.end(tables);
            }
            for frame in frames.into_iter().flatten() {
                let given = tables.give_visible(frame);
                debug_assert!(given.is_ok(), "an overlay page is still laid over something");
            }
        });
        hv.ports.lock().disconnect_all(self.id);
        hv.settle_child(lp, self);
        Ok(())
    }

    /// Gives back the tables of virtual processors, which are empty since [`Child::finalize`]: afterwards everything that
    /// was deposited can be withdrawn.
    pub(crate) fn end_tables(&mut self, hv: &Hypervisor<M>) {
        let tables = core::mem::replace(&mut self.vps, [const { Once::new() }; TABLES]);
        self.with_tables(hv, |pool| {
            for page in tables.into_iter().filter_map(Once::try_into_inner) {
                let frame = hv.machine.dissolve(page);
                pool.give(frame);
            }
        });
    }

    /// Has all virtual processors leave guest mode, and waits until none runs. None begins any more: the stage says so.
    fn stop_all(&self, hv: &Hypervisor<M>) {
        loop {
            let mut running = false;
            for vp in self.vps() {
                if vp.schedule.is_running() {
                    running = true;
                    vp.schedule.interrupt(&hv.machine);
                }
            }
            if !running {
                return;
            }
            hv.machine.relax();
        }
    }

    /// Takes a partition apart that is being deleted: gives the frames of all that is left to the pool, and the pool.
    pub(crate) fn dismantle(mut self, hv: &Hypervisor<M>) -> Pool {
        self.end_tables(hv);
        let stats = self.stats.lock().take();
        self.with_tables(hv, |pool| {
            if let Some(frame) = stats {
                hv.parent.space.write().unshare(&hv.machine, &hv.table, &frame);
                let given = pool.give_visible(frame);
                debug_assert!(given.is_ok(), "a statistics page is still shown");
            }
        });
        self.pool.into_inner()
    }

    /// A virtual processor has come or gone: CPUID tells how many there are.
    pub(crate) fn count_vps(&self) {
        let count = self.vps().count() as u32;
        self.policy.write().vp_count = count;
    }

    /// The physical TSC as far as this partition is concerned.
    pub(crate) fn now(&self, hv: &Hypervisor<M>) -> u64 {
        self.clock.read().effective(hv.machine.tsc())
    }

    /// Its reference time, in 100 ns.
    pub(crate) fn reference_time(&self, hv: &Hypervisor<M>) -> u64 {
        self.clock.read().reference_time(hv.machine.tsc())
    }

    /// Stops its time.
    pub(crate) fn freeze(&self, hv: &Hypervisor<M>) {
        self.clock.write().freeze(hv.machine.tsc());
        self.vps().for_each(|vp| self.wake(hv, &vp));
    }

    /// Lets its time go on from where it stopped.
    pub(crate) fn thaw(&self, hv: &Hypervisor<M>) {
        let ticks = self.clock.write().thaw(hv.machine.tsc());
        for vp in self.vps() {
            vp.lock(&hv.machine).shift_time(ticks);
            self.wake(hv, &vp);
        }
    }

    /// What CPUID tells virtual processor `index`.
    pub(crate) fn cpuid(
        &self,
        hv: &Hypervisor<M>,
        index: u32,
        vcpu: &M::Vcpu,
        eax: u32,
        ecx: u32,
    ) -> [u32; 4] {
        cpuid::answer(hv, self, index, vcpu, eax, ecx)
    }

    /// The virtual processor with this index.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_VP_INDEX`]: there is none.
    pub(crate) fn vp(&self, index: u32) -> HvResult<VpRef<'_, M>> {
        let table = self.vps.get(index as usize / VPS_PER_TABLE).and_then(Once::get);
        table.and_then(|table| table.vp(index as usize % VPS_PER_TABLE)).ok_or(HvStatus::INVALID_VP_INDEX)
    }

    /// All virtual processors there are.
    pub(crate) fn vps(&self) -> impl Iterator<Item = VpRef<'_, M>> {
        (0..self.vps_end.load(SeqCst)).filter_map(|index| self.vp(index).ok())
    }

    fn table_of(&self, index: u32) -> Option<&VpTable<M>> {
        self.vps.get(index as usize / VPS_PER_TABLE)?.get().map(|page| &**page)
    }

    /// Puts a virtual processor in its place.
    pub(crate) fn insert_vp(&self, index: u32, vp: M::Page<Vp<M>>) -> Result<(), M::Page<Vp<M>>> {
        match self.table_of(index) {
            Some(table) => {
                // First, so that whoever looks at all finds it as soon as it is there.
                self.vps_end.fetch_max(index + 1, SeqCst);
                table.insert(index as usize % VPS_PER_TABLE, vp)
            }
            None => Err(vp),
        }
    }

    /// Takes a virtual processor out and gives its frames back to the pool. `false` if there is none.
    pub(crate) fn remove_vp(&self, hv: &Hypervisor<M>, index: u32) -> bool {
        let Some(vp) = self.table_of(index).and_then(|table| table.remove(index as usize % VPS_PER_TABLE))
        else {
            return false;
        };
        vp::end(hv, self, vp);
        true
    }

    /// The generation of the translations that a virtual processor may have cached: those of the partition's address space and
    /// those of its own. It grows with either.
    pub(crate) fn generation_of(&self, vp: &Vp<M>) -> u64 {
        self.translations.generation() + vp.translations.generation()
    }

    /// Makes virtual processors forget cached translations, and waits until those that run have.
    pub(crate) fn flush(&self, hv: &Hypervisor<M>, current: usize) {
        self.translations.advance();
        let is_older = |vp: &Vp<M>, generation| vp.presence.is_older(generation) && !vp.runs_on(current);
        for vp in self.vps().filter(|vp| is_older(vp, self.generation_of(vp))) {
            vp.schedule.interrupt(&hv.machine);
        }
        for vp in self.vps() {
            let generation = self.generation_of(&vp);
            while is_older(&vp, generation) {
                hv.machine.relax();
            }
        }
    }

    /// Tells the parent's scheduler what [`schedule::Schedule::wake`] asks for.
    pub(crate) fn carry_out(&self, hv: &Hypervisor<M>, vp: &Vp<M>, woken: Woken) {
        if let Woken::Signal(lp) = woken {
            vp.pages.lock().clear_blocked(&hv.machine);
            let signal: Signal = (self.id, VpIndex(vp.index));
            let last = hv.processors.get(lp).filter(|processor| processor.takes_signals());
            let other = || hv.processors.iter().find(|processor| processor.takes_signals());
            if let Some(processor) = last.or_else(other).or(hv.processors.get(lp)) {
                processor.signal(&hv.machine, signal, |lost| vp.schedule.set_owed(processor.index, lost));
            }
        }
    }

    /// Wakes a virtual processor for which something was noted.
    pub(crate) fn wake(&self, hv: &Hypervisor<M>, vp: &Vp<M>) {
        let woken = vp.schedule.wake(&hv.machine);
        self.carry_out(hv, vp, woken);
    }

    /// A timer of a blocked virtual processor may be due.
    pub(crate) fn timer_due(&self, hv: &Hypervisor<M>, index: u32) {
        if let Ok(vp) = self.vp(index) {
            vp.schedule.note_timer();
            self.wake(hv, &vp);
        }
    }

    /// Timers of any virtual processor that blocked on processor `lp` may be due.
    pub(crate) fn all_timers_due(&self, hv: &Hypervisor<M>, lp: usize) {
        for vp in self.vps().filter(|vp| vp.schedule.is_blocked_on(lp)) {
            vp.schedule.note_timer();
            self.wake(hv, &vp);
        }
    }

    /// Sends the signals to processor `lp` that found no room there before.
    pub(crate) fn repeat_signals(&self, hv: &Hypervisor<M>, lp: usize) {
        for vp in self.vps().filter(|vp| vp.schedule.is_owed(lp)) {
            self.carry_out(hv, &vp, Woken::Signal(lp));
        }
    }
}
