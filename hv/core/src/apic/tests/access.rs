//! Registers, modes, interrupt commands.

use super::*;

#[test]
fn power_on_values() {
    let mut f = Fixture::reset(5);
    assert_eq!(f.page_read(0x20), 5 << 24);
    assert_eq!(f.page_read(0x30), 0x0005_0014);
    assert_eq!(f.page_read(0xE0), u32::MAX);
    assert_eq!(f.page_read(0xF0), 0xFF);
    for lvt in (0x320..=0x370).step_by(16) {
        assert_eq!(f.page_read(lvt), 0x1_0000);
    }
    assert_eq!(f.apic.base().bits(), 0xFEE0_0800);
    assert_eq!(Fixture::reset(0).apic.base().bits(), 0xFEE0_0900);
    assert_eq!(f.apic.base().page(), Some(0xFEE0_0000));
}

#[test]
fn mode_transitions() {
    let mut f = Fixture::reset(0);
    let write = |f: &mut Fixture, value| f.apic.write_base(value, &f.incoming);
    assert_eq!(write(&mut f, 0xFEE0_0500), Err(Fault), "EXTD without EN");
    assert_eq!(write(&mut f, 0xFEE0_0A00), Err(Fault), "reserved bit");
    assert_eq!(write(&mut f, 1 << 48 | 0xFEE0_0800), Err(Fault), "beyond the physical width");
    assert_eq!(write(&mut f, 0xFEE0_0C00), Ok(()));
    assert_eq!(f.apic.base().bits(), 0xFEE0_0D00, "the BSP flag stays");
    assert_eq!(f.apic.base().page(), None);
    assert_eq!(write(&mut f, 0xFEE0_0900), Err(Fault), "x2APIC to xAPIC");
    assert_eq!(write(&mut f, 0xFEE0_0000), Ok(()));
    assert_eq!(f.apic.mode(), Mode::Disabled);
    assert_eq!(write(&mut f, 0xFEE0_0C00), Err(Fault), "disabled to x2APIC");
    assert_eq!(f.msr_read(0x802), Err(Fault));
    assert_eq!(write(&mut f, 0xFEE0_0800), Ok(()));
    let mut old = Fixture::reset(0);
    old.apic.configuration.x2apic = false;
    assert_eq!(write(&mut old, 0xFEE0_0C00), Err(Fault), "no x2APIC");
}

#[test]
fn disabling_resets() {
    let mut f = Fixture::xapic(0);
    f.incoming.post_fixed(0x40, false);
    f.apic.write_base(0xFEE0_0000, &f.incoming).unwrap();
    assert!(f.incoming.is_quiet());
    assert_eq!(f.pending(), None);
    assert!(!f.incoming.post_fixed(0x40, false));
    assert!(f.apic.ext_int_pin());
}

#[test]
fn reserved_bits_fault_in_x2apic_mode_only() {
    let cases = [
        (0x808, 0x100),
        (0x80B, 1),
        (0x80F, 0x400),
        (0x828, 1),
        (0x832, 1 << 19),
        (0x835, 1 << 17),
        (0x837, 1 << 8),
        (0x83E, 4),
        (0x83F, 0x100),
        (0x838, 1 << 32),
        (0x830, 1 << 13),
    ];
    for (msr, value) in cases {
        let mut f = Fixture::x2apic(0);
        assert_eq!(f.msr_write(msr, value), Err(Fault), "MSR {msr:#x}");
        let mut f = Fixture::xapic(0);
        let _ = f.page_write(((msr - 0x800) << 4) as u16, value as u32);
    }
}

#[test]
fn read_only_write_only_and_absent_registers() {
    for msr in [0x802, 0x803, 0x80A, 0x80D, 0x810, 0x818, 0x820, 0x839] {
        let mut f = Fixture::x2apic(0);
        assert!(f.msr_read(msr).is_ok(), "MSR {msr:#x}");
        assert_eq!(f.msr_write(msr, 0), Err(Fault), "MSR {msr:#x}");
    }
    for msr in [0x80B, 0x83F] {
        assert_eq!(Fixture::x2apic(0).msr_read(msr), Err(Fault));
    }
    for msr in [0x800, 0x809, 0x80C, 0x80E, 0x82F, 0x831, 0x83A, 0x840, 0x8FF] {
        let mut f = Fixture::x2apic(0);
        assert_eq!(f.msr_read(msr), Err(Fault), "MSR {msr:#x}");
        assert_eq!(f.msr_write(msr, 0), Err(Fault), "MSR {msr:#x}");
    }
    let mut f = Fixture::xapic(0);
    let _ = f.page_write(0x20, 0);
    assert_eq!(f.page_read(0x20), 0);
    assert_eq!(f.page_read(0xB0), 0);
    assert_eq!(f.page_read(0x24), 0, "between registers");
    assert_eq!(Fixture::xapic(0).msr_read(0x802), Err(Fault), "MSRs in xAPIC mode");
}

