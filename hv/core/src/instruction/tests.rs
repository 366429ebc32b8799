//! Tests of the decoder: examples, and comparison with a general decoder.

use super::*;
use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic, OpKind};
use proptest::prelude::*;
use std::vec::Vec;

const MODES: [Mode; 3] = [Mode::Bits16, Mode::Bits32, Mode::Bits64];

/// What the general decoder makes of `bytes`.
fn oracle(bytes: &[u8], mode: Mode) -> iced_x86::Instruction {
    let bits = match mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    };
    Decoder::new(bits, bytes, DecoderOptions::NONE).decode()
}

#[test]
fn exiting_instructions() {
    for mode in MODES {
        let decode = |bytes: &[u8]| Exiting::decode(bytes, mode);
        assert_eq!(decode(&[0x0F, 0xA2, 0x90]), Some((Exiting::Cpuid, 2)));
        assert_eq!(decode(&[0x66, 0x2E, 0x0F, 0xA2]), Some((Exiting::Cpuid, 4)));
        assert_eq!(decode(&[0x0F, 0x30]), Some((Exiting::WriteMsr, 2)));
        assert_eq!(decode(&[0x0F, 0x32]), Some((Exiting::ReadMsr, 2)));
        assert_eq!(decode(&[0xF4]), Some((Exiting::Halt, 1)));
        assert_eq!(decode(&[0x0F, 0x01, 0xD9]), Some((Exiting::Hypercall, 3)));
        assert_eq!(decode(&[0x0F, 0x01, 0xC1]), Some((Exiting::Hypercall, 3)));
        assert_eq!(decode(&[0xF3, 0x0F, 0x09]), Some((Exiting::CacheInvalidate, 3)));
        assert_eq!(decode(&[0xF3, 0x90]), Some((Exiting::Pause, 2)));
        assert_eq!(decode(&[0x90]), None);
        assert_eq!(decode(&[0xF0, 0x0F, 0xA2]), None, "LOCK");
        assert_eq!(decode(&[0x0F]), None, "cut short");
        assert_eq!(decode(&[]), None);
        let mut long = [0x66; 15];
        long[14] = 0xF4;
        assert_eq!(decode(&long), Some((Exiting::Halt, 15)));
        assert_eq!(decode(&[0x66; 15]), None);
        assert_eq!(decode(&[[0x66; 15].as_slice(), &[0xF4]].concat()), None, "too long");
    }
    assert_eq!(Exiting::decode(&[0x48, 0x0F, 0x32], Mode::Bits64), Some((Exiting::ReadMsr, 3)));
    assert_eq!(Exiting::decode(&[0x48, 0x0F, 0x32], Mode::Bits32), None, "DEC EAX");
}

#[test]
fn writes_to_control_registers() {
    for mode in MODES {
        for (code, expected) in [
            (&[0x0F, 0x22, 0xE0][..], Some((4, 0, 3))),
            (&[0x0F, 0x22, 0xDF], Some((3, 7, 3))),
            (&[0x66, 0x0F, 0x22, 0x27], Some((4, 7, 4))),
            (&[0x0F, 0x22, 0xC0], Some((0, 0, 3))),
            (&[0x0F, 0x20, 0xE0], None),
            (&[0xF0, 0x0F, 0x22, 0xE0], None),
            (&[0x0F, 0x22], None),
            (&[], None),
        ] {
            let found = ControlWrite::decode(code, mode).map(|w| (w.control, w.register, w.length));
            assert_eq!(found, expected, "{code:x?} in {mode:?}");
        }
    }
    let long =
        |code: &[u8]| ControlWrite::decode(code, Mode::Bits64).map(|w| (w.control, w.register, w.length));
    assert_eq!(long(&[0x41, 0x0F, 0x22, 0xE0]), Some((4, 8, 4)), "from R8");
    assert_eq!(long(&[0x44, 0x0F, 0x22, 0xE0]), Some((12, 0, 4)), "CR12 is not there");
}

