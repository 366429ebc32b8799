//! Interrupts and doorbells: of the parent's devices, between a child's processors, and from a child to the parent.

use super::{Cpu, Rig, Sizes, samples, steps::*};
use crate::fake::Flow;
use crate::machine::{Access, Event, Exit, Reg, SegmentName, Vcpu, gpr};
use parterre_abi::{
    device_interrupt::{DeviceId, DeviceInterruptTarget, InterruptEntry, InterruptSource},
    hypercall::{
        AssertVirtualInterruptInput, DeletePortInput, DisconnectPortInput, HypercallCode as Code,
        InterruptControl, InterruptType, MapDeviceInterruptInput, UnmapDeviceInterruptInput,
    },
    message::{ApicEoiMessage, MessageType, NotificationMessagePayload},
    msr,
    registers::RegisterName,
    status::{HvResult, HvStatus},
    types::{GenericSetFormat, PartitionId},
};
use std::{vec, vec::Vec};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const TWO: Sizes = Sizes { processors: 2, slots: 4, interrupts: 8, ports: 8, reserve: None };

impl Cpu {
    /// Maps an interrupt; the set of processors has one bank.
    fn map_interrupt(&mut self, input: &MapDeviceInterruptInput, bank: u64) -> HvResult<InterruptEntry> {
        let bytes = [input.as_bytes(), bank.as_bytes()].concat();
        self.write_input(&bytes);
        let control = parterre_abi::hypercall::HypercallInput::new()
            .with_call_code(Code::MAP_DEVICE_INTERRUPT.0)
            .with_variable_header_size(2);
        let (rdx, r8) = (self.input(), self.output());
        self.hypercall(control.into(), rdx, r8).expect("no exception").status().ok()?;
        Ok(InterruptEntry::read_from_bytes(&self.read_output(size_of::<InterruptEntry>())).expect("its size"))
    }

    fn unmap_interrupt(&mut self, device_id: DeviceId, entry: InterruptEntry) -> HvResult<()> {
        let mut input = UnmapDeviceInterruptInput::new_zeroed();
        (input.partition_id, input.device_id, input.interrupt_entry) = (PartitionId::SELF, device_id, entry);
        self.simple(Code::UNMAP_DEVICE_INTERRUPT, &input)
    }

    fn interrupt(
        &mut self,
        id: PartitionId,
        control: InterruptControl,
        apic: u64,
        vector: u32,
    ) -> HvResult<()> {
        let mut input = AssertVirtualInterruptInput::new_zeroed();
        (input.partition_id, input.control) = (id, control);
        (input.destination_address, input.vector) = (apic, vector);
        self.simple(Code::ASSERT_VIRTUAL_INTERRUPT, &input)
    }
}

fn control(kind: InterruptType) -> InterruptControl {
    InterruptControl::new().with_interrupt_type(kind.0)
}

