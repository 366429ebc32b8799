//! The APIC timer.

use super::*;

/// One-shot with vector 0x40, divided by 1.
fn one_shot() -> Fixture {
    let mut f = Fixture::xapic(0);
    let _ = f.page_write(0x320, 0x40);
    let _ = f.page_write(0x3E0, 0xB);
    f
}

#[test]
fn one_shot_counts_and_fires_once() {
    let mut f = one_shot();
    let start = f.tsc;
    assert_eq!(f.page_write(0x380, 1000), Effect::TimerChanged);
    assert_eq!(f.deadline(), Some(start + 10_000));
    f.tsc = start + 2_505;
    assert_eq!(f.page_read(0x390), 750);
    assert_eq!(f.expired(), None);
    f.tsc = start + 10_000;
    assert_eq!(f.expired(), Some(0x40));
    assert_eq!(f.page_read(0x390), 0);
    assert_eq!(f.deadline(), None);
    f.tsc += 1_000_000;
    assert_eq!(f.expired(), None);
}

#[test]
fn divisors() {
    for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let mut f = one_shot();
        let _ = f.page_write(0x3E0, code);
        let _ = f.page_write(0x380, 100);
        assert_eq!(f.deadline(), Some(f.tsc + 1000 * divisor));
    }
}

#[test]
fn a_changed_divisor_goes_on_from_the_count() {
    let mut f = one_shot();
    let _ = f.page_write(0x380, 1000);
    f.tsc += 4_000;
    let _ = f.page_write(0x3E0, 0);
    assert_eq!(f.page_read(0x390), 600);
    assert_eq!(f.deadline(), Some(f.tsc + 12_000));
}

#[test]
fn periodic_does_not_drift_and_drops_missed_ticks() {
    let mut f = one_shot();
    let _ = f.page_write(0x320, 0x2_0040);
    let start = f.tsc;
    let _ = f.page_write(0x380, 100_000);
    f.tsc = start + 1_000_700;
    assert_eq!(f.expired(), Some(0x40));
    assert_eq!(f.expired(), None);
    assert_eq!(f.deadline(), Some(start + 2_000_000));
    f.tsc = start + 7_200_000;
    assert_eq!(f.expired(), Some(0x40));
    assert_eq!(f.expired(), None, "five ticks were missed and are gone");
    assert_eq!(f.deadline(), Some(start + 8_000_000));
    assert_eq!(f.page_read(0x390), 80_000);
}

#[test]
fn a_tiny_period_makes_no_storm() {
    let mut f = one_shot();
    let _ = f.page_write(0x320, 0x2_0040);
    let _ = f.page_write(0x380, 1);
    let end = f.tsc + RATES.tsc / 1000;
    let mut ticks = 0;
    while let Some(deadline) = f.deadline().filter(|deadline| *deadline <= end) {
        f.tsc = f.tsc.max(deadline);
        assert_eq!(f.expired(), Some(0x40));
        ticks += 1;
    }
    assert!((15..=22).contains(&ticks), "{ticks} in a millisecond");
}

#[test]
fn masked_timers_count_but_do_not_interrupt() {
    let mut f = one_shot();
    let _ = f.page_write(0x320, 0x1_0040);
    let _ = f.page_write(0x380, 1000);
    assert_eq!(f.deadline(), None);
    f.tsc += 5_000;
    assert_eq!(f.page_read(0x390), 500);
    f.tsc += 6_000;
    let _ = f.page_write(0x320, 0x40);
    assert_eq!(f.deadline(), None, "it expired while masked");
    assert_eq!(f.pending(), None);
}

#[test]
fn an_expiration_that_nobody_looked_at_is_not_lost_by_a_write() {
    let mut f = one_shot();
    let _ = f.page_write(0x380, 1000);
    f.tsc += 20_000;
    let _ = f.page_write(0x380, 5000);
    assert_eq!(f.pending(), Some(0x40));
    assert_eq!(f.deadline(), Some(f.tsc + 50_000));
}

