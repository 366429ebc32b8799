//! Tests of clocks and synthetic timers.

use super::*;
use crate::apic::Fault;
use parterre_abi::msr::StimerConfig;
use proptest::prelude::*;
use std::vec::Vec;

const GHZ: u64 = 1_000_000_000;

/// What a guest computes from the page.
fn by_page(page: ReferenceTsc, guest_tsc: u64) -> u64 {
    (((u128::from(guest_tsc) * u128::from(page.scale)) >> 64) as u64).wrapping_add_signed(page.offset)
}

#[test]
fn a_child_starts_at_zero() {
    let clock = Clock::new(2 * GHZ, 77 * GHZ);
    assert_eq!(clock.reference_time(77 * GHZ), 0);
    let after = clock.reference_time(79 * GHZ);
    assert!((9_999_999..=10_000_000).contains(&after), "{after}");
    assert_eq!((77 * GHZ).wrapping_add(clock.tsc_offset()), 0);
    assert_ne!(clock.page().sequence, 0);
}

#[test]
fn the_parent_keeps_the_physical_tsc() {
    let clock = Clock::physical(3 * GHZ, 1_000 * GHZ);
    assert_eq!(clock.tsc_offset(), 0);
    assert_eq!(clock.reference_time(1_000 * GHZ), 0);
    assert_eq!(by_page(clock.page(), 1_003 * GHZ), clock.reference_time(1_003 * GHZ));
}

#[test]
fn freezing_leaves_no_gap() {
    let mut clock = Clock::new(2 * GHZ, 0);
    let page = clock.page();
    clock.freeze(4 * GHZ);
    clock.freeze(5 * GHZ);
    let frozen = clock.reference_time(4 * GHZ);
    assert_eq!(clock.reference_time(100 * GHZ), frozen);
    assert_eq!(clock.effective(100 * GHZ), 4 * GHZ);
    assert_eq!(clock.tsc_at(0), None);
    assert_eq!(clock.thaw(100 * GHZ), 96 * GHZ);
    assert_eq!(clock.reference_time(100 * GHZ), frozen);
    assert_eq!(clock.page(), page, "the page stays valid, as the TSC stood still too");
    assert_eq!(clock.thaw(200 * GHZ), 0);
}

#[test]
fn setting_the_time_changes_the_sequence() {
    let mut clock = Clock::new(2 * GHZ, 0);
    let before = clock.page().sequence;
    clock.set_reference_time(123_456_789, 9 * GHZ);
    assert_eq!(clock.reference_time(9 * GHZ), 123_456_789);
    assert_ne!(clock.page().sequence, before);
    clock.freeze(9 * GHZ);
    clock.set_reference_time(5, 50 * GHZ);
    clock.thaw(60 * GHZ);
    assert_eq!(clock.reference_time(60 * GHZ), 5);
}

proptest! {
    #[test]
    fn a_deadline_is_never_early_and_never_late(
        frequency in 10_000_001u64..6 * GHZ,
        start in 0u64..1 << 60,
        set in proptest::option::of(0u64..1 << 56),
        wait in 0u64..1 << 50,
        parent in any::<bool>(),
    ) {
        let mut clock = if parent { Clock::physical(frequency, start) } else { Clock::new(frequency, start) };
        if let Some(time) = set {
            clock.set_reference_time(time, start);
        }
        let time = clock.reference_time(start) + wait;
        let at = clock.tsc_at(time).unwrap();
        prop_assert!(clock.reference_time(at) >= time);
        prop_assert!(at <= start || clock.reference_time(at - 1) < time);
        prop_assert_eq!(by_page(clock.page(), at.wrapping_add(clock.tsc_offset())), clock.reference_time(at));
    }

    #[test]
    fn no_value_panics(frequency: u64, start: u64, set: u64, at: u64, tsc: u64) {
        let mut clock = Clock::new(frequency, start);
        clock.set_reference_time(set, tsc);
        clock.tsc_at(at);
        clock.freeze(tsc);
        clock.thaw(at);
        clock.reference_time(at);
    }
}

const CONFIG: u32 = 0x4000_00B0;
const COUNT: u32 = 0x4000_00B1;

fn write(timers: &mut SyntheticTimers, msr: u32, value: u64, now: u64) {
    assert_eq!(timers.write(msr, value, now), Some(Ok(())));
}

