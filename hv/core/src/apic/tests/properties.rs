//! Whatever a guest does, these hold.

use super::*;
use proptest::prelude::*;
use std::vec;

/// Forty-six years at 3 GHz.
const END: u64 = 1 << 62;

#[derive(Clone, Debug)]
enum Action {
    Page(u16, u32),
    Read(u16),
    Msr(u32, u64),
    Base(u64),
    Post(u8, bool),
    Acknowledge,
    Advance(u64),
    Cr8(u8),
    Init,
    Import([u8; 176]),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0u16..0x40, any::<u32>()).prop_map(|(slot, value)| Action::Page(slot << 4, value)),
        1 => (any::<u16>(), any::<u32>()).prop_map(|(offset, value)| Action::Page(offset, value)),
        1 => any::<u16>().prop_map(Action::Read),
        6 => (0x800u32..0x840, any::<u64>()).prop_map(|(msr, value)| Action::Msr(msr, value)),
        3 => (0x800u32..0x840, 0u64..0x8_0000).prop_map(|(msr, value)| Action::Msr(msr, value)),
        1 => prop_oneof![Just(0xFEE0_0000), Just(0xFEE0_0800), Just(0xFEE0_0C00), any::<u64>()]
            .prop_map(Action::Base),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(vector, level)| Action::Post(vector, level)),
        4 => Just(Action::Acknowledge),
        4 => prop_oneof![0u64..1_000_000, any::<u64>()].prop_map(Action::Advance),
        1 => (0u8..16).prop_map(Action::Cr8),
        1 => Just(Action::Init),
        1 => any::<[u8; 32]>().prop_map(|part| {
            let mut bytes = [0; 176];
            for (to, from) in bytes.iter_mut().zip(part.iter().cycle()) {
                *to = *from;
            }
            Action::Import(bytes)
        }),
    ]
}

fn apply(f: &mut Fixture, action: Action) {
    match action {
        Action::Page(offset, value) => drop(f.page_write(offset, value)),
        Action::Read(offset) => drop(f.page_read(offset)),
        Action::Msr(msr, value) => drop((f.msr_read(msr), f.msr_write(msr, value))),
        Action::Base(value) => drop(f.apic.write_base(value, &f.incoming)),
        Action::Post(vector, level) => drop(f.incoming.post_fixed(vector, level)),
        Action::Acknowledge => {
            if let Some(vector) = f.pending() {
                assert!(f.acknowledge(vector));
            }
        }
        Action::Advance(ticks) => f.tsc = f.tsc.saturating_add(ticks).min(END),
        Action::Cr8(value) => f.cr8 = value,
        Action::Init => f.apic.init(&f.incoming),
        Action::Import(bytes) => {
            let context = Context { incoming: &f.incoming, tsc: f.tsc, tsc_offset: f.tsc_offset, cr8: f.cr8 };
            f.apic.import(&zerocopy::transmute!(bytes), &context);
        }
    }
}

proptest! {
    #[test]
    fn invariants(actions in prop::collection::vec(action(), 1..60)) {
        let mut f = Fixture::xapic(1);
        for action in actions {
            apply(&mut f, action);
            let pending = f.pending();
            if let Some(vector) = pending {
                prop_assert!(vector >= 16);
                prop_assert!(vector >> 4 > f.cr8);
                prop_assert!(f.apic.highest_in_service().is_none_or(|active| vector >> 4 > active >> 4));
            }
            // A timer that is due expires once, and then lies ahead or is off.
            if f.deadline().is_some_and(|deadline| deadline <= f.tsc) {
                prop_assert!(f.expired().is_some());
            }
            prop_assert!(f.expired().is_none());
            prop_assert!(f.deadline().is_none_or(|deadline| deadline > f.tsc));
            prop_assert_eq!(f.apic.mode() == Mode::Disabled && pending.is_some(), false);
        }
    }

    #[test]
    fn periods_are_exact(initial in 100_000u32..=u32::MAX, late in 0u64..100_000, apic in 1_000_000u64..300_000_000) {
        let mut f = Fixture::xapic(0);
        f.apic.configuration.rates.apic = apic;
        let _ = f.page_write(0x320, 0x2_0040);
        let _ = f.page_write(0x3E0, 0xB);
        let start = f.tsc;
        let _ = f.page_write(0x380, initial);
        for tick in 1..20u128 {
            let exact = (tick * u128::from(initial) * u128::from(RATES.tsc)).div_ceil(apic.into());
            prop_assert_eq!(f.deadline(), Some(start + exact as u64));
            f.tsc = start + exact as u64 + late;
            prop_assert_eq!(f.expired(), Some(0x40));
        }
    }
}
