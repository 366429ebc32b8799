//! Messages decode to what they say, and the register page is where the published structure has it.

use std::mem::{offset_of, size_of};

use mshv_bindings::*;
use parterre_abi::message::{MESSAGE_SIZE, Message};
use parterre_partition::fake::FakeVp;
use parterre_partition::hypercall::SynicCall;
use parterre_partition::memory::GuestMemory;
use parterre_partition::message::AccessKind;
use parterre_partition::registers::Register;
use parterre_partition::{HvStatus, Hypercall, Intercept};
use vm_memory::{Bytes, GuestAddress};
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
    for kind in [
        0x8000_0000,
        0x8000_0050,
        0x8000_0062,
        0x8001_0000,
        0x8001_0001,
        0x8001_0002,
        0x8001_0004,
        0x8000_0021,
    ] {
        assert!(Intercept::decode(&message(kind, 7, &[])).is_err());
    }
    assert_eq!(
        Intercept::decode(&message(0x8000_0063, 0, &[])).unwrap(),
        Intercept::Other { kind: 0x8000_0063 }
    );
}

/// Header of a message from a processor in 64-bit or 32-bit code.
fn header(vp: u32, long: bool) -> Vec<(usize, Vec<u8>)> {
    let (state, attributes) = if long { (1u16 << 4, 1u16 << 13) } else { (0, 1 << 14) };
    vec![
        (0, vp.to_le_bytes().into()),
        (4, vec![3]),
        (6, state.to_le_bytes().into()),
        (22, attributes.to_le_bytes().into()),
        (24, 0x1000u64.to_le_bytes().into()),
    ]
}

fn message_of(kind: u32, size: u8, parts: &[(usize, Vec<u8>)]) -> Message {
    let parts: Vec<(usize, &[u8])> = parts.iter().map(|(at, data)| (*at, data.as_slice())).collect();
    message(kind, size, &parts)
}

#[test]
fn hypercalls_are_read_from_registers_or_pairs() {
    let register = |number: usize, value: u64| (40 + 8 * number, value.to_le_bytes().to_vec());
    // RAX, RBX, RCX, RDX, R8, RSI, RDI; a fast signal of event 0x10007.
    let mut wide = header(1, true);
    wide.extend([register(2, 0x1_005D), register(3, 0x1_0007), register(4, 9)]);
    let Intercept::Hypercall(call) = Intercept::decode(&message_of(0x8000_0050, 196, &wide)).unwrap() else {
        panic!("not a hypercall");
    };
    assert_eq!((call.code, call.fast, call.input, call.output), (0x5D, true, 0x1_0007, 9));
    let memory = GuestMemory::new(16 << 20).unwrap();
    assert_eq!(call.synic_call(&memory), Ok(SynicCall::Signal { connection: 0x1_0007, flag: 0 }));
    let mut vp = FakeVp::default();
    vp.registers[Register::Rdx as usize] = 5;
    call.answer(&mut vp, HvStatus::INVALID_CONNECTION_ID).unwrap();
    assert_eq!((vp.registers[0], vp.registers[2], vp.registers[16]), (0x12, 5, 0x1003));

    let mut narrow = header(1, false);
    narrow.extend([register(0, 0x5C), register(3, 0), register(1, 0), register(2, 0x4000)]);
    let Intercept::Hypercall(call) = Intercept::decode(&message_of(0x8000_0050, 196, &narrow)).unwrap()
    else {
        panic!("not a hypercall");
    };
    assert_eq!((call.code, call.fast, call.input), (0x5C, false, 0x4000));
    // The message in memory: connection 4, type 1, 5 bytes.
    let head = [4u32, 0, 1, 5].map(u32::to_le_bytes).concat();
    memory.regions().write_slice(&head, GuestAddress(0x4000)).unwrap();
    memory.regions().write_slice(b"hello", GuestAddress(0x4010)).unwrap();
    let Ok(SynicCall::Post { connection: 4, kind: 1, payload, len: 5 }) = call.synic_call(&memory) else {
        panic!("not a message");
    };
    assert_eq!(&payload[..6], b"hello\0");
    // A length that cannot be, and input where no memory is.
    memory.regions().write_obj(241u32, GuestAddress(0x400C)).unwrap();
    assert_eq!(call.synic_call(&memory), Err(HvStatus::INVALID_PARAMETER));
    let nowhere = Hypercall { input: u64::MAX - 4, ..call };
    assert_eq!(nowhere.synic_call(&memory), Err(HvStatus::INVALID_HYPERCALL_INPUT));
    let unknown = Hypercall { code: 0x1234, ..call };
    assert_eq!(unknown.synic_call(&memory), Err(HvStatus::INVALID_HYPERCALL_CODE));
    call.answer(&mut vp, HvStatus::SUCCESS).unwrap();
    assert_eq!((vp.registers[0], vp.registers[2]), (0, 0));
}

#[test]
fn free_slots_are_told_by_sint() {
    let mut parts = header(2, true);
    parts.push((40, vec![4, 0]));
    assert_eq!(
        Intercept::decode(&message_of(0x8000_0062, 48, &parts)).unwrap(),
        Intercept::SintDeliverable { vp: 2, sints: 4 }
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