#[test]
fn an_illegal_register_address_raises_the_error_interrupt() {
    let mut f = Fixture::xapic(0);
    let _ = f.page_write(0x370, 0xFE);
    assert_eq!(f.page_read(0x2F0), 0);
    assert_eq!(f.pending(), Some(0xFE));
    let _ = f.page_write(0x280, 0);
    assert_eq!(f.page_read(0x280), 1 << 7);
    let _ = f.page_write(0x280, 0);
    assert_eq!(f.page_read(0x280), 0);
}

#[test]
fn task_priority() {
    let mut f = Fixture::xapic(0);
    assert_eq!(f.page_write(0x80, 0x4A), Effect::SetCr8(4));
    f.cr8 = 4;
    assert_eq!(f.page_read(0x80), 0x4A);
    assert_eq!(f.page_read(0xA0), 0x4A);
    f.cr8 = 7;
    assert_eq!(f.page_read(0x80), 0x70, "CR8 was written since");
    assert_eq!(f.apic.write_synthetic_tpr(0x100), Err(Fault));
    assert_eq!(f.apic.write_synthetic_tpr(0x30), Ok(Effect::SetCr8(3)));
    assert_eq!(f.apic.read_synthetic_tpr(3), 0x30);
}

#[test]
fn interrupt_commands_in_xapic_mode() {
    let mut f = Fixture::xapic(0);
    let _ = f.page_write(0x310, 0x0200_0000);
    let ipi =
        |delivery, vector, destination| Effect::SendIpi(Ipi { delivery, vector, destination, level: false });
    assert_eq!(f.page_write(0x300, 0x4500), ipi(Delivery::Init, 0, Destination::Physical(2)));
    assert_eq!(f.page_write(0x300, 0xC500), ipi(Delivery::Init, 0, Destination::Physical(2)));
    assert_eq!(f.page_write(0x300, 0x8500), Effect::None, "INIT level de-assert");
    assert_eq!(f.page_write(0x300, 0x4608), ipi(Delivery::StartUp, 8, Destination::Physical(2)));
    assert_eq!(f.page_write(0x300, 0x0840), ipi(Delivery::Fixed, 0x40, Destination::Logical(2)));
    assert_eq!(f.page_write(0x300, 0x0940), ipi(Delivery::LowestPriority, 0x40, Destination::Logical(2)));
    assert_eq!(f.page_write(0x300, 0xC_0400), ipi(Delivery::Nmi, 0, Destination::AllButSelf));
    assert_eq!(f.page_write(0x300, 0x8_0050), ipi(Delivery::Fixed, 0x50, Destination::All));
    assert_eq!(f.page_write(0x300, 0x8_0500), Effect::None, "INIT to all including self");
    assert_eq!(f.page_write(0x300, 0x4_0051), Effect::None, "to itself: requested at once");
    assert_eq!(f.pending(), Some(0x51));
    assert_eq!(f.page_write(0x300, 0x0200), Effect::None, "SMI");
    assert_eq!(f.page_write(0x300, 0x000F), Effect::None);
    let _ = f.page_write(0x280, 0);
    assert_eq!(f.page_read(0x280), 1 << 5, "send illegal vector");
    let _ = f.page_write(0x300, 0x1840);
    assert_eq!(f.page_read(0x300), 0x0840, "never busy");
    assert_eq!(f.page_read(0x310), 0x0200_0000);
}

#[test]
fn interrupt_commands_in_x2apic_mode() {
    let mut f = Fixture::x2apic(0);
    let fixed = |vector, destination| {
        Ok(Effect::SendIpi(Ipi { delivery: Delivery::Fixed, vector, destination, level: false }))
    };
    assert_eq!(f.msr_write(0x830, 0x102_0000_0040), fixed(0x40, Destination::Physical(0x102)));
    assert_eq!(f.msr_read(0x830), Ok(0x102_0000_0040));
    assert_eq!(f.msr_write(0x830, 0xFF_0000_0040), fixed(0x40, Destination::Physical(0xFF)));
    assert_eq!(f.msr_write(0x830, 0xFFFF_FFFF_0000_0041), fixed(0x41, Destination::All));
    assert_eq!(f.msr_write(0x830, 0x1_0003_0000_0841), fixed(0x41, Destination::Logical(0x1_0003)));
    assert_eq!(f.msr_write(0x83F, 0x77), Ok(Effect::None));
    assert_eq!(f.pending(), Some(0x77));
    assert_eq!(f.msr_write(0x83F, 3), Ok(Effect::None));
    assert_eq!(f.msr_write(0x828, 0), Ok(Effect::None));
    assert_eq!(f.msr_read(0x828), Ok(1 << 5));
}

