//! Packing, unpacking and checks: every bit pattern is taken, reserved bits are noticed.

use mshv_bindings as mshv;
use parterre_abi::device_interrupt::{DeviceId, DeviceInterruptTarget, DeviceType};
use parterre_abi::hypercall::{
    HypercallCode, HypercallInput, HypercallOutput, RegisterInterceptResultParameters,
};
use parterre_abi::message::{Message, MessageType, TimerMessagePayload};
use parterre_abi::msr::{OverlayPageMsr, Sint, StimerConfig};
use parterre_abi::processor_features::{ProcessorFeatures0, ProcessorFeatures1};
use parterre_abi::registers::{
    PendingExceptionEvent, PendingInterruptionRegister, RegisterValue, SegmentRegister,
};
use parterre_abi::status::HvStatus;
use parterre_abi::synic::{ConnectionInfo, PortType};
use parterre_abi::types::{GenericSetFormat, InputVtl, VpIndex, VpSet};
use parterre_abi::vp_page::VpRegisterPage;

#[test]
fn control_word() {
    // The word Linux builds for HVCALL_MAP_GPA_PAGES with 100 pages, resumed at 40.
    let word = HypercallInput::from_bits(0x4B | 100 << 32 | 40 << 48);
    assert_eq!(word.code(), HypercallCode::MAP_GPA_PAGES);
    assert!(word.code().is_rep());
    assert_eq!((word.rep_count(), word.rep_start(), word.fast()), (100, 40, false));
    assert_eq!(word.check(), Ok(()));
    let word = HypercallInput::from_bits(0x0B | 1 << 16 | 3 << 17);
    assert!(word.fast());
    assert_eq!(word.variable_header_bytes(), 24);
}

#[test]
fn control_word_refuses_reserved_bits_and_bad_reps() {
    for bit in (27..31).chain(44..48).chain(60..64) {
        let word = HypercallInput::from_bits(0x4B | 1 << 32 | 1 << bit);
        assert_eq!(word.check(), Err(HvStatus::INVALID_HYPERCALL_INPUT), "bit {bit}");
    }
    for (count, start) in [(0, 1), (1, 1), (5, 5), (5, 6), (0, 4095)] {
        let word = HypercallInput::from_bits(0x4B | count << 32 | start << 48);
        assert_eq!(word.check(), Err(HvStatus::INVALID_HYPERCALL_INPUT), "{count} {start}");
    }
    assert_eq!(HypercallInput::from_bits(0x46).check(), Ok(()));
}

#[test]
fn result_word() {
    let output = HypercallOutput::from_reps(HvStatus::INSUFFICIENT_MEMORY, 511);
    assert_eq!(output.into_bits(), 0x0000_01FF_0000_000B);
    assert_eq!(output.reps_completed(), 511);
    assert_eq!(HypercallOutput::from_status(HvStatus::ACCESS_DENIED).into_bits(), 6);
    assert_eq!(HypercallOutput::from_reps(HvStatus::SUCCESS, 0xFFFF).into_bits() >> 44, 0);
}

#[test]
fn vp_sets() {
    let set = VpSet { format: GenericSetFormat::SPARSE_4K, valid_bank_mask: 1 << 0 | 1 << 31 };
    assert_eq!(set.bank_count(), 2);
    let vps: Vec<u32> = set.vps(&[0b101, 1 << 63]).map(|vp| vp.0).collect();
    assert_eq!(vps, [0, 2, 2047]);
    assert_eq!(set.vps(&[0b1]).count(), 1, "a missing bank is empty");
    assert_eq!(VpSet { format: GenericSetFormat::ALL, valid_bank_mask: u64::MAX }.bank_count(), 0);
    assert_eq!(VpSet { format: GenericSetFormat(77), valid_bank_mask: u64::MAX }.bank_count(), 0);
}

