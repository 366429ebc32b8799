//! The fake machine keeps what its module promises.

use std::vec;

use super::platform::VCPU_FRAMES;
use super::{Board, FakeMachine, FakeVcpu, Flow};
use crate::machine::{
    Access, Event, Exit, Interrupts, Machine, Processor, Reg, Run, Slat, TableSource, TimerInterrupt, Vcpu,
    Waited, gpr,
};
use crate::memory::{Frame, Owner, Pool, Tables, deposit};

const ALL: Access = Access::all();

/// A child's virtual processor in an address space with page 5 mapped.
fn child(board: &mut Board) -> FakeVcpu {
    let mut pool = Pool::new(Owner(1));
    let pages = board.parent_pages(8);
    let mut tables = Tables { table: &board.table, pool: &mut pool, machine: &board.machine };
    deposit(&mut tables, &mut board.parent, &pages, || ()).expect("the parent's");
    let root = tables.take().expect("a page");
    let mut slat = board.machine.new_slat(root);
    let lent = board.table.lend(100, 1).expect("the parent's");
    slat.set(5, 1, Run::Lent(lent, Access::READ), &mut tables, &mut |_| ()).expect("a page");
    let frames = tables.take_frames(VCPU_FRAMES).expect("pages");
    board.machine.new_vcpu(frames, &slat)
}

#[test]
fn a_script_stands_for_guest_code() {
    let mut board = FakeMachine::builder().build();
    board.machine.memory().write(100, 8, &[42]);
    let mut vcpu = child(&mut board);
    let script = board.machine.script(0);
    script.exit_with(&[(gpr::RAX, 7)], Exit::Cpuid { length: Some(2) });
    script.code(|_| Flow::Next).code(|vcpu| {
        let mut byte = [0];
        vcpu.read_memory(0x5008, &mut byte).expect("mapped");
        assert_eq!(byte, [42]);
        match vcpu.write_memory(0x5008, &[1]) {
            Ok(()) => Flow::Next,
            Err(fault) => Flow::Again(fault),
        }
    });
    let mut processor = board.machine.processor(0);
    vcpu.load(&mut processor);
    assert_eq!(vcpu.run(&mut processor), Exit::Cpuid { length: Some(2) });
    assert_eq!(vcpu.gprs()[gpr::RAX], 7);
    let fault = Exit::SlatFault { gpa: 0x5008, gva: None, access: Access::WRITE, page_table_walk: false };
    assert_eq!((vcpu.run(&mut processor), vcpu.run(&mut processor)), (fault, fault));
    assert_eq!((script.left(), script.runs()), (1, 3));
}

#[test]
fn at_its_end_a_child_is_interrupted_for_the_parent() {
    let mut board = FakeMachine::builder().build();
    let mut vcpu = child(&mut board);
    let mut processor = board.machine.processor(0);
    vcpu.load(&mut processor);
    assert_eq!(vcpu.run(&mut processor), Exit::Interrupt);
    assert_eq!(processor.take_interrupts(), Interrupts { parent: true, ..Interrupts::default() });
    assert_eq!(board.machine.take_parent_interrupts(0), [0xff]);
}

#[test]
fn events_are_delivered_before_windows_and_windows_before_code() {
    let mut board = FakeMachine::builder().build();
    let mut vcpu = child(&mut board);
    let script = board.machine.script(0);
    script.code(|vcpu| {
        vcpu.set(Reg::Rflags, 0x202);
        Flow::Exit(Exit::Pause)
    });
    let mut processor = board.machine.processor(0);
    vcpu.load(&mut processor);
    vcpu.inject(Some(Event::Nmi));
    vcpu.request_interrupt_window(Some(0x31));
    vcpu.request_nmi_window(true);
    assert_eq!(vcpu.run(&mut processor), Exit::Pause, "interrupts are off, and an NMI is being handled");
    assert_eq!((script.take_delivered(), vcpu.pending_event()), (vec![Event::Nmi], None));
    vcpu.set(Reg::Cr8, 3);
    assert_eq!(vcpu.run(&mut processor), Exit::Interrupt, "the priority is not above the task's");
    board.machine.take_parent_interrupts(0);
    vcpu.set(Reg::Cr8, 2);
    assert_eq!(vcpu.run(&mut processor), Exit::InterruptWindow);
    vcpu.set_nmi_masked(false);
    assert_eq!(vcpu.run(&mut processor), Exit::NmiWindow);
    vcpu.set_interrupt_shadow(true);
    assert_eq!(vcpu.run(&mut processor), Exit::Interrupt);
}

