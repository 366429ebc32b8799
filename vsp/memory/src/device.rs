//! The device: a session on a VMBus channel, and the memory behind it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use parterre_vmbus_server::{
    ChannelError, Device, Guid, Handler, Offer, OutPacket, Packet, Queue, Wait, Waker, Written,
};

use crate::session::Session;
use crate::wire::{Capabilities, PageRange, Pressure, Version};

const INTERFACE: Guid = Guid::from_u128(0x525074dc_8985_46e2_8057_a307dc18a502);
const INSTANCE: Guid = Guid::from_u128(0x1eccfd72_4b41_45ef_b73a_4a6e44c12924);

/// The guest's memory in the parent.
pub trait Ram: Send + Sync {
    /// Which pages of the guest are RAM.
    fn ranges(&self) -> Vec<PageRange>;

    /// Takes the contents of pages, so that the parent can use the memory for something else. When the guest touches such a
    /// page again, it finds zeroes there.
    ///
    /// # Errors
    /// The kernel refuses.
    fn release(&self, range: PageRange) -> std::io::Result<()>;
}

/// How a guest stands with its memory. All amounts are pages of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// What it started with.
    pub ram: u64,
    /// What it has now.
    pub assigned: u64,
    /// What it shall have.
    pub target: u64,
    /// Nothing is under way to get there.
    pub settled: bool,
    /// The version that it speaks; absent before it does.
    pub version: Option<Version>,
    /// What it can do.
    pub capabilities: Option<Capabilities>,
    /// Its last report, without what it gave up.
    pub pressure: Option<Pressure>,
}

struct Inner {
    target: u64,
    /// The talk with the guest, while the channel is open.
    session: Option<Session>,
}

struct Shared {
    ram: Arc<dyn Ram>,
    ranges: Vec<PageRange>,
    inner: Mutex<Inner>,
    changed: Condvar,
    waker: Waker,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pages(&self) -> u64 {
        self.ranges.iter().map(|range| range.count).sum()
    }

    fn state(&self, inner: &Inner) -> State {
        let session = inner.session.as_ref();
        State {
            ram: self.pages(),
            assigned: session.map_or(self.pages(), Session::assigned),
            target: inner.target,
            settled: session.is_none_or(Session::is_settled),
            version: session.and_then(Session::version),
            capabilities: session.and_then(Session::capabilities),
            pressure: session.and_then(Session::pressure),
        }
    }
}

/// Dynamic memory of a virtual machine. Clones share it.
#[derive(Clone)]
pub struct DynamicMemory(Arc<Shared>);

impl DynamicMemory {
    /// For a guest with this memory, all of which it has.
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub fn new(ram: Arc<dyn Ram>) -> std::io::Result<DynamicMemory> {
        let ranges = ram.ranges();
        let target = ranges.iter().map(|range| range.count).sum();
        let inner = Mutex::new(Inner { target, session: None });
        let shared = Shared { ram, ranges, inner, changed: Condvar::new(), waker: Waker::new()? };
        Ok(DynamicMemory(Arc::new(shared)))
    }

    /// How the guest stands.
    pub fn state(&self) -> State {
        self.0.state(&self.0.lock())
    }

    /// Decides how many pages the guest shall have, over all its restarts. It takes them back, or gives them up as far as it
    /// can spare them.
    pub fn set_target(&self, pages: u64) {
        let mut inner = self.0.lock();
        inner.target = pages;
        if let Some(session) = &mut inner.session {
            session.set_target(pages);
        }
        drop(inner);
        self.0.waker.wake();
    }

    /// Waits until nothing is under way any more, at most so long; returns how the guest stands then.
    pub fn wait(&self, patience: Duration) -> State {
        let deadline = Instant::now() + patience;
        let mut inner = self.0.lock();
        loop {
            let state = self.0.state(&inner);
            let left = deadline.saturating_duration_since(Instant::now());
            if state.settled || left.is_zero() {
                return state;
            }
            let waited = self.0.changed.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Device for DynamicMemory {
    fn offer(&self) -> Offer {
        Offer::new(INTERFACE, INSTANCE)
    }

    fn open(&self, _queue: &mut Queue) -> Result<Box<dyn Handler>, ChannelError> {
        let mut inner = self.0.lock();
        inner.session = Some(Session::new(&self.0.ranges, inner.target));
        let shared = self.0.clone();
        Ok(Box::new(Channel { shared, packet: Packet::default(), unsent: None, sent: 0 }))
    }
}

struct Channel {
    shared: Arc<Shared>,
    packet: Packet,
    unsent: Option<Vec<u8>>,
    sent: u64,
}

impl Channel {
    /// Sends what there is; `false` if the ring is full.
    fn send(&mut self, queue: &mut Queue) -> Result<bool, ChannelError> {
        loop {
            let next = |shared: &Shared| shared.lock().session.as_mut().and_then(Session::next_message);
            let Some(message) = self.unsent.take().or_else(|| next(&self.shared)) else { return Ok(true) };
            let packet = OutPacket::Inband { transaction_id: self.sent, completion_requested: false };
            if queue.write(&packet, &[&message])? == Written::Full {
                self.unsent = Some(message);
                return Ok(false);
            }
            self.sent = self.sent.wrapping_add(1);
        }
    }

    fn take(&mut self) -> Result<(), ChannelError> {
        let mut inner = self.shared.lock();
        let Some(session) = &mut inner.session else { return Ok(()) };
        let given = session.take(self.packet.payload()).map_err(|e| ChannelError::protocol(e.to_string()))?;
        // Under the lock: a page must not be given back before it is let go.
        for range in joined(given) {
            self.shared.ram.release(range)?;
        }
        drop(inner);
        self.shared.changed.notify_all();
        Ok(())
    }
}

/// Ranges that follow each other as one: each costs a call of the kernel's.
fn joined(mut ranges: Vec<PageRange>) -> Vec<PageRange> {
    ranges.sort_unstable_by_key(|range| range.first);
    ranges.dedup_by(|next, range| {
        let follows = range.first + range.count == next.first;
        range.count += if follows { next.count } else { 0 };
        follows
    });
    ranges
}

impl Handler for Channel {
    fn run(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        self.shared.waker.clear();
        // A guest that asks without reading waits in its own ring.
        while self.send(queue)? && queue.read(&mut self.packet)? {
            self.take()?;
        }
        Ok(())
    }

    fn wait(&self, wait: &mut Wait) {
        wait.readable(self.shared.waker.source());
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // What was given up is the guest's own again as soon as it touches it.
        self.shared.lock().session = None;
        self.shared.changed.notify_all();
    }
}
