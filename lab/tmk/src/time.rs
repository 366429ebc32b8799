//! Waiting, by the time stamp counter. Its frequency is not known, so times are rough.

use crate::cpu::rdtsc;

/// Lets ticks pass.
pub fn spin(ticks: u64) {
    let start = rdtsc();
    while rdtsc().wrapping_sub(start) < ticks {
        core::hint::spin_loop();
    }
}

/// Waits for a condition, for so many ticks at most, and says whether it came.
pub fn wait_until(ticks: u64, mut condition: impl FnMut() -> bool) -> bool {
    let start = rdtsc();
    loop {
        if condition() {
            return true;
        }
        if rdtsc().wrapping_sub(start) > ticks {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// A wait that is long in any case: some seconds.
pub const LONG: u64 = 8_000_000_000;