#[test]
fn the_length_is_that_of_the_expected_instruction_only() {
    assert_eq!(Exiting::Cpuid.length(&[0x0F, 0xA2], Mode::Bits64), Some(2));
    assert_eq!(Exiting::Cpuid.length(&[0x0F, 0x30], Mode::Bits64), None);
}

#[test]
fn modes() {
    const L: u16 = 1 << 13;
    const D: u16 = 1 << 14;
    assert_eq!(Mode::from_state(0x10, 0, 2, 0), Mode::Bits16, "real mode");
    assert_eq!(Mode::from_state(0x11, 0, 2, D), Mode::Bits32);
    assert_eq!(Mode::from_state(0x11, 0, 2, L), Mode::Bits16, "L means nothing outside long mode");
    assert_eq!(Mode::from_state(0x11, 0x500, 2, D), Mode::Bits32, "compatibility mode");
    assert_eq!(Mode::from_state(0x11, 0x500, 2, L), Mode::Bits64);
    assert_eq!(Mode::from_state(0x11, 0, 2 | 1 << 17, D), Mode::Bits16, "virtual-8086");
    assert_eq!(Mode::Bits32.advance(0xFFFF_FFFF, 2), 1);
    assert_eq!(Mode::Bits64.advance(0xFFFF_FFFF, 2), 0x1_0000_0001);
    assert_eq!(Mode::Bits32.linear(0x1000, 0xFFFF_FFFF), 0xFFF);
    assert_eq!(Mode::Bits64.linear(0x1000, 0x20), 0x20);
}

/// Decodes in 64-bit mode, checks length and size, and carries out with `read` in memory.
fn run(bytes: &[u8], size: u8, read: u64, gprs: &mut [u64; 16]) -> (Option<u64>, u64) {
    let access = MemoryAccess::decode(bytes, Mode::Bits64).expect("decoded");
    assert_eq!(usize::from(access.length()), bytes.len());
    assert_eq!(access.size(), size);
    let mut rflags = 0x202;
    let written = access.complete(read, gprs, &mut rflags);
    assert_eq!(written.is_some(), access.writes());
    (written, rflags & !0x202)
}

#[test]
fn moves() {
    let mut gprs = [0; 16];
    gprs[0] = 0xAAAA_BBBB_CCCC_DDDD;
    // mov eax, [rip+disp32]
    run(&[0x8B, 0x05, 1, 2, 3, 4], 4, 0xFFFF_FFFF_1234_5678, &mut gprs);
    assert_eq!(gprs[0], 0x1234_5678, "the upper half is cleared");
    // mov r9d, [rdi+rsi]
    run(&[0x44, 0x8B, 0x0C, 0x37], 4, 0x55, &mut gprs);
    assert_eq!(gprs[9], 0x55);
    // mov [rax+0x300], r9d
    assert_eq!(run(&[0x44, 0x89, 0x88, 0, 3, 0, 0], 4, 0, &mut gprs).0, Some(0x55));
    // mov dword [0xFEE00080], 0x80000001
    let store = [0xC7, 0x04, 0x25, 0x80, 0, 0xE0, 0xFE, 1, 0, 0, 0x80];
    assert_eq!(run(&store, 4, 0, &mut gprs).0, Some(0x8000_0001));
    // mov qword [rax], -2
    assert_eq!(run(&[0x48, 0xC7, 0x00, 0xFE, 0xFF, 0xFF, 0xFF], 8, 0, &mut gprs).0, Some(!1));
    // mov eax, [moffs64]
    run(&[0xA1, 0x20, 0, 0xE0, 0xFE, 0, 0, 0, 0], 4, 7, &mut gprs);
    assert_eq!(gprs[0], 7);
    // movzx ecx, byte [rax+1]; mov ah, [rax]; mov spl, [rax]; movsxd rdx, [rax]
    gprs[1] = !0;
    run(&[0x0F, 0xB6, 0x48, 1], 1, 0x1FF, &mut gprs);
    assert_eq!(gprs[1], 0xFF);
    run(&[0x8A, 0x20], 1, 0x99, &mut gprs);
    assert_eq!(gprs[0], 0x9907);
    run(&[0x40, 0x8A, 0x20], 1, 0x77, &mut gprs);
    assert_eq!(gprs[4], 0x77);
    run(&[0x48, 0x63, 0x10], 4, 0x8000_0000, &mut gprs);
    assert_eq!(gprs[2], 0xFFFF_FFFF_8000_0000);
    // xchg [rdi], eax
    assert_eq!(run(&[0x87, 0x07], 4, 0x1111, &mut gprs).0, Some(0x9907));
    assert_eq!(gprs[0], 0x1111);
}