#[test]
fn device_interrupt_targets() {
    let sparse = VpSet { format: GenericSetFormat::SPARSE_4K, valid_bank_mask: 2 };
    let target =
        DeviceInterruptTarget { vector: 0x30, flags: DeviceInterruptTarget::PROCESSOR_SET, vp_set: sparse };
    assert_eq!(target.first_vp(&[1 << 5]), Some(VpIndex(69)));
    assert_eq!(target.first_vp(&[]), None);
    let mask = VpSet { format: GenericSetFormat(0b1000), valid_bank_mask: 0 };
    let target = DeviceInterruptTarget { vector: 0x30, flags: 0, vp_set: mask };
    assert_eq!(target.first_vp(&[]), Some(VpIndex(3)));
}

#[test]
fn device_ids() {
    // Segment 1, 3a:1f.5, shadow buses 3a..3f, as Linux' hv_build_pci_dev_id packs them.
    let id = DeviceId::from_bits(1 << 62 | 1 << 50 | 0x3A << 40 | 0x3F << 32 | 1 << 16 | 0x3AFD);
    assert_eq!(id.kind(), DeviceType::PCI);
    let pci = id.as_pci();
    assert_eq!((pci.segment(), pci.bus(), pci.device(), pci.function()), (1, 0x3A, 0x1F, 5));
    assert_eq!((pci.shadow_secondary_bus(), pci.shadow_subordinate_bus()), (0x3A, 0x3F));
    assert!(pci.source_shadow());
    let id = DeviceId::from_bits(2 << 62 | 9);
    assert_eq!((id.kind(), id.ioapic_id()), (DeviceType::IOAPIC, 9));
}

#[test]
fn bit_positions_are_those_of_the_bindings() {
    let theirs = mshv::hv_x64_pending_interruption_register { as_uint64: 0x1122_3344_0055_02B7 };
    let ours = PendingInterruptionRegister::from_bits(0x1122_3344_0055_02B7);
    // SAFETY: every member of the union is plain bits.
    let bits = unsafe { theirs.__bindgen_anon_1 };
    assert_eq!(ours.interruption_pending(), bits.interruption_pending() == 1);
    assert_eq!(u32::from(ours.interruption_type()), bits.interruption_type());
    assert_eq!(ours.deliver_error_code(), bits.deliver_error_code() == 1);
    assert_eq!(u32::from(ours.instruction_length()), bits.instruction_length());
    assert_eq!(ours.nested_event(), bits.nested_event() == 1);
    assert_eq!(u32::from(ours.interruption_vector()), bits.interruption_vector());
    assert_eq!(ours.error_code(), { bits.error_code });

    let theirs = mshv::hv_stimer_config { as_uint64: 0x000F_5ABA };
    let ours = StimerConfig::from_bits(0x000F_5ABA);
    // SAFETY: every member of the union is plain bits.
    let bits = unsafe { theirs.__bindgen_anon_1 };
    assert_eq!(u64::from(ours.apic_vector()), bits.apic_vector());
    assert_eq!(ours.direct_mode(), bits.direct_mode() == 1);
    assert_eq!(u64::from(ours.sintx()), bits.sintx());
    assert_eq!(ours.periodic(), bits.periodic() == 1);
    assert_eq!(ours.auto_enable(), bits.auto_enable() == 1);
}

#[test]
fn exception_events() {
    let event = PendingExceptionEvent::new()
        .with_event_pending(true)
        .with_deliver_error_code(true)
        .with_vector(14)
        .with_error_code(2)
        .with_exception_parameter(0xDEAD_B000);
    let value = RegisterValue::from(event);
    assert_eq!((value.low, value.high), (1 | 1 << 8 | 14 << 16 | 2 << 32, 0xDEAD_B000));
    assert_eq!(PendingExceptionEvent::from_bits(value.as_u128()), event);
}

#[test]
fn register_values() {
    let segment =
        SegmentRegister { base: 0x1_0000_0000, limit: 0xF_FFFF, selector: 0x10, attributes: 0xA09B.into() };
    let value = RegisterValue::from(segment);
    assert_eq!((value.low, value.high), (0x1_0000_0000, 0xA09B_0010_000F_FFFF));
    assert_eq!(value.as_segment(), segment);
    assert!(segment.attributes.present() && segment.attributes.long() && segment.attributes.granularity());
    assert_eq!(RegisterValue::from(u128::MAX - 1).as_u128(), u128::MAX - 1);
}