#[test]
fn an_interrupt_of_a_device_goes_to_the_processor_that_was_named() {
    let mut rig = Rig::with(TWO);
    let input = samples::device_interrupt(0x51, 1);
    let entry = rig.cpu().map_interrupt(&input, 2).expect("processor 1 is there");
    // An MSI: address in the low half, data in the high one. APIC ids are twice the indices.
    assert_eq!((entry.source, entry.data), (InterruptSource::MSI, 0x51 << 32 | 0xFEE0_2000));
    let mut io_apic = input;
    io_apic.device_id = DeviceId::from(2 << 62 | 4);
    io_apic.interrupt_descriptor.trigger_mode = parterre_abi::device_interrupt::InterruptTriggerMode::LEVEL;
    let routed = rig.cpu().map_interrupt(&io_apic, 2).expect("processor 1 is there");
    assert_eq!((routed.source, routed.data), (InterruptSource::IOAPIC, 2 << 56 | 1 << 15 | 0x51));
    assert_eq!(rig.cpu().unmap_interrupt(input.device_id, routed), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(rig.cpu().unmap_interrupt(input.device_id, entry), Ok(()));
    assert_eq!(rig.cpu().unmap_interrupt(input.device_id, entry), Err(HvStatus::INVALID_PARAMETER));
    // The parent masks the entry of an IO-APIC itself.
    let masked = InterruptEntry { data: routed.data | 1 << 16, ..routed };
    assert_eq!(rig.cpu().unmap_interrupt(io_apic.device_id, masked), Ok(()));
}

#[test]
fn interrupts_of_devices_that_go_nowhere_are_refused() {
    let mut rig = Rig::new();
    let good = samples::device_interrupt(0x51, 1);
    let spoiled = |spoil: &dyn Fn(&mut MapDeviceInterruptInput)| {
        let mut input = good;
        spoil(&mut input);
        input
    };
    for (input, bank, status) in [
        (good, 0, HvStatus::INVALID_PARAMETER),
        (good, 3, HvStatus::INVALID_PARAMETER),
        (good, 2, HvStatus::INVALID_VP_INDEX),
        (spoiled(&|i| i.interrupt_descriptor.target.vector = 15), 1, HvStatus::INVALID_PARAMETER),
        (spoiled(&|i| i.interrupt_descriptor.target.vector = 256), 1, HvStatus::INVALID_PARAMETER),
        (
            spoiled(&|i| i.interrupt_descriptor.target.vp_set.valid_bank_mask = 3),
            1,
            HvStatus::INVALID_PARAMETER,
        ),
        (
            spoiled(&|i| i.interrupt_descriptor.target.vp_set.valid_bank_mask = 2),
            1,
            HvStatus::INVALID_VP_INDEX,
        ),
        (
            spoiled(&|i| i.interrupt_descriptor.target.vp_set.format = GenericSetFormat::ALL),
            1,
            HvStatus::INVALID_PARAMETER,
        ),
        (spoiled(&|i| i.device_id = DeviceId::from(5)), 1, HvStatus::INVALID_PARAMETER),
        (spoiled(&|i| i.device_id = DeviceId::from(3 << 62)), 1, HvStatus::INVALID_PARAMETER),
    ] {
        assert_eq!(rig.cpu().map_interrupt(&input, bank), Err(status), "{input:?} {bank}");
    }
    assert_ne!(good.interrupt_descriptor.target.flags & DeviceInterruptTarget::PROCESSOR_SET, 0);
    let results: Vec<_> = (0..9).map(|_| rig.cpu().map_interrupt(&good, 1).is_ok()).collect();
    assert_eq!(
        results,
        [true, true, true, true, true, true, true, true, false],
        "there are places for eight"
    );
    assert_eq!(rig.cpu().map_interrupt(&good, 1), Err(HvStatus::INSUFFICIENT_BUFFERS));
}

#[test]
fn interrupts_for_children_are_checked() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    let fixed = control(InterruptType::FIXED);
    for (control, apic, vector) in [
        (fixed, 0, 15),
        (fixed, 0, 256),
        (fixed, 1 << 32, 0x40),
        (control(InterruptType::SMI), 0, 0),
        (control(InterruptType::REMOTE_READ), 0, 0),
        (control(InterruptType(10)), 0, 0x40),
        (fixed.with_reserved(1), 0, 0x40),
    ] {
        assert_eq!(rig.cpu().interrupt(id, control, apic, vector), Err(HvStatus::INVALID_PARAMETER));
    }
    // For nobody is no error: a device cannot know.
    assert_eq!(rig.cpu().interrupt(id, fixed, 77, 0x40), Ok(()));
}

