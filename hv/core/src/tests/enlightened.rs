//! Registers that spare an enlightened child exits: EOI assist, idling; and those of time and crash.

use super::{
    Rig,
    calls::{HLT, IPI, call, guest},
    steps::*,
};
use crate::fake::{Flow, Script};
use crate::machine::{Event, Exit, Reg, Vcpu, gpr};
use parterre_abi::{msr, registers::RegisterName, status::HvStatus, types::PartitionId};
use std::{
    sync::{Arc, Mutex},
    vec,
    vec::Vec,
};

const ASSIST: u64 = 0x5000;

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
