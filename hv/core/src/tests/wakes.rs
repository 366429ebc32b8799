//! Waking what is blocked: no order of events loses a wake-up, and the parent hears of each exactly once.

use super::{Cpu, Rig, Sizes, between, steps::*};
use crate::fake::Flow;
use crate::machine::{Event, Exit, Machine, Reg, Vcpu};
use parterre_abi::{
    hypercall::{
        AssertVirtualInterruptInput, HypercallCode as Code, InterruptControl, InterruptType,
        SetPartitionPropertyInput,
    },
    message::{InterruptionDeliverableMessage, MessageType},
    property::PartitionPropertyCode,
    registers::RegisterName,
    status::HvStatus,
    types::PartitionId,
};
use std::{
    cell::RefCell, rc::Rc, sync::Arc, sync::atomic::AtomicBool, sync::atomic::Ordering, thread, vec, vec::Vec,
};
use zerocopy::FromZeros;

const TWO: Sizes = Sizes { processors: 2, slots: 4, interrupts: 8, ports: 8, reserve: None };

/// An interrupt of `kind` for one APIC.
fn interrupt(id: PartitionId, kind: InterruptType, apic_id: u64, vector: u32) -> AssertVirtualInterruptInput {
    let mut input = AssertVirtualInterruptInput::new_zeroed();
    (input.partition_id, input.control) = (id, InterruptControl::new().with_interrupt_type(kind.0));
    (input.destination_address, input.vector) = (apic_id, vector);
    input
}

impl Cpu {
    fn assert_interrupt(&mut self, id: PartitionId, kind: InterruptType, apic_id: u64, vector: u32) {
        let input = interrupt(id, kind, apic_id, vector);
        assert_eq!(self.simple(Code::ASSERT_VIRTUAL_INTERRUPT, &input), Ok(()));
    }
}

/// What guest code does first: x2APIC, enabled; interrupts on.
fn begin(script: &crate::fake::Script) {
    script.exit(Exit::WriteMsr { msr: 0x1B, value: 0xFEE0_0D00, length: Some(2) });
    script.exit(Exit::WriteMsr { msr: 0x80F, value: 0x1FF, length: Some(2) });
    script.code(|vcpu| {
        vcpu.set(Reg::Rflags, 0x202);
        Flow::Next
    });
}

const HLT: Exit = Exit::Hlt { length: Some(1) };

/// Dispatches as Linux does until `done`: again at once while the virtual processor is ready, and when it is blocked only
/// after a signal. `false` if it is blocked and no signal comes.
fn dispatch_until(cpus: &mut [Cpu], id: PartitionId, vp: u32, done: impl Fn() -> bool) -> bool {
    for _ in 0..20 {
        let result = cpus[0].dispatch(id, vp);
        if result == BLOCKED {
            let signals: Vec<_> = cpus.iter_mut().flat_map(Cpu::take_signals).collect();
            if done() || signals.is_empty() {
                return done();
            }
            assert_eq!(signals, [(id, vp)], "exactly one signal");
        } else {
            assert_eq!(result, READY);
        }
        if done() {
            return true;
        }
    }
    false
}

/// Lets `event` happen on the second processor at each step of a halting virtual processor on the first one.
fn at_every_step(event: impl Fn(&mut Cpu, PartitionId) + Clone + 'static, expected: Event) {
    let mut happened = 0;
    for steps in 0..8 {
        let mut rig = Rig::with(TWO);
        let (id, _) = rig.guest();
        let script = rig.machine.script(2);
        begin(&script);
        assert_eq!(rig.cpu().dispatch(id, 0), READY);
        script.exit(HLT);
        script.exit(Exit::Pause);
        let other = Rc::new(RefCell::new(rig.cpus.pop().expect("two processors")));
        let (event, there) = (event.clone(), other.clone());
        between::after(steps, move || event(&mut there.borrow_mut(), id));
        let delivered = || script.delivered().contains(&expected);
        let done = dispatch_until(&mut rig.cpus, id, 0, delivered);
        if between::cancel() {
            continue;
        }
        happened += 1;
        assert!(done, "lost when it comes after {steps} steps");
        assert!(other.borrow_mut().take_signals().is_empty(), "signals go where it was dispatched");
    }
    assert!(happened >= 3, "the event comes before, while and after it blocks");
}

