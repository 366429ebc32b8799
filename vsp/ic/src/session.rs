//! What all services have in common: negotiation, one request at a time, time-outs.
//!
//! ```text
//!            open                 choice
//!   Closed --------> Negotiating --------> Running
//!     ^                   |                  |
//!     |                   | none             | close (from every state)
//!     |                   v                  |
//!     '--------------- Mismatch <------------'
//! ```
//! A session does no I/O. Its owner calls [`Session::open`] when the guest has opened the channel, [`Session::receive`]
//! with what the guest sent, then [`Session::poll`] for packets to be sent until there is none, and all that again at
//! [`Session::deadline`] or when somebody has given the protocol an order ([`Session::order`]). Times are durations since
//! any fixed moment.
//!
//! Negotiation has no time-out: Linux's data exchange and backup answer when their daemon starts, which may be never.

use std::time::Duration;

use crate::negotiate::{self, BadChoice, Choice};
use crate::reply::Failure;
use crate::service::{FRAMEWORK_VERSIONS, Service};
use crate::wire::{self, FLAG_RESPONSE, HEADERS_SIZE, MessageType, Request, Status, Version};

/// What is a service's own.
pub trait Protocol {
    /// Which service it is.
    const SERVICE: Service;

    /// The versions to offer, oldest first.
    fn versions(&self) -> &[Version] {
        Self::SERVICE.versions()
    }

    /// The guest has opened the channel and will be offered [`Protocol::versions`].
    fn opening(&mut self) {}

    /// The guest has chosen a version; requests can be sent from now on.
    fn start(&mut self, now: Duration, version: Version);

    /// The next request, if one is due.
    fn next(&mut self, now: Duration) -> Option<Outgoing>;

    /// When [`Protocol::next`] has something, if it is known. Orders come without notice.
    fn deadline(&self) -> Option<Duration>;

    /// The guest has answered the request that `next` gave last.
    fn answered(&mut self, now: Duration, status: Status, body: &[u8]);

    /// The guest has not answered it in time.
    fn unanswered(&mut self, now: Duration);

    /// The channel is closed; what was going on is over.
    fn stop(&mut self);
}

/// A request of a protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its body.
    pub body: Vec<u8>,
    /// How long the guest has to answer.
    pub patience: Duration,
}

/// The state of a service in a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// The guest has not opened the channel.
    #[default]
    Closed,
    /// The guest has not chosen a version yet.
    Negotiating,
    /// The guest knows none of the versions.
    Mismatch,
    /// The service runs.
    Running(Choice),
}

/// A packet that is no message at all. It costs the guest the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a packet of {size} bytes is too short for a message of '{service}'")]
pub struct Violation {
    /// The service.
    pub service: Service,
    /// Bytes that came.
    pub size: usize,
}

#[derive(Clone, Copy, Debug)]
struct Outstanding {
    message_type: MessageType,
    transaction: u8,
    until: Option<Duration>,
}

/// The parent's end of one service's channel.
#[derive(Debug)]
pub struct Session<P> {
    protocol: P,
    link: Link,
    outstanding: Option<Outstanding>,
    unsent: Option<Vec<u8>>,
    next_transaction: u8,
    strays: u64,
    complaint: Option<BadChoice>,
}

impl<P: Protocol> Session<P> {
    /// A session on a channel that is closed.
    pub fn new(protocol: P) -> Session<P> {
        Session {
            protocol,
            link: Link::Closed,
            outstanding: None,
            unsent: None,
            next_transaction: 0,
            strays: 0,
            complaint: None,
        }
    }

    /// State of the service.
    pub fn link(&self) -> Link {
        self.link
    }

    /// The service's own state.
    pub fn protocol(&self) -> &P {
        &self.protocol
    }

    /// The protocol, to give it an order; or why that is of no use now.
    ///
    /// # Errors
    /// The service does not run.
    pub fn order(&mut self) -> Result<&mut P, Failure> {
        match self.link {
            Link::Running(_) => Ok(&mut self.protocol),
            _ => Err(Failure::Unavailable(P::SERVICE)),
        }
    }

    /// The protocol, for what can be told to it at any time.
    pub fn protocol_mut(&mut self) -> &mut P {
        &mut self.protocol
    }

    /// Answers of the guest that were not asked for, or came too late.
    pub fn strays(&self) -> u64 {
        self.strays
    }

