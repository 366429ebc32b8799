//! Export and import, reset.

use super::*;
use parterre_abi::lapic::LapicState;
use zerocopy::IntoBytes;

/// With something in every corner.
fn busy() -> Fixture {
    let mut f = Fixture::xapic(2);
    let _ = f.page_write(0xD0, 0x0400_0000);
    let _ = f.page_write(0x320, 0x2_0040);
    let _ = f.page_write(0x350, 0x700);
    let _ = f.page_write(0x310, 0x0700_0000);
    let _ = f.page_write(0x300, 0x4608);
    let _ = f.page_write(0x3E0, 0xB);
    let _ = f.page_write(0x380, 100_000);
    f.incoming.post_fixed(0x81, true);
    f.acknowledge(0x81);
    f.incoming.post_fixed(0x33, false);
    f.incoming.post_nmi();
    f.tsc += 300_000;
    f
}

#[test]
fn a_restored_apic_is_the_same() {
    let from = busy();
    let state = from.apic.export(&from.context());
    assert_eq!(state.apic_id, 2 << 24);
    assert_eq!(state.apic_counter_value, 70_000);
    assert_eq!(state.apic_irr[0], 1 << 2);
    let mut to = Fixture::reset(2);
    to.tsc = 77_000_000;
    let context = Context { incoming: &to.incoming, tsc: to.tsc, tsc_offset: 0, cr8: 0 };
    to.apic.import(&state, &context);
    assert_eq!(to.apic.export(&to.context()), state);
    assert_eq!(to.deadline().unwrap() - to.tsc, from.deadline().unwrap() - from.tsc);
    assert!(to.incoming.take_nmi());
    assert_eq!(to.apic.eoi(&to.incoming), Some((0x81, true)));
    assert_eq!(to.pending(), Some(0x33));
    assert!(to.incoming.matches(Destination::Logical(4), None));
}

#[test]
fn garbage_is_made_valid() {
    let garbage = LapicState {
        apic_id: 9,
        apic_irr: [u32::MAX; 8],
        apic_isr: [u32::MAX; 8],
        apic_initial_count: 3,
        apic_counter_value: u32::MAX,
        ..zerocopy::transmute!([0xFFu8; 176])
    };
    let mut f = Fixture::reset(0);
    let context = Context { incoming: &f.incoming, tsc: 0, tsc_offset: 0, cr8: 0 };
    f.apic.import(&garbage, &context);
    let state = f.apic.export(&f.context());
    assert_eq!((state.apic_id, state.apic_version), (0, 0x0005_0014));
    assert_eq!(state.apic_isr[0], 0xFFFF_0000);
    assert_eq!(state.apic_lvt_timer, 0x7_00FF);
    assert_eq!(state.apic_divide_configuration, 0xB);
    assert_eq!(state.as_bytes().len(), 176);
}

#[test]
fn the_tsc_deadline_survives_an_import() {
    let mut f = Fixture::xapic(0);
    let _ = f.page_write(0x320, 0x4_0040);
    f.apic.write_tsc_deadline(9_000_000);
    let state = f.apic.export(&f.context());
    let context = Context { incoming: &f.incoming, tsc: f.tsc, tsc_offset: 0, cr8: 0 };
    f.apic.import(&state, &context);
    assert_eq!(f.apic.tsc_deadline(), 9_000_000);
}

#[test]
fn init_keeps_id_base_and_mode() {
    let mut f = Fixture::x2apic(0x21);
    f.incoming.post_fixed(0x40, false);
    let base = f.apic.base();
    f.apic.init(&f.incoming);
    assert_eq!(f.apic.base(), base);
    assert_eq!(f.msr_read(0x802), Ok(0x21));
    assert_eq!(f.msr_read(0x80D), Ok(0x2_0002));
    assert_eq!(f.msr_read(0x80F), Ok(0xFF));
    assert_eq!(f.msr_read(0x822), Ok(0));
    assert!(f.incoming.is_quiet());
    assert!(f.incoming.matches(Destination::Logical(0x2_0002), None));
}
