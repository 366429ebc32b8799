//! Messages decode to what they say, and the register page is where the published structure has it.

use std::mem::{offset_of, size_of};

use mshv_bindings::*;
use parterre_abi::message::{MESSAGE_SIZE, Message};
use parterre_partition::Intercept;
use parterre_partition::message::AccessKind;
use zerocopy::transmute;

#[test]
fn the_register_page_is_laid_out_as_published() {
    assert_eq!(size_of::<hv_message>(), MESSAGE_SIZE);
    assert_eq!(offset_of!(hv_vp_register_page, dirty), 4);
    assert_eq!(offset_of!(hv_vp_register_page, __bindgen_anon_1), 8);
}

/// A message with the given type, payload size and some bytes of payload.
fn message(kind: u32, size: u8, payload: &[(usize, &[u8])]) -> Message {
    let mut bytes = [0; MESSAGE_SIZE];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4] = size;
    for (at, data) in payload {
        bytes[16 + at..16 + at + data.len()].copy_from_slice(data);
    }
    transmute!(bytes)
}

#[test]
fn port_output_is_decoded() {
    let parts: &[(usize, &[u8])] = &[
        (0, &3u32.to_le_bytes()),
        (4, &[0x52, 1]),
        (6, &[3, 0]),
        (24, &0x1234u64.to_le_bytes()),
        (40, &0x3F8u16.to_le_bytes()),
        (42, &[1 | 1 << 3 | 1 << 4, 0xFF]),
        (48, &0x41u64.to_le_bytes()),
    ];
    let Intercept::IoPort(io) = Intercept::decode(&message(0x8001_0000, 128, parts)).unwrap() else {
        panic!("not a port intercept");
    };
    assert_eq!((io.context.vp, io.context.instruction_length, io.context.cpl), (3, 2, 3));
    assert_eq!((io.write, io.port, io.size, io.string, io.rep, io.rax), (true, 0x3F8, 1, true, true, 0x41));
    // A count of 255 instruction bytes is not believed.
    assert_eq!(io.bytes.as_slice().len(), 16);
}

#[test]
fn memory_access_knows_its_address_only_when_told() {
    let parts: &[(usize, &[u8])] = &[
        (5, &[1]),
        (44, &[3, 1]),
        (48, &[0x77]),
        (56, &0xFEC0_0000u64.to_le_bytes()),
        (64, &[0x89, 0x08, 0x90]),
    ];
    let Intercept::Memory(access) = Intercept::decode(&message(0x8000_0000, 80, parts)).unwrap() else {
        panic!("not a memory intercept");
    };
    assert_eq!((access.kind, access.gpa, access.gva), (AccessKind::Write, 0xFEC0_0000, Some(0x77)));
    assert_eq!(access.bytes.as_slice(), [0x89, 0x08, 0x90]);
}

#[test]
fn short_and_unknown_messages_are_errors_or_other() {
    for kind in [0x8000_0000, 0x8001_0000, 0x8001_0001, 0x8001_0002, 0x8001_0004, 0x8000_0021] {
        assert!(Intercept::decode(&message(kind, 7, &[])).is_err());
    }
    assert_eq!(
        Intercept::decode(&message(0x8000_0062, 0, &[])).unwrap(),
        Intercept::Other { kind: 0x8000_0062 }
    );
}

#[test]
fn msr_write_joins_its_halves() {
    let parts: &[(usize, &[u8])] =
        &[(5, &[1]), (40, &0x10u32.to_le_bytes()), (48, &2u64.to_le_bytes()), (56, &u64::MAX.to_le_bytes())];
    let Intercept::Msr { msr, write, .. } = Intercept::decode(&message(0x8001_0001, 64, parts)).unwrap()
    else {
        panic!("not an MSR intercept");
    };
    assert_eq!((msr, write), (0x10, Some(0x2_FFFF_FFFF)));
}

proptest::proptest! {
    /// A message is input from another layer: any bytes decode to something or are refused.
    #[test]
    fn any_message_is_survived(
        kind in proptest::sample::select(vec![
            0x8000_0000u32, 0x8000_0001, 0x8000_0021, 0x8001_0000, 0x8001_0001, 0x8001_0002, 0x8001_0004, 0x8001_0007, 7,
        ]),
        bytes in proptest::collection::vec(proptest::num::u8::ANY, MESSAGE_SIZE),
    ) {
        let mut all = [0; MESSAGE_SIZE];
        all.copy_from_slice(&bytes);
        all[..4].copy_from_slice(&kind.to_le_bytes());
        if let Ok(Intercept::IoPort(io)) = Intercept::decode(&transmute!(all)) {
            assert!(matches!(io.size, 1 | 2 | 4) && io.bytes.as_slice().len() <= 16);
        }
    }
}