#[test]
fn no_interrupt_is_lost_while_a_processor_blocks() {
    let post = |cpu: &mut Cpu, id| cpu.assert_interrupt(id, InterruptType::FIXED, 0, 0x41);
    at_every_step(post, Event::Interrupt(0x41));
}

#[test]
fn no_external_interrupt_is_lost_while_a_processor_blocks() {
    at_every_step(
        |cpu, id| cpu.assert_interrupt(id, InterruptType::EXT_INT, 0, 0x20),
        Event::Interrupt(0x20),
    );
}

#[test]
fn no_nmi_is_lost_while_a_processor_blocks() {
    at_every_step(|cpu, id| cpu.assert_interrupt(id, InterruptType::NMI, 0, 2), Event::Nmi);
}

#[test]
fn a_startup_message_is_not_lost_while_a_processor_waits_for_it() {
    let mut happened = 0;
    for steps in 0..8 {
        let mut rig = Rig::with(TWO);
        let (id, _) = rig.guest();
        rig.vp(id, 1);
        rig.release(id, 1);
        rig.cpu().take_signals();
        let script = rig.machine.script(3);
        script.code(|vcpu| {
            assert_eq!(vcpu.segment(crate::machine::SegmentName::Cs).base, 0x9A000);
            assert_eq!(vcpu.get(Reg::Rip), 0);
            Flow::Exit(Exit::Pause)
        });
        let other = Rc::new(RefCell::new(rig.cpus.pop().expect("two processors")));
        let there = other.clone();
        between::after(steps, move || {
            let mut cpu = there.borrow_mut();
            cpu.assert_interrupt(id, InterruptType::INIT, 1, 0);
            cpu.assert_interrupt(id, InterruptType::SIPI, 1, 0x9A);
            cpu.assert_interrupt(id, InterruptType::SIPI, 1, 0x12);
        });
        let done = dispatch_until(&mut rig.cpus, id, 1, || script.left() == 0);
        if !between::cancel() {
            happened += 1;
            assert!(done, "lost when it comes after {steps} steps");
        }
    }
    assert!(happened >= 3);
}

#[test]
fn letting_a_processor_go_is_noticed_whenever_it_comes() {
    let mut rig = Rig::with(TWO);
    let id = rig.guest_with(208);
    rig.vp(id, 0);
    // Let go before it was ever dispatched: no signal, it simply runs.
    rig.release(id, 0);
    assert_eq!(rig.cpu().take_signals(), []);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    // Suspended and let go twice: one signal.
    assert_eq!(rig.cpu().set(id, 0, RegisterName::EXPLICIT_SUSPEND, 1u64), Ok(()));
    assert_eq!(rig.cpu().dispatch(id, 0), SUSPENDED);
    rig.release(id, 0);
    rig.release(id, 0);
    assert_eq!(rig.cpu().take_signals(), [(id, 0)]);
    assert_eq!(rig.cpu().get_u64(id, 0, RegisterName::VP_ROOT_SIGNAL_COUNT), 1);
}

#[test]
fn the_timer_of_a_blocked_processor_wakes_it() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    let script = rig.machine.script(1);
    begin(&script);
    // One shot, vector 0x50, divided by 1: 100 MHz against a time stamp counter of 1 GHz.
    script.exit(Exit::WriteMsr { msr: 0x83E, value: 0xB, length: Some(2) });
    script.exit(Exit::WriteMsr { msr: 0x832, value: 0x50, length: Some(2) });
    script.exit(Exit::WriteMsr { msr: 0x838, value: 1000, length: Some(2) });
    script.exit(HLT);
    let now = rig.machine.tsc();
    assert_eq!(rig.cpu().dispatch(id, 0), BLOCKED);
    rig.cpu().idle();
    let due = rig.cpu().timer();
    rig.machine.set_tsc(now + 9_990);
    // The parent idles: the hypervisor waits in its place, and wakes what is due.
    rig.machine.on_wait(0, |machine| machine.pass(20));
    rig.cpu().vcpu().set(Reg::Rflags, 0x202);
    rig.cpu().exit(&[], HLT);
    assert!(due.is_none_or(|due| due <= now + 10_000));
    assert_eq!(rig.cpu().take_signals(), [(id, 0)]);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x50)]);
}