/// A guest in x2APIC mode with interrupts on, and its memory.
fn guest(rig: &mut Rig, script: usize) -> (PartitionId, Shared) {
    let (id, shared) = rig.guest();
    rig.give_memory(id, 0, 16);
    let script = rig.machine.script(script);
    script.exit(Exit::WriteMsr { msr: 0x1B, value: 0xFEE0_0D00, length: Some(2) });
    script.exit(Exit::WriteMsr { msr: 0x80F, value: 0x1FF, length: Some(2) });
    script.code(|vcpu| {
        vcpu.set(Reg::Rflags, 0x202);
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    (id, shared)
}

#[test]
fn the_end_of_a_level_triggered_interrupt_is_told() {
    let mut rig = Rig::new();
    let (id, shared) = guest(&mut rig, 1);
    let script = rig.machine.script(1);
    let eoi = Exit::WriteMsr { msr: 0x80B, value: 0, length: Some(2) };
    script.exit(eoi);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().interrupt(id, control(InterruptType::FIXED), 0, 0x60), Ok(()));
    assert_eq!(rig.cpu().dispatch(id, 0), READY, "an edge ends in silence");
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x60)]);
    script.exit(eoi);
    let level = control(InterruptType::FIXED).with_level_triggered(true);
    assert_eq!(rig.cpu().interrupt(id, level, 0, 0x61), Ok(()));
    assert_eq!(rig.cpu().dispatch(id, 0), INTERCEPTED);
    let message = rig.intercept(shared);
    assert_eq!(message.header.message_type, MessageType::X64_APIC_EOI);
    let payload: ApicEoiMessage = message.payload_as();
    assert_eq!((payload.vp_index.0, payload.interrupt_vector), (0, 0x61));
    assert_eq!(rig.cpu().resume_dispatch(id, 0), READY);
}

#[test]
fn interrupts_are_taken_by_priority_and_one_at_a_time() {
    let mut rig = Rig::new();
    let (id, _) = guest(&mut rig, 1);
    let script = rig.machine.script(1);
    for vector in [0x41, 0x81, 0x61] {
        assert_eq!(rig.cpu().interrupt(id, control(InterruptType::FIXED), 0, vector), Ok(()));
    }
    let eoi = Exit::WriteMsr { msr: 0x80B, value: 0, length: Some(2) };
    script.exit(Exit::Pause);
    rig.cpu().dispatch(id, 0);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x81)], "the others are no more urgent");
    script.exit(eoi).exit(eoi).exit(Exit::Pause);
    rig.cpu().dispatch(id, 0);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x61), Event::Interrupt(0x41)]);
    // Task priority holds up what is not above it.
    script.exit(eoi).exit(Exit::WriteMsr { msr: 0x808, value: 0x70, length: Some(2) }).exit(Exit::Pause);
    assert_eq!(rig.cpu().interrupt(id, control(InterruptType::FIXED), 0, 0x7F), Ok(()));
    rig.cpu().dispatch(id, 0);
    let before = script.take_delivered();
    assert!(before.is_empty() || before == [Event::Interrupt(0x7F)], "{before:?}");
}

#[test]
fn an_external_interrupt_can_be_taken_back() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    let script = rig.machine.script(1);
    assert_eq!(rig.cpu().interrupt(id, control(InterruptType::EXT_INT), 0, 0x21), Ok(()));
    assert_ne!(rig.cpu().get(id, 0, RegisterName::PENDING_EVENT0).expect("it is there").as_u128(), 0);
    assert_eq!(rig.cpu().about(Code::CLEAR_VIRTUAL_INTERRUPT, id), Ok(()));
    assert_eq!(rig.cpu().get(id, 0, RegisterName::PENDING_EVENT0).expect("it is there").as_u128(), 0);
    script.code(|vcpu| {
        vcpu.set(Reg::Rflags, 0x202);
        Flow::Exit(Exit::Pause)
    });
    script.exit(Exit::Pause);
    rig.cpu().dispatch(id, 0);
    assert_eq!(script.take_delivered(), []);
}

