//! Calls of enlightened children that spare them exits: TLB flushes, and interrupts between processors.

use super::{Rig, Sizes, steps::*};
use crate::fake::{FakeVcpu, Flow, Script};
use crate::machine::{Event, Exit, Vcpu, gpr};
use parterre_abi::{
    hypercall::{FlushFlags, HypercallCode as Code, HypercallOutput},
    msr,
    registers::RegisterName,
    status::HvStatus,
    types::PartitionId,
};
use proptest::prelude::*;
use std::{
    sync::{Arc, Mutex},
    vec,
    vec::Vec,
};
use zerocopy::IntoBytes;

/// Where guests put their input.
pub(super) const INPUT: u64 = 0x1000;
pub(super) const HLT: Exit = Exit::Hlt { length: Some(1) };

/// A child with `count` processors that run 64-bit code with their local APICs enabled.
pub(super) fn guest(rig: &mut Rig, count: u32) -> (PartitionId, Vec<Arc<Script>>) {
    let first = rig.machine.vcpus();
    let id = rig.guest_with(208 + 16 * count as usize);
    rig.give_memory(id, 0, 0x10);
    let scripts = (0..count).map(|vp| {
        rig.vp(id, vp);
        rig.release(id, vp);
        let state = RegisterName::INTERNAL_ACTIVITY_STATE;
        assert_eq!(rig.cpu().set(id, vp, state, 0u64), Ok(()));
        let script = rig.machine.script(first + vp as usize);
        begin_kernel(&script, vp == 0);
        assert_eq!(rig.cpu().dispatch(id, vp), READY);
        rig.cpu().take_signals();
        script
    });
    let scripts = scripts.collect();
    (id, scripts)
}

/// Processor 0 makes a call: control word, and the words of its input, in memory or, if the call is fast, in registers.
pub(super) fn call(
    rig: &mut Rig,
    id: PartitionId,
    script: &Script,
    control: u64,
    input: &[u64],
) -> HypercallOutput {
    let mut words = input.to_vec();
    script.code(move |vcpu| {
        if control & FAST == 0 {
            vcpu.write_memory(INPUT, words.as_bytes()).expect("the page is there");
            vcpu.gprs_mut()[gpr::RDX] = INPUT;
            vcpu.gprs_mut()[gpr::R8] = INPUT + 0x1000;
        } else {
            words.resize(14, 0);
            load_block(vcpu, &words);
        }
        vcpu.gprs_mut()[gpr::RCX] = control;
        Flow::Exit(Exit::Hypercall { length: Some(3) })
    });
    let result = Arc::new(Mutex::new(0));
    let out = result.clone();
    script.code(move |vcpu| {
        *out.lock().unwrap() = vcpu.gprs()[gpr::RAX];
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    let result = *result.lock().unwrap();
    result.into()
}

/// Puts words into RDX, R8 and XMM0 to XMM5.
pub(super) fn load_block(vcpu: &mut FakeVcpu, words: &[u64]) {
    (vcpu.gprs_mut()[gpr::RDX], vcpu.gprs_mut()[gpr::R8]) = (words[0], words[1]);
    for (index, pair) in words[2..14].chunks_exact(2).enumerate() {
        vcpu.set_xmm(index, u128::from(pair[1]) << 64 | u128::from(pair[0]));
    }
}

pub(super) const FLUSH: u64 = Code::FLUSH_VIRTUAL_ADDRESS_SPACE.0 as u64;
pub(super) const FLUSH_LIST: u64 = Code::FLUSH_VIRTUAL_ADDRESS_LIST.0 as u64;
pub(super) const FLUSH_EX: u64 = Code::FLUSH_VIRTUAL_ADDRESS_SPACE_EX.0 as u64;
pub(super) const FLUSH_LIST_EX: u64 = Code::FLUSH_VIRTUAL_ADDRESS_LIST_EX.0 as u64;
pub(super) const IPI: u64 = Code::SEND_SYNTHETIC_CLUSTER_IPI.0 as u64;
pub(super) const IPI_EX: u64 = Code::SEND_SYNTHETIC_CLUSTER_IPI_EX.0 as u64;
pub(super) const ALL: u64 = FlushFlags::ALL_PROCESSORS.bits();
const NON_GLOBAL: u64 = FlushFlags::NON_GLOBAL_MAPPINGS_ONLY.bits();
const EXTENDED: u64 = FlushFlags::USE_EXTENDED_RANGE_FORMAT.bits();
pub(super) const FAST: u64 = 1 << 16;

pub(super) const fn header(words: u64) -> u64 {
    words << 17
}

pub(super) const fn reps(count: u64) -> u64 {
    count << 32
}

/// Whether processor `vp` flushes when it next runs.
pub(super) fn flushes(rig: &mut Rig, id: PartitionId, vp: u32, script: &Script) -> bool {
    let before = script.flushes();
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, vp), READY);
    script.flushes() != before
}

