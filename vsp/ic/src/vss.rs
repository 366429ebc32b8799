//! Backup (VSS): the guest's file systems are frozen, their disks copied, and thawed again.
//!
//! ```text
//!            freeze: check-ready, freeze                       thaw
//!   Thawed ------------------------------> Frozen(until) ---------------> Thawed: thaw, complete
//!                                              |
//!                                              '-- until is over: thaw of its own accord, the copy is worth nothing
//! ```
//! A guest whose file systems are frozen stands still, so nobody can leave it so: it is thawed when the time that the
//! order gave is over, and when the guest did not answer whether it had frozen. A guest that does not say that it has thawed is
//! asked again, [`THAWS`] times in all, and whenever somebody orders it.
//!
//! Source: Linux `include/uapi/linux/hyperv.h`, `struct hv_vss_msg`; `drivers/hv/hv_snapshot.c`.

use std::time::Duration;

use zerocopy::little_endian::U32;
use zerocopy::{Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::reply::{Failure, Reply};
use crate::service::Service;
use crate::session::{Outgoing, Protocol};
use crate::wire::{Status, Version};

/// How long the guest has for anything but freezing; its driver gives up after 30 seconds.
pub const PATIENCE: Duration = Duration::from_secs(35);
/// How long the guest has to freeze.
pub const FREEZE_PATIENCE: Duration = Duration::from_secs(120);
/// The longest time that file systems may be frozen.
pub const MAX_FROZEN: Duration = Duration::from_secs(600);

/// How often a guest is asked to thaw before whoever waits is told that it may not have.
pub const THAWS: u8 = 3;

/// Body of a request: `struct hv_vss_msg`.
#[repr(C)]
#[derive(IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Message {
    operation: u8,
    reserved: [u8; 7],
    flags: U32,
}

/// What the guest is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Operation {
    /// Could it freeze?
    CheckReady = 2,
    /// The backup is done.
    Complete = 4,
    /// Freeze the file systems.
    Freeze = 5,
    /// Thaw them.
    Thaw = 6,
}

impl Operation {
    fn request(self) -> Outgoing {
        let message = Message { operation: self as u8, reserved: [0; 7], flags: 0.into() };
        let patience = if self == Operation::Freeze { FREEZE_PATIENCE } else { PATIENCE };
        Outgoing { body: message.as_bytes().to_vec(), patience }
    }
}

/// What the file systems of the guest are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystems {
    /// In use.
    Thawed,
    /// On the way from one to the other.
    Changing,
    /// Frozen.
    Frozen,
    /// Perhaps frozen: the guest was asked to thaw them, and did not say that it has.
    Unknown,
}

/// What was true when file systems were thawed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thawed {
    /// They were frozen until now: what was copied meanwhile is whole.
    WasFrozen,
    /// They were not, or not any more: what was copied is worth no more than after a power cut.
    WasNot,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Thawed,
    Checking {
        limit: Duration,
        reply: Reply<()>,
    },
    Freezing {
        limit: Duration,
        reply: Reply<()>,
    },
    Frozen {
        until: Duration,
    },
    Thawing {
        reply: Reply<Thawed>,
        was: Thawed,
        /// How often the guest may still be asked.
        more: u8,
    },
    /// The guest did not say that it has thawed.
    Unknown,
    /// The file systems are thawed, the guest is to be told that the backup is over.
    Completing,
}

/// The backup service of one guest.
#[derive(Debug, Default)]
pub struct Backup {
    state: State,
    /// What `next` is to send for the state, if it has not been sent yet.
    due: Option<Operation>,
    overrun: bool,
}

impl Backup {
    /// What the file systems are.
    pub fn file_systems(&self) -> FileSystems {
        match self.state {
            State::Thawed | State::Completing => FileSystems::Thawed,
            State::Frozen { .. } => FileSystems::Frozen,
            State::Unknown => FileSystems::Unknown,
            _ => FileSystems::Changing,
        }
    }

    /// Freezes the file systems for at most `limit` (and at most [`MAX_FROZEN`]).
    pub fn freeze(&mut self, limit: Duration, reply: Reply<()>) {
        if !matches!(self.state, State::Thawed) {
            return reply.send(Err(Failure::Conflict(match self.state {
                State::Unknown => {
                    "the guest did not say that it has thawed its file systems; have it thaw them first"
                }
                _ => "a backup of this guest is going on already",
            })));
        }
        self.overrun = false;
        self.enter(State::Checking { limit: limit.min(MAX_FROZEN), reply }, Operation::CheckReady);
    }