#[test]
fn processors_of_a_child_start_each_other() {
    let mut rig = Rig::with(TWO);
    let (id, _) = guest(&mut rig, 2);
    rig.vp(id, 1);
    rig.release(id, 1);
    assert_eq!(rig.cpus[1].dispatch(id, 1), BLOCKED, "it waits to be started");
    let icr = |value: u64| Exit::WriteMsr { msr: 0x830, value, length: Some(2) };
    let (boot, other) = (rig.machine.script(2), rig.machine.script(3));
    boot.exit(icr(1 << 32 | 0x4500)).exit(icr(1 << 32 | 0x4699)).exit(icr(1 << 32 | 0x4699));
    assert_eq!(rig.cpus[0].dispatch(id, 0), READY);
    assert_eq!(rig.cpus[0].take_signals(), []);
    assert_eq!(rig.cpus[1].take_signals(), [(id, 1)], "where it blocked");
    let started = |vcpu: &mut crate::fake::FakeVcpu| {
        assert_eq!((vcpu.segment(SegmentName::Cs).base, vcpu.get(Reg::Rip)), (0x99000, 0));
        assert_eq!(vcpu.get(Reg::Cr0) & 1, 0, "real mode");
        vcpu.gprs_mut()[gpr::RBX] = 5;
        Flow::Exit(Exit::Pause)
    };
    other.code(started);
    assert_eq!(rig.cpus[1].dispatch(id, 1), READY);
    // A start-up message for one that runs is nothing; INIT takes it back to the start.
    boot.exit(icr(1 << 32 | 0x4655));
    rig.cpus[0].dispatch(id, 0);
    assert_eq!(rig.cpus[1].dispatch(id, 1), READY);
    boot.exit(icr(1 << 32 | 0x4500));
    rig.cpus[0].dispatch(id, 0);
    assert_eq!(rig.cpus[1].dispatch(id, 1), BLOCKED);
    assert_eq!(rig.cpus[0].get_u64(id, 1, RegisterName::RBX), 0);
    let activity = rig.cpus[0].get_u64(id, 1, RegisterName::INTERNAL_ACTIVITY_STATE);
    assert_eq!(activity & 1, 1, "suspended until it is started");
}

#[test]
fn interrupts_between_processors_reach_who_is_meant() {
    let mut rig = Rig::with(TWO);
    let (id, _) = guest(&mut rig, 2);
    rig.vp(id, 1);
    rig.release(id, 1);
    let icr = |value: u64| Exit::WriteMsr { msr: 0x830, value, length: Some(2) };
    let (first, second) = (rig.machine.script(2), rig.machine.script(3));
    assert_eq!(rig.cpus[0].interrupt(id, control(InterruptType::SIPI), 1, 8), Ok(()));
    second.exit(Exit::WriteMsr { msr: 0x1B, value: 0xFEE0_0C00, length: Some(2) });
    second.exit(Exit::WriteMsr { msr: 0x80F, value: 0x1FF, length: Some(2) });
    second.code(|vcpu| {
        vcpu.set(Reg::Rflags, 0x202);
        Flow::Exit(Exit::Hlt { length: Some(1) })
    });
    assert_eq!(rig.cpus[1].dispatch(id, 1), BLOCKED);
    // All but self, then self, then all.
    first.exit(icr(0xC_0041)).exit(icr(0x4_0042)).exit(icr(0x8_0043)).exit(Exit::Pause);
    rig.cpus[0].dispatch(id, 0);
    assert_eq!(rig.cpus[1].take_signals(), [(id, 1)], "woken once");
    assert_eq!(first.take_delivered().first(), Some(&Event::Interrupt(0x42)));
    second.exit(Exit::WriteMsr { msr: 0x80B, value: 0, length: Some(2) });
    second.exit(Exit::Pause);
    rig.cpus[1].dispatch(id, 1);
    assert_eq!(second.take_delivered(), [Event::Interrupt(0x43), Event::Interrupt(0x41)]);
}