#[test]
fn kicks_and_timers_end_guest_mode() {
    let mut board = FakeMachine::builder().processors(2).build();
    let mut vcpu = child(&mut board);
    let mut parent = board.parent_vcpu();
    let mut processor = board.machine.processor(1);
    board.machine.script(0).exit(Exit::Pause);
    board.machine.script(1).exit(Exit::Pause);
    assert_eq!(board.machine.apic_id(1), 2);

    board.machine.kick(1);
    parent.load(&mut processor);
    assert_eq!((parent.run(&mut processor), parent.run(&mut processor)), (Exit::Kick, Exit::Pause));
    assert_eq!(parent.run(&mut processor), Exit::Kick, "the script has ended");
    parent.unload(&mut processor);

    vcpu.load(&mut processor);
    board.machine.kick(1);
    assert_eq!(vcpu.run(&mut processor), Exit::Interrupt);
    assert_eq!(processor.take_interrupts(), Interrupts { kick: true, ..Interrupts::default() });
    processor.arm_timer(Some(1000), TimerInterrupt::Hypervisor);
    assert_eq!(vcpu.run(&mut processor), Exit::Pause);
    board.machine.pass(1000);
    assert_eq!(vcpu.run(&mut processor), Exit::Interrupt);
    assert_eq!(processor.take_interrupts(), Interrupts { timer: true, ..Interrupts::default() });
    assert_eq!((processor.timer(), processor.take_interrupts()), (None, Interrupts::default()));
}

#[test]
fn a_processor_waits_for_what_a_test_makes_happen() {
    let board = FakeMachine::builder().build();
    let mut processor = board.machine.processor(0);
    board.machine.on_wait(0, |machine| machine.pass(50));
    processor.arm_timer(Some(50), TimerInterrupt::Parent(0x40));
    board.machine.raise(0, 0x33);
    let waited = processor.wait_for_interrupt();
    assert_eq!(waited, Waited { vector: Some(0x33), ..Waited::default() });
    let waited = processor.wait_for_interrupt();
    assert_eq!(waited, Waited { vector: Some(0x40), ..Waited::default() });
    board.machine.raise_nmi(0);
    assert!(processor.wait_for_interrupt().nmi);
    board.machine.on_wait(0, |machine| machine.kick(0));
    processor.wait_for_kick();
    assert!(!board.machine.is_kicked(0));
}

#[test]
fn values_live_in_pages_until_they_are_taken() {
    let board = FakeMachine::builder().build();
    let frame = board.table.take_boot().expect("some");
    let number = frame.number();
    let mut page = board.machine.emplace(frame, [1u64; 8]);
    page[3] = 9;
    assert_eq!((page[3], board.machine.live_pages()), (9, 1));
    let (value, frame): ([u64; 8], Frame) = board.machine.take(page);
    assert_eq!((value[3], frame.number(), board.machine.live_pages()), (9, number, 0));
}

#[test]
fn frames_and_registers_remember() {
    let board = FakeMachine::builder().frequencies(3, 4).build();
    let machine = &board.machine;
    let mut frame = board.table.take_boot().expect("some");
    machine.write_frame(&frame, 4092, &[1, 0, 0, 0]);
    assert_eq!(machine.compare_exchange_frame(&frame, 4092, 2, 3), 1);
    assert_eq!(machine.compare_exchange_frame(&frame, 4092, 1, 3), 1);
    let mut word = [0; 4];
    machine.read_frame(&frame, 4092, &mut word);
    assert_eq!(word, [3, 0, 0, 0]);
    machine.zero(&mut frame);
    assert!(machine.memory().is_zero(frame.number()));

    assert_eq!((machine.read_msr(0x10), machine.write_msr(0x10, 1)), (None, false));
    machine.set_msr(0x10, 5);
    assert!(machine.write_msr(0x10, 6));
    assert_eq!((machine.read_msr(0x10), machine.take_written_msrs()), (Some(6), vec![(0x10, 1), (0x10, 6)]));
    machine.set_cpuid(1, 0, [1, 2, 3, 4]);
    assert_eq!((machine.cpuid(1, 0), machine.cpuid(1, 1)), ([1, 2, 3, 4], [0; 4]));
    assert_eq!((machine.tsc_frequency(), machine.apic_frequency()), (3, 4));
    machine.set_tick(5);
    assert_eq!((machine.tsc(), machine.tsc()), (0, 5));
}

#[test]
fn rights_hold_for_guest_code_as_for_copies() {
    let mut board = FakeMachine::builder().build();
    let mut vcpu = child(&mut board);
    assert!(vcpu.read_memory(0x5ff8, &mut [0; 8]).is_ok());
    assert!(vcpu.read_memory(0x5ff9, &mut [0; 8]).is_err());
    assert!(vcpu.write_memory(0x5000, &[0]).is_err());
    let slat = board.parent.slat();
    assert!(slat.read(0x10_0000, &mut [0; 8]).is_ok());
    assert_eq!(
        slat.mapped().iter().filter(|(page, frame, access)| page == frame && *access == ALL).count(),
        4088
    );
}
