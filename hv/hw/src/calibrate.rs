//! How fast the machine's clocks run: told by CPUID where it tells, else measured against the interval timer (8254), whose
//! 1.193182 MHz every PC has.

use crate::apic;
use crate::cpu::port;
use crate::cpu::registers::cpuid;
use crate::timer::{Clock, tsc};

const PIT_FREQUENCY: u64 = 1_193_182;
const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
/// Gate (bit 0), speaker (bit 1) and output (bit 5) of channel 2.
const PIT_GATE: u16 = 0x61;
/// Ticks to measure over: about 42 ms, in one round of the 16-bit counter.
const PIT_TICKS: u16 = 50_000;
/// Ticks of the time stamp counter between two looks at the interval timer.
const POLL_TICKS: u64 = 100_000;
/// How often is measured; the middle result of each clock counts.
const ATTEMPTS: usize = 5;

/// Finds out the frequencies. The local APIC is in x2APIC mode; its timer is used and left off.
pub fn clock() -> Clock {
    let deadline_mode = cpuid(1, 0)[2] >> 24 & 1 != 0;
    if let Some((tsc_frequency, apic_frequency)) = told() {
        return Clock { tsc_frequency, apic_frequency, deadline_mode };
    }
    let (tsc_frequency, apic_frequency) = measured();
    Clock { tsc_frequency, apic_frequency, deadline_mode }
}

/// The frequencies of the time stamp counter and the timer by CPUID: leaf 0x4000_0010 of a hypervisor below us, or leaf
/// 0x15, where the crystal clocks the timer (Intel SDM 3A, 11.5.4).
fn told() -> Option<(u64, u64)> {
    let below = cpuid(1, 0)[2] >> 31 != 0 && cpuid(0x4000_0000, 0)[0] >= 0x4000_0010;
    let khz = if below { cpuid(0x4000_0010, 0) } else { [0; 4] };
    if khz[0] != 0 && khz[1] != 0 {
        return Some((u64::from(khz[0]) * 1000, u64::from(khz[1]) * 1000));
    }
    let [denominator, numerator, crystal, _] = if cpuid(0, 0)[0] >= 0x15 { cpuid(0x15, 0) } else { [0; 4] };
    if denominator == 0 || numerator == 0 || crystal == 0 {
        return None;
    }
    let crystal = u64::from(crystal);
    Some((crystal * u64::from(numerator) / u64::from(denominator), crystal))
}

/// One reading of all three clocks.
#[derive(Clone, Copy, Debug)]
struct Reading {
    pit: u16,
    tsc: u64,
    apic: u32,
}

fn measured() -> (u64, u64) {
    let (mut tsc, mut apic) = ([0; ATTEMPTS], [0; ATTEMPTS]);
    for attempt in 0..ATTEMPTS {
        (tsc[attempt], apic[attempt]) = measure();
    }
    (middle(tsc), middle(apic))
}

fn middle(mut values: [u64; ATTEMPTS]) -> u64 {
    values.sort_unstable();
    values[ATTEMPTS / 2]
}

fn measure() -> (u64, u64) {
    // SAFETY: channel 2 of the interval timer drives the speaker, nothing else. The count starts at its highest.
    unsafe {
        port::write8(PIT_GATE, port::read8(PIT_GATE) & !2 | 1);
        port::write8(PIT_COMMAND, 0b1011_0000); // channel 2, both bytes, mode 0
        port::write8(PIT_CHANNEL_2, 0xff);
        port::write8(PIT_CHANNEL_2, 0xff);
    }
    apic::set_timer(apic::Timer::Count {
        vector: crate::processor::HYPERVISOR_VECTOR,
        count: u32::MAX,
        divide_shift: 4,
    });
    let start = read();
    while start.pit.wrapping_sub(read_pit()) < PIT_TICKS {
        // Ports are slow to read; looking every 25 to 100 microseconds is enough.
        let last = tsc();
        while tsc() - last < POLL_TICKS {
            core::hint::spin_loop();
        }
    }
    let end = read();
    apic::set_timer(apic::Timer::Off);
    frequencies(start, end)
}

/// The reading that was done fastest out of a few, so that no pause of the machine lies within.
fn read() -> Reading {
    let one = || {
        let before = tsc();
        let reading = (read_pit(), apic::timer_count());
        let after = tsc();
        (after - before, Reading { pit: reading.0, tsc: before + (after - before) / 2, apic: reading.1 })
    };
    (0..5)
        .map(|_| one())
        .min_by_key(|(duration, _)| *duration)
        .map_or_else(|| one().1, |(_, reading)| reading)
}

fn read_pit() -> u16 {
    // SAFETY: as in `measure`; this latches the count and reads both bytes.
    unsafe {
        port::write8(PIT_COMMAND, 0b1000_0000);
        let low = port::read8(PIT_CHANNEL_2);
        u16::from_le_bytes([low, port::read8(PIT_CHANNEL_2)])
    }
}

fn frequencies(start: Reading, end: Reading) -> (u64, u64) {
    let pit = u64::from(start.pit.wrapping_sub(end.pit)).max(1);
    let tsc = end.tsc - start.tsc;
    let apic = u64::from(start.apic.wrapping_sub(end.apic)) << 4;
    (tsc * PIT_FREQUENCY / pit, apic * PIT_FREQUENCY / pit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_follow_from_two_readings() {
        let start = Reading { pit: 65_000, tsc: 1_000, apic: u32::MAX };
        let end = Reading { pit: 65_000 - 11_932, tsc: 20_001_000, apic: u32::MAX - 625_000 };
        let (tsc, apic) = frequencies(start, end);
        assert!(tsc.abs_diff(2_000_000_000) < 200_000, "{tsc}");
        assert!(apic.abs_diff(1_000_000_000) < 100_000, "{apic}");
    }

    #[test]
    fn the_middle_result_counts() {
        assert_eq!(middle([9, 1, 5, 100, 4]), 5);
    }
}
