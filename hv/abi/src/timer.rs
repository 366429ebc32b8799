//! Reference time (TLFS chapter "Timers"). Timer registers are in [`crate::msr`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Units of reference time in a second: it counts 100 ns.
pub const REFERENCE_TIME_HZ: u64 = 10_000_000;

/// The reference TSC page (`HV_REFERENCE_TSC_PAGE`): reference time = `((tsc * scale) >> 64) + offset`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReferenceTscPage {
    /// Changes with scale and offset; 0 while the page cannot be used.
    pub tsc_sequence: u32,
    /// Must be zero.
    pub reserved1: u32,
    /// Units of 100 ns per TSC tick, times 2^64.
    pub tsc_scale: u64,
    /// Added to the scaled TSC, in 100 ns.
    pub tsc_offset: i64,
    /// Must be zero.
    pub reserved2: [u64; 509],
}
const _: () = assert!(size_of::<ReferenceTscPage>() == 4096);

impl ReferenceTscPage {
    /// A sequence that says that the page cannot be used.
    pub const SEQUENCE_INVALID: u32 = 0;
}

/// The scale for a TSC of the given frequency; `None` if it ticks slower than reference time (the scale is then too large).
pub const fn tsc_scale(tsc_hz: u64) -> Option<u64> {
    if tsc_hz <= REFERENCE_TIME_HZ {
        return None;
    }
    Some((((REFERENCE_TIME_HZ as u128) << 64) / tsc_hz as u128) as u64)
}

/// Reference time by a TSC value, as guests compute it from the page.
pub const fn reference_time(tsc: u64, scale: u64, offset: i64) -> u64 {
    (((tsc as u128 * scale as u128) >> 64) as u64).wrapping_add_signed(offset)
}

/// The TSC value at which reference time reaches `time`: the smallest `tsc` with `reference_time(tsc) >= time`.
/// `None` if no 64-bit TSC value does, or the scale is 0. Times before the TSC's zero give 0.
pub const fn tsc_at(time: u64, scale: u64, offset: i64) -> Option<u64> {
    if scale == 0 {
        return None;
    }
    let ticks = time as i128 - offset as i128;
    if ticks <= 0 {
        return Some(0);
    }
    if ticks > u64::MAX as i128 {
        return None;
    }
    let tsc = ((ticks as u128) << 64).div_ceil(scale as u128);
    if tsc <= u64::MAX as u128 { Some(tsc as u64) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_of_round_frequencies() {
        assert_eq!(tsc_scale(20_000_000), Some(1 << 63));
        assert_eq!(tsc_scale(0), None);
        assert_eq!(tsc_scale(REFERENCE_TIME_HZ), None);
        assert_eq!(tsc_scale(u64::MAX), Some(10_000_000));
    }

    #[test]
    fn tsc_at_is_the_first_tick_that_reaches_the_time() {
        for hz in [10_000_001, 2_900_000_000, 3_300_123_456, 5_000_000_000_000] {
            let scale = tsc_scale(hz).unwrap();
            for offset in [0, -5, 5, 123_456_789, i64::MIN, i64::MAX] {
                for time in [0, 1, 5, 6, 1_000_000, u32::MAX as u64, 1 << 55] {
                    let Some(tsc) = tsc_at(time, scale, offset) else { continue };
                    let exact = |tsc: u64| ((tsc as u128 * scale as u128) >> 64) as i128 + offset as i128;
                    assert!(exact(tsc) >= time as i128, "{hz} {offset} {time}");
                    assert!(tsc == 0 || exact(tsc - 1) < time as i128, "{hz} {offset} {time}");
                }
            }
        }
    }

    #[test]
    fn tsc_at_refuses_what_cannot_be() {
        assert_eq!(tsc_at(1, 0, 0), None);
        assert_eq!(tsc_at(u64::MAX, 1, 0), None);
        assert_eq!(tsc_at(u64::MAX, u64::MAX, i64::MIN), None);
    }
}