#[test]
fn a_timer_that_fires_while_its_processor_runs_is_taken_at_once() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    let script = rig.machine.script(1);
    begin(&script);
    script.exit(Exit::WriteMsr { msr: 0x832, value: 0x4_0051, length: Some(2) });
    script.exit(Exit::WriteMsr { msr: 0x6E0, value: 5_000, length: Some(2) });
    let machine = rig.machine.clone();
    script.code(move |_| {
        machine.set_tsc(1 << 40);
        Flow::Exit(Exit::Pause)
    });
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x51)]);
}

#[test]
fn every_signal_comes_exactly_once_however_many_there_are() {
    let mut rig = Rig::new();
    let count = 150;
    let id = rig.guest_with(1800);
    for vp in 0..count {
        rig.vp(id, vp);
        assert_eq!(rig.cpu().dispatch(id, vp), SUSPENDED);
    }
    // All are let go while the first message lies in the slot.
    for vp in 0..count {
        rig.release(id, vp);
    }
    let mut signals = rig.cpu().take_signals();
    signals.sort_unstable();
    let expected: Vec<_> = (0..count).map(|vp| (id, vp)).collect();
    assert_eq!(signals, expected);
    for vp in 0..count {
        assert_eq!(rig.cpu().get_u64(id, vp, RegisterName::VP_ROOT_SIGNAL_COUNT), 1);
    }
}

#[test]
fn a_parent_that_wants_no_signals_gets_none() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    let script = rig.machine.script(1);
    begin(&script);
    script.exit(HLT);
    assert_eq!(rig.cpu().dispatch(id, 0), BLOCKED);
    assert_eq!(rig.cpu().set(id, 0, RegisterName::DISPATCH_SUSPEND, 1u64), Ok(()));
    rig.cpu().assert_interrupt(id, InterruptType::FIXED, 0, 0x41);
    assert_eq!(rig.cpu().take_signals(), []);
    assert_eq!(rig.cpu().get_u64(id, 0, RegisterName::VP_ROOT_SIGNAL_COUNT), 0);
    assert_eq!(rig.cpu().get_u64(id, 0, RegisterName::DISPATCH_SUSPEND), 1);
}

#[test]
fn a_partition_that_ended_is_not_spoken_of() {
    let mut rig = Rig::new();
    let (first, _) = rig.guest();
    let (second, _) = rig.guest();
    for (script, id) in [(1, first), (2, second)] {
        let script = rig.machine.script(script);
        begin(&script);
        script.exit(HLT);
        assert_eq!(rig.cpu().dispatch(id, 0), BLOCKED);
    }
    // The slot is taken by the first one's signal; the second one's waits, and is dropped.
    rig.cpu().assert_interrupt(first, InterruptType::FIXED, 0, 0x41);
    rig.cpu().assert_interrupt(second, InterruptType::FIXED, 0, 0x41);
    rig.end(second);
    assert_eq!(rig.cpu().take_signals(), [(first, 0)]);
}

#[test]
fn registers_set_from_outside_wake_a_blocked_processor() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    let script = rig.machine.script(1);
    begin(&script);
    script.exit(HLT);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), BLOCKED);
    let pending = parterre_abi::registers::PendingExtIntEvent::new()
        .with_event_pending(true)
        .with_event_type(parterre_abi::registers::PendingEventType::EXT_INT.0)
        .with_vector(0x22);
    assert_eq!(rig.cpu().set(id, 0, RegisterName::PENDING_EVENT0, pending), Ok(()));
    assert_eq!(rig.cpu().take_signals(), [(id, 0)]);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x22)]);
}

#[test]
fn the_parent_is_told_when_an_interrupt_could_be_taken() {
    for (priority, cr8, told) in [(0, 0u64, true), (0, 15, true), (5, 4, true), (5, 5, false)] {
        let mut rig = Rig::new();
        let (id, shared) = rig.guest();
        let wanted = parterre_abi::registers::DeliverabilityNotificationsRegister::new()
            .with_interrupt_notification(true)
            .with_interrupt_priority(priority);
        assert_eq!(
            rig.cpu().set(id, 0, RegisterName::DELIVERABILITY_NOTIFICATIONS, u64::from(wanted)),
            Ok(())
        );
        assert_eq!(rig.cpu().set(id, 0, RegisterName::CR8, cr8), Ok(()));
        let script = rig.machine.script(1);
        script.exit(Exit::Pause);
        assert_eq!(rig.cpu().dispatch(id, 0), READY, "interrupts are off");
        script.code(|vcpu| {
            vcpu.set(Reg::Rflags, 0x202);
            Flow::Exit(Exit::Pause)
        });
        let result = rig.cpu().dispatch(id, 0);
        assert_eq!(result == INTERCEPTED, told, "priority {priority} against {cr8}");
        if told {
            let message = rig.intercept(shared);
            assert_eq!(message.header.message_type, MessageType::X64_INTERRUPTION_DELIVERABLE);
            let payload: InterruptionDeliverableMessage = message.payload_as();
            assert_eq!(payload.deliverable_type, 0);
            assert_eq!(rig.cpu().resume_dispatch(id, 0), READY, "it is told once");
        }
    }
}

