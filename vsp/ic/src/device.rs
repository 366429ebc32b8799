//! A service on the bus: a session behind a lock, a VMBus channel in front of it.
//!
//! ```text
//!   management  --with()-->  Session  <--packets, deadlines--  channel's thread
//!                  |                                               ^
//!                  '---------------- Waker ------------------------'
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use parterre_vmbus_server::protocol::offer::{OfferFlags, PIPE_TYPE_MESSAGE};
use parterre_vmbus_server::{
    ChannelError, Device, Handler, Offer, OutPacket, Packet, Queue, Wait, Waker, Written,
};

use crate::session::{Protocol, Session};

struct Shared<P> {
    session: Mutex<Session<P>>,
    waker: Waker,
    epoch: Instant,
}

/// An integration service as a device on the bus. Clones share it.
pub struct Component<P>(Arc<Shared<P>>);

impl<P> Clone for Component<P> {
    fn clone(&self) -> Component<P> {
        Component(self.0.clone())
    }
}

impl<P: Protocol> Component<P> {
    /// A service that no guest has opened yet.
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub fn new(protocol: P) -> std::io::Result<Component<P>> {
        let session = Mutex::new(Session::new(protocol));
        Ok(Component(Arc::new(Shared { session, waker: Waker::new()?, epoch: Instant::now() })))
    }

    /// Looks at the session, or gives the protocol an order, at the present time. Replies to orders are told while the session
    /// is locked: they must not come back here.
    pub fn with<T>(&self, work: impl FnOnce(&mut Session<P>, Duration) -> T) -> T {
        let result = work(&mut self.0.lock(), self.0.now());
        self.0.waker.wake();
        result
    }
}

impl<P> Shared<P> {
    fn lock(&self) -> MutexGuard<'_, Session<P>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }
}

impl<P: Protocol + Send + 'static> Device for Component<P> {
    fn offer(&self) -> Offer {
        let mut offer = Offer::pipe(P::SERVICE.class(), P::SERVICE.instance(), PIPE_TYPE_MESSAGE);
        // All that the guest ever says are answers, and none is urgent: it need not leave its processor for them.
        offer.flags |= OfferFlags::REQUEST_MONITORED_NOTIFICATION;
        offer
    }

    fn open(&self, _queue: &mut Queue) -> Result<Box<dyn Handler>, ChannelError> {
        self.0.lock().open();
        Ok(Box::new(Channel {
            shared: self.0.clone(),
            packet: Packet::default(),
            deadline: None,
            awaits_answer: false,
            sent: 0,
        }))
    }
}

/// The open channel.
struct Channel<P: Protocol> {
    shared: Arc<Shared<P>>,
    packet: Packet,
    deadline: Option<Instant>,
    awaits_answer: bool,
    sent: u64,
}

impl<P: Protocol + Send> Handler for Channel<P> {
    fn run(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        self.shared.waker.clear();
        let mut session = self.shared.lock();
        while queue.read(&mut self.packet)? {
            let received = session.receive(self.shared.now(), self.packet.payload());
            received.map_err(|violation| ChannelError::protocol(violation.to_string()))?;
        }
        while let Some(packet) = session.poll(self.shared.now()) {
            let out = OutPacket::Inband { transaction_id: self.sent, completion_requested: false };
            // A guest that does not read leaves no room; the session takes the request back when its time is over.
            if queue.write(&out, &[packet])? == Written::Full {
                break;
            }
            self.sent = self.sent.wrapping_add(1);
            session.sent();
        }
        self.awaits_answer = session.awaits_answer();
        self.deadline = session.deadline().map(|deadline| self.shared.epoch + deadline);
        Ok(())
    }

    fn wait(&self, wait: &mut Wait) {
        wait.readable(self.shared.waker.source());
        if let Some(deadline) = self.deadline {
            wait.until(deadline);
        }
        if self.awaits_answer {
            wait.for_answer();
        }
    }
}

impl<P: Protocol> Drop for Channel<P> {
    fn drop(&mut self) {
        self.shared.lock().close();
    }
}