#[test]
fn zero_stops() {
    let mut f = one_shot();
    let _ = f.page_write(0x380, 1000);
    let _ = f.page_write(0x380, 0);
    assert_eq!(f.deadline(), None);
    assert_eq!(f.page_read(0x390), 0);
}

#[test]
fn tsc_deadline() {
    let mut f = one_shot();
    f.apic.write_tsc_deadline(5);
    assert_eq!(f.apic.tsc_deadline(), 0, "ignored in other modes");
    f.tsc_offset = 0u64.wrapping_sub(400_000);
    let _ = f.page_write(0x320, 0x4_0040);
    let _ = f.page_write(0x380, 1000);
    assert_eq!(f.deadline(), None, "the initial count is ignored");
    f.apic.write_tsc_deadline(700_000);
    assert_eq!(f.deadline(), Some(1_100_000), "in physical ticks");
    assert_eq!(f.apic.tsc_deadline(), 700_000);
    assert_eq!(f.page_read(0x390), 0);
    assert_eq!(f.expired(), None);
    f.tsc = 1_100_000;
    assert_eq!(f.expired(), Some(0x40));
    assert_eq!(f.apic.tsc_deadline(), 0);
    f.apic.write_tsc_deadline(1);
    assert_eq!(f.expired(), Some(0x40), "a deadline in the past expires at once");
    f.apic.write_tsc_deadline(u64::MAX);
    let _ = f.page_write(0x320, 0x40);
    assert_eq!(f.deadline(), None, "leaving the mode disarms");
    let _ = f.page_write(0x320, 0x4_0040);
    assert_eq!(f.deadline(), None);
}

#[test]
fn frozen_time_shifts_the_count() {
    let mut f = one_shot();
    let _ = f.page_write(0x380, 1000);
    f.tsc += 50_000;
    f.apic.shift_time(45_000);
    assert_eq!(f.page_read(0x390), 500);
    assert_eq!(f.deadline(), Some(f.tsc + 5_000));
}

#[test]
fn timer_only() {
    let mut f = Fixture::reset(3);
    f.apic = LocalApic::timer_only(f.apic.configuration, &f.incoming);
    assert_eq!(f.msr_write(0x832, 0xEC), Ok(Effect::TimerChanged));
    assert_eq!(f.apic.timer_vector(), Some(0xEC));
    assert_eq!(f.msr_write(0x83E, 0xB), Ok(Effect::TimerChanged));
    assert_eq!(f.msr_write(0x838, 1000), Ok(Effect::TimerChanged));
    assert_eq!(f.deadline(), Some(f.tsc + 10_000));
    assert_eq!(f.msr_write(0x832, 0x1_00EC), Ok(Effect::TimerChanged));
    assert_eq!(f.apic.timer_vector(), None);
    assert_eq!(f.deadline(), None);
}

#[test]
fn registers_written_with_what_they_hold_move_no_deadline() {
    let mut f = Fixture::reset(3);
    f.apic = LocalApic::timer_only(f.apic.configuration, &f.incoming);
    assert_eq!(f.msr_write(0x832, 0xEC), Ok(Effect::TimerChanged));
    assert_eq!(f.msr_write(0x83E, 0xB), Ok(Effect::TimerChanged));
    assert_eq!(f.msr_write(0x838, 1000), Ok(Effect::TimerChanged));
    let deadline = f.deadline();
    f.tsc += 5000;
    assert_eq!(f.msr_write(0x832, 0xEC), Ok(Effect::None));
    assert_eq!(f.msr_write(0x83E, 0xB), Ok(Effect::None));
    assert_eq!(f.deadline(), deadline);
    assert_eq!(f.msr_write(0x83E, 0xA), Ok(Effect::TimerChanged));
    assert_ne!(f.deadline(), deadline);
    assert_eq!(f.msr_write(0x838, 1000), Ok(Effect::TimerChanged));
}