#[test]
fn a_flush_reaches_those_that_are_named_and_no_others() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 3);
    // Control word, input, and who flushes.
    let calls: [(u64, &[u64], [bool; 3]); 9] = [
        (FLUSH, &[0, 0, 0b010], [false, true, false]),
        (FLUSH, &[0, ALL, 0], [true, true, true]),
        (FLUSH, &[0, NON_GLOBAL, 0b101], [true, false, true]),
        (FLUSH_LIST | reps(2), &[0, 0, 0b100, 0x1000, 0x2FFF], [false, false, true]),
        (FLUSH_LIST | reps(1), &[0, EXTENDED, 0b001, 0x1000], [true, false, false]),
        (FLUSH_EX | header(1), &[0, 0, 0, 1, 0b110], [false, true, true]),
        (FLUSH_EX, &[0, 0, 1, 0], [true, true, true]),
        (FLUSH_EX | header(2), &[0, 0, 0, 0b1001, 0b010, u64::MAX], [false, true, false]),
        (FLUSH_LIST_EX | header(1) | reps(1), &[0, 0, 0, 1, 0b001, 0x1000], [true, false, false]),
    ];
    for (control, input, who) in calls {
        for (vp, script) in scripts.iter().enumerate() {
            flushes(&mut rig, id, vp as u32, script);
        }
        // Processor 0 may flush already when it goes on behind the call.
        let before = scripts[0].flushes();
        let result = call(&mut rig, id, &scripts[0], control, input);
        let count = (control >> 32) as u16;
        assert_eq!((result.status(), result.reps_completed()), (HvStatus::SUCCESS, count), "{input:x?}");
        let first = scripts[0].flushes() != before;
        let others = [1, 2].map(|vp| flushes(&mut rig, id, vp, &scripts[vp as usize]));
        assert_eq!([first, others[0], others[1]], who, "{control:#x} {input:x?}");
    }
}

