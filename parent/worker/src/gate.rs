//! Where processors wait while their machine is paused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// The gate before a guest: open, unless the machine is paused.
#[derive(Default)]
pub struct Gate {
    closed: AtomicBool,
    waiting: Mutex<usize>,
    opened: Condvar,
}

impl Gate {
    /// Whether a processor has to wait.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits until it is open, or the machine stops.
    pub fn wait(&self, stop: &AtomicBool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting += 1;
        while self.is_closed() && !stop.load(Ordering::Acquire) {
            waiting = self.opened.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        *waiting -= 1;
    }

    /// Closes it. Processors that are in the guest have to be called out of it.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens it, or has those that wait look whether the machine stops.
    pub fn open(&self) {
        // Under the lock, so that nobody falls asleep between looking and waiting.
        let _waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(false, Ordering::Release);
        self.opened.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_wait_go_on_when_it_opens() {
        let (gate, stop) = (Gate::default(), AtomicBool::new(false));
        gate.close();
        std::thread::scope(|scope| {
            let threads = [scope.spawn(|| gate.wait(&stop)), scope.spawn(|| gate.wait(&stop))];
            while gate.waiting() < 2 {
                std::thread::yield_now();
            }
            assert!(threads.iter().all(|thread| !thread.is_finished()));
            gate.open();
        });
        assert_eq!((gate.waiting(), gate.is_closed()), (0, false));
    }

    #[test]
    fn nobody_waits_in_a_machine_that_stops() {
        let gate = Gate::default();
        gate.close();
        gate.wait(&AtomicBool::new(true));
        assert_eq!(gate.waiting(), 0);
    }
}
