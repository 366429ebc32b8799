//! The APIC timer (Intel SDM 3A 12.5.4).
//!
//! Nothing counts here: the current count is computed from the time stamp counter when it is asked for, and a
//! deadline in TSC ticks says when to look again. All arithmetic starts from the moment the count was written, so
//! that a periodic timer does not drift. Ticks that were missed are dropped: one tick is pending at most.

use super::lvt::TimerMode;

/// How fast things tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Time stamp counter ticks per second.
    pub tsc: u64,
    /// Input clock of the APIC timer, ticks per second before division.
    pub apic: u64,
}

impl Rates {
    /// TSC ticks that `count` ticks of the APIC clock take, rounded up; an interrupt is never early.
    fn to_tsc(self, count: u128) -> u64 {
        let ticks = count.saturating_mul(self.tsc.into()).div_ceil(u128::from(self.apic.max(1)));
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// Whole ticks of the APIC clock in `tsc` ticks.
    fn to_apic(self, tsc: u64) -> u64 {
        let count = u128::from(tsc) * u128::from(self.apic) / u128::from(self.tsc.max(1));
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// The shortest time between two periodic interrupts: 50 µs, in TSC ticks. A shorter period would let a guest do
    /// nothing but be interrupted; it gets every n-th tick instead.
    fn shortest_period(self) -> u64 {
        self.tsc / 20_000
    }
}

/// The bits of the divide configuration register.
const DIVIDE: u32 = 0xB;

/// The timer's registers and what it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timer {
    /// The divide configuration register.
    pub divide: u32,
    /// The initial count register.
    pub initial: u32,
    /// When the initial count was written (or would have been, after a change of the divisor).
    start: u64,
    /// The next expiration, while the timer counts.
    next: Option<u64>,
    /// IA32_TSC_DEADLINE, in the guest's TSC; 0 is disarmed.
    pub deadline: u64,
}

impl Timer {
    pub const RESET: Self = Self { divide: 0, initial: 0, start: 0, next: None, deadline: 0 };

    /// By what the input clock is divided.
    fn divisor(&self) -> u64 {
        match self.divide & 3 | self.divide >> 1 & 4 {
            7 => 1,
            code => 2 << code,
        }
    }

    /// APIC clock ticks from the initial count to zero.
    fn span(&self) -> u64 {
        u64::from(self.initial) * self.divisor()
    }

    /// Starts counting `initial` at `now`; 0 stops.
    pub fn start(&mut self, initial: u32, now: u64, rates: Rates) {
        self.initial = initial;
        self.start = now;
        self.next = (initial != 0).then(|| now.saturating_add(rates.to_tsc(self.span().into())));
    }

    /// Stops all counting; the registers stay.
    pub fn disarm(&mut self) {
        self.next = None;
        self.deadline = 0;
    }

    /// Whether it counts, or waits for its deadline.
    #[inline]
    pub fn runs(&self) -> bool {
        self.next.is_some() || self.deadline != 0
    }

    /// Whether the divide configuration is what a write of `divide` would make it.
    pub fn has_divide(&self, divide: u32) -> bool {
        self.divide == divide & DIVIDE
    }

    /// Changes the divide configuration: the count goes on from where it is, at the new speed.
    pub fn set_divide(&mut self, divide: u32, mode: TimerMode, now: u64, rates: Rates) {
        let count = self.current(mode, now, rates);
        self.divide = divide & DIVIDE;
        self.resume(count, now, rates);
    }

    /// Goes on at `count` of `initial` (0: stopped).
    pub fn resume(&mut self, count: u32, now: u64, rates: Rates) {
        if count == 0 || self.initial == 0 {
            self.next = None;
            return;
        }
        let gone = u64::from(self.initial.saturating_sub(count)) * self.divisor();
        self.start = now.saturating_sub(rates.to_tsc(gone.into()));
        self.next = Some(self.start.saturating_add(rates.to_tsc(self.span().into())));
    }

    /// The current count register.
    pub fn current(&self, mode: TimerMode, now: u64, rates: Rates) -> u32 {
        if self.next.is_none() || self.initial == 0 || mode == TimerMode::Deadline {
            return 0;
        }
        let gone = rates.to_apic(now.saturating_sub(self.start)) / self.divisor();
        let initial = u64::from(self.initial);
        let left = match mode {
            TimerMode::Periodic => initial - gone % initial,
            _ => initial.saturating_sub(gone),
        };
        // No more than the initial count, which has 32 bits.
        left as u32
    }

    /// When to look at this timer again, in physical TSC ticks.
    pub fn next(&self, mode: TimerMode, now: u64, tsc_offset: u64) -> Option<u64> {
        match mode {
            TimerMode::Deadline if self.deadline == 0 => None,
            TimerMode::Deadline => {
                let guest_now = now.wrapping_add(tsc_offset);
                Some(now.saturating_add(self.deadline.saturating_sub(guest_now)))
            }
            _ => self.next,
        }
    }

    /// Whether the timer has expired at `now`; if so it is stopped, or goes on to its next period.
    pub fn expire(&mut self, mode: TimerMode, now: u64, tsc_offset: u64, rates: Rates) -> bool {
        if self.next(mode, now, tsc_offset).is_none_or(|next| next > now) {
            return false;
        }
        match mode {
            TimerMode::Deadline => self.deadline = 0,
            TimerMode::OneShot => self.next = None,
            TimerMode::Periodic => self.next = Some(self.next_period(now, rates)),
        }
        true
    }

    /// The first end of a period after `now`.
    fn next_period(&self, now: u64, rates: Rates) -> u64 {
        let span = u128::from(self.span().max(1));
        let short = rates.to_tsc(span) < rates.shortest_period();
        let from = if short { now.saturating_add(rates.shortest_period()) } else { now };
        let gone = u128::from(rates.to_apic(from.saturating_sub(self.start)));
        let next = self.start.saturating_add(rates.to_tsc((gone / span + 1) * span));
        // Rounding can leave the end of the period that just expired; the one after it is meant.
        if next > now { next } else { self.start.saturating_add(rates.to_tsc((gone / span + 2) * span)) }
    }

    /// Moves everything by `ticks`: time stood still for the partition that long.
    pub fn shift(&mut self, ticks: u64) {
        self.start = self.start.saturating_add(ticks);
        self.next = self.next.map(|next| next.saturating_add(ticks));
    }
}
