//! Fast calls whose parameters are in XMM registers (TLFS "XMM Fast Hypercall Input", "XMM Fast Hypercall Output").

use super::{Rig, calls::*, steps::*};
use crate::fake::{FakeVcpu, Flow, Script};
use crate::machine::{Event, Exit, Segment, SegmentName, Vcpu, gpr};
use parterre_abi::{
    hypercall::{HypercallCode as Code, HypercallOutput},
    property::SyntheticProcessorFeatures as Feature,
    status::HvStatus,
    types::PartitionId,
};
use proptest::prelude::*;
use std::{
    sync::{Arc, Mutex},
    vec,
    vec::Vec,
};

const INDEX: u64 = Code::GET_VP_INDEX_FROM_APIC_ID.0 as u64 | FAST;
const SELF: u64 = u64::MAX;

/// RDX, R8 and XMM0 to XMM5.
fn block(vcpu: &mut FakeVcpu) -> Vec<u64> {
    let mut words = vec![vcpu.gprs()[gpr::RDX], vcpu.gprs()[gpr::R8]];
    for index in 0..6 {
        let value = vcpu.xmm(index);
        words.extend([value as u64, (value >> 64) as u64]);
    }
    words
}

/// Processor 0 makes a fast call with these words in its registers. What it finds there afterwards; `None` if #UD was raised.
fn fast(
    rig: &mut Rig,
    id: PartitionId,
    script: &Script,
    control: u64,
    input: [u64; 14],
) -> Option<(HypercallOutput, Vec<u64>)> {
    script.code(move |vcpu| {
        load_block(vcpu, &input);
        vcpu.gprs_mut()[gpr::RCX] = control;
        Flow::Exit(Exit::Hypercall { length: Some(3) })
    });
    let seen = Arc::new(Mutex::new((0, vec![])));
    let out = seen.clone();
    script.code(move |vcpu| {
        *out.lock().unwrap() = (vcpu.gprs()[gpr::RAX], block(vcpu));
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    let (result, words) = seen.lock().unwrap().clone();
    (script.take_delivered() != [Event::Exception(6, None)]).then_some((result.into(), words))
}

/// Words, and what is in the other registers.
fn words(input: &[u64]) -> [u64; 14] {
    core::array::from_fn(|index| input.get(index).copied().unwrap_or(0xEEEE_EEEE_0000 + index as u64))
}

#[test]
fn calls_in_registers_do_what_they_do_in_memory() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 3);
    let calls: [(u64, &[u64], [bool; 3]); 7] = [
        (FLUSH, &[0, 0, 0b010], [false, true, false]),
        (FLUSH_LIST | reps(2), &[0, 0, 0b100, 0x1000, 0x2FFF], [false, false, true]),
        (FLUSH_LIST | reps(11), &[0, 0, 0b001], [true, false, false]),
        (FLUSH_EX | header(1), &[0, 0, 0, 1, 0b110], [false, true, true]),
        (FLUSH_EX | header(10), &[0, 0, 0, 0x3FF, 0b010], [false, true, false]),
        (FLUSH_EX, &[0, 0, 1, 0], [true, true, true]),
        (FLUSH_LIST_EX | header(1) | reps(9), &[0, 0, 0, 1, 0b001], [true, false, false]),
    ];
    for (control, input, who) in calls {
        for (vp, script) in scripts.iter().enumerate() {
            flushes(&mut rig, id, vp as u32, script);
        }
        let before = scripts[0].flushes();
        let input = words(input);
        let (result, after) = fast(&mut rig, id, &scripts[0], control | FAST, input).unwrap();
        assert_eq!((result.status(), result.reps_completed()), (HvStatus::SUCCESS, (control >> 32) as u16));
        assert_eq!(after, input, "the registers stay as they are");
        let first = scripts[0].flushes() != before;
        let others = [1, 2].map(|vp| flushes(&mut rig, id, vp, &scripts[vp as usize]));
        assert_eq!([first, others[0], others[1]], who, "{control:#x}");
    }
}

#[test]
fn an_interrupt_is_sent_from_registers() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 2);
    let input = words(&[0x60, 0, 0b11, 0b10, 0]);
    let (result, after) = fast(&mut rig, id, &scripts[0], IPI_EX | header(2) | FAST, input).unwrap();
    assert_eq!((result.status(), after.as_slice()), (HvStatus::SUCCESS, &input[..]));
    scripts[1].exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 1), READY);
    assert_eq!(scripts[1].take_delivered(), [Event::Interrupt(0x60)]);
}

