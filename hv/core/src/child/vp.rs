//! A virtual processor of a child: what others may touch at any time ([`Vp`]), and what belongs to whoever holds its lock
//! ([`Inner`]): the processor that runs it, or a hypercall about it while it does not run.

use super::{Child, VPS_PER_TABLE, VpPages, VpSynic, assist::Assist, schedule::Schedule, startup::Startup};
use crate::{
    apic::{self, Incoming, LocalApic},
    hypervisor::{Hypervisor, Presence, Translations},
    instruction::Lengths,
    machine::{Machine, Reg, TableSource, Vcpu},
    memory::{OverlayId, Visible},
    time::SyntheticTimers,
};
use spin::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

/// Room for a virtual processor.
type Place<M> = RwLock<Option<<M as Machine>::Page<Vp<M>>>>;

/// Virtual processors by index.
pub(crate) struct VpTable<M: Machine>([Place<M>; VPS_PER_TABLE]);

impl<M: Machine> VpTable<M> {
    /// A table without virtual processors.
    pub fn new() -> Self {
        Self([const { RwLock::new(None) }; VPS_PER_TABLE])
    }

    /// The one with this index.
    pub fn vp(&self, index: usize) -> Option<VpRef<'_, M>> {
        let guard = self.0.get(index)?.read();
        guard.is_some().then_some(VpRef(guard))
    }

    /// Puts one in a free place.
    pub fn insert(&self, index: usize, vp: M::Page<Vp<M>>) -> Result<(), M::Page<Vp<M>>> {
        let Some(place) = self.0.get(index) else { return Err(vp) };
        let mut place = place.write();
        if place.is_some() {
            return Err(vp);
        }
        *place = Some(vp);
        Ok(())
    }

    /// Takes one out, once nobody refers to it.
    pub fn remove(&self, index: usize) -> Option<M::Page<Vp<M>>> {
        self.0.get(index)?.write().take()
    }
}

/// A virtual processor that stays while this exists.
pub(crate) struct VpRef<'a, M: Machine>(RwLockReadGuard<'a, Option<M::Page<Vp<M>>>>);

impl<M: Machine> core::ops::Deref for VpRef<'_, M> {
    type Target = Vp<M>;

    fn deref(&self) -> &Vp<M> {
        match &*self.0 {
            Some(vp) => vp,
            // `VpTable::vp` makes no reference to a free place, and the guard keeps it as it is.
            None => unreachable!("a reference to a virtual processor that is not there"),
        }
    }
}

/// See the module.
pub(crate) struct Vp<M: Machine> {
    /// Its index, which is its APIC id as well.
    pub index: u32,
    /// Interrupts on their way to it.
    pub incoming: Incoming,
    /// Who runs it.
    pub schedule: Schedule,
    /// Whether it is in guest mode.
    pub presence: Presence,
    /// How often its own cached translations were declared void; see [`Child::generation_of`].
    pub translations: Translations,
    /// The pages that it shares with the parent.
    pub pages: Mutex<VpPages>,
    /// Its SynIC, which others post messages and signal events to while it runs.
    pub synic: VpSynic,
    /// Its start by another one.
    pub startup: Startup,
    inner: Mutex<Inner<M>>,
}

impl<M: Machine> Vp<M> {
    /// A virtual processor that has not run.
    pub fn new(index: u32, incoming: Incoming, synic: VpSynic, inner: Inner<M>) -> Self {
        Self {
            index,
            incoming,
            schedule: Schedule::default(),
            presence: Presence::default(),
            translations: Translations::default(),
            pages: Mutex::default(),
            synic,
            startup: Startup::new(inner.activity == Activity::WaitForStartup),
            inner: Mutex::new(inner),
        }
    }

    /// Its state, if nobody else works with it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, Inner<M>>> {
        self.inner.try_lock()
    }

    /// Its state. If it runs it is interrupted for this, and goes on when the parent dispatches it again.
    pub fn lock(&self, machine: &M) -> MutexGuard<'_, Inner<M>> {
        if let Some(inner) = self.inner.try_lock() {
            return inner;
        }
        self.schedule.wait(true);
        let inner = loop {
            if let Some(inner) = self.inner.try_lock() {
                break inner;
            }
            if self.schedule.is_running() {
                self.schedule.interrupt(machine);
            }
            machine.relax();
        };
        self.schedule.wait(false);
        inner
    }

    /// Lets it be started by others, or not, as its new activity demands.
    pub fn follow(&self, activity: Activity) {
        match activity {
            Activity::WaitForStartup => self.startup.wait(&self.incoming),
            _ => self.startup.begun(&self.incoming),
        }
    }

    /// Whether processor `lp` runs it.
    pub fn runs_on(&self, lp: usize) -> bool {
        self.schedule.is_running_on(lp)
    }
}

/// What a virtual processor does when it is not suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Executes instructions.
    Active,
    /// Waits for an interrupt after HLT.
    Halted,
    /// Waits for an interrupt after it has read GUEST_IDLE, whether it can take it or not.
    Idle,
    /// Waits for a start-up message.
    WaitForStartup,
}