    /// What was wrong with the guest's choice of versions, if that is why there is none.
    pub fn complaint(&self) -> Option<BadChoice> {
        self.complaint
    }

    /// The guest has opened the channel.
    pub fn open(&mut self) {
        self.close();
        self.link = Link::Negotiating;
        self.complaint = None;
        self.protocol.opening();
        let body = negotiate::offer(FRAMEWORK_VERSIONS, self.protocol.versions());
        self.send(MessageType::Negotiate, negotiate::VERSION, negotiate::VERSION, &body, None);
    }

    /// The channel is closed.
    pub fn close(&mut self) {
        if let Link::Running(_) = self.link {
            self.protocol.stop();
        }
        self.link = Link::Closed;
        (self.outstanding, self.unsent) = (None, None);
    }

    /// Takes a packet of the guest.
    ///
    /// # Errors
    /// It is no message; the channel is to be closed.
    pub fn receive(&mut self, now: Duration, packet: &[u8]) -> Result<(), Violation> {
        let Some((header, body)) = wire::split(packet) else {
            return Err(Violation { service: P::SERVICE, size: packet.len() });
        };
        let answered = self.outstanding.filter(|outstanding| {
            outstanding.transaction == header.transaction
                && outstanding.message_type.0 == header.message_type.get()
                && header.flags & FLAG_RESPONSE != 0
                // What has not been sent cannot have been answered.
                && self.unsent.is_none()
        });
        if answered.is_none() {
            self.strays = self.strays.saturating_add(1);
            return Ok(());
        }
        self.outstanding = None;
        match self.link {
            Link::Negotiating => self.chosen(now, body),
            Link::Running(_) => self.protocol.answered(now, Status(header.status.get()), body),
            Link::Closed | Link::Mismatch => {}
        }
        Ok(())
    }

    fn chosen(&mut self, now: Duration, body: &[u8]) {
        self.link = match negotiate::choice(body, FRAMEWORK_VERSIONS, self.protocol.versions()) {
            Ok(Some(choice)) => {
                self.protocol.start(now, choice.version);
                Link::Running(choice)
            }
            Ok(None) => Link::Mismatch,
            Err(complaint) => {
                self.complaint = Some(complaint);
                Link::Mismatch
            }
        };
    }

    /// The packet that is to be sent now, if there is one. It stays until [`Session::sent`] is called.
    pub fn poll(&mut self, now: Duration) -> Option<&[u8]> {
        self.expire(now);
        if let (Link::Running(choice), None) = (self.link, self.outstanding)
            && let Some(Outgoing { body, patience }) = self.protocol.next(now)
        {
            let kind = P::SERVICE.message_type();
            self.send(kind, choice.framework, choice.version, &body, Some(now + patience));
        }
        self.unsent.as_deref()
    }

    /// The packet that [`Session::poll`] gave is in the ring.
    pub fn sent(&mut self) {
        self.unsent = None;
    }

    /// When [`Session::poll`] is to be called again at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        match (self.link, self.outstanding) {
            (Link::Running(_), None) => self.protocol.deadline(),
            (_, outstanding) => outstanding.and_then(|outstanding| outstanding.until),
        }
    }

    /// Whether the guest has yet to answer, or first to make room for what is to be sent.
    pub fn awaits_answer(&self) -> bool {
        self.outstanding.is_some()
    }

    /// Gives up on a request whose time is over. If it could not even be sent, it is taken back.
    fn expire(&mut self, now: Duration) {
        let late =
            self.outstanding.and_then(|outstanding| outstanding.until).is_some_and(|until| until <= now);
        if late {
            (self.outstanding, self.unsent) = (None, None);
            self.protocol.unanswered(now);
        }
    }

    fn send(
        &mut self,
        message_type: MessageType,
        framework: Version,
        version: Version,
        body: &[u8],
        until: Option<Duration>,
    ) {
        let transaction = self.next_transaction;
        self.next_transaction = transaction.wrapping_add(1);
        let request = Request { framework, version, message_type, transaction, body };
        self.unsent = Some(request.packet());
        self.outstanding = Some(Outstanding { message_type, transaction, until });
    }
}

/// Longest packet that a guest sends in answer to requests whose bodies have at most this many bytes.
pub const fn packet_size(body: usize) -> usize {
    (HEADERS_SIZE + body).next_multiple_of(8)
}