fn message_timer() -> StimerConfig {
    StimerConfig::new().with_enabled(true).with_sintx(2)
}

fn direct(vector: u8) -> StimerConfig {
    StimerConfig::new().with_direct_mode(true).with_apic_vector(vector).with_enabled(true)
}

#[test]
fn registers() {
    let mut timers = SyntheticTimers::new();
    for msr in CONFIG..CONFIG + 8 {
        assert_eq!(timers.read(msr), Some(0));
    }
    assert_eq!(timers.read(CONFIG - 1), None);
    assert_eq!(timers.read(CONFIG + 8), None);
    assert_eq!(timers.write(CONFIG + 8, 0, 0), None);
    assert_eq!(timers.write(CONFIG, 1 << 13, 0), Some(Err(Fault)));
    assert_eq!(timers.write(CONFIG, 1 << 20, 0), Some(Err(Fault)));
    write(&mut timers, COUNT + 4, 5, 0);
    assert_eq!(timers.read(COUNT + 4), Some(5));
}

#[test]
fn one_shot_disables_itself() {
    let mut timers = SyntheticTimers::new();
    write(&mut timers, COUNT, 1_000, 0);
    assert_eq!(timers.deadline(), None, "not enabled");
    write(&mut timers, CONFIG, message_timer().into(), 0);
    assert_eq!(timers.deadline(), Some(1_000));
    assert!(timers.expire(999).is_empty());
    let expected = Expiration::Message { sint: 2, index: 0, expiration: 1_000 };
    assert_eq!(timers.expire(1_005)[..], [expected]);
    assert_eq!(timers.undelivered()[..], [expected]);
    timers.delivered(0);
    assert!(timers.undelivered().is_empty());
    assert_eq!(timers.read(CONFIG), Some(message_timer().with_enabled(false).into()));
    assert_eq!(timers.deadline(), None);
    write(&mut timers, CONFIG, message_timer().into(), 2_000);
    assert_eq!(timers.expire(2_000).len(), 1, "in the past: at once");
}

#[test]
fn auto_enable_as_linux_uses_it() {
    let mut timers = SyntheticTimers::new();
    let config = direct(0xED).with_auto_enable(true);
    write(&mut timers, CONFIG, config.into(), 0);
    for count in [500, 900] {
        write(&mut timers, COUNT, count, 0);
        assert_eq!(timers.sole_direct(), Some(0xED));
        assert_eq!(timers.expire(count)[..], [Expiration::Direct { vector: 0xED }]);
        assert!(timers.undelivered().is_empty());
    }
    write(&mut timers, COUNT, 0, 0);
    assert_eq!(timers.read(CONFIG), Some(config.with_enabled(false).into()));
    assert_eq!(timers.sole_direct(), None);
}

#[test]
fn impossible_timers_are_not_enabled() {
    let mut timers = SyntheticTimers::new();
    for config in [message_timer().with_sintx(0), direct(15)] {
        write(&mut timers, CONFIG, config.into(), 0);
        assert_eq!(timers.read(CONFIG), Some(config.with_enabled(false).into()));
        write(&mut timers, CONFIG, config.with_auto_enable(true).into(), 0);
        write(&mut timers, COUNT, 5, 0);
        assert_eq!(timers.deadline(), None);
    }
}

#[test]
fn lazy_keeps_its_phase_and_drops_what_it_missed() {
    let mut timers = SyntheticTimers::new();
    write(&mut timers, COUNT + 2, 10_000, 0);
    write(&mut timers, CONFIG + 2, message_timer().with_periodic(true).with_lazy(true).into(), 300);
    assert_eq!(timers.deadline(), Some(10_300));
    assert_eq!(timers.expire(10_900)[..], [Expiration::Message { sint: 2, index: 1, expiration: 10_300 }]);
    assert_eq!(timers.deadline(), Some(20_300));
    assert!(timers.expire(20_300).is_empty(), "the message before is still there");
    timers.delivered(1);
    assert_eq!(timers.expire(55_000).len(), 1);
    assert_eq!(timers.deadline(), Some(60_300));
    assert!(timers.undelivered().len() == 1);
    write(&mut timers, CONFIG + 2, 0, 0);
    assert!(timers.undelivered().is_empty(), "disabling voids the message");
}