#[test]
fn arithmetic_and_flags() {
    const CF: u64 = 1;
    const PF: u64 = 4;
    const AF: u64 = 0x10;
    const ZF: u64 = 0x40;
    const SF: u64 = 0x80;
    const OF: u64 = 0x800;
    let mut gprs = [0; 16];
    gprs[1] = 0x8000_0000;
    // or dword [rax], 0x100; and dword [rax], ~0x100
    assert_eq!(run(&[0x81, 0x08, 0, 1, 0, 0], 4, 0xFF, &mut gprs), (Some(0x1FF), PF));
    assert_eq!(run(&[0x81, 0x20, 0xFF, 0xFE, 0xFF, 0xFF], 4, 0x100, &mut gprs), (Some(0), ZF | PF));
    // add [rax], ecx; sub dword [rax], 1; lock xor [rax], ecx
    assert_eq!(run(&[0x01, 0x08], 4, 0x8000_0000, &mut gprs), (Some(0), CF | ZF | PF | OF));
    assert_eq!(run(&[0x83, 0x28, 1], 4, 0x8000_0000, &mut gprs), (Some(0x7FFF_FFFF), OF | PF | AF));
    assert_eq!(run(&[0xF0, 0x31, 0x08], 4, 1, &mut gprs), (Some(0x8000_0001), SF));
    // test dword [rax], 0x1000; cmp [rax], ecx; cmp ecx, [rax]
    assert_eq!(run(&[0xF7, 0x00, 0, 0x10, 0, 0], 4, 0x1000, &mut gprs), (None, PF));
    assert_eq!(run(&[0x39, 0x08], 4, 0, &mut gprs), (None, CF | SF | PF | OF));
    assert_eq!(run(&[0x3B, 0x08], 4, 0x8000_0000, &mut gprs), (None, ZF | PF));
    // and ecx, [rax]; add cl, [rax]
    run(&[0x23, 0x08], 4, 0xC000_0000, &mut gprs);
    assert_eq!(gprs[1], 0x8000_0000);
    run(&[0x02, 0x08], 1, 0xFF, &mut gprs);
    assert_eq!(gprs[1], 0x8000_00FF);
}

#[test]
fn what_is_not_decoded() {
    for bytes in [
        &[0x8B, 0xC1][..],
        &[0xF0, 0x8B, 0x00],
        &[0xF3, 0x89, 0x00],
        &[0x11, 0x08],
        &[0x8F, 0x00],
        &[0xFF, 0x30],
        &[0xC7, 0x08, 0, 0, 0, 0],
        &[0xF7, 0x10],
        &[0x0F, 0xAF, 0x00],
        &[0x8B, 0x05, 1, 2, 3],
        &[0x04, 0x01],
    ] {
        assert_eq!(MemoryAccess::decode(bytes, Mode::Bits64), None, "{bytes:x?}");
    }
}

/// Opcodes that the decoder knows and their neighbours, with what can be around them.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    let prefix =
        prop::sample::select(&[0x66u8, 0x67, 0xF0, 0xF2, 0xF3, 0x2E, 0x65, 0x41, 0x44, 0x48, 0x4C][..]);
    let opcode = prop_oneof![
        4 => any::<u8>().prop_map(|byte| std::vec![byte]),
        2 => (0x80u8..0x90).prop_map(|byte| std::vec![byte]),
        1 => any::<u8>().prop_map(|byte| std::vec![0x0F, byte]),
        1 => any::<u8>().prop_map(|byte| std::vec![0x0F, 0x01, byte]),
    ];
    (prop::collection::vec(prefix, 0..4), opcode, any::<[u8; 12]>())
        .prop_map(|(prefixes, opcode, rest)| [prefixes, opcode, rest.to_vec()].concat())
}

