//! The parent partition: what there is of it once ([`ParentPartition`]), once per processor ([`LogicalProcessor`]), and
//! the loop in which a processor runs it ([`run`]).
//!
//! The parent owns the devices and takes their interrupts without the hypervisor. It leaves guest mode for CPUID, for the
//! registers that the hypervisor keeps for itself, for hypercalls, and when another processor has something for it.

mod cpuid;
mod msr;
mod run;
mod startup;
mod stats;
mod synic;
mod timers;

pub(crate) use cpuid::PRIVILEGES;
pub(crate) use run::{ParentVp, set_cpuid_result};
pub(crate) use startup::Message;
pub(crate) use stats::ParentStats;
pub use stats::StatsPlace;
pub(crate) use synic::Signal;
pub use synic::SynicPages;
pub(crate) use timers::{Due, Watched};

use crate::{
    apic::Incoming,
    hypervisor::{PARENT_OWNER, Presence, ProcessorConfig, Translations},
    machine::Machine,
    memory::{ParentSpace, Pool, Visible},
    time::Clock,
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use spin::{Mutex, RwLock};
use startup::Mailbox;
use synic::ParentSynic;
use timers::TimerQueue;
use zerocopy::IntoBytes;

/// What there is of the parent once.
pub(crate) struct ParentPartition<M: Machine> {
    /// Its address space.
    pub space: RwLock<ParentSpace<M>>,
    /// What it deposited for itself.
    pub pool: Mutex<Pool>,
    /// Its reference time.
    pub clock: Clock,
    /// Whether its processors' cached translations are valid.
    pub translations: Translations,
    /// Statistics pages that it has asked for.
    pub stats: Mutex<ParentStats>,
    hypercall_page: Visible,
    reference_tsc_page: Visible,
    guest_os_id: AtomicU64,
    hypercall_enabled: AtomicBool,
    reference_tsc_enabled: AtomicBool,
    /// Sleep types for S5: PM1a in bits 7:0, PM1b in bits 15:8.
    pub sleep_types: AtomicU32,
}

impl<M: Machine> ParentPartition<M> {
    /// The parent before its first instruction. Fills its hypercall and reference TSC pages.
    pub fn new(
        machine: &M,
        space: ParentSpace<M>,
        hypercall_page: Visible,
        reference_tsc_page: Visible,
        clock: Clock,
        stats: ParentStats,
    ) -> Self {
        const RET: u8 = 0xC3;
        let call = machine.hypercall_instruction();
        machine.write_frame(hypercall_page.frame(), 0, &[call[0], call[1], call[2], RET]);
        machine.write_frame(reference_tsc_page.frame(), 0, clock.page().as_bytes());
        Self {
            space: RwLock::new(space),
            pool: Mutex::new(Pool::new(PARENT_OWNER)),
            clock,
            translations: Translations::default(),
            stats: Mutex::new(stats),
            hypercall_page,
            reference_tsc_page,
            guest_os_id: AtomicU64::new(0),
            hypercall_enabled: AtomicBool::new(false),
            reference_tsc_enabled: AtomicBool::new(false),
            sleep_types: AtomicU32::new(0),
        }
    }

    /// Who the parent says it is.
    pub fn guest_os_id(&self) -> u64 {
        self.guest_os_id.load(SeqCst)
    }

    /// Whether hypercalls are possible: the parent has said who it is, and enabled the page.
    pub fn may_call(&self) -> bool {
        self.guest_os_id.load(SeqCst) != 0 && self.hypercall_enabled.load(SeqCst)
    }
}

/// What other processors see of a processor and of the parent's virtual processor on it.
pub struct LogicalProcessor<M: Machine> {
    /// Its index in the machine.
    pub(crate) index: usize,
    /// Its index as the parent counts, once the parent has added it.
    vp: AtomicU32,
    /// The parent has made a virtual processor for it.
    pub(crate) has_vp: AtomicBool,
    /// The parent has started its virtual processor here.
    started: AtomicBool,
    /// Whether it runs the parent at the moment.
    pub(crate) guest: Presence,
    mailbox: Mailbox,
    synic: Mutex<ParentSynic>,
    timers: Mutex<TimerQueue>,
    assist: Visible,
    /// Belongs to the stand-in for the local APIC's timer.
    timer_apic: Incoming,
    marker: core::marker::PhantomData<fn() -> M>,
}

const NO_VP: u32 = u32::MAX;

impl<M: Machine> LogicalProcessor<M> {
    /// A processor. The boot processor belongs to the parent's virtual processor 0 from the start.
    pub fn new(config: ProcessorConfig) -> Self {
        let first = config.index == 0;
        Self {
            index: config.index,
            vp: AtomicU32::new(if first { 0 } else { NO_VP }),
            has_vp: AtomicBool::new(first),
            started: AtomicBool::new(first),
            guest: Presence::default(),
            mailbox: Mailbox::default(),
            synic: Mutex::new(ParentSynic::new(config.synic)),
            timers: Mutex::default(),
            assist: config.assist,
            timer_apic: Incoming::new(config.index as u32),
            marker: core::marker::PhantomData,
        }
    }

    /// The index of the parent's virtual processor here.
    pub(crate) fn vp_index(&self) -> Option<u32> {
        Some(self.vp.load(SeqCst)).filter(|vp| *vp != NO_VP)
    }

    /// The parent adds this processor under this index; `false` if it has another one already.
    pub(crate) fn assign(&self, vp: u32) -> bool {
        self.vp.compare_exchange(NO_VP, vp, SeqCst, SeqCst).is_ok()
    }

    /// Sends this processor of the parent a start message.
    pub(crate) fn post(&self, machine: &M, message: Message) {
        startup::send(machine, &self.mailbox, self.index, message);
    }

    /// Whether this processor of the parent has been sent a start message that it has not seen.
    pub(crate) fn has_message(&self) -> bool {
        self.mailbox.is_waiting()
    }

    /// Whether the parent reads messages here. A processor that it has taken out of use reads none.
    pub(crate) fn takes_signals(&self) -> bool {
        self.synic.lock().takes_messages()
    }

    /// Tells the parent's scheduler on this processor that a virtual processor can run again. `note` learns, before anyone can
    /// ask for what was lost, whether there was no room.
    pub(crate) fn signal(&self, machine: &M, signal: Signal, note: impl FnOnce(bool)) {
        let mut synic = self.synic.lock();
        note(!synic.signal(machine, self.index, signal));
    }

    /// Forgets the signals and timers of a partition that ends.
    pub(crate) fn drop_partition(&self, id: parterre_abi::types::PartitionId, slot: u16) {
        self.synic.lock().drop_partition(id);
        self.timers.lock().remove_partition(slot);
    }

    /// Whether doorbells bound to `sint` can be delivered here.
    pub(crate) fn takes_doorbells(&self, sint: usize) -> bool {
        self.synic.lock().takes_doorbells(sint)
    }

    /// Rings a doorbell; `false` if the ring is full.
    pub(crate) fn ring(&self, machine: &M, sint: usize, port: u32) -> bool {
        self.synic.lock().ring(machine, self.index, sint, port)
    }

    /// Watches for a blocked virtual processor until `deadline` (TSC).
    pub(crate) fn watch(&self, deadline: u64, who: Watched) {
        self.timers.lock().insert(deadline, who);
    }

    /// When the next one that is watched for is due.
    pub(crate) fn next_watched(&self) -> Option<u64> {
        self.timers.lock().next()
    }

    /// Stops watching.
    pub(crate) fn unwatch(&self, who: Watched) {
        self.timers.lock().remove(who);
    }
}
