//! Calls and registers that spare an enlightened child exits: TLB flushes, interrupts between processors, EOI assist, idling.

use super::{Rig, Sizes, steps::*};
use crate::fake::{Flow, Script};
use crate::machine::{Event, Exit, Reg, Vcpu, gpr};
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
const INPUT: u64 = 0x1000;
const ASSIST: u64 = 0x5000;
const HLT: Exit = Exit::Hlt { length: Some(1) };

/// A child with `count` processors that run 64-bit code with their local APICs enabled.
fn guest(rig: &mut Rig, count: u32) -> (PartitionId, Vec<Arc<Script>>) {
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

/// Processor 0 makes a call: control word, and the words of its input.
fn call(rig: &mut Rig, id: PartitionId, script: &Script, control: u64, input: &[u64]) -> HypercallOutput {
    let bytes: Vec<u8> = input.as_bytes().to_vec();
    script.code(move |vcpu| {
        vcpu.write_memory(INPUT, &bytes).expect("the page is there");
        Flow::Next
    });
    script.exit_with(
        &[(gpr::RCX, control), (gpr::RDX, INPUT), (gpr::R8, 0)],
        Exit::Hypercall { length: Some(3) },
    );
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

const FLUSH: u64 = Code::FLUSH_VIRTUAL_ADDRESS_SPACE.0 as u64;
const FLUSH_LIST: u64 = Code::FLUSH_VIRTUAL_ADDRESS_LIST.0 as u64;
const FLUSH_EX: u64 = Code::FLUSH_VIRTUAL_ADDRESS_SPACE_EX.0 as u64;
const FLUSH_LIST_EX: u64 = Code::FLUSH_VIRTUAL_ADDRESS_LIST_EX.0 as u64;
const IPI: u64 = Code::SEND_SYNTHETIC_CLUSTER_IPI.0 as u64;
const IPI_EX: u64 = Code::SEND_SYNTHETIC_CLUSTER_IPI_EX.0 as u64;
const ALL: u64 = FlushFlags::ALL_PROCESSORS.bits();
const NON_GLOBAL: u64 = FlushFlags::NON_GLOBAL_MAPPINGS_ONLY.bits();
const EXTENDED: u64 = FlushFlags::USE_EXTENDED_RANGE_FORMAT.bits();
const FAST: u64 = 1 << 16;

const fn header(words: u64) -> u64 {
    words << 17
}

const fn reps(count: u64) -> u64 {
    count << 32
}

/// Whether processor `vp` flushes when it next runs.
fn flushes(rig: &mut Rig, id: PartitionId, vp: u32, script: &Script) -> bool {
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
        (FLUSH | FAST, &[], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_LIST, &[0, 0, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_LIST | reps(1), &[0, NON_GLOBAL, 1, 0x1000], S::INVALID_PARAMETER),
        (FLUSH_LIST | reps(1) | header(1), &[0, 0, 1, 0x1000], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_LIST | reps(510), &[0, 0, 1], S::INVALID_ALIGNMENT),
        (FLUSH_LIST | reps(0xFFF), &[0, 0, 1], S::INVALID_ALIGNMENT),
        (FLUSH_EX, &[0, 0, 0, 1, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_EX | header(2), &[0, 0, 0, 1, 1, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_EX | header(1), &[0, 0, 2, 1, 1], S::INVALID_PARAMETER),
        (FLUSH_EX | header(1) | reps(1), &[0, 0, 0, 1, 1], S::INVALID_HYPERCALL_INPUT),
        (FLUSH_EX | header(1) | FAST, &[], S::INVALID_HYPERCALL_INPUT),
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
        (IPI_EX | header(1) | FAST, &[], S::INVALID_HYPERCALL_INPUT),
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

fn post(rig: &mut Rig, id: PartitionId, vector: u8) {
    rig.hv.child(id).unwrap().vp(0).unwrap().incoming.post_fixed(vector, false);
}

/// What the guest finds in its assist page.
fn read_assist(script: &Script) -> Arc<Mutex<Vec<u32>>> {
    let seen = Arc::new(Mutex::new(vec![]));
    let out = seen.clone();
    script.code(move |vcpu| {
        let mut word = [0; 4];
        vcpu.read_memory(ASSIST, &mut word).expect("the page is there");
        out.lock().unwrap().push(u32::from_le_bytes(word));
        Flow::Next
    });
    seen
}

fn clear_assist(script: &Script) {
    script.code(|vcpu| {
        vcpu.write_memory(ASSIST, &[0; 4]).expect("the page is there");
        Flow::Next
    });
}

#[test]
fn an_end_of_interrupt_may_be_left_out_when_nothing_waits_for_it() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 1);
    let script = &scripts[0];
    write(script, msr::VP_ASSIST_PAGE, ASSIST | 1);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    for _ in 0..3 {
        post(&mut rig, id, 0x60);
        let seen = read_assist(script);
        clear_assist(script);
        script.exit(Exit::Pause);
        assert_eq!(rig.cpu().dispatch(id, 0), READY);
        assert_eq!(script.take_delivered(), [Event::Interrupt(0x60)], "the one before has ended");
        assert_eq!(*seen.lock().unwrap(), [1]);
    }
}

#[test]
fn an_end_of_interrupt_is_required_when_another_one_waits() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 1);
    let script = &scripts[0];
    write(script, msr::VP_ASSIST_PAGE, ASSIST | 1);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    // A lower one waits already: no offer.
    post(&mut rig, id, 0x60);
    post(&mut rig, id, 0x50);
    let seen = read_assist(script);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(*seen.lock().unwrap(), [0]);
    // The offer for the lower one is withdrawn when an equal one comes.
    write(script, msr::EOI, 0);
    let seen = read_assist(script);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(*seen.lock().unwrap(), [1]);
    post(&mut rig, id, 0x51);
    let seen = read_assist(script);
    write(script, msr::EOI, 0);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(*seen.lock().unwrap(), [0]);
    let all = [Event::Interrupt(0x60), Event::Interrupt(0x50), Event::Interrupt(0x51)];
    assert_eq!(script.take_delivered(), all);
}

#[test]
fn an_end_of_interrupt_by_register_counts_as_well() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 1);
    let script = &scripts[0];
    write(script, msr::VP_ASSIST_PAGE, ASSIST | 1);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    post(&mut rig, id, 0x60);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    write(script, msr::EOI, 0);
    let seen = read_assist(script);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(*seen.lock().unwrap(), [0], "there is no offer any more");
    post(&mut rig, id, 0x40);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x60), Event::Interrupt(0x40)]);
}