#[test]
fn a_flush_with_a_wrong_form_is_refused() {
    use HvStatus as S;
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 2);
    let calls: [(u64, &[u64], HvStatus); 18] = [
        (FLUSH, &[0, 1 << 4, 1], S::INVALID_PARAMETER),
        (FLUSH, &[0, EXTENDED, 1], S::INVALID_PARAMETER),
        (FLUSH | reps(1), &[0, 0, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH | header(1), &[0, 0, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH | reps(1) | FAST, &[0, 0, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_LIST, &[0, 0, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_LIST | reps(1), &[0, NON_GLOBAL, 1, 0x1000], S::INVALID_PARAMETER),
        (FLUSH_LIST | reps(1) | header(1), &[0, 0, 1, 0x1000], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_LIST | reps(510), &[0, 0, 1], S::INVALID_ALIGNMENT),
        (FLUSH_LIST | reps(0xFFF), &[0, 0, 1], S::INVALID_ALIGNMENT),
        (FLUSH_EX, &[0, 0, 0, 1, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_EX | header(2), &[0, 0, 0, 1, 1, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_EX | header(1), &[0, 0, 2, 1, 1], S::INVALID_PARAMETER),
        (FLUSH_EX | header(1) | reps(1), &[0, 0, 0, 1, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_EX | header(2) | FAST, &[0, 0, 0, 1, 1, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_LIST_EX | header(1), &[0, 0, 0, 1, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_LIST_EX | header(1) | reps(508), &[0, 0, 0, 1, 1], S::INVALID_ALIGNMENT),
        (FLUSH_LIST_EX | header(64) | reps(1), &[0, ALL, 0, 0], S::SUCCESS),
    ];
    for (control, input, status) in calls {
        let result = call(&mut rig, id, &scripts[0], control, input);
        assert_eq!(result.status(), status, "{control:#x} {input:x?}");
    }
}

#[test]
fn absurd_sets_of_processors_name_those_that_are_there() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 2);
    // All 64 banks full: 4096 processors.
    let mut input = vec![0, 0, 0, u64::MAX];
    input.extend([u64::MAX; 64]);
    let result = call(&mut rig, id, &scripts[0], FLUSH_EX | header(64), &input);
    assert_eq!(result.status(), HvStatus::SUCCESS);
    // Banks that no processor can be in, and processors that are not there.
    let result = call(&mut rig, id, &scripts[0], FLUSH_EX | header(1), &[0, 0, 0, 1 << 63, u64::MAX]);
    assert_eq!(result.status(), HvStatus::SUCCESS);
    let result = call(&mut rig, id, &scripts[0], IPI_EX | header(1), &[0x60, 0, 1 << 4, u64::MAX]);
    assert_eq!(result.status(), HvStatus::SUCCESS);
    let result = call(&mut rig, id, &scripts[0], IPI, &[0x60, !3]);
    assert_eq!(result.status(), HvStatus::SUCCESS);
    scripts[1].exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 1), READY);
    assert_eq!(scripts[1].take_delivered(), [], "none of these is processor 1");
}

/// Sets of processors beyond the first 64: in each bank, at its edges, and behind banks that are left out.
#[test]
fn sets_reach_processors_beyond_64() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 140);
    let watched = [1, 63, 64, 65, 127, 128, 139];
    let sets: [(&[u64], &[u32]); 6] = [
        (&[0b010, 1], &[64]),
        (&[0b110, 1 << 63, 1], &[127, 128]),
        (&[0b101, 1 << 63, 1 << 11], &[63, 139]),
        (&[0b1000, u64::MAX], &[]),
        (&[0b111, !1, u64::MAX, u64::MAX], &watched),
        (&[1 << 40 | 0b010, 0b10, u64::MAX], &[65]),
    ];
    for (set, expected) in sets {
        let banks = header(u64::from(set[0].count_ones()));
        let input = [&[0, 0, 0], set].concat();
        for vp in watched {
            // Whatever is due from before.
            flushes(&mut rig, id, vp, &scripts[vp as usize]);
        }
        let flush = call(&mut rig, id, &scripts[0], FLUSH_EX | banks, &input);
        let flushed = watched.into_iter().filter(|vp| flushes(&mut rig, id, *vp, &scripts[*vp as usize]));
        assert_eq!((flush.status(), flushed.collect::<Vec<_>>()), (HvStatus::SUCCESS, expected.to_vec()));

        let input = [&[0x60, 0], set].concat();
        let interrupt = call(&mut rig, id, &scripts[0], IPI_EX | banks, &input);
        let taken = watched.into_iter().filter(|vp| {
            let script = &scripts[*vp as usize];
            write(script, msr::EOI, 0);
            script.exit(Exit::Pause);
            assert_eq!(rig.cpu().dispatch(id, *vp), READY);
            script.take_delivered() == [Event::Interrupt(0x60)]
        });
        assert_eq!((interrupt.status(), taken.collect::<Vec<_>>()), (HvStatus::SUCCESS, expected.to_vec()));
    }
}

#[test]
fn one_that_runs_leaves_guest_mode_for_a_flush() {
    let mut rig = Rig::with(Sizes { processors: 2, ..Sizes::default() });
    let (id, scripts) = guest(&mut rig, 2);
    let child = rig.hv.child(id).unwrap();
    let vp = child.vp(1).unwrap();
    let mut seen = 0;
    vp.presence.enter(|| child.generation_of(&vp), &mut seen, || {});
    vp.translations.advance();
    assert!(vp.presence.is_older(child.generation_of(&vp)), "whoever flushes waits for it");
    let mut flushed = 0;
    vp.presence.leave();
    assert!(!vp.presence.is_older(child.generation_of(&vp)));
    vp.presence.enter(|| child.generation_of(&vp), &mut seen, || flushed += 1);
    assert_eq!(flushed, 1);
    vp.presence.leave();
    drop(vp);
    drop(child);
    assert!(flushes(&mut rig, id, 1, &scripts[1]));
}

#[test]
fn an_interrupt_reaches_those_that_are_named_and_wakes_them() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 3);
    let calls: [(u64, &[u64], [bool; 3]); 5] = [
        (IPI, &[0x60, 0b010], [false, true, false]),
        (IPI, &[0x60, 0b111], [true, true, true]),
        (IPI_EX | header(1), &[0x60, 0, 1, 0b101], [true, false, true]),
        (IPI_EX, &[0x60, 1, 0], [true, true, true]),
        (IPI_EX, &[0x60, 0, 0], [false, false, false]),
    ];
    for (control, input, who) in calls {
        for vp in 1..3 {
            scripts[vp as usize].exit(HLT);
            assert_eq!(rig.cpu().dispatch(id, vp), BLOCKED);
        }
        assert_eq!(call(&mut rig, id, &scripts[0], control, input).status(), HvStatus::SUCCESS);
        let woken: Vec<u32> = rig.cpu().take_signals().into_iter().map(|(_, vp)| vp).collect();
        let expected: Vec<u32> = (1..3).filter(|vp| who[*vp as usize]).collect();
        assert_eq!(woken, expected, "{control:#x} {input:x?}");
        for (vp, script) in scripts.iter().enumerate() {
            if vp != 0 && !who[vp] {
                rig.cpu().set(id, vp as u32, RegisterName::INTERNAL_ACTIVITY_STATE, 0u64).unwrap();
                rig.cpu().take_signals();
            }
            write(script, msr::EOI, 0);
            script.exit(Exit::Pause);
            assert_eq!(rig.cpu().dispatch(id, vp as u32), READY);
            let delivered = script.take_delivered();
            assert_eq!(delivered, vec![Event::Interrupt(0x60); usize::from(who[vp])], "processor {vp}");
        }
    }
}

