//! What a channel's thread waits for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::io::{read, write};

/// Something with a descriptor. It is shared, because nobody holds the handler while its thread waits.
pub type Source = Arc<dyn AsFd + Send + Sync>;

/// The sources that a handler names, beside the guest.
#[derive(Default)]
pub struct Wait {
    sources: Vec<(Source, PollFlags)>,
    deadline: Option<Instant>,
    expects_guest: bool,
}

impl Wait {
    /// Wake up when the descriptor can be read.
    pub fn readable(&mut self, source: Source) {
        self.sources.push((source, PollFlags::IN));
    }

    /// Wake up when the descriptor can be written.
    pub fn writable(&mut self, source: Source) {
        self.sources.push((source, PollFlags::OUT));
    }

    /// Wake up at this time at the latest. The earliest of several counts.
    pub fn until(&mut self, deadline: Instant) {
        self.deadline = Some(self.deadline.map_or(deadline, |other| other.min(deadline)));
    }

    /// The guest owes an answer. Where it does not signal (a monitored channel) the thread looks for it.
    pub fn for_answer(&mut self) {
        self.expects_guest = true;
    }

    /// Whether the guest owes an answer.
    pub fn expects_guest(&self) -> bool {
        self.expects_guest
    }

    /// The descriptors, for `poll`.
    pub fn fds(&self) -> Vec<PollFd<'_>> {
        self.sources.iter().map(|(source, events)| PollFd::new(source, *events)).collect()
    }

    /// When to wake up without any of them.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

/// Wakes a handler from another thread: the device keeps a clone and calls [`wake`](Self::wake), the handler names it in
/// [`Handler::wait`](crate::Handler::wait) as readable and calls [`clear`](Self::clear) before it looks at what there is.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A waker (an eventfd).
    pub fn new() -> std::io::Result<Waker> {
        Ok(Waker(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Makes it readable.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = write(&*self.0, &1u64.to_ne_bytes());
    }

    /// What is readable while it is woken.
    pub fn source(&self) -> Source {
        self.0.clone()
    }

    /// Makes it quiet; says whether it was woken.
    pub fn clear(&self) -> bool {
        read(&*self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