#[test]
fn the_assist_page_can_be_taken_away_while_an_end_is_offered() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 1);
    let script = &scripts[0];
    write(script, msr::VP_ASSIST_PAGE, ASSIST | 1);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    post(&mut rig, id, 0x60);
    write(script, msr::VP_ASSIST_PAGE, 0);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    post(&mut rig, id, 0x61);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x60)], "still in service");
    write(script, msr::EOI, 0);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x61)]);
}

#[test]
fn the_parent_reads_and_sets_the_assist_page() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 1);
    assert_eq!(rig.cpu().set(id, 0, RegisterName::VP_ASSIST_PAGE, ASSIST | 1), Ok(()));
    assert_eq!(rig.cpu().get_u64(id, 0, RegisterName::VP_ASSIST_PAGE), ASSIST | 1);
    post(&mut rig, id, 0x60);
    let seen = read_assist(&scripts[0]);
    scripts[0].exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(*seen.lock().unwrap(), [1]);
    // What the parent is told of the local APIC is the whole of it.
    assert_eq!(rig.cpu().set(id, 0, RegisterName::VP_ASSIST_PAGE, 0u64), Ok(()));
    post(&mut rig, id, 0x61);
    scripts[0].exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(scripts[0].take_delivered(), [Event::Interrupt(0x60)]);
}