#[test]
fn an_interrupt_with_a_wrong_form_is_refused() {
    use HvStatus as S;
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 2);
    let calls: [(u64, &[u64], HvStatus); 10] = [
        (IPI, &[0x0F, 2], S::INVALID_PARAMETER),
        (IPI, &[0x100, 2], S::INVALID_PARAMETER),
        (IPI, &[u32::MAX as u64, 2], S::INVALID_PARAMETER),
        (IPI, &[0x60 | 0x11 << 32, 2], S::INVALID_PARAMETER),
        (IPI | reps(1), &[0x60, 2], S::INVALID_HYPERCALL_INPUT),
        (IPI | header(1), &[0x60, 2], S::INVALID_HYPERCALL_INPUT),
        (IPI_EX, &[0x60, 0, 1, 2], S::INVALID_HYPERCALL_INPUT),
        (IPI_EX | header(1), &[0x60, 7, 1, 2], S::INVALID_PARAMETER),
        (IPI_EX | header(1), &[0x0F, 0, 1, 2], S::INVALID_PARAMETER),
        (IPI_EX | header(1) | FAST, &[0x60, 7, 1, 2], S::INVALID_PARAMETER),
    ];
    for (control, input, status) in calls {
        let result = call(&mut rig, id, &scripts[0], control, input);
        assert_eq!(result.status(), status, "{control:#x} {input:x?}");
    }
    scripts[1].exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 1), READY);
    assert_eq!(scripts[1].take_delivered(), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any input in any of the calls is answered: nothing panics, waits for ever, or reaches a processor that is not named.
    #[test]
    fn any_input_is_answered(
        code in prop::sample::select(vec![FLUSH, FLUSH_LIST, FLUSH_EX, FLUSH_LIST_EX, IPI, IPI_EX]),
        fast in any::<bool>(),
        words in 0..80u64,
        count in prop_oneof![Just(0u64), 0..600u64, Just(0xFFFu64)],
        input in prop::collection::vec(prop_oneof![Just(0u64), 0..4u64, any::<u64>()], 0..512),
    ) {
        let mut rig = Rig::new();
        let (id, scripts) = guest(&mut rig, 2);
        let control = code | u64::from(fast) << 16 | header(words) | reps(count);
        let result = call(&mut rig, id, &scripts[0], control, &input);
        let status = result.status();
        let known = [
            HvStatus::SUCCESS,
            HvStatus::INVALID_HYPERCALL_INPUT,
            HvStatus::INVALID_PARAMETER,
            HvStatus::INVALID_ALIGNMENT,
        ];
        prop_assert!(known.contains(&status), "{:?}", status);
        if status != HvStatus::SUCCESS {
            prop_assert_eq!(result.reps_completed(), 0);
        }
        rig.check();
    }
}