/// Mnemonics whose memory forms are all decoded.
fn is_known(found: &iced_x86::Instruction) -> bool {
    use Mnemonic::{Add, And, Cmp, Mov, Movsx, Movsxd, Movzx, Or, Sub, Test, Xchg, Xor};
    let known = matches!(
        found.mnemonic(),
        Add | And | Cmp | Mov | Movsx | Movsxd | Movzx | Or | Sub | Test | Xchg | Xor
    );
    let segment = matches!(found.code(), Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg)
        || matches!(found.code(), Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16);
    let memory = (0..found.op_count()).any(|index| found.op_kind(index) == OpKind::Memory);
    let elided = found.has_xacquire_prefix() || found.has_xrelease_prefix();
    known && memory && !segment && !elided
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn memory_accesses_agree_with_a_general_decoder(bytes in plausible(), mode in prop::sample::select(&MODES[..])) {
        let found = oracle(&bytes, mode);
        match MemoryAccess::decode(&bytes, mode) {
            Some(access) => {
                prop_assert!(is_known(&found), "{found:?} {bytes:x?}");
                prop_assert_eq!(usize::from(access.length()), found.len());
                prop_assert_eq!(usize::from(access.size()), found.memory_size().size());
                let mut gprs = [bytes[0].into(); 16];
                let mut rflags = 2;
                let written = access.complete(!0, &mut gprs, &mut rflags);
                prop_assert_eq!(written.is_some(), access.writes());
            }
            // F2 and F3 without effect on these are left to others.
            None => prop_assert!(!is_known(&found) || bytes.iter().any(|byte| matches!(byte, 0xF2 | 0xF3)), "{found:?} {bytes:x?}"),
        }
    }

    #[test]
    fn exiting_instructions_agree_with_a_general_decoder(bytes in plausible(), mode in prop::sample::select(&MODES[..])) {
        let found = oracle(&bytes, mode);
        let expected = match found.mnemonic() {
            Mnemonic::Cpuid => Some(Exiting::Cpuid),
            Mnemonic::Rdmsr => Some(Exiting::ReadMsr),
            Mnemonic::Wrmsr => Some(Exiting::WriteMsr),
            Mnemonic::Hlt => Some(Exiting::Halt),
            // VMGEXIT is VMMCALL to guests whose memory is not encrypted.
            Mnemonic::Vmcall | Mnemonic::Vmmcall | Mnemonic::Vmgexit => Some(Exiting::Hypercall),
            Mnemonic::Xsetbv => Some(Exiting::Xsetbv),
            Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => Some(Exiting::CacheInvalidate),
            Mnemonic::Monitor | Mnemonic::Monitorx => Some(Exiting::Monitor),
            Mnemonic::Mwait | Mnemonic::Mwaitx => Some(Exiting::Mwait),
            Mnemonic::Rdpmc => Some(Exiting::ReadPerformanceCounter),
            Mnemonic::Rdtsc | Mnemonic::Rdtscp => Some(Exiting::ReadTimestamp),
            Mnemonic::Pause => Some(Exiting::Pause),
            _ => None,
        };
        let decoded = Exiting::decode(&bytes, mode);
        match (expected, decoded) {
            (Some(kind), Some(got)) => prop_assert_eq!(got, (kind, found.len() as u8)),
            (None, None) => {}
            // Prefixes that processors ignore on these, and general decoders may not.
            // With a prefix that means nothing the processor still knows it, the general decoder not always.
            (None, Some(_)) => prop_assert!(found.is_invalid(), "{found:?} {bytes:x?}"),
            (Some(_), None) => prop_assert!(false, "{found:?} {bytes:x?}"),
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..20), mode in prop::sample::select(&MODES[..])) {
        let _ = Exiting::decode(&bytes, mode);
        if let Some(access) = MemoryAccess::decode(&bytes, mode) {
            prop_assert!(usize::from(access.length()) <= bytes.len().min(15));
        }
    }
}
