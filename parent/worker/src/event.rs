//! Events for the main thread: a queue and an eventfd, so that an `epoll` wakes up for them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};

/// What the machine tells the main thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest switched its machine off.
    PowerOff,
    /// The guest asked for a reset, or ran into a triple fault.
    Reset,
    /// Somebody asked for the end.
    Stop,
    /// A virtual processor cannot go on; the sentence says why.
    Failed(String),
}

struct Shared {
    fd: OwnedFd,
    // Set while the eventfd has been written and not yet read: one system call per wake-up, not per event.
    signalled: AtomicBool,
    queue: Mutex<Vec<Event>>,
}

/// The queue; clones share it.
#[derive(Clone)]
pub struct Events(Arc<Shared>);

impl Events {
    /// An empty queue.
    pub fn new() -> std::io::Result<Events> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Events(Arc::new(Shared { fd, signalled: AtomicBool::new(false), queue: Mutex::default() })))
    }

    /// Adds an event and wakes the main thread.
    pub fn send(&self, event: Event) {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        self.wake();
    }

    /// Wakes the main thread without an event: there is console output or room for input.
    pub fn wake(&self) {
        if !self.0.signalled.swap(true, Ordering::AcqRel) {
            // The counter cannot overflow: it is written once between two reads.
            let _ = write(&self.0.fd, &1u64.to_ne_bytes());
        }
    }

    /// Takes all events and makes the descriptor quiet again.
    pub fn take(&self) -> Vec<Event> {
        let mut counter = [0; 8];
        // Nothing to read is fine: a wake-up may be on its way.
        let _ = read(&self.0.fd, &mut counter);
        self.0.signalled.store(false, Ordering::Release);
        std::mem::take(&mut *self.0.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn readable(events: &Events) -> bool {
        let mut fds = [PollFd::new(events, PollFlags::IN)];
        poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn many_events_are_one_wake_up() {
        let events = Events::new().unwrap();
        assert!(!readable(&events));
        events.send(Event::Reset);
        events.clone().send(Event::PowerOff);
        assert!(readable(&events));
        assert_eq!(events.take(), [Event::Reset, Event::PowerOff]);
        assert!(!readable(&events));
        events.wake();
        assert!(readable(&events));
        assert!(events.take().is_empty());
    }
}
