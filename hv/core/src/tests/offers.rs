//! Interrupts that wait for the guest, and are delivered by the machine itself when it is ready.

use super::{
    Rig,
    calls::{HLT, guest},
    steps::*,
};
use crate::fake::{FakeVcpu, Flow, Script};
use crate::machine::{Event, Exit, Reg, Vcpu};
use parterre_abi::{msr, types::PartitionId};
use std::{sync::Arc, vec};

const ASSIST: u64 = 0x5000;

fn post(rig: &Rig, id: PartitionId, vector: u8) {
    rig.hv.child(id).unwrap().vp(0).unwrap().incoming.post_fixed(vector, false);
}

/// The guest sets RFLAGS.IF, or clears it.
fn set_enabled(script: &Script, enabled: bool) {
    script.code(move |vcpu: &mut FakeVcpu| {
        vcpu.set(Reg::Rflags, if enabled { 0x202 } else { 2 });
        Flow::Next
    });
}

/// A guest with interrupts off.
fn masked(rig: &mut Rig) -> (PartitionId, Arc<Script>) {
    let (id, scripts) = guest(rig, 1);
    let script = scripts[0].clone();
    write(&script, msr::VP_ASSIST_PAGE, ASSIST | 1);
    set_enabled(&script, false);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    (id, script)
}

fn windows(rig: &Rig, id: PartitionId) -> u64 {
    let child = rig.hv.child(id).unwrap();
    let vp = child.vp(0).unwrap();
    vp.try_lock().expect("nobody runs it").counts.windows
}

#[test]
fn it_is_delivered_without_an_exit_and_is_in_service_then() {
    let mut rig = Rig::new();
    let (id, script) = masked(&mut rig);
    post(&rig, id, 0x60);
    script.exit(Exit::Pause);
    set_enabled(&script, true);
    script.exit(Exit::Pause).exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!((script.take_delivered(), windows(&rig, id)), (vec![Event::Interrupt(0x60)], 0));
    // A lower one waits for its end, a higher one does not.
    post(&rig, id, 0x50);
    post(&rig, id, 0x70);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x70)]);
    write(&script, msr::EOI, 0);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), []);
    write(&script, msr::EOI, 0);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x50)]);
}

#[test]
fn a_machine_that_cannot_exits_at_the_window() {
    let mut rig = Rig::new();
    let (id, script) = masked(&mut rig);
    post(&rig, id, 0x60);
    script.code(|vcpu| {
        vcpu.exit_for_offers();
        Flow::Exit(Exit::Pause)
    });
    set_enabled(&script, true);
    script.exit(Exit::Pause).exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!((script.take_delivered(), windows(&rig, id)), (vec![Event::Interrupt(0x60)], 1));
}

#[test]
fn one_that_comes_while_its_vector_is_offered_is_not_lost() {
    let mut rig = Rig::new();
    let (id, script) = masked(&mut rig);
    let (child, again) = (rig.hv.child(id).unwrap(), 0x60);
    post(&rig, id, again);
    set_enabled(&script, true);
    // The guest takes the first at the entry that follows; a device, which cannot know, sends the second after it.
    script.exit(Exit::Pause);
    script.code(move |_| {
        assert!(child.vp(0).unwrap().incoming.post_fixed(again, false), "it is news");
        Flow::Next
    });
    script.exit(Exit::Pause);
    write(&script, msr::EOI, 0);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(again); 2]);
}

#[test]
fn one_that_was_not_taken_is_requested_as_before() {
    let mut rig = Rig::new();
    let (id, script) = masked(&mut rig);
    post(&rig, id, 0x60);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    let child = rig.hv.child(id).unwrap();
    let incoming = &child.vp(0).unwrap().incoming;
    assert!(incoming.is_requested(0x60));
    // It is one and the same with another one of its vector.
    assert!(!incoming.post_fixed(0x60, false));
    // It ends a halt, too.
    script.code(|vcpu| {
        vcpu.set(Reg::Rflags, 0x202);
        Flow::Exit(HLT)
    });
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x60)]);
}

#[test]
fn the_end_of_one_may_be_left_out_once_it_was_taken() {
    let mut rig = Rig::new();
    let (id, script) = masked(&mut rig);
    let assist = |vcpu: &mut FakeVcpu| {
        let mut word = [0; 4];
        vcpu.read_memory(ASSIST, &mut word).expect("the page is there");
        u32::from_le_bytes(word)
    };
    post(&rig, id, 0x60);
    script.exit(Exit::Pause);
    set_enabled(&script, true);
    script.exit(Exit::Pause);
    script.code(move |vcpu| {
        assert_eq!(assist(vcpu), 1, "nothing else waits");
        vcpu.write_memory(ASSIST, &[0; 4]).expect("the page is there");
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    // So a lower one can be taken.
    post(&rig, id, 0x50);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x60), Event::Interrupt(0x50)]);
    // What was not taken leaves nothing behind that would end another one.
    set_enabled(&script, false);
    script.exit(Exit::Pause);
    write(&script, msr::EOI, 0);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    post(&rig, id, 0x60);
    script.exit(Exit::Pause);
    post(&rig, id, 0x61);
    script.code(move |vcpu| {
        assert_eq!(assist(vcpu), 0, "two wait");
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
}