#[test]
fn synthetic_registers() {
    let mut f = Fixture::xapic(0);
    f.incoming.post_fixed(0x40, true);
    f.acknowledge(0x40);
    let context = Context { incoming: &f.incoming, tsc: 0, tsc_offset: 0, cr8: 0 };
    assert_eq!(f.apic.write_synthetic_eoi(1 << 32, &context), Err(Fault));
    let ended = Effect::EndOfInterrupt { vector: Some(0x40), level: true };
    assert_eq!(f.apic.write_synthetic_eoi(7, &context), Ok(ended));
    let none = Effect::EndOfInterrupt { vector: None, level: false };
    assert_eq!(f.apic.write_synthetic_eoi(0, &context), Ok(none));
    let sent = Effect::SendIpi(Ipi {
        delivery: Delivery::Fixed,
        vector: 0x41,
        destination: Destination::Physical(3),
        level: false,
    });
    assert_eq!(f.apic.write_synthetic_icr(0x0300_0000_0000_0041, &context), Ok(sent));
    assert_eq!(f.apic.read_synthetic_icr(), Ok(0x0300_0000_0000_0041));
    f.apic.write_base(0xFEE0_0000, &f.incoming).unwrap();
    assert_eq!(f.apic.write_synthetic_icr(0x41, &context), Err(Fault));
    assert_eq!(f.apic.read_synthetic_icr(), Err(Fault));
}

#[test]
fn software_disable_masks_the_vector_table() {
    let mut f = Fixture::xapic(0);
    let _ = f.page_write(0x350, 0x700);
    let _ = f.page_write(0x360, 0x400);
    assert!(f.apic.ext_int_pin());
    let nmi = Ipi { delivery: Delivery::Nmi, vector: 0, destination: Destination::SelfOnly, level: false };
    assert_eq!(f.apic.local_interrupt(LocalPin::Lint1), Some(nmi));
    let _ = f.page_write(0xF0, 0xFF);
    assert_eq!(f.page_read(0x350), 0x1_0700);
    assert_eq!(f.apic.local_interrupt(LocalPin::Lint1), None);
    let _ = f.page_write(0x350, 0x700);
    assert_eq!(f.page_read(0x350), 0x1_0700, "the mask cannot be cleared");
    assert!(!f.apic.ext_int_pin());
}

#[test]
fn register_names() {
    assert_eq!(Register::from_name(0x84802), Some(Register::Id));
    assert_eq!(Register::from_name(0x84803), Some(Register::Version));
    assert_eq!(Register::from_name(0x84832), Some(Register::LvtTimer));
    assert_eq!(Register::from_name(0x84731), None);
    assert_eq!(Register::from_name(0), None);
    assert_eq!(Register::from_offset(0x3F0), None, "self IPI is x2APIC's");
    assert_eq!(Register::from_offset(0xFFF0), None);
    let mut f = Fixture::xapic(0);
    let context = Context { incoming: &f.incoming, tsc: 0, tsc_offset: 0, cr8: 0 };
    assert_eq!(f.apic.set(Register::InterruptCommand, 0x40, &context), Err(Fault));
}

#[test]
fn instructions_on_the_page() {
    use crate::instruction::{MemoryAccess, Mode};
    let mut f = Fixture::xapic(3);
    let mut gprs = [0; 16];
    let mut run = |f: &mut Fixture, bytes: &[u8], offset| {
        let access = MemoryAccess::decode(bytes, Mode::Bits64).unwrap();
        let context = Context { incoming: &f.incoming, tsc: 0, tsc_offset: 0, cr8: 0 };
        let effect = f.apic.access_page(offset, &access, &mut gprs, &mut 2, &context);
        (effect, gprs[0])
    };
    // mov eax, [rdi]; mov rax, [rdi]; movzx eax, byte [rdi]
    assert_eq!(run(&mut f, &[0x8B, 0x07], 0x20).1, 3 << 24);
    assert_eq!(run(&mut f, &[0x48, 0x8B, 0x07], 0x20).1, 3 << 24);
    assert_eq!(run(&mut f, &[0x0F, 0xB6, 0x07], 0x23).1, 3);
    assert_eq!(run(&mut f, &[0x8B, 0x07], 0x22).1, 0, "across the end");
    // or dword [rdi], 0x200; mov byte [rdi], 0
    let _ = run(&mut f, &[0x81, 0x0F, 0, 2, 0, 0], 0xF0);
    assert_eq!(f.page_read(0xF0), 0x3FF);
    assert_eq!(run(&mut f, &[0xC6, 0x07, 0], 0xF0).0, Effect::None);
    assert_eq!(f.page_read(0xF0), 0x3FF, "less than a register");
    // mov dword [rdi], 0
    let ended = Effect::EndOfInterrupt { vector: None, level: false };
    assert_eq!(run(&mut f, &[0xC7, 0x07, 0, 0, 0, 0], 0xB0).0, ended);
}
