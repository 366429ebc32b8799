//! Who runs a virtual processor, and how it is woken.
//!
//! ```text
//!             begin                      block
//!    Idle ───────────▶ Running(lp) ──────────────▶ Blocked ──┐
//!     ▲                    │                                  │ wake: tells the parent's scheduler
//!     └────────────────────┴──────────────────────────────────┘
//!            end
//! ```
//! `Suspended` is like `Blocked`, but only [`Schedule::resume`] ends it.
//!
//! Whoever has something for a virtual processor notes it first and calls [`Schedule::wake`] then. The virtual processor
//! looks at what is noted after each change of its own state ([`Schedule::block`] then looks again). So nothing noted is
//! overlooked: either it finds it, or the other finds it blocked.

use crate::machine::Machine;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

const IDLE: u32 = 0;
const BLOCKED: u32 = 1;
/// Blocked, and only the parent can have it go on.
const SUSPENDED: u32 = 2;
/// Plus the processor's index.
const RUNNING: u32 = 3;

/// See the module.
#[derive(Default)]
pub(crate) struct Schedule {
    state: AtomicU32,
    /// The processor that ran it last.
    last: AtomicU32,
    /// How many signals the parent was sent for it.
    signals: AtomicU64,
    /// One more than the processor on which the parent is owed a signal that found no room there; 0: none.
    owed: AtomicU32,
    /// The parent wants no more signals (`HvRegisterDispatchSuspend`).
    stopped: AtomicBool,
    /// A timer of it may be due.
    timer_due: AtomicBool,
    /// How many others wait for its lock.
    waiters: AtomicU32,
}

/// What [`Schedule::wake`] found to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Woken {
    /// Nothing: it runs (and was kicked), or will look for itself.
    Nothing,
    /// The parent's scheduler on this processor has to be told.
    Signal(usize),
}

impl Schedule {
    /// Processor `lp` begins to run it.
    pub fn begin(&self, lp: usize) {
        self.last.store(lp as u32, SeqCst);
        self.state.store(RUNNING + lp as u32, SeqCst);
        between_steps();
    }

    /// The processor stops running it, though it could go on.
    pub fn end(&self) {
        between_steps();
        self.state.store(IDLE, SeqCst);
        between_steps();
    }

    /// It has nothing to do until it is woken. Look again after this, and [`Schedule::unblock`] if there is something.
    pub fn block(&self) {
        between_steps();
        self.state.store(BLOCKED, SeqCst);
        between_steps();
    }

    /// It has nothing to do until the parent ends its suspension.
    pub fn suspend(&self) {
        between_steps();
        self.state.store(SUSPENDED, SeqCst);
        between_steps();
    }

    /// Undoes [`Schedule::block`]; `false` if someone woke it meanwhile, who tells the parent.
    pub fn unblock(&self, lp: usize) -> bool {
        between_steps();
        self.state.compare_exchange(BLOCKED, RUNNING + lp as u32, SeqCst, SeqCst).is_ok()
    }

    /// Has it look at what was noted for it.
    pub fn wake<M: Machine>(&self, machine: &M) -> Woken {
        match self.state.load(SeqCst) {
            IDLE | SUSPENDED => Woken::Nothing,
            BLOCKED => self.leave_for_idle(BLOCKED),
            running => {
                machine.kick((running - RUNNING) as usize);
                Woken::Nothing
            }
        }
    }

    /// Has it leave guest mode, if it runs. One that is blocked stays so.
    pub fn interrupt<M: Machine>(&self, machine: &M) {
        if let Some(lp) = self.state.load(SeqCst).checked_sub(RUNNING) {
            machine.kick(lp as usize);
        }
    }

    /// The parent has ended its suspension.
    pub fn resume(&self) -> Woken {
        self.leave_for_idle(SUSPENDED)
    }

    fn leave_for_idle(&self, state: u32) -> Woken {
        if self.stopped.load(SeqCst) || self.state.compare_exchange(state, IDLE, SeqCst, SeqCst).is_err() {
            return Woken::Nothing;
        }
        self.signals.fetch_add(1, SeqCst);
        Woken::Signal(self.last.load(SeqCst) as usize)
    }

    /// Whether the parent on processor `lp` is owed a signal. The parent counts signals, so one that found no room is sent
    /// later even if the virtual processor runs again by then, and none is sent twice.
    pub fn is_owed(&self, lp: usize) -> bool {
        self.owed.load(SeqCst) == lp as u32 + 1
    }

    /// Sets whether the parent on processor `lp` is owed one. Whoever calls this holds the lock of that processor's SynIC.
    pub fn set_owed(&self, lp: usize, owed: bool) {
        self.owed.store(if owed { lp as u32 + 1 } else { 0 }, SeqCst);
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.state.load(SeqCst) >= RUNNING
    }

    /// Whether processor `lp` runs it.
    pub fn is_running_on(&self, lp: usize) -> bool {
        self.state.load(SeqCst) == RUNNING + lp as u32
    }

    /// Whether it is blocked, and was last on processor `lp`.
    pub fn is_blocked_on(&self, lp: usize) -> bool {
        self.state.load(SeqCst) == BLOCKED && self.last.load(SeqCst) as usize == lp
    }

    /// How many signals the parent was sent.
    pub fn signals(&self) -> u64 {
        self.signals.load(SeqCst)
    }

    /// Sets whether the parent wants no more signals.
    pub fn set_stopped(&self, stopped: bool) {
        self.stopped.store(stopped, SeqCst);
    }

    /// Whether the parent wants no more signals.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(SeqCst)
    }

    /// A timer of it may be due.
    pub fn note_timer(&self) {
        self.timer_due.store(true, SeqCst);
    }

    /// Whether one may be due, once.
    pub fn take_timer(&self) -> bool {
        self.timer_due.swap(false, SeqCst)
    }

    /// Whether one may be due.
    pub fn has_timer(&self) -> bool {
        self.timer_due.load(SeqCst)
    }

    /// Someone waits for its lock, or no longer.
    pub fn wait(&self, waiting: bool) {
        if waiting {
            self.waiters.fetch_add(1, SeqCst);
        } else {
            self.waiters.fetch_sub(1, SeqCst);
        }
    }

    /// Whether someone waits for its lock.
    pub fn is_awaited(&self) -> bool {
        self.waiters.load(SeqCst) != 0
    }
}

/// Where a test lets other processors act between two steps of this one.
fn between_steps() {
    #[cfg(test)]
    crate::tests::between::step();
}
