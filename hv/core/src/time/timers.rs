//! The four synthetic timers of a virtual processor (TLFS "Synthetic Timers"). All times are the partition's
//! reference time, in 100 ns.
//!
//! A timer in message mode has one message buffer of its own: an expiration whose message finds the slot busy is kept
//! there until the guest makes room, and further expirations of that timer are dropped meanwhile.
//!
//! A periodic timer whose virtual processor was not available for some periods makes up for them, twice as fast as usual, unless
//! they are many, or the guest has marked it lazy: then they are skipped.

mod state;

use crate::apic::Fault;
use arrayvec::ArrayVec;
use parterre_abi::msr::{STIMER_COUNT, STIMER0_CONFIG, STIMER3_COUNT, StimerConfig};

/// The shortest time between two expirations of a periodic timer, 50 µs: a shorter period would let a guest do nothing
/// but be interrupted. Expirations in between are skipped, as the specification allows.
const SHORTEST_PERIOD: u64 = 500;
/// Most missed expirations of a periodic timer that are made up for.
const MAX_MISSED: u64 = 8;
/// Vectors below are exceptions and cannot be asserted.
const FIRST_VECTOR: u8 = 16;

/// What a timer does when it expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiration {
    /// Asserts an interrupt (direct mode).
    Direct {
        /// The vector, 16 or above.
        vector: u8,
    },
    /// Sends a `TIMER_EXPIRED` message. It stays noted until [`SyntheticTimers::delivered`].
    Message {
        /// To this SINT.
        sint: u8,
        /// The timer, 0-3.
        index: u8,
        /// When it expired. The time of delivery is when the message goes into its slot.
        expiration: u64,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Timer {
    config: StimerConfig,
    count: u64,
    /// The next expiration, while the timer runs.
    next: Option<u64>,
    /// One that was missed is not made up for before this.
    not_before: u64,
    /// When the timer expired whose message has not been delivered.
    undelivered: Option<u64>,
}

/// The synthetic timers of a virtual processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyntheticTimers {
    timers: [Timer; STIMER_COUNT],
    /// The least of the timers' `next`: it is asked for at every dispatch.
    earliest: Option<u64>,
}

impl SyntheticTimers {
    /// After creation or reset: all disabled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads HV_X64_MSR_STIMER0_CONFIG ... STIMER3_COUNT. Let [`SyntheticTimers::expire`] catch up before. `None` for
    /// other registers.
    pub fn read(&self, msr: u32) -> Option<u64> {
        let (index, is_count) = register(msr)?;
        let timer = self.timers.get(index)?;
        Some(if is_count { timer.count } else { timer.config.into() })
    }

    /// Writes one of these registers at reference time `now`. The deadline may have changed; a one-shot timer whose
    /// time is past is due at once. `None` for other registers.
    pub fn write(&mut self, msr: u32, value: u64, now: u64) -> Option<Result<(), Fault>> {
        let (index, is_count) = register(msr)?;
        let timer = self.timers.get_mut(index)?;
        let written = if is_count {
            timer.write_count(value, now);
            Ok(())
        } else {
            timer.write_config(value.into(), now)
        };
        self.find_earliest();
        Some(written)
    }

    /// The timers have changed.
    fn find_earliest(&mut self) {
        self.earliest = self.timers.iter().filter_map(Timer::due).min();
    }

    /// The earliest reference time at which [`SyntheticTimers::expire`] has something to do.
    #[inline]
    pub fn deadline(&self) -> Option<u64> {
        self.earliest
    }

    /// If one timer alone is running and all it does is assert a vector once: that vector, so that the deadline can be
    /// left to hardware.
    pub fn sole_direct(&self) -> Option<u8> {
        let mut running = self.timers.iter().filter(|timer| timer.next.is_some());
        let timer = running.next().filter(|_| running.next().is_none())?;
        (timer.config.direct_mode() && !timer.config.periodic()).then(|| timer.config.apic_vector())
    }

    /// What has expired by `now`, at most once for each timer. One-shot timers disable themselves, periodic ones go on without
    /// drift.
    pub fn expire(&mut self, now: u64) -> ArrayVec<Expiration, STIMER_COUNT> {
        let expirations = self.timers.iter_mut().enumerate().filter_map(|(index, timer)| {
            // Below 4.
            timer.expire(index as u8, now)
        });
        let expirations = expirations.collect();
        self.find_earliest();
        expirations
    }

