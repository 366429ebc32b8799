//! Time: the frequencies of the time stamp counter and the local APIC timer, and how a deadline becomes a timer setting.

use crate::apic::Timer;

/// The clocks of the machine, the same on every processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Ticks of the time stamp counter per second.
    pub tsc_frequency: u64,
    /// Ticks of the local APIC timer's input clock per second, undivided.
    pub apic_frequency: u64,
    /// Whether the timer can compare with the time stamp counter itself (CPUID 1 ECX[24]).
    pub deadline_mode: bool,
}

impl Clock {
    /// The timer setting that raises `vector` at `deadline` or, if that is too far away for the counter (minutes), as
    /// late as it can. A deadline that has passed fires at once.
    pub fn timer(&self, now: u64, deadline: u64, vector: u8) -> Timer {
        if self.deadline_mode {
            return Timer::Deadline { vector, deadline: deadline.max(1) };
        }
        let wait = u128::from(deadline.saturating_sub(now));
        let ticks = (wait * u128::from(self.apic_frequency)).div_ceil(u128::from(self.tsc_frequency));
        let divide_shift = (0..7).find(|shift| ticks >> shift <= u128::from(u32::MAX)).unwrap_or(7);
        let divided = (ticks + (1 << divide_shift) - 1) >> divide_shift;
        let count = u32::try_from(divided).unwrap_or(u32::MAX).max(1);
        Timer::Count { vector, count, divide_shift }
    }
}

/// Reads the time stamp counter, not before earlier loads are done.
#[inline]
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: every x86-64 processor has the counter; reading it changes nothing.
    unsafe {
        core::arch::asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock =
        Clock { tsc_frequency: 2_000_000_000, apic_frequency: 1_000_000_000, deadline_mode: false };

    #[test]
    fn a_deadline_becomes_a_count() {
        let near = CLOCK.timer(1000, 3001, 9);
        assert_eq!(near, Timer::Count { vector: 9, count: 1001, divide_shift: 0 });
        let minute = CLOCK.timer(0, 120_000_000_000, 9);
        assert_eq!(minute, Timer::Count { vector: 9, count: 3_750_000_000, divide_shift: 4 });
    }

    #[test]
    fn what_has_passed_fires_at_once_and_what_is_too_far_fires_early() {
        assert_eq!(CLOCK.timer(5000, 10, 9), Timer::Count { vector: 9, count: 1, divide_shift: 0 });
        assert_eq!(CLOCK.timer(0, u64::MAX, 9), Timer::Count { vector: 9, count: u32::MAX, divide_shift: 7 });
    }

    #[test]
    fn deadline_mode_takes_the_deadline_itself() {
        let clock = Clock { deadline_mode: true, ..CLOCK };
        assert_eq!(clock.timer(5, 77, 9), Timer::Deadline { vector: 9, deadline: 77 });
        assert_eq!(clock.timer(5, 0, 9), Timer::Deadline { vector: 9, deadline: 1 }, "0 would disarm it");
    }
}