    /// Thaws them. If a limit has done so already, or is about to, that is an answer, not an error.
    pub fn thaw(&mut self, reply: Reply<Thawed>) {
        match &mut self.state {
            // They are being thawed for nobody: whoever orders it now hears how that ends.
            State::Thawing { reply: waiting, .. } if waiting.is_nobodys() => *waiting = reply,
            State::Frozen { .. } => self.begin_thaw(reply, Thawed::WasFrozen),
            State::Unknown => self.begin_thaw(reply, Thawed::WasNot),
            State::Thawed | State::Completing if self.overrun => reply.send(Ok(Thawed::WasNot)),
            State::Thawed | State::Completing => {
                reply.send(Err(Failure::Conflict("the guest's file systems are not frozen")));
            }
            _ => reply.send(Err(Failure::Conflict("the guest's file systems are being frozen or thawed"))),
        }
    }

    fn enter(&mut self, state: State, operation: Operation) {
        (self.state, self.due) = (state, Some(operation));
    }

    fn begin_thaw(&mut self, reply: Reply<Thawed>, was: Thawed) {
        self.enter(State::Thawing { reply, was, more: THAWS - 1 }, Operation::Thaw);
    }

    /// Thaws without having been asked to.
    fn rescue(&mut self) {
        self.overrun = true;
        self.begin_thaw(Reply::nobody(), Thawed::WasNot);
    }

    fn proceed(&mut self, now: Duration, outcome: Result<(), Failure>) {
        match (std::mem::take(&mut self.state), outcome) {
            (State::Checking { limit, reply }, Ok(())) => {
                self.enter(State::Freezing { limit, reply }, Operation::Freeze);
            }
            (State::Checking { reply, .. }, Err(failure)) => reply.send(Err(failure)),
            (State::Freezing { limit, reply }, Ok(())) => {
                self.state = State::Frozen { until: now + limit };
                reply.send(Ok(()));
            }
            (State::Freezing { reply, .. }, Err(failure)) => {
                // It may have frozen some file systems, or freeze them later.
                self.rescue();
                reply.send(Err(failure));
            }
            (State::Thawing { reply, was, .. }, Ok(())) => {
                self.enter(State::Completing, Operation::Complete);
                reply.send(Ok(was));
            }
            (State::Thawing { reply, was, more: more @ 1.. }, Err(_)) => {
                self.enter(State::Thawing { reply, was, more: more - 1 }, Operation::Thaw);
            }
            (State::Thawing { reply, .. }, Err(failure)) => {
                self.state = State::Unknown;
                reply.send(Err(failure));
            }
            (state @ (State::Thawed | State::Completing | State::Frozen { .. } | State::Unknown), _) => {
                if !matches!(state, State::Completing) {
                    self.state = state;
                }
            }
        }
    }
}

impl Protocol for Backup {
    const SERVICE: Service = Service::Backup;

    fn start(&mut self, _now: Duration, _version: Version) {
        *self = Backup::default();
    }

    fn next(&mut self, now: Duration) -> Option<Outgoing> {
        if matches!(self.state, State::Frozen { until } if until <= now) {
            self.rescue();
        }
        self.due.take().map(Operation::request)
    }

    fn deadline(&self) -> Option<Duration> {
        match (&self.due, &self.state) {
            (Some(_), _) => Some(Duration::ZERO),
            (None, State::Frozen { until }) => Some(*until),
            (None, _) => None,
        }
    }

    fn answered(&mut self, now: Duration, status: Status, _body: &[u8]) {
        let outcome = if status == Status::OK { Ok(()) } else { Err(Failure::Refused(status)) };
        self.proceed(now, outcome);
    }

    fn unanswered(&mut self, now: Duration) {
        let patience = if matches!(self.state, State::Freezing { .. }) { FREEZE_PATIENCE } else { PATIENCE };
        self.proceed(now, Err(Failure::NoAnswer { service: Service::Backup, patience }));
    }

    fn stop(&mut self) {
        // Whoever waits is told by the reply itself. The guest's daemon thaws when its channel closes.
        *self = Backup::default();
    }
}