/// A second processor that dispatches a virtual processor for as long as its code runs.
fn elsewhere(mut cpu: Cpu, id: PartitionId, vp: u32) -> thread::JoinHandle<(Cpu, Vec<bool>)> {
    thread::spawn(move || {
        let mut results = vec![];
        loop {
            let result = cpu.dispatch_with(id, vp, parterre_abi::hypercall::DispatchVpFlags::empty());
            match result {
                Ok(state) if state == READY => results.push(true),
                Ok(other) => panic!("it neither blocks nor wants anything: {other:?}"),
                Err(status) => {
                    let ended = [
                        HvStatus::INVALID_PARTITION_STATE,
                        HvStatus::INVALID_VP_INDEX,
                        HvStatus::INVALID_PARTITION_ID,
                    ];
                    assert!(ended.contains(&status), "{status:?}");
                    return (cpu, results);
                }
            }
        }
    })
}

/// A guest on the second processor whose code never ends; gives what tells that it has begun.
fn endless(rig: &mut Rig) -> (PartitionId, Arc<AtomicBool>) {
    let (id, _) = rig.guest();
    let begun = Arc::new(AtomicBool::new(false));
    let flag = begun.clone();
    rig.machine.script(2).code(move |_| {
        flag.store(true, Ordering::SeqCst);
        thread::yield_now();
        Flow::Again(Exit::Pause)
    });
    (id, begun)
}

fn wait_for(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        thread::yield_now();
    }
}

#[test]
fn a_partition_is_ended_while_it_runs_elsewhere() {
    for _ in 0..20 {
        let mut rig = Rig::with(TWO);
        let (id, begun) = endless(&mut rig);
        let other = elsewhere(rig.cpus.pop().expect("two processors"), id, 0);
        wait_for(&begun);
        assert_eq!(rig.end(id).len(), 208);
        let (_, results) = other.join().expect("no panic there");
        assert!(!results.is_empty());
        assert_eq!((rig.machine.live_pages(), rig.missing()), (0, 1));
    }
}

#[test]
fn memory_is_taken_and_registers_are_read_while_it_runs_elsewhere() {
    let mut rig = Rig::with(TWO);
    let (id, begun) = endless(&mut rig);
    let other = elsewhere(rig.cpus.pop().expect("two processors"), id, 0);
    wait_for(&begun);
    let header = parterre_abi::hypercall::UnmapGpaPagesInput::new_zeroed();
    let header = parterre_abi::hypercall::UnmapGpaPagesInput { target_partition_id: id, ..header };
    for round in 0..50 {
        let frames = rig.pages(4);
        assert_eq!(rig.cpu().map(id, 0, RWX, &frames), (HvStatus::SUCCESS, 4));
        assert_eq!(rig.cpu().rep(Code::UNMAP_GPA_PAGES, &header, &[0u8; 0], [0, 4]), (HvStatus::SUCCESS, 4));
        assert_eq!(rig.cpu().deposit(id, &frames), HvStatus::SUCCESS);
        assert_eq!(rig.cpu().set(id, 0, RegisterName::RBX, round), Ok(()));
        assert_eq!(rig.cpu().get_u64(id, 0, RegisterName::RBX), round);
        let mut freeze = SetPartitionPropertyInput::new_zeroed();
        (freeze.partition_id, freeze.property_code) = (id, PartitionPropertyCode::TIME_FREEZE);
        freeze.property_value = (round + 1) % 2;
        assert_eq!(rig.cpu().simple(Code::SET_PARTITION_PROPERTY, &freeze), Ok(()));
    }
    assert_eq!(rig.end(id).len(), 208 + 200);
    other.join().expect("no panic there");
}

