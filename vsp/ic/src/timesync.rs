//! Time synchronization: the parent tells its time, the guest keeps its clock by it.
//!
//! A message with [`FLAG_SYNC`] sets the guest's clock: the first one after the start, and one after each pause, because
//! the guest's clock stood still meanwhile. The others are samples for a clock that the guest disciplines itself
//! (`/dev/ptp_hyperv` in Linux).
//!
//! From version 4.0 on a message says at which moment of the guest's reference time it was made, so its way through the
//! ring costs no precision. Where the reference time cannot be had, version 4.0 is not offered.
//!
//! Source: Linux `include/linux/hyperv.h`, `struct ictimesync_data` and `struct ictimesync_ref_data`;
//! `drivers/hv/hv_util.c`.

use std::time::Duration;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::service::Service;
use crate::session::{Outgoing, Protocol};
use crate::wire::{Status, Version};

/// Time from sample to sample.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// How long the guest has to take a message.
const PATIENCE: Duration = Duration::from_secs(5);
/// The first version with the guest's reference time.
const WITH_REFERENCE: Version = Version::new(4, 0);

/// The guest shall set its clock.
pub const FLAG_SYNC: u8 = 1;
/// The guest may use the message as it likes.
pub const FLAG_SAMPLE: u8 = 2;

/// Reads the clocks.
pub trait Clock: Send {
    /// The parent's time of day (UTC) in units of 100 ns since 1601.
    fn time_of_day(&mut self) -> u64;
    /// The partition's reference time in units of 100 ns, if it can be had.
    fn reference_time(&mut self) -> Option<u64>;
}

/// Up to version 3.0: `struct ictimesync_data`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Message {
    parent_time: U64,
    child_time: U64,
    round_trip: U64,
    flags: u8,
}

/// From version 4.0 on: `struct ictimesync_ref_data`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct ReferenceMessage {
    parent_time: U64,
    reference_time: U64,
    flags: u8,
    leap: u8,
    stratum: u8,
    reserved: [u8; 3],
}

/// Time synchronization of one guest.
pub struct TimeSync<C> {
    clock: C,
    versions: Vec<Version>,
    with_reference: bool,
    due: Option<Duration>,
    sync: bool,
    sending_sync: bool,
    synchronized: u64,
}

impl<C: Clock> TimeSync<C> {
    /// A service that tells this clock's time.
    pub fn new(clock: C) -> TimeSync<C> {
        TimeSync {
            clock,
            versions: Vec::new(),
            with_reference: false,
            due: None,
            sync: true,
            sending_sync: false,
            synchronized: 0,
        }
    }

    /// The guest stood still, or the parent's clock was set: the guest shall set its clock at once.
    pub fn synchronize(&mut self) {
        self.sync = true;
        if self.due.is_some() {
            self.due = Some(Duration::ZERO);
        }
    }

    /// How often the guest has taken a message that sets its clock.
    pub fn synchronized(&self) -> u64 {
        self.synchronized
    }

    fn message(&mut self, flags: u8) -> Vec<u8> {
        if self.with_reference {
            // A reference time that cannot be had any more makes the message old, not wrong.
            let reference_time = self.clock.reference_time().unwrap_or(0).into();
            let parent_time = self.clock.time_of_day().into();
            let message = ReferenceMessage {
                parent_time,
                reference_time,
                flags,
                leap: 0,
                stratum: 1,
                reserved: [0; 3],
            };
            message.as_bytes().to_vec()
        } else {
            let parent_time = self.clock.time_of_day().into();
            let message = Message { parent_time, child_time: 0.into(), round_trip: 0.into(), flags };
            message.as_bytes().to_vec()
        }
    }
}

impl<C: Clock> Protocol for TimeSync<C> {
    const SERVICE: Service = Service::TimeSync;

    fn versions(&self) -> &[Version] {
        &self.versions
    }

    fn opening(&mut self) {
        let offered = Self::SERVICE.versions().iter().copied();
        let has_reference = self.clock.reference_time().is_some();
        self.versions = offered.filter(|version| has_reference || *version < WITH_REFERENCE).collect();
    }

    fn start(&mut self, now: Duration, version: Version) {
        self.with_reference = version >= WITH_REFERENCE;
        (self.due, self.sync, self.sending_sync) = (Some(now), true, false);
    }

    fn next(&mut self, now: Duration) -> Option<Outgoing> {
        if self.due.is_none_or(|due| due > now) {
            return None;
        }
        self.due = Some(now + INTERVAL);
        self.sending_sync = std::mem::take(&mut self.sync);
        let body = self.message(if self.sending_sync { FLAG_SYNC } else { FLAG_SAMPLE });
        Some(Outgoing { body, patience: PATIENCE })
    }

    fn deadline(&self) -> Option<Duration> {
        self.due
    }

    fn answered(&mut self, now: Duration, status: Status, _body: &[u8]) {
        if status != Status::OK {
            self.unanswered(now);
        } else if self.sending_sync {
            self.synchronized = self.synchronized.saturating_add(1);
        }
        self.sending_sync = false;
    }

    /// A message that sets the clock must arrive; a sample need not.
    fn unanswered(&mut self, _now: Duration) {
        self.sync |= self.sending_sync;
        self.sending_sync = false;
    }

    fn stop(&mut self) {
        self.due = None;
    }
}