/// See the module.
pub(crate) struct Inner<M: Machine> {
    /// Its registers.
    pub vcpu: M::Vcpu,
    /// Its local APIC.
    pub apic: LocalApic,
    /// Its synthetic timers.
    pub timers: SyntheticTimers,
    /// What it does.
    pub activity: Activity,
    /// `HvRegisterExplicitSuspend`: the parent has stopped it.
    pub explicit_suspend: bool,
    /// `HvRegisterInterceptSuspend`: the parent is handling an intercept.
    pub intercept_suspend: bool,
    /// What it tells the parent when an interrupt can be taken or a message slot is free
    /// (`HvRegisterDeliverabilityNotifications`).
    pub notify_deliverable: u64,
    /// Generation of the cached translations it ran with.
    pub translations_seen: u64,
    /// The VP assist page.
    pub assist: Assist,
    /// Numbers for the parent's statistics.
    pub counts: Counts,
    /// Lengths of instructions that exited lately.
    pub lengths: Lengths,
    /// The state of [`Child::policy_changes`] that its intercepts follow.
    pub policy_seen: u32,
}

/// The value of the notification register with which the parent wants to know nothing.
pub(super) const NO_NOTIFICATION: u64 = 0;

impl<M: Machine> Inner<M> {
    /// The state of a new virtual processor, which is suspended until the parent lets it go.
    pub fn new(vcpu: M::Vcpu, apic: LocalApic, assist: Visible, wait_for_startup: bool) -> Self {
        Self {
            vcpu,
            apic,
            timers: SyntheticTimers::new(),
            activity: if wait_for_startup { Activity::WaitForStartup } else { Activity::Active },
            explicit_suspend: true,
            intercept_suspend: false,
            notify_deliverable: NO_NOTIFICATION,
            translations_seen: u64::MAX,
            assist: Assist::new(assist),
            counts: Counts::default(),
            lengths: Lengths::default(),
            policy_seen: 0,
        }
    }

    /// What an access to the local APIC needs to know.
    pub fn context<'a>(&self, vp: &'a Vp<M>, tsc: u64) -> apic::Context<'a> {
        apic::Context {
            incoming: &vp.incoming,
            tsc,
            tsc_offset: self.vcpu.get(Reg::TscOffset),
            cr8: self.vcpu.get(Reg::Cr8) as u8 & 0xF,
        }
    }

    /// Its partition's time stood still for `ticks`.
    pub fn shift_time(&mut self, ticks: u64) {
        let offset = self.vcpu.get(Reg::TscOffset);
        self.vcpu.set(Reg::TscOffset, offset.wrapping_sub(ticks));
        self.apic.shift_time(ticks);
    }
}

/// What a virtual processor did, for the statistics page.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Time in guest mode and in exits, TSC ticks, before the present dispatch.
    pub run_time: u64,
    /// When the present dispatch began, if there is one.
    pub since: Option<u64>,
    /// Dispatches by the parent.
    pub dispatches: u64,
    /// Exits, by what they were.
    pub hypercalls: u64,
    pub cpuids: u64,
    pub halts: u64,
    pub msrs: u64,
    pub io: u64,
    pub memory: u64,
    /// Physical interrupts.
    pub interrupts: u64,
    /// Because an interrupt can be taken.
    pub windows: u64,
    pub others: u64,
}

impl Counts {
    /// Time in guest mode and in exits until now, in 100 ns.
    pub fn run_time<M: Machine>(&self, hv: &Hypervisor<M>) -> u64 {
        let present = self.since.map_or(0, |since| hv.machine.tsc().wrapping_sub(since));
        hv.parent.clock.duration(self.run_time.wrapping_add(present))
    }
}

/// Ends a virtual processor that was taken out of its partition, and gives its frames back.
pub(crate) fn end<M: Machine>(hv: &Hypervisor<M>, child: &Child<M>, vp: M::Page<Vp<M>>) {
    let (vp, frame) = hv.machine.take(vp);
    let inner = vp.inner.into_inner();
    let overlays = [OverlayId::VpAssist, OverlayId::Messages, OverlayId::EventFlags].map(|id| id(vp.index));
    let _ = child.with_space(hv, |space, tables| Ok(overlays.map(|id| space.remove_overlay(tables, id))));
    let mut parent = hv.parent.space.write();
    let pages = vp.pages.into_inner().take_all();
    for page in pages.iter().flatten() {
        parent.unshare(&hv.machine, &hv.table, page);
    }
    drop(parent);
    child.with_tables(hv, |tables| {
        tables.give_frames(hv.machine.end_vcpu(inner.vcpu));
        let VpSynic { messages, events, .. } = vp.synic;
        for page in pages.into_iter().flatten().chain([inner.assist.page, messages, events]) {
            let given = tables.give_visible(page);
            debug_assert!(given.is_ok(), "a page of a virtual processor is still shown");
        }
        tables.give(frame);
    });
}