#[test]
fn a_processor_that_runs_elsewhere_does_not_run_here() {
    let mut rig = Rig::with(TWO);
    let (id, begun) = endless(&mut rig);
    let other = elsewhere(rig.cpus.pop().expect("two processors"), id, 0);
    wait_for(&begun);
    let flags = parterre_abi::hypercall::DispatchVpFlags::empty();
    let tries: Vec<_> = (0..10).map(|_| rig.cpu().dispatch_with(id, 0, flags)).collect();
    assert!(tries.contains(&Err(HvStatus::INVALID_VP_STATE)), "{tries:?}");
    let delete = parterre_abi::hypercall::DeleteVpInput {
        partition_id: id,
        vp_index: parterre_abi::types::VpIndex(0),
        reserved: 0,
    };
    let _ = rig.cpu().simple(Code::DELETE_VP, &delete);
    rig.cpu().about(Code::FINALIZE_PARTITION, id).expect("it is active");
    other.join().expect("no panic there");
}

#[test]
fn a_signal_goes_where_the_parent_still_listens() {
    let mut rig = Rig::with(TWO);
    let (id, _) = rig.guest();
    let script = rig.machine.script(2);
    begin(&script);
    script.exit(HLT);
    assert_eq!(rig.cpus[1].dispatch(id, 0), BLOCKED);
    // The parent takes that processor out of use.
    assert_eq!(rig.cpus[1].wrmsr(parterre_abi::msr::SCONTROL, 0), Ok(()));
    rig.cpus[0].assert_interrupt(id, InterruptType::FIXED, 0, 0x41);
    assert_eq!(rig.cpus[0].take_signals(), [(id, 0)]);
}

#[test]
fn a_start_message_reaches_a_processor_that_runs_a_child() {
    let mut rig = Rig::with(TWO);
    let (id, _) = rig.guest();
    let second = rig.machine.apic_id(1);
    let mut other = rig.cpus.pop().expect("two processors");
    let first = Arc::new(std::sync::Mutex::new(rig.cpus.pop().expect("two processors")));
    let sender = first.clone();
    let script = rig.machine.script(2);
    script.code(move |_| {
        let mut first = sender.lock().expect("one thread");
        for command in [0x4500, 0x4677] {
            assert_eq!(first.wrmsr(0x830, u64::from(second) << 32 | command), Ok(()));
        }
        Flow::Exit(Exit::Pause)
    });
    script.exit(Exit::Pause);
    assert_eq!(other.dispatch(id, 0), READY);
    assert_eq!(script.left(), 1, "the child's run ends");
    other.idle();
    assert_eq!(other.vcpu().segment(crate::machine::SegmentName::Cs).base, 0x77000);
}

#[test]
fn calls_about_a_partition_that_is_being_ended_lose_nothing() {
    for _ in 0..30 {
        let mut rig = Rig::with(TWO);
        let (id, _) = rig.guest();
        let pages = rig.pages(40);
        let mut cpu = rig.cpus.pop().expect("two processors");
        let begun = Arc::new(AtomicBool::new(false));
        let flag = begun.clone();
        let other = thread::spawn(move || {
            for round in 0u64.. {
                let vp = 1 + (round % 3) as u32;
                let mut page = parterre_abi::hypercall::MapVpStatePageInput::new_zeroed();
                (page.partition_id, page.vp_index) = (id, parterre_abi::types::VpIndex(vp));
                let _ = cpu.simple(Code::CREATE_VP, &[id.0, u64::from(vp), 0, 0, 0]);
                let _ = cpu.query::<_, u64>(Code::MAP_VP_STATE_PAGE, &page);
                let kind = parterre_abi::stats::StatsObjectType::PARTITION;
                let _ = cpu.query::<_, u64>(Code::MAP_STATS_PAGE, &stats(kind, id.0, 0));
                let _ = cpu.map(id, round % 64, RWX, &pages[..8]);
                let _ = cpu.deposit(id, &pages[8 + (round % 32) as usize..][..1]);
                let _ = cpu.simple(Code::DELETE_VP, &[id.0, u64::from(vp)]);
                flag.store(true, Ordering::SeqCst);
                if cpu.set(id, 0, RegisterName::RBX, round) == Err(HvStatus::INVALID_PARTITION_ID) {
                    break;
                }
            }
        });
        wait_for(&begun);
        rig.end(id);
        other.join().expect("no panic there");
        rig.check();
        assert_eq!((rig.machine.live_pages(), rig.missing()), (0, 1));
    }
}