#[test]
fn messages() {
    let payload = TimerMessagePayload { timer_index: 2, reserved: 0, expiration_time: 7, delivery_time: 9 };
    let message = Message::with_payload(MessageType::TIMER_EXPIRED, 0, &payload);
    assert_eq!(message.header.payload_size, 24);
    assert_eq!(message.payload_as::<TimerMessagePayload>(), payload);
    assert!(Message::new(MessageType(1), 0, &[0; 240]).is_some());
    assert!(Message::new(MessageType(1), 0, &[0; 241]).is_none());
    assert!(MessageType(1).can_be_posted());
    assert!(!MessageType::NONE.can_be_posted() && !MessageType::TIMER_EXPIRED.can_be_posted());
}

#[test]
fn synthetic_registers() {
    let msr = OverlayPageMsr::from_bits(0x1234_5001);
    assert_eq!((msr.enabled(), msr.page_number()), (true, 0x12345));
    assert!(Sint::RESET.masked() && Sint::RESET.is_valid());
    assert!(!Sint::from_bits(15).is_valid() && Sint::from_bits(16).is_valid());
    assert!(Sint::from_bits(0x8_00F3).as_intercept(), "Linux' doorbell SINT");
    assert!(InputVtl::from_bits(0).is_vtl0() && InputVtl::from_bits(0x10).is_vtl0());
    assert!(!InputVtl::from_bits(0x11).is_vtl0() && !InputVtl::from_bits(0x80).is_vtl0());
}

#[test]
fn doorbells() {
    let doorbell =
        |flags| ConnectionInfo { port_type: PortType::DOORBELL, padding: 0, gpa: 0, trigger_value: 0, flags };
    assert_eq!(doorbell(0).trigger_size(), Some(None));
    assert_eq!(doorbell(4).trigger_size(), Some(Some(8)));
    assert_eq!(doorbell(0x8000_0003).trigger_size(), Some(Some(4)));
    assert!(doorbell(0x8000_0003).triggers_on_any_value() && !doorbell(3).triggers_on_any_value());
    for wrong in 5..8 {
        assert_eq!(doorbell(wrong).trigger_size(), None);
    }
}

#[test]
fn register_page_vectors() {
    let vectors = |word| VpRegisterPage::vectors(word).collect::<Vec<_>>();
    assert_eq!(vectors(0), []);
    assert_eq!(vectors(0x0000_0000_0031_3002), [0x30, 0x31]);
    assert_eq!(vectors(u64::MAX).len(), VpRegisterPage::MAX_VECTORS);
}

#[test]
fn intercept_results() {
    let words: [u32; 11] = std::array::from_fn(|index| index as u32 + 1);
    let parameters = RegisterInterceptResultParameters(words);
    let cpuid = parameters.cpuid();
    assert_eq!((cpuid.leaf, cpuid.subleaf, cpuid.subleaf_specific, cpuid.edx_mask), (1, 2, 3, 11));
    assert_eq!(RegisterInterceptResultParameters::from(cpuid), parameters);
    let msr = parameters.msr();
    assert_eq!((msr.msr_index, msr.access_type.bits(), msr.action.0), (1, 2, 3));
}

/// Sets one feature in the bindings and looks for it in ours.
#[test]
fn processor_features() {
    let mut theirs = mshv::hv_partition_processor_features { as_uint64: [0; 2] };
    // SAFETY: every member of the union is plain bits.
    unsafe {
        theirs.__bindgen_anon_1.set_page_1gb_support(1);
        theirs.__bindgen_anon_1.set_tsx_ctrl_support(1);
        theirs.__bindgen_anon_1.set_tsc_deadline_tmr_support(1);
        theirs.__bindgen_anon_1.set_tsa_fill_no_supported(1);
    }
    // SAFETY: as above.
    let [bank0, bank1] = unsafe { theirs.as_uint64 };
    assert_eq!(ProcessorFeatures0(bank0), ProcessorFeatures0::PAGE_1GB | ProcessorFeatures0::TSX_CTRL);
    assert_eq!(
        ProcessorFeatures1(bank1),
        ProcessorFeatures1::TSC_DEADLINE_TMR | ProcessorFeatures1::TSA_FILL_NO
    );
}