#[test]
fn what_does_not_fit_the_registers_is_refused() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 2);
    let calls: [(u64, &[u64]); 8] = [
        (FLUSH_LIST | reps(12), &[0, 0, 1]),
        (FLUSH_LIST | reps(0xFFF), &[0, 0, 1]),
        (FLUSH_EX | header(11), &[0, 0, 0, 0x7FF]),
        (FLUSH_EX | header(64), &[0, 0, 0, u64::MAX]),
        (FLUSH_LIST_EX | header(1) | reps(10), &[0, 0, 0, 1, 1]),
        (IPI_EX | header(12), &[0x60, 0, 0xFFF]),
        // Calls of two words take none of the others.
        (IPI | header(1), &[0x60, 1]),
        (Code::POST_MESSAGE.0.into(), &[1, 1 | 8 << 32]),
    ];
    for (control, input) in calls {
        let (result, after) = fast(&mut rig, id, &scripts[0], control | FAST, words(input)).unwrap();
        assert_eq!(result.status(), HvStatus::INVALID_HYPERCALL_INPUT, "{control:#x}");
        assert_eq!((result.reps_completed(), after.as_slice()), (0, &words(input)[..]));
    }
}

#[test]
fn output_comes_in_the_registers_behind_the_input() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 3);
    let pair = |low: u64, high: u64| high << 32 | low;
    // Five ids fill one and a half units behind the header, so the answer begins in XMM2.
    let input = words(&[SELF, 0, pair(2, 0), pair(1, 1), 2]);
    let (result, after) = fast(&mut rig, id, &scripts[0], INDEX | reps(5), input).unwrap();
    assert_eq!((result.status(), result.reps_completed()), (HvStatus::SUCCESS, 5));
    assert_eq!(after[..6], input[..6], "the input stays");
    assert_eq!(after[6..8], [pair(2, 0), pair(1, 1)]);
    assert_eq!((after[8] as u32, &after[9..]), (2, &input[9..]));
    // An id that is not there: those before it are answered.
    let input = words(&[id.0, 0, pair(1, 77)]);
    let (result, after) = fast(&mut rig, id, &scripts[0], INDEX | reps(2), input).unwrap();
    assert_eq!((result.status(), result.reps_completed()), (HvStatus::INVALID_PARAMETER, 1));
    assert_eq!(after[4] as u32, 1);
    // Twelve ids leave as many places; one more does not.
    for (count, status) in [(12, HvStatus::SUCCESS), (13, HvStatus::INVALID_HYPERCALL_INPUT)] {
        let input: [u64; 14] = core::array::from_fn(|index| if index == 0 { SELF } else { 0 });
        let (result, _) = fast(&mut rig, id, &scripts[0], INDEX | reps(count), input).unwrap();
        assert_eq!(result.status(), status, "{count} ids");
    }
}

#[test]
fn output_in_registers_is_for_those_that_were_told_of_it() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 1);
    rig.hv.child(id).unwrap().set_features(!Feature::FAST_HYPERCALL_OUTPUT);
    assert_eq!(fast(&mut rig, id, &scripts[0], INDEX | reps(1), words(&[SELF, 0, 0])), None);
    rig.hv.child(id).unwrap().set_features(Feature::all());
    assert!(fast(&mut rig, id, &scripts[0], INDEX | reps(1), words(&[SELF, 0, 0])).is_some());
    // Nor is it for 32-bit code.
    scripts[0].code(|vcpu| {
        let code = Segment { base: 0, limit: u32::MAX, selector: 8, attributes: 0xC09B };
        vcpu.set_segment(SegmentName::Cs, code);
        let r = vcpu.gprs_mut();
        (r[gpr::RDX], r[gpr::RAX]) = (1, INDEX);
        Flow::Exit(Exit::Hypercall { length: Some(3) })
    });
    scripts[0].exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(scripts[0].take_delivered(), [Event::Exception(6, None)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the registers hold, the answer is the one that the same words in memory get, if they fit.
    #[test]
    fn registers_are_as_good_as_memory(
        code in prop::sample::select(vec![FLUSH, FLUSH_LIST, FLUSH_EX, FLUSH_LIST_EX, IPI_EX]),
        banks in 0..14u64,
        count in 0..14u64,
        input in prop::array::uniform14(prop_oneof![Just(0u64), 0..0x80u64, any::<u64>()]),
    ) {
        let mut rig = Rig::new();
        let (id, scripts) = guest(&mut rig, 2);
        let control = code | header(banks) | reps(count);
        let memory = call(&mut rig, id, &scripts[0], control, &input);
        let (registers, after) = fast(&mut rig, id, &scripts[0], control | FAST, input).unwrap();
        prop_assert_eq!(after.as_slice(), &input[..]);
        // What has more than 14 words is there in memory only.
        if registers.status() != HvStatus::INVALID_HYPERCALL_INPUT {
            prop_assert_eq!(u64::from(memory), u64::from(registers));
        } else if memory.status() == HvStatus::SUCCESS {
            prop_assert!(banks + count > 10, "{:#x}", control);
        }
    }
}
