//! Posting, priorities, destinations.

use super::*;

#[test]
fn a_vector_is_pending_once() {
    let mut f = Fixture::xapic(0);
    assert!(f.incoming.post_fixed(0x40, false));
    assert!(!f.incoming.post_fixed(0x40, false));
    assert_eq!(f.pending(), Some(0x40));
    assert!(f.acknowledge(0x40));
    assert!(!f.acknowledge(0x40));
    assert_eq!(f.pending(), None);
}

#[test]
fn a_disabled_apic_loses_fixed_interrupts_but_not_nmis() {
    let f = Fixture::reset(0);
    assert!(!f.incoming.post_fixed(0x40, false));
    assert!(f.incoming.is_quiet());
    assert!(f.incoming.post_nmi());
    assert!(!f.incoming.post_nmi());
    assert!(f.incoming.take_nmi());
    assert!(!f.incoming.take_nmi());
}

#[test]
fn vectors_below_16_are_an_error_at_the_receiver() {
    let mut f = Fixture::xapic(0);
    assert!(!f.incoming.post_fixed(15, false));
    assert_eq!(f.pending(), None);
    assert_eq!(f.page_read(0x280), 0);
    let _ = f.page_write(0x280, 0);
    assert_eq!(f.page_read(0x280), 1 << 6);
}

#[test]
fn init_drops_an_earlier_sipi_only() {
    let mut f = Fixture::xapic(1);
    assert!(f.incoming.post_sipi(0x10));
    assert!(!f.incoming.post_sipi(0x11), "the first SIPI counts");
    assert!(f.incoming.post_init());
    assert!(f.incoming.post_sipi(0x12));
    assert!(f.incoming.startup_pending());
    assert!(f.incoming.take_init());
    f.apic.init(&f.incoming);
    assert!(f.incoming.startup_pending());
    assert_eq!(f.incoming.take_sipi(), Some(0x12));
    assert!(!f.incoming.startup_pending());
    assert_eq!(f.incoming.take_sipi(), None);
}

#[test]
fn ext_int_stays_until_taken() {
    let f = Fixture::xapic(0);
    assert!(f.incoming.post_ext_int(0x08));
    assert!(!f.incoming.post_ext_int(0x09));
    assert_eq!(f.incoming.ext_int(), Some(0x08));
    assert_eq!(f.incoming.take_ext_int(), Some(0x08));
    assert_eq!(f.incoming.ext_int(), None);
}

#[test]
fn priorities() {
    let mut f = Fixture::xapic(0);
    f.incoming.post_fixed(0x52, false);
    f.incoming.post_fixed(0x61, true);
    f.cr8 = 6;
    assert_eq!(f.pending(), None);
    assert_eq!(f.apic.highest_pending(&f.incoming, 0), Some(0x61));
    f.cr8 = 5;
    assert_eq!(f.pending(), Some(0x61));
    f.cr8 = 0;
    assert!(f.acknowledge(0x61));
    assert_eq!(f.page_read(0xA0), 0x60, "processor priority");
    f.incoming.post_fixed(0x6F, false);
    assert_eq!(f.pending(), None, "same class");
    f.incoming.post_fixed(0x70, false);
    assert_eq!(f.pending(), Some(0x70));
    assert!(f.acknowledge(0x70));
    assert_eq!(f.apic.eoi(&f.incoming), Some((0x70, false)));
    assert_eq!(f.apic.eoi(&f.incoming), Some((0x61, true)));
    assert_eq!(f.apic.eoi(&f.incoming), None);
    assert_eq!(f.pending(), Some(0x6F));
}

#[test]
fn auto_eoi_leaves_nothing_in_service() {
    let mut f = Fixture::xapic(0);
    f.incoming.post_fixed(0x90, false);
    assert!(f.apic.acknowledge(&f.incoming, 0x90, true));
    assert_eq!(f.apic.highest_in_service(), None);
}

#[test]
fn an_eoi_can_be_skipped_only_when_nothing_depends_on_it() {
    let mut f = Fixture::xapic(0);
    f.incoming.post_fixed(0x40, false);
    f.acknowledge(0x40);
    assert!(f.apic.may_skip_eoi(&f.incoming, 0x40));
    f.incoming.post_fixed(0x30, false);
    assert!(!f.apic.may_skip_eoi(&f.incoming, 0x40), "0x30 waits for it");
    f.incoming.take_request(0x30);
    f.incoming.post_fixed(0x50, false);
    f.acknowledge(0x50);
    assert!(!f.apic.may_skip_eoi(&f.incoming, 0x50), "nested");
    let mut level = Fixture::xapic(0);
    level.incoming.post_fixed(0x40, true);
    level.acknowledge(0x40);
    assert!(!level.apic.may_skip_eoi(&level.incoming, 0x40));
}

#[test]
fn physical_destinations() {
    let f = Fixture::xapic(3);
    assert!(f.incoming.matches(Destination::narrow(3, false), None));
    assert!(!f.incoming.matches(Destination::narrow(2, false), None));
    assert!(f.incoming.matches(Destination::narrow(0xFF, false), Some(3)));
    assert!(f.incoming.matches(Destination::wide(u32::MAX, true), None));
    assert!(!Fixture::x2apic(0xFF).incoming.matches(Destination::wide(3, false), None));
    assert!(Fixture::x2apic(0xFF).incoming.matches(Destination::wide(0xFF, false), None));
    assert!(!f.incoming.matches(Destination::AllButSelf, Some(3)));
    assert!(f.incoming.matches(Destination::AllButSelf, Some(4)));
    assert!(f.incoming.matches(Destination::SelfOnly, Some(3)));
    assert!(!f.incoming.matches(Destination::SelfOnly, None));
}

#[test]
fn logical_destinations() {
    let mut f = Fixture::xapic(3);
    let _ = f.page_write(0xD0, 0x0800_0000);
    assert!(f.incoming.matches(Destination::narrow(0x0C, true), None), "flat");
    assert!(!f.incoming.matches(Destination::narrow(0x04, true), None));
    assert!(!f.incoming.matches(Destination::Logical(0x108), None), "no such address in xAPIC mode");
    let _ = f.page_write(0xE0, 0x0FFF_FFFF);
    let _ = f.page_write(0xD0, 0x2800_0000);
    assert!(f.incoming.matches(Destination::narrow(0x29, true), None), "cluster 2");
    assert!(!f.incoming.matches(Destination::narrow(0x18, true), None));
    assert!(f.incoming.matches(Destination::narrow(0xFF, true), None));
    let wide = Fixture::x2apic(0x23);
    assert_eq!(wide.msr_read(0x80D), Ok(0x2_0008));
    assert!(wide.incoming.matches(Destination::Logical(0x2_0018), None));
    assert!(!wide.incoming.matches(Destination::Logical(0x3_0008), None));
}
