//! A logical processor.

use std::{
    boxed::Box,
    collections::VecDeque,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
    vec::Vec,
};

use super::lock::Lock;
use super::platform::FakeMachine;
use crate::machine::{Interrupts, Machine, Processor, TimerInterrupt, Waited};

/// What a wait of a processor does first.
pub(super) type OnWait = Box<dyn FnOnce(&FakeMachine) + Send>;

/// The part of a processor that others reach: its local APIC.
#[derive(Default)]
pub(super) struct Local {
    pub apic_id: u32,
    pub kicked: AtomicBool,
    pub nmi: AtomicBool,
    pub timer: Lock<Option<(u64, TimerInterrupt)>>,
    /// Physical interrupts for the parent, in the order of their arrival.
    pub parent: Lock<Vec<u8>>,
    pub on_wait: Lock<VecDeque<OnWait>>,
}

impl Local {
    pub fn post(&self, vector: u8) {
        let mut parent = self.parent.get();
        if !parent.contains(&vector) {
            parent.push(vector);
        }
    }

    /// Fires the timer if its time has come; says whether it spoke to the hypervisor.
    fn expire(&self, now: u64) -> bool {
        let mut timer = self.timer.get();
        let Some((_, interrupt)) = timer.filter(|(deadline, _)| *deadline <= now) else { return false };
        *timer = None;
        if let TimerInterrupt::Parent(vector) = interrupt {
            self.post(vector);
        }
        interrupt == TimerInterrupt::Hypervisor
    }

    /// Whether something would end guest mode, or a wait.
    pub fn pending(&self, now: u64) -> bool {
        let due = self.timer.get().is_some_and(|(deadline, _)| deadline <= now);
        due || self.kicked.load(Ordering::SeqCst) || !self.parent.get().is_empty()
    }
}

/// The processor that code runs on.
pub struct FakeProcessor {
    pub(super) machine: FakeMachine,
    pub(super) local: Arc<Local>,
    pub(super) index: usize,
}

impl FakeProcessor {
    /// When the timer is due, and to whom it speaks.
    pub fn timer(&self) -> Option<(u64, TimerInterrupt)> {
        *self.local.timer.get()
    }

    fn wait_until(&self, what: impl Fn() -> bool) {
        let begin = Instant::now();
        while !what() {
            let next = self.local.on_wait.get().pop_front();
            match next {
                Some(action) => action(&self.machine),
                None => thread::yield_now(),
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "processor {} waits for ever", self.index);
        }
    }
}

impl Processor for FakeProcessor {
    fn index(&self) -> usize {
        self.index
    }

    fn arm_timer(&mut self, deadline: Option<u64>, interrupt: TimerInterrupt) {
        *self.local.timer.get() = deadline.map(|deadline| (deadline, interrupt));
    }

    fn take_interrupts(&mut self) -> Interrupts {
        let timer = self.local.expire(self.machine.tsc());
        let kick = self.local.kicked.swap(false, Ordering::SeqCst);
        Interrupts { timer, kick, parent: !self.local.parent.get().is_empty() }
    }

    fn wait_for_kick(&mut self) {
        self.wait_until(|| self.local.kicked.load(Ordering::SeqCst));
        self.local.kicked.store(false, Ordering::SeqCst);
    }

    fn wait_for_interrupt(&mut self) -> Waited {
        let nmi = || self.local.nmi.load(Ordering::SeqCst);
        self.wait_until(|| self.local.pending(self.machine.tsc()) || nmi());
        let mut interrupts = self.take_interrupts();
        let mut parent = self.local.parent.get();
        let highest = parent.iter().copied().max();
        parent.retain(|vector| Some(*vector) != highest);
        interrupts.parent = !parent.is_empty();
        Waited { interrupts, vector: highest, nmi: self.local.nmi.swap(false, Ordering::SeqCst) }
    }
}
