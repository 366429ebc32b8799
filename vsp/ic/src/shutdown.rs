//! Shutdown: the parent asks the guest to switch off, restart or hibernate.
//!
//! The guest's answer means that it has begun, not that it is off.
//!
//! Source: Linux `include/linux/hyperv.h`, `struct shutdown_msg_data`; `drivers/hv/hv_util.c`.

use std::collections::VecDeque;
use std::time::Duration;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::reply::{Failure, Reply};
use crate::service::Service;
use crate::session::{Outgoing, Protocol};
use crate::text;
use crate::wire::{Status, Version};

/// How long the guest has to say whether it will.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Reason that is given to the guest: planned, of no particular kind.
const REASON_PLANNED: u32 = 0x8000_0000;
/// Orders that may wait.
const MAX_ORDERS: usize = 8;
/// Bytes of the text that the guest may show.
const TEXT_SIZE: usize = 2048;
const FLAG_FORCE: u32 = 1;
/// From this version on a guest can be asked to restart; older ones would switch off.
const WITH_RESTART: Version = Version::new(3, 0);
/// From this version on a guest can be asked to hibernate.
const WITH_HIBERNATE: Version = Version::new(3, 2);

/// What the guest shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Switch off.
    PowerOff,
    /// Restart.
    Restart,
    /// Save its memory to its disk and switch off.
    Hibernate,
}

impl Action {
    fn flags(self) -> u32 {
        match self {
            Action::PowerOff => 0,
            Action::Restart => 2,
            Action::Hibernate => 4,
        }
    }
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Message {
    reason: U32,
    timeout_seconds: U32,
    flags: U32,
    text: [u8; TEXT_SIZE],
}

#[derive(Debug)]
struct Order {
    action: Action,
    force: bool,
    text: String,
    reply: Reply<()>,
}

/// The shutdown service of one guest.
#[derive(Debug, Default)]
pub struct Shutdown {
    version: Option<Version>,
    waiting: VecDeque<Order>,
    current: Option<Reply<()>>,
}

impl Shutdown {
    /// Asks the guest. `force`: programs that do not want to end are ended; `text`: what the guest may show to people.
    pub fn request(&mut self, action: Action, force: bool, text: &str, reply: Reply<()>) {
        let version = self.version.unwrap_or(Version::new(0, 0));
        let able = match action {
            Action::PowerOff => true,
            Action::Restart => version >= WITH_RESTART,
            Action::Hibernate => version >= WITH_HIBERNATE,
        };
        if !able {
            return reply.send(Err(Failure::Refused(Status::NOT_SUPPORTED)));
        }
        if self.waiting.len() >= MAX_ORDERS {
            return reply.send(Err(Failure::Conflict("other requests to shut down are waiting already")));
        }
        self.waiting.push_back(Order { action, force, text: text.into(), reply });
    }
}

impl Protocol for Shutdown {
    const SERVICE: Service = Service::Shutdown;

    fn start(&mut self, _now: Duration, version: Version) {
        self.version = Some(version);
    }

    fn next(&mut self, _now: Duration) -> Option<Outgoing> {
        let order = self.waiting.pop_front()?;
        let mut message = Message {
            reason: REASON_PLANNED.into(),
            timeout_seconds: 0.into(),
            flags: (order.action.flags() | if order.force { FLAG_FORCE } else { 0 }).into(),
            text: [0; TEXT_SIZE],
        };
        text::encode_cut(&order.text, &mut message.text);
        self.current = Some(order.reply);
        Some(Outgoing { body: message.as_bytes().to_vec(), patience: PATIENCE })
    }

    fn deadline(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(Duration::ZERO)
    }

    fn answered(&mut self, _now: Duration, status: Status, _body: &[u8]) {
        if let Some(reply) = self.current.take() {
            reply.send(if status == Status::OK { Ok(()) } else { Err(Failure::Refused(status)) });
        }
    }

    fn unanswered(&mut self, _now: Duration) {
        if let Some(reply) = self.current.take() {
            reply.send(Err(Failure::NoAnswer { service: Service::Shutdown, patience: PATIENCE }));
        }
    }

    fn stop(&mut self) {
        // Whoever waits is told by the replies themselves.
        *self = Shutdown::default();
    }
}