    /// Whether a message has not been delivered yet.
    pub fn has_undelivered(&self) -> bool {
        self.timers.iter().any(|timer| timer.undelivered.is_some())
    }

    /// The messages that have not been delivered yet, for another try after the guest made room (EOM, EOI).
    pub fn undelivered(&self) -> ArrayVec<Expiration, STIMER_COUNT> {
        let messages = self.timers.iter().enumerate().filter_map(|(index, timer)| {
            let expiration = timer.undelivered?;
            Some(Expiration::Message { sint: timer.config.sintx(), index: index as u8, expiration })
        });
        messages.collect()
    }

    /// The message of timer `index` is in its slot.
    pub fn delivered(&mut self, index: u8) {
        if let Some(timer) = self.timers.get_mut(usize::from(index)) {
            timer.undelivered = None;
        }
    }
}

/// The timer that a register belongs to, and whether it is the count.
fn register(msr: u32) -> Option<(usize, bool)> {
    if !(STIMER0_CONFIG..=STIMER3_COUNT).contains(&msr) {
        return None;
    }
    let offset = msr - STIMER0_CONFIG;
    Some((usize::try_from(offset / 2).ok()?, offset % 2 == 1))
}

impl Timer {
    fn write_config(&mut self, config: StimerConfig, now: u64) -> Result<(), Fault> {
        if config.reserved_z0() != 0 || config.reserved_z1() != 0 {
            return Err(Fault);
        }
        self.config = if is_possible(config) { config } else { config.with_enabled(false) };
        self.restart(now);
        Ok(())
    }

    fn write_count(&mut self, count: u64, now: u64) {
        self.count = count;
        if count == 0 {
            self.config.set_enabled(false);
        } else if self.config.auto_enable() && is_possible(self.config) {
            self.config.set_enabled(true);
        }
        self.restart(now);
    }

    /// A register was written: the message of an earlier setting is void, and a period begins.
    fn restart(&mut self, now: u64) {
        (self.undelivered, self.not_before) = (None, 0);
        self.next = (self.config.enabled() && self.count != 0)
            .then(|| if self.config.periodic() { now.saturating_add(self.period()) } else { self.count });
    }

    fn period(&self) -> u64 {
        self.count.max(1)
    }

    /// When it is to expire next.
    fn due(&self) -> Option<u64> {
        Some(self.next?.max(self.not_before))
    }

    fn expire(&mut self, index: u8, now: u64) -> Option<Expiration> {
        self.due().filter(|due| *due <= now)?;
        let expiration = self.next?;
        if self.config.periodic() {
            (self.next, self.not_before) = self.following(expiration, now);
        } else {
            self.next = None;
            self.config.set_enabled(false);
        }
        if self.config.direct_mode() {
            return Some(Expiration::Direct { vector: self.config.apic_vector() });
        }
        if self.undelivered.is_some() {
            return None;
        }
        self.undelivered = Some(expiration);
        Some(Expiration::Message { sint: self.config.sintx(), index, expiration })
    }

    /// The next expiration of a periodic timer that should have expired at `last`, and before when it is not to be told: the
    /// one after `last` if it is to be made up for, else the first multiple of the period after `now`. `None` if it lies beyond the
    /// end of time.
    fn following(&self, last: u64, now: u64) -> (Option<u64>, u64) {
        let period = self.period();
        let missed = (now - last) / period;
        let pause = period / 2;
        if !self.config.lazy() && (1..=MAX_MISSED).contains(&missed) && pause >= SHORTEST_PERIOD {
            return (last.checked_add(period), now.saturating_add(pause));
        }
        let from = if period < SHORTEST_PERIOD { now.saturating_add(SHORTEST_PERIOD) } else { now };
        let periods = ((from - last) / period).checked_add(1);
        let gone = periods.and_then(|periods| periods.checked_mul(period));
        (gone.and_then(|gone| last.checked_add(gone)), 0)
    }
}

/// Whether a timer so configured may be enabled: SINT 0 takes no timer messages, and direct mode needs a vector.
fn is_possible(config: StimerConfig) -> bool {
    if config.direct_mode() { config.apic_vector() >= FIRST_VECTOR } else { config.sintx() != 0 }
}