/// Guest code that writes `value` to `gpa` by MOV [RBX], EAX, with paging off.
fn store(gpa: u64, value: u64) -> impl FnMut(&mut crate::fake::FakeVcpu) -> Flow + Send + 'static {
    let mut done = false;
    move |vcpu| {
        if done {
            assert_eq!(vcpu.get(Reg::Rip), 0x102, "passed over");
            return Flow::Exit(Exit::Pause);
        }
        done = true;
        let cs = crate::machine::Segment { base: 0, limit: u32::MAX, selector: 8, attributes: 0xC09B };
        vcpu.set_segment(SegmentName::Cs, cs);
        vcpu.set(Reg::Cr0, 0x11);
        vcpu.set(Reg::Rip, 0x100);
        vcpu.write_memory(0x100, &[0x89, 0x03]).expect("memory");
        let r = vcpu.gprs_mut();
        (r[gpr::RAX], r[gpr::RBX]) = (value, gpa);
        Flow::Again(Exit::SlatFault { gpa, gva: None, access: Access::WRITE, page_table_walk: false })
    }
}

#[test]
fn a_doorbell_rings_without_an_exit_to_the_parent() {
    let mut rig = Rig::new();
    let (id, shared) = guest(&mut rig, 1);
    assert_eq!(rig.cpu().simple(Code::CREATE_PORT, &samples::port(id, 7)), Ok(()));
    let mut connection = samples::connection(id, 7);
    // Four bytes, the value 5.
    (connection.connection_info.flags, connection.connection_info.trigger_value) = (3, 5);
    connection.connection_info.gpa = 0x20_0000;
    assert_eq!(rig.cpu().simple(Code::CONNECT_PORT, &connection), Ok(()));
    let ring = rig.cpu().page_of(msr::SIRBP);
    let entry = |rig: &Rig, index: usize| {
        let mut bytes = [0; 4];
        rig.machine.memory().read(ring, 5 * 256 + 4 + 4 * index, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    rig.machine.script(1).code(store(0x20_0000, 5));
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!((entry(&rig, 0), entry(&rig, 1)), (7, 0));
    let message = rig.cpu().take_message().expect("a notice");
    assert_eq!(message.header.message_type, MessageType::SYNIC_SINT_INTERCEPT);
    let payload: NotificationMessagePayload = message.payload_as();
    assert_eq!(payload.sint_index, 5);
    // While the parent reads, no further notice comes.
    rig.machine.script(1).code(store(0x20_0000, 5));
    rig.cpu().dispatch(id, 0);
    assert_eq!((entry(&rig, 1), rig.cpu().take_message()), (7, None));
    // Another value, or another address, is the worker's business.
    for (gpa, value) in [(0x20_0000, 6), (0x20_0004, 5)] {
        rig.machine.script(1).code(store(gpa, value));
        assert_eq!(rig.cpu().dispatch(id, 0), INTERCEPTED);
        assert_eq!(rig.intercept(shared).header.message_type, MessageType::UNMAPPED_GPA);
        assert_eq!(rig.cpu().set(id, 0, RegisterName::RIP, 0x102u64), Ok(()));
        assert_eq!(rig.cpu().resume_dispatch(id, 0), READY);
    }
}

#[test]
fn a_full_ring_loses_no_doorbell() {
    let mut rig = Rig::new();
    let (id, _) = guest(&mut rig, 1);
    for port in 1..=2 {
        assert_eq!(rig.cpu().simple(Code::CREATE_PORT, &samples::port(id, port)), Ok(()));
        let mut connection = samples::connection(id, port);
        connection.connection_info.gpa = 0x20_0000 + 0x1000 * u64::from(port);
        assert_eq!(rig.cpu().simple(Code::CONNECT_PORT, &connection), Ok(()));
    }
    let ring_page = rig.cpu().page_of(msr::SIRBP);
    for _ in 0..63 {
        rig.machine.script(1).code(store(0x20_1000, 0));
        assert_eq!(rig.cpu().dispatch(id, 0), READY);
    }
    rig.machine.script(1).code(store(0x20_2000, 0));
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    let mut ring = [0; 256];
    rig.machine.memory().read(ring_page, 5 * 256, &mut ring);
    assert_eq!(ring[1], 1, "the ring is full");
    assert!(ring[4..].chunks(4).all(|entry| entry == [1, 0, 0, 0]));
    // The parent empties it, and says so.
    rig.machine.memory().write(ring_page, 5 * 256, &[0; 256]);
    assert_eq!(rig.cpu().fast(Code::NOTIFY_PORT_RING_EMPTY, &[5u32, 0]), Ok(()));
    rig.machine.memory().read(ring_page, 5 * 256, &mut ring);
    assert_eq!(u32::from_le_bytes(ring[4..8].try_into().expect("4 bytes")), 2);
    assert_eq!(ring[8..12], [0; 4]);
}

#[test]
fn ports_and_connections_are_checked() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    let (other, _) = rig.guest();
    let create = |rig: &mut Rig, input| rig.cpu().simple(Code::CREATE_PORT, &input);
    for port in [0, 1 << 24, u32::MAX] {
        assert_eq!(create(&mut rig, samples::port(id, port)), Err(HvStatus::INVALID_PORT_ID));
    }
    let mut wrong = samples::port(id, 1);
    wrong.port_info.target_sint = 16;
    assert_eq!(create(&mut rig, wrong), Err(HvStatus::INVALID_PARAMETER));
    wrong = samples::port(id, 1);
    wrong.port_info.port_type = parterre_abi::synic::PortType::MESSAGE;
    assert_eq!(create(&mut rig, wrong), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(create(&mut rig, samples::port(id, 1)), Ok(()));
    assert_eq!(create(&mut rig, samples::port(id, 1)), Err(HvStatus::INVALID_PORT_ID), "it is there");

    let connect = |rig: &mut Rig, input| rig.cpu().simple(Code::CONNECT_PORT, &input);
    assert_eq!(connect(&mut rig, samples::connection(id, 2)), Err(HvStatus::INVALID_PORT_ID));
    assert_eq!(connect(&mut rig, samples::connection(other, 1)), Err(HvStatus::INVALID_PORT_ID), "another's");
    let mut width = samples::connection(id, 1);
    width.connection_info.flags = 5;
    assert_eq!(connect(&mut rig, width), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(connect(&mut rig, samples::connection(id, 1)), Ok(()));
    assert_eq!(connect(&mut rig, samples::connection(id, 1)), Err(HvStatus::INVALID_CONNECTION_ID));

    let disconnect = |rig: &mut Rig, id, connection_id| {
        let input = DisconnectPortInput { connection_partition_id: id, connection_id, flags: 1 };
        rig.cpu().fast(Code::DISCONNECT_PORT, &input)
    };
    assert_eq!(disconnect(&mut rig, other, 1), Err(HvStatus::INVALID_CONNECTION_ID));
    assert_eq!(disconnect(&mut rig, id, 1), Ok(()));
    assert_eq!(disconnect(&mut rig, id, 1), Err(HvStatus::INVALID_CONNECTION_ID));
    let delete = |rig: &mut Rig, port_id| {
        let input = DeletePortInput { port_partition_id: PartitionId::SELF, port_id, reserved: 0 };
        rig.cpu().fast(Code::DELETE_PORT, &input)
    };
    assert_eq!(delete(&mut rig, 2), Err(HvStatus::INVALID_PORT_ID));
    assert_eq!(delete(&mut rig, 1), Ok(()));
    let full: Vec<_> = (1..10).map(|port| create(&mut rig, samples::port(id, port))).collect();
    assert_eq!(full, [vec![Ok(()); 8], vec![Err(HvStatus::INSUFFICIENT_BUFFERS)]].concat());
}