#[test]
fn an_idle_processor_is_woken_by_an_interrupt_that_it_cannot_take() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 2);
    let script = &scripts[1];
    script.code(|vcpu| {
        vcpu.set(Reg::Rflags, 2);
        Flow::Exit(Exit::ReadMsr { msr: msr::GUEST_IDLE, length: Some(2) })
    });
    assert_eq!(rig.cpu().dispatch(id, 1), BLOCKED);
    assert_eq!(rig.cpu().get_u64(id, 1, RegisterName::INTERNAL_ACTIVITY_STATE), 4);
    assert_eq!(call(&mut rig, id, &scripts[0], IPI, &[0x60, 2]).status(), HvStatus::SUCCESS);
    assert_eq!(rig.cpu().take_signals(), [(id, 1)]);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 1), READY);
    assert_eq!(script.take_delivered(), [], "it goes on with interrupts off");
    // With interrupts off HLT waits on.
    script.exit(HLT);
    assert_eq!(rig.cpu().dispatch(id, 1), BLOCKED);
}

/// A handler that idles, as it does when it waits for a lock, is woken by what its own priority holds up.
#[test]
fn an_idle_handler_is_woken_by_an_interrupt_of_its_own_priority() {
    let mut rig = Rig::new();
    let (id, scripts) = guest(&mut rig, 2);
    let script = &scripts[1];
    rig.hv.child(id).unwrap().vp(1).unwrap().incoming.post_fixed(0x6F, false);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 1), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x6F)]);
    script.code(|vcpu| {
        vcpu.set(Reg::Rflags, 2);
        Flow::Exit(Exit::ReadMsr { msr: msr::GUEST_IDLE, length: Some(2) })
    });
    assert_eq!(rig.cpu().dispatch(id, 1), BLOCKED);
    assert_eq!(call(&mut rig, id, &scripts[0], IPI, &[0x60, 2]).status(), HvStatus::SUCCESS);
    assert_eq!(rig.cpu().take_signals(), [(id, 1)]);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 1), READY);
}

#[test]
fn registers_of_time_and_crash() {
    let mut rig = Rig::new();
    rig.machine.set_cpuid(0x8000_0007, 0, [0, 0, 0, 0x100]);
    let (id, scripts) = guest(&mut rig, 1);
    let script = &scripts[0];
    let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
    let read = |msr: u32| {
        script.exit_with(&[(gpr::RCX, msr.into())], Exit::ReadMsr { msr, length: Some(2) });
        let out = seen.clone();
        script.code(move |vcpu| {
            let r = vcpu.gprs();
            out.lock().unwrap().push(r[gpr::RDX] << 32 | r[gpr::RAX]);
            Flow::Next
        });
    };
    rig.machine.set_tick(100_000);
    read(msr::VP_RUNTIME);
    read(msr::VP_RUNTIME);
    read(msr::TSC_INVARIANT_CONTROL);
    write(script, msr::TSC_INVARIANT_CONTROL, 2);
    write(script, msr::TSC_INVARIANT_CONTROL, 1);
    read(msr::TSC_INVARIANT_CONTROL);
    write(script, msr::VP_RUNTIME, 0);
    write(script, msr::GUEST_IDLE, 0);
    script.exit_with(&[(gpr::RAX, 0x8000_0007), (gpr::RCX, 0)], Exit::Cpuid { length: Some(2) });
    let edx = Arc::new(Mutex::new(0));
    let out = edx.clone();
    script.code(move |vcpu| {
        *out.lock().unwrap() = vcpu.gprs()[gpr::RDX];
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Exception(13, Some(0)); 3]);
    let seen = seen.lock().unwrap().clone();
    assert!(seen[0] != 0 && seen[1] > seen[0], "{seen:?}");
    assert_eq!(seen[2..], [0, 1]);
    assert_eq!(*edx.lock().unwrap(), 0x100, "shown when it was asked for");
}
