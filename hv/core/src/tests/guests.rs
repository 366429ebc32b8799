//! The life of a child, from its creation to the last page that comes back.

use super::{Rig, Sizes, steps::*};
use crate::machine::{Event, Exit, IoExit, Reg, Vcpu, gpr};
use parterre_abi::{
    hypercall::{AssertVirtualInterruptInput, HypercallCode as Code, InterruptControl},
    message::{IoPortInterceptMessage, MessageType},
    registers::RegisterName,
    stats::VpCounter,
    status::HvStatus,
    types::PartitionId,
};
use zerocopy::FromZeros;

const BLOCKED_COUNTER: u16 = VpCounter::ROOT_DISPATCH_THREAD_BLOCKED.0;

fn interrupt(id: PartitionId, apic_id: u64, vector: u32) -> AssertVirtualInterruptInput {
    let mut input = AssertVirtualInterruptInput::new_zeroed();
    (input.partition_id, input.control) = (id, InterruptControl::new());
    (input.destination_address, input.vector) = (apic_id, vector);
    input
}

#[test]
fn everything_that_was_deposited_comes_back() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    rig.give_memory(id, 0, 64);
    for vp in 1..3 {
        rig.vp(id, vp);
    }
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    let mut pages = rig.end(id);
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages.len(), 208, "each page once");
    assert_eq!(rig.missing(), 1, "the parent's own deposit");
    assert_eq!(rig.cpu().withdraw_all(PartitionId::SELF).len(), 1);
    assert_eq!(rig.missing(), 0);
    assert_eq!(rig.machine.live_pages(), 0);
}

#[test]
fn a_new_processor_is_suspended_until_the_parent_lets_it_go() {
    let mut rig = Rig::new();
    let id = rig.guest_with(208);
    rig.vp(id, 0);
    assert_eq!(rig.cpu().dispatch(id, 0), SUSPENDED);
    assert_eq!(rig.cpu().take_signals(), []);
    rig.release(id, 0);
    assert_eq!(rig.cpu().take_interrupts(), [0xF3]);
    assert_eq!(rig.cpu().take_signals(), [(id, 0)]);
    assert_eq!(rig.cpu().get_u64(id, 0, RegisterName::VP_ROOT_SIGNAL_COUNT), 1);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
}

#[test]
fn a_port_access_is_a_message_and_goes_on_when_it_was_handled() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    let io = IoExit { port: 0x3F8, size: 1, input: false, string: false, repeat: false, length: Some(1) };
    let script = rig.machine.script(1);
    script.exit_with(&[(gpr::RAX, 0x41), (gpr::RDX, 0x3F8)], Exit::Io(io));
    assert_eq!(rig.cpu().dispatch(id, 0), INTERCEPTED);
    let message = rig.intercept(shared);
    assert_eq!(message.header.message_type, MessageType::X64_IO_PORT_INTERCEPT);
    assert_eq!(message.header.sender, id.0);
    let payload: IoPortInterceptMessage = message.payload_as();
    assert_eq!((payload.port_number, payload.rax), (0x3F8, 0x41));
    assert_eq!(payload.access_info.access_size(), 1);
    assert_eq!(payload.header.rip, 0xFFF0);
    // Until the parent says that it has handled it, nothing runs.
    let runs = script.runs();
    assert_eq!(rig.cpu().dispatch(id, 0), INTERCEPTED);
    assert_eq!(script.runs(), runs);
    assert_eq!(rig.cpu().set(id, 0, RegisterName::RIP, 0xFFF1u64), Ok(()));
    script.code(|vcpu| {
        assert_eq!(vcpu.get(Reg::Rip), 0xFFF1);
        crate::fake::Flow::Exit(Exit::Hlt { length: Some(1) })
    });
    assert_eq!(rig.cpu().resume_dispatch(id, 0), BLOCKED);
}

#[test]
fn a_halted_processor_is_woken_by_an_interrupt_and_takes_it() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    let script = rig.machine.script(1);
    // Software-enable the local APIC, then halt with interrupts on.
    script.exit(Exit::WriteMsr { msr: 0x1B, value: 0xFEE0_0D00, length: Some(2) });
    script.exit(Exit::WriteMsr { msr: 0x80F, value: 0x1FF, length: Some(2) });
    script.code(|vcpu| {
        vcpu.set(Reg::Rflags, 0x202);
        crate::fake::Flow::Exit(Exit::Hlt { length: Some(1) })
    });
    assert_eq!(rig.cpu().dispatch(id, 0), BLOCKED);
    assert_eq!(rig.counter(shared.stats, BLOCKED_COUNTER), 1);
    assert_eq!(rig.cpu().simple(Code::ASSERT_VIRTUAL_INTERRUPT, &interrupt(id, 0, 0x31)), Ok(()));
    assert_eq!(rig.counter(shared.stats, BLOCKED_COUNTER), 0, "before the message");
    assert_eq!(rig.cpu().take_signals(), [(id, 0)]);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x31)]);
}

#[test]
fn a_second_partition_has_another_id_and_its_own_memory() {
    let mut rig = Rig::with(Sizes { slots: 2, ..Sizes::default() });
    let first = rig.guest_with(64);
    let second = rig.guest_with(64);
    assert_ne!(first, second);
    let spare = rig.pages(1);
    assert_eq!(rig.cpu().deposit(PartitionId::SELF, &spare), HvStatus::SUCCESS);
    let full: Result<u64, _> = rig.cpu().query(Code::CREATE_PARTITION, &creation(FLAGS));
    assert_eq!(full, Err(HvStatus::NO_RESOURCES));
    assert_eq!(rig.end(first).len(), 64);
    let third = rig.create();
    assert!(third != first && third != second, "an id is not used again soon");
    assert_eq!(rig.end(second).len(), 64);
}
