//! Heartbeat: the parent sends a number every two seconds, the guest answers with the next one.
//!
//! A guest that does not answer is asked again at the next beat; it counts as lost after [`LOST_AFTER`]. There is never
//! more than one beat on its way, so a guest that stands still does not find a full ring when it goes on.
//!
//! Source: Linux `include/linux/hyperv.h`, `struct heartbeat_msg_data`; `drivers/hv/hv_util.c`.

use std::time::Duration;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::service::Service;
use crate::session::{Outgoing, Protocol};
use crate::wire::{Status, Version};

/// Time from beat to beat.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// After this long without an answer the guest counts as lost.
pub const LOST_AFTER: Duration = Duration::from_secs(10);

#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Message {
    sequence: U64,
    application: U32,
    reserved: [U32; 7],
}

/// What the heart says about the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// The guest has not answered yet.
    NoContact,
    /// It answers.
    Ok,
    /// It has answered before and does not any more.
    Lost,
}

/// What the guest says about its applications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Applications {
    /// It does not say.
    #[default]
    Unknown,
    /// They are well.
    Healthy,
    /// Something is wrong with them.
    Critical,
}

/// The heartbeat of one guest.
#[derive(Debug, Default)]
pub struct Heartbeat {
    sequence: u64,
    due: Option<Duration>,
    last_answer: Option<Duration>,
    applications: Applications,
    wrong_numbers: u64,
}

impl Heartbeat {
    /// How the guest is.
    pub fn health(&self, now: Duration) -> Health {
        match (self.due, self.last_answer) {
            (None, _) | (_, None) => Health::NoContact,
            (Some(_), Some(last)) if now.saturating_sub(last) >= LOST_AFTER => Health::Lost,
            _ => Health::Ok,
        }
    }

    /// How its applications are.
    pub fn applications(&self) -> Applications {
        self.applications
    }

    /// Answers with a number other than the next one.
    pub fn wrong_numbers(&self) -> u64 {
        self.wrong_numbers
    }
}

impl Protocol for Heartbeat {
    const SERVICE: Service = Service::Heartbeat;

    fn start(&mut self, now: Duration, _version: Version) {
        *self = Heartbeat { due: Some(now), ..Heartbeat::default() };
    }

    fn next(&mut self, now: Duration) -> Option<Outgoing> {
        if self.due.is_none_or(|due| due > now) {
            return None;
        }
        self.due = Some(now + INTERVAL);
        let message =
            Message { sequence: self.sequence.into(), application: 0.into(), reserved: [0.into(); 7] };
        Some(Outgoing { body: message.as_bytes().to_vec(), patience: LOST_AFTER })
    }

    fn deadline(&self) -> Option<Duration> {
        self.due
    }

    fn answered(&mut self, now: Duration, status: Status, body: &[u8]) {
        let Ok((message, _)) = Message::read_from_prefix(body) else {
            self.wrong_numbers = self.wrong_numbers.saturating_add(1);
            return;
        };
        let expected = self.sequence.wrapping_add(1);
        self.sequence = expected.wrapping_add(1);
        if message.sequence.get() != expected || status != Status::OK {
            self.wrong_numbers = self.wrong_numbers.saturating_add(1);
            return;
        }
        self.last_answer = Some(now);
        self.applications = match message.application.get() {
            1 => Applications::Healthy,
            2 => Applications::Critical,
            _ => Applications::Unknown,
        };
    }

    fn unanswered(&mut self, _now: Duration) {
        self.sequence = self.sequence.wrapping_add(2);
    }

    fn stop(&mut self) {
        *self = Heartbeat::default();
    }
}