#[test]
fn periodic_makes_up_for_what_it_missed() {
    let mut timers = SyntheticTimers::new();
    write(&mut timers, COUNT, 10_000, 0);
    write(&mut timers, CONFIG, direct(0x40).with_periodic(true).into(), 0);
    // Three are missed; they come twice as fast, and then the phase is the old one.
    assert_eq!(timers.expire(42_000).len(), 1);
    let mut told = Vec::new();
    while let Some(due) = timers.deadline().filter(|due| *due < 80_000) {
        assert_eq!((timers.expire(due - 1).len(), timers.expire(due).len()), (0, 1));
        told.push(due);
    }
    assert_eq!(told, [47_000, 52_000, 57_000, 62_000, 67_000, 70_000]);
    // Too many, and they are skipped.
    assert_eq!(timers.expire(1_000_005).len(), 1);
    assert_eq!(timers.deadline(), Some(1_010_000));
    // Written to, it begins anew.
    assert_eq!(timers.expire(1_030_000).len(), 1);
    write(&mut timers, COUNT, 10_000, 1_030_001);
    assert_eq!(timers.deadline(), Some(1_040_001));
}

#[test]
fn a_tiny_period_makes_no_storm() {
    let mut timers = SyntheticTimers::new();
    write(&mut timers, CONFIG, direct(0x40).with_periodic(true).into(), 0);
    write(&mut timers, COUNT, 1, 0);
    let (mut now, mut count) = (0, 0);
    while now < 10_000 {
        now = timers.deadline().unwrap().max(now);
        count += timers.expire(now).len();
        assert!(timers.deadline().unwrap() > now);
    }
    assert!((15..=22).contains(&count), "{count} in a millisecond");
}

#[test]
fn two_timers_are_not_left_to_hardware() {
    let mut timers = SyntheticTimers::new();
    write(&mut timers, CONFIG, direct(0x40).into(), 0);
    write(&mut timers, COUNT, 100, 0);
    assert_eq!(timers.sole_direct(), Some(0x40));
    write(&mut timers, CONFIG + 6, direct(0x41).into(), 0);
    write(&mut timers, COUNT + 6, 50, 0);
    assert_eq!(timers.sole_direct(), None);
    assert_eq!(timers.deadline(), Some(50));
}

#[test]
fn restored_timers_are_the_same() {
    let mut timers = SyntheticTimers::new();
    write(&mut timers, COUNT, 7_000, 0);
    write(&mut timers, CONFIG, message_timer().into(), 0);
    write(&mut timers, COUNT + 2, 1_000, 0);
    write(&mut timers, CONFIG + 2, message_timer().with_periodic(true).into(), 0);
    write(&mut timers, COUNT + 4, 100, 0);
    write(&mut timers, CONFIG + 4, message_timer().into(), 0);
    assert_eq!(timers.expire(1_300).len(), 2);
    timers.delivered(1);
    let state = timers.export(1_300);
    let mut restored = SyntheticTimers::new();
    restored.import(&state, 1_300);
    assert_eq!(restored, timers);
    assert_eq!(restored.deadline(), Some(2_000));
    assert_eq!(restored.undelivered(), timers.undelivered());
}

proptest! {
    #[test]
    fn timers_never_panic_and_never_expire_early(
        writes in prop::collection::vec((CONFIG..CONFIG + 8, prop_oneof![any::<u64>(), 0u64..0x10_0000], any::<u32>()), 1..40),
        raw in any::<[[u64; 5]; 4]>(),
    ) {
        let mut timers = SyntheticTimers::new();
        let mut state = timers.export(0);
        for (timer, raw) in state.timers.iter_mut().zip(raw) {
            *timer = zerocopy::transmute!(raw);
        }
        timers.import(&state, raw[0][0]);
        let mut now = 0;
        for (msr, value, step) in writes {
            let _ = timers.write(msr, value, now);
            let due = timers.deadline();
            now += u64::from(step);
            let expired = timers.expire(now);
            prop_assert!(expired.is_empty() || due.is_some_and(|due| due <= now));
            prop_assert!(timers.deadline().is_none_or(|next| next > now));
            for expiration in expired {
                match expiration {
                    Expiration::Direct { vector } => prop_assert!(vector >= 16),
                    Expiration::Message { sint, index, expiration } => {
                        prop_assert!(sint != 0 && index < 4 && expiration <= now);
                        timers.delivered(index);
                    }
                }
            }
        }
    }
}
