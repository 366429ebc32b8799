//! The SynIC of children: messages and events that the parent sends, calls that go to it, timers, and the pages.

use super::{Cpu, Rig, Sizes, steps::*};
use crate::fake::{Flow, Script};
use crate::machine::{Event, Exit, Reg, Vcpu, gpr};
use parterre_abi::{
    hypercall::{
        HypercallCode as Code, InstallInterceptInput, InterceptAccessTypeMask, InterceptParameters,
        InterceptType, PostMessageDirectInput, SetPartitionPropertyInput, SignalEventDirectInput,
        SignalEventDirectOutput,
    },
    message::{
        HypercallInterceptMessage, Message, MessageType, MsrInterceptMessage, SintDeliverableMessage,
        TimerMessagePayload,
    },
    msr,
    property::{PartitionPropertyCode, SyntheticProcessorFeatures},
    registers::RegisterName,
    status::{HvResult, HvStatus},
    types::{PartitionId, VpIndex},
};
use std::{
    sync::{Arc, Mutex},
    vec,
    vec::Vec,
};
use zerocopy::{FromBytes, FromZeros};

/// The message page and the event flags page, as [`Rig::enable_synic_of`] places them.
const SIMP: u64 = 0x30000;
const SIEFP: u64 = 0x31000;
const VECTOR: u8 = 0x52;
const TIMER_VECTOR: u8 = 0x54;
const HLT: Exit = Exit::Hlt { length: Some(1) };

/// A 64-bit kernel that has said who it is, with its local APIC enabled and interrupts on; SynIC as `enable_synic_of` says.
fn kernel(rig: &mut Rig) -> (PartitionId, Shared, Arc<Script>) {
    let (id, shared) = rig.guest();
    rig.give_memory(id, 0, 0x40);
    rig.enable_synic_of(id, 0);
    let script = rig.machine.script(rig.cpus.len());
    begin_kernel(&script, true);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    (id, shared, script)
}

impl Cpu {
    fn post(&mut self, id: PartitionId, sint: u32, message: &Message) -> HvResult<()> {
        let mut input = PostMessageDirectInput::new_zeroed();
        (input.partition_id, input.sint_index) = (id, sint);
        input.message = zerocopy::transmute!(*message);
        self.simple(Code::POST_MESSAGE_DIRECT, &input)
    }

    fn signal(&mut self, id: PartitionId, sint: u8, flag: u16) -> HvResult<bool> {
        let mut input = SignalEventDirectInput::new_zeroed();
        (input.target_partition, input.target_sint, input.flag_number) = (id, sint, flag);
        let output: SignalEventDirectOutput = self.query(Code::SIGNAL_EVENT_DIRECT, &input)?;
        Ok(output.newly_signaled == 1)
    }

    fn install(&mut self, id: PartitionId, kind: InterceptType, parameter: u64) -> HvResult<()> {
        let input = InstallInterceptInput {
            partition_id: id,
            access_type: InterceptAccessTypeMask::all(),
            intercept_type: kind,
            intercept_parameter: InterceptParameters(parameter),
        };
        self.simple(Code::INSTALL_INTERCEPT, &input)
    }
}

/// What guest code reads, for the test.
type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

fn seen() -> Seen {
    Arc::new(Mutex::new(vec![]))
}

/// The guest reads memory.
fn read(script: &Script, seen: &Seen, gpa: u64, count: usize) {
    let seen = seen.clone();
    script.code(move |vcpu| {
        let mut bytes = vec![0; count];
        vcpu.read_memory(gpa, &mut bytes).expect("the page is there");
        seen.lock().expect("one thread").push(bytes);
        Flow::Next
    });
}

fn store(script: &Script, gpa: u64, bytes: &'static [u8]) {
    script.code(move |vcpu| {
        vcpu.write_memory(gpa, bytes).expect("the page is there");
        Flow::Next
    });
}

fn hello() -> Message {
    Message::new(MessageType(1), 77, b"hello").expect("it fits")
}

const SLOT: u64 = SIMP + 2 * 256;

#[test]
fn a_message_is_in_its_slot_when_its_interrupt_comes() {
    let mut rig = Rig::new();
    let (id, _, script) = kernel(&mut rig);
    script.exit(HLT);
    assert_eq!(rig.cpu().dispatch(id, 0), BLOCKED);
    assert_eq!(rig.cpu().post(id, 2, &hello()), Ok(()));
    assert_eq!(rig.cpu().take_signals(), [(id, 0)], "it is woken");
    let bytes = seen();
    read(&script, &bytes, SLOT, 32);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(VECTOR)]);
    assert_eq!(&bytes.lock().unwrap()[0][..8], [1, 0, 0, 0, 5, 0, 0, 0]);
    assert_eq!(&bytes.lock().unwrap()[0][8..], b"\x4D\0\0\0\0\0\0\0hello\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_full_slot_is_told_and_the_parent_hears_when_it_is_free() {
    let mut rig = Rig::new();
    let (id, shared, script) = kernel(&mut rig);
    assert_eq!(rig.cpu().post(id, 2, &hello()), Ok(()));
    assert_eq!(rig.cpu().post(id, 2, &hello()), Err(HvStatus::OBJECT_IN_USE));
    let name = RegisterName::DELIVERABILITY_NOTIFICATIONS;
    assert_eq!(rig.cpu().set(id, 0, name, 1u64 << 50 | 1 << 53), Ok(()));
    // The slot of source 5 is free.
    assert_eq!(rig.cpu().dispatch(id, 0), INTERCEPTED);
    let message = rig.intercept(shared);
    assert_eq!(message.header.message_type, MessageType::SYNIC_SINT_DELIVERABLE);
    assert_eq!(message.payload_as::<SintDeliverableMessage>().deliverable_sints, 1 << 5);
    assert_eq!(rig.cpu().get_u64(id, 0, name), 1 << 50, "still waiting for the other");
    // The guest finds "message pending", empties the slot, and says so.
    let bytes = seen();
    read(&script, &bytes, SLOT, 8);
    store(&script, SLOT, &[0; 4]);
    write(&script, msr::EOM, 0);
    assert_eq!(rig.cpu().resume_dispatch(id, 0), INTERCEPTED);
    assert_eq!(bytes.lock().unwrap()[0], [1, 0, 0, 0, 5, 1, 0, 0]);
    let message = rig.intercept(shared);
    assert_eq!(message.payload_as::<SintDeliverableMessage>().deliverable_sints, 1 << 2);
    assert_eq!(rig.cpu().get_u64(id, 0, name), 0);
    assert_eq!(rig.cpu().post(id, 2, &hello()), Ok(()));
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().resume_dispatch(id, 0), READY);
}

#[test]
fn a_blocked_processor_tells_that_a_slot_is_free() {
    let mut rig = Rig::new();
    let (id, _, script) = kernel(&mut rig);
    script.exit(HLT);
    assert_eq!(rig.cpu().dispatch(id, 0), BLOCKED);
    let name = RegisterName::DELIVERABILITY_NOTIFICATIONS;
    assert_eq!(rig.cpu().set(id, 0, name, 1u64 << 50), Ok(()));
    assert_eq!(rig.cpu().take_signals(), [(id, 0)]);
    assert_eq!(rig.cpu().dispatch(id, 0), INTERCEPTED);
}

#[test]
fn what_cannot_be_posted_is_refused() {
    let mut rig = Rig::new();
    let (id, _, _) = kernel(&mut rig);
    let cpu = rig.cpu();
    let mut long = hello();
    long.header.payload_size = 241;
    assert_eq!(cpu.post(id, 2, &long), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(cpu.post(id, 2, &Message::NONE), Err(HvStatus::INVALID_PARAMETER));
    for sint in [16, 255, 256, u32::MAX] {
        assert_eq!(cpu.post(id, sint, &hello()), Err(HvStatus::INVALID_PARAMETER), "source {sint}");
    }
    assert_eq!(cpu.signal(id, 16, 0), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(cpu.signal(id, 2, 2048), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(cpu.signal(id, 3, 0), Err(HvStatus::INVALID_SYNIC_STATE), "masked");
    assert_eq!(cpu.set(id, 0, RegisterName::SCONTROL, 0u64), Ok(()));
    assert_eq!(cpu.post(id, 2, &hello()), Err(HvStatus::INVALID_SYNIC_STATE));
    assert_eq!(cpu.signal(id, 2, 0), Err(HvStatus::INVALID_SYNIC_STATE));
    assert_eq!(cpu.set(id, 0, RegisterName::SCONTROL, 1u64), Ok(()));
    assert_eq!(cpu.post(id, 2, &hello()), Ok(()));
    let mut input = SignalEventDirectInput::new_zeroed();
    (input.target_partition, input.target_vp) = (id, VpIndex(9));
    assert_eq!(cpu.simple(Code::SIGNAL_EVENT_DIRECT, &input), Err(HvStatus::INVALID_VP_INDEX));
}

#[test]
fn an_event_is_a_flag_and_an_interrupt_when_it_is_new() {
    let mut rig = Rig::new();
    let (id, _, script) = kernel(&mut rig);
    assert_eq!(rig.cpu().signal(id, 2, 33), Ok(true));
    assert_eq!(rig.cpu().signal(id, 2, 33), Ok(false));
    assert_eq!(rig.cpu().signal(id, 2, 2047), Ok(true));
    let bytes = seen();
    read(&script, &bytes, SIEFP + 2 * 256, 256);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(VECTOR)]);
    let mut expected = [0; 256];
    (expected[4], expected[255]) = (2, 0x80);
    assert_eq!(bytes.lock().unwrap()[0], expected);
}

#[test]
fn an_interrupt_that_ends_by_itself_needs_no_end() {
    let mut rig = Rig::new();
    let (id, _, script) = kernel(&mut rig);
    write(&script, msr::SINT0 + 2, u64::from(VECTOR) | 1 << 17);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    for flag in 0..3 {
        assert_eq!(rig.cpu().signal(id, 2, flag), Ok(true));
        script.exit(Exit::Pause);
        assert_eq!(rig.cpu().dispatch(id, 0), READY);
        assert_eq!(script.take_delivered(), [Event::Interrupt(VECTOR)], "nothing is in service");
    }
}

/// The guest calls with these registers; gives the result if the hypervisor answered.
fn call(rig: &mut Rig, id: PartitionId, script: &Script, [rcx, rdx, r8]: [u64; 3]) -> Option<HvStatus> {
    script.exit_with(&[(gpr::RCX, rcx), (gpr::RDX, rdx), (gpr::R8, r8)], Exit::Hypercall { length: Some(3) });
    let result = Arc::new(Mutex::new(0));
    let out = result.clone();
    script.code(move |vcpu| {
        *out.lock().unwrap() = vcpu.gprs()[gpr::RAX];
        Flow::Exit(Exit::Pause)
    });
    let end = rig.cpu().dispatch(id, 0);
    if end == INTERCEPTED {
        return None;
    }
    assert_eq!(end, READY);
    let result = *result.lock().unwrap();
    Some(HvStatus(result as u16))
}

const POST: u64 = Code::POST_MESSAGE.0 as u64;
const SIGNAL: u64 = Code::SIGNAL_EVENT.0 as u64;
const FAST: u64 = 1 << 16;

#[test]
fn an_unknown_connection_is_the_parents_if_it_wants_them() {
    let mut rig = Rig::new();
    let (id, shared, script) = kernel(&mut rig);
    let signal = [SIGNAL | FAST, 0x1_0000_0007, 0];
    assert_eq!(call(&mut rig, id, &script, signal), Some(HvStatus::INVALID_CONNECTION_ID));
    assert_eq!(rig.cpu().install(id, InterceptType::UNKNOWN_SYNIC_CONNECTION, 0), Ok(()));
    let rip = rig.cpu().get_u64(id, 0, RegisterName::RIP);
    assert_eq!(call(&mut rig, id, &script, signal), None);
    let message = rig.intercept(shared);
    assert_eq!(message.header.message_type, MessageType::HYPERCALL_INTERCEPT);
    let payload: HypercallInterceptMessage = message.payload_as();
    let (rcx, rdx) = (payload.rcx, payload.rdx);
    assert_eq!((rcx, rdx), (signal[0], signal[1]));
    let header = payload.header;
    assert_eq!(header.rip, rip, "still at the instruction");
    assert_eq!(header.instruction_length_and_cr8.instruction_length(), 3);
    // The parent answers, and passes over the instruction.
    assert_eq!(rig.cpu().set(id, 0, RegisterName::RAX, 0u64), Ok(()));
    assert_eq!(rig.cpu().set(id, 0, RegisterName::RIP, rip + 3), Ok(()));
    assert_eq!(rig.cpu().resume_dispatch(id, 0), READY);
}

#[test]
fn what_is_wrong_with_a_call_by_itself_never_reaches_the_parent() {
    let mut rig = Rig::new();
    let (id, _, script) = kernel(&mut rig);
    assert_eq!(rig.cpu().install(id, InterceptType::UNKNOWN_SYNIC_CONNECTION, 0), Ok(()));
    let bad = [
        ([SIGNAL | FAST, 1 << 48, 0], HvStatus::INVALID_PARAMETER),
        ([SIGNAL | FAST, 1 << 24, 0], HvStatus::INVALID_CONNECTION_ID),
        ([SIGNAL, 4, 0], HvStatus::INVALID_ALIGNMENT),
        ([SIGNAL, 0x4_0000, 0], HvStatus::INVALID_PARAMETER),
        ([SIGNAL | FAST | 1 << 32, 1, 0], HvStatus::INVALID_HYPERCALL_INPUT),
        ([POST | FAST, 1, 0], HvStatus::INVALID_PARAMETER),
        ([POST | FAST, 1, 0x8000_0000], HvStatus::INVALID_PARAMETER),
        ([POST | FAST, 1, 1 << 32 | 1], HvStatus::INVALID_HYPERCALL_INPUT),
        ([POST | FAST, 1, 241 << 32 | 1], HvStatus::INVALID_PARAMETER),
        ([POST, 0x1FF8, 0], HvStatus::INVALID_ALIGNMENT),
        ([POST, 0x4_0000, 0], HvStatus::INVALID_PARAMETER),
    ];
    for (registers, status) in bad {
        assert_eq!(call(&mut rig, id, &script, registers), Some(status), "{registers:x?}");
    }
    assert_eq!(call(&mut rig, id, &script, [POST | FAST, 1, 1]), None, "a message without payload");
}

#[test]
fn a_message_whose_payload_leaves_the_page_is_refused() {
    let mut rig = Rig::new();
    let (id, _, script) = kernel(&mut rig);
    assert_eq!(rig.cpu().install(id, InterceptType::UNKNOWN_SYNIC_CONNECTION, 0), Ok(()));
    store(&script, 0x1F00, &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 240, 0, 0, 0]);
    store(&script, 0x1FE8, &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0]);
    assert_eq!(call(&mut rig, id, &script, [POST, 0x1FE8, 0]), Some(HvStatus::INVALID_ALIGNMENT));
    assert_eq!(call(&mut rig, id, &script, [POST, 0x1F00, 0]), None);
}

#[test]
fn unknown_calls_are_the_parents_if_it_wants_them() {
    let mut rig = Rig::new();
    let (id, shared, script) = kernel(&mut rig);
    let unknown = [0x8888, 0, 0];
    assert_eq!(call(&mut rig, id, &script, unknown), Some(HvStatus::INVALID_HYPERCALL_CODE));
    assert_eq!(rig.cpu().install(id, InterceptType::HYPERCALL, 0), Ok(()));
    let privileged = [Code::CREATE_PARTITION.0.into(), 0, 0];
    assert_eq!(call(&mut rig, id, &script, privileged), Some(HvStatus::ACCESS_DENIED));
    assert_eq!(call(&mut rig, id, &script, unknown), None);
    assert_eq!(rig.intercept(shared).header.message_type, MessageType::HYPERCALL_INTERCEPT);
}

#[test]
fn what_the_parent_did_not_give_is_refused() {
    let mut rig = Rig::new();
    let id = rig.create();
    let features = SyntheticProcessorFeatures::HV1 | SyntheticProcessorFeatures::ACCESS_HYPERCALL_REGS;
    let mut set = SetPartitionPropertyInput::new_zeroed();
    set.partition_id = id;
    (set.property_code, set.property_value) =
        (PartitionPropertyCode::SYNTHETIC_PROC_FEATURES, features.bits());
    assert_eq!(rig.cpu().simple(Code::SET_PARTITION_PROPERTY, &set), Ok(()));
    let pages = rig.pages(208);
    assert_eq!(rig.cpu().deposit(id, &pages), HvStatus::SUCCESS);
    assert_eq!(rig.cpu().about(Code::INITIALIZE_PARTITION, id), Ok(()));
    rig.vp(id, 0);
    rig.release(id, 0);
    rig.give_memory(id, 0, 4);
    let script = rig.machine.script(1);
    script.code(|vcpu| {
        long_mode(vcpu);
        Flow::Next
    });
    write(&script, msr::GUEST_OS_ID, 0x8100 << 48);
    for msr in [msr::SCONTROL, msr::SINT0 + 2, msr::STIMER0_COUNT, msr::EOI, msr::VP_ASSIST_PAGE] {
        write(&script, msr, 0);
        script.exit_with(&[(gpr::RCX, msr.into())], Exit::ReadMsr { msr, length: Some(2) });
    }
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Exception(13, Some(0)); 10]);
    assert_eq!(call(&mut rig, id, &script, [SIGNAL | FAST, 1, 0]), Some(HvStatus::ACCESS_DENIED));
    assert_eq!(call(&mut rig, id, &script, [POST | FAST, 1, 1]), Some(HvStatus::ACCESS_DENIED));
}

#[test]
fn a_timer_in_message_mode_sends_its_message_and_waits_for_room() {
    let mut rig = Rig::new();
    let (id, _, script) = kernel(&mut rig);
    // Auto-enabled one-shot timers 0 and 1 at source 4, long due.
    rig.machine.pass(1 << 20);
    for timer in [0, 2] {
        write(&script, msr::STIMER0_CONFIG + timer, 4 << 16 | 8);
        write(&script, msr::STIMER0_CONFIG + timer + 1, 1);
    }
    let bytes = seen();
    read(&script, &bytes, SIMP + 4 * 256, 40);
    store(&script, SIMP + 4 * 256, &[0; 4]);
    write(&script, msr::EOM, 0);
    read(&script, &bytes, SIMP + 4 * 256, 40);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(TIMER_VECTOR)]);
    for (index, bytes) in bytes.lock().unwrap().iter().enumerate() {
        let kind = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        assert_eq!(MessageType(kind), MessageType::TIMER_EXPIRED);
        assert_eq!(bytes[5], u8::from(index == 0), "the first tells that another waits");
        let payload = TimerMessagePayload::read_from_bytes(&bytes[16..40]).unwrap();
        assert_eq!((payload.timer_index, payload.expiration_time), (index as u32, 1));
        assert!(payload.delivery_time > 1);
    }
}

#[test]
fn a_timer_in_direct_mode_wakes_its_processor() {
    let mut rig = Rig::new();
    let (id, _, script) = kernel(&mut rig);
    let now = rig.cpu().get_u64(id, 0, RegisterName::TIME_REF_COUNT);
    write(&script, msr::STIMER0_CONFIG, 1 << 12 | 0x61 << 4 | 8);
    write(&script, msr::STIMER0_COUNT, now + 10_000_000);
    script.exit(HLT);
    assert_eq!(rig.cpu().dispatch(id, 0), BLOCKED);
    // The parent idles, and time passes.
    rig.cpu().idle();
    rig.machine.on_wait(0, |machine| machine.pass(2_000_000_000));
    rig.cpu().vcpu().set(Reg::Rflags, 0x202);
    rig.cpu().exit(&[], HLT);
    assert_eq!(rig.cpu().take_signals(), [(id, 0)]);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(0x61)]);
    assert_eq!(rig.cpu().get_u64(id, 0, RegisterName::STIMER0_CONFIG) & 1, 0, "it disables itself");
}

#[test]
fn pages_cover_memory_and_leave_it_as_it_was() {
    let mut rig = Rig::new();
    let (id, _, script) = kernel(&mut rig);
    let bytes = seen();
    write(&script, msr::SIMP, 0);
    store(&script, SIMP, b"under");
    write(&script, msr::SIMP, SIMP | 1);
    read(&script, &bytes, SIMP, 5);
    store(&script, SIMP + 16, b"mine");
    // Both pages at one place: the newest is seen.
    write(&script, msr::SIEFP, SIMP | 1);
    read(&script, &bytes, SIMP + 16, 4);
    write(&script, msr::SIEFP, 0);
    read(&script, &bytes, SIMP + 16, 4);
    write(&script, msr::SIMP, SIMP);
    read(&script, &bytes, SIMP, 5);
    // Beyond the end of memory: no fault, and no page.
    write(&script, msr::SIMP, 1 << 51 | 1);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), []);
    let expected: [&[u8]; 4] = [b"\0\0\0\0\0", b"\0\0\0\0", b"mine", b"under"];
    assert_eq!(bytes.lock().unwrap().as_slice(), expected);
    assert_eq!(rig.cpu().get_u64(id, 0, RegisterName::SIMP), 1 << 51 | 1);
    rig.check();
    assert_eq!(rig.end(id).len(), 208, "every page comes back");
}

#[test]
fn a_partition_ends_with_all_its_pages_laid_over_memory() {
    let mut rig = Rig::new();
    let (id, _, script) = kernel(&mut rig);
    let deposited = rig.cpu().balance(id);
    for place in [0x5001u64, SIMP | 1] {
        for register in
            [msr::HYPERCALL, msr::REFERENCE_TSC, msr::VP_ASSIST_PAGE, msr::SIMP, msr::SIEFP, msr::SIMP]
        {
            write(&script, register, place);
        }
    }
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), []);
    rig.check();
    assert_eq!(rig.cpu().balance(id).0 + rig.cpu().balance(id).1, deposited.0 + deposited.1);
    // The processor goes first, with its pages; those of the partition are still there.
    assert_eq!(rig.cpu().fast(Code::DELETE_VP, &[id.0, 0]), Ok(()));
    rig.check();
    let clock = rig.cpu().balance(id);
    assert!(clock.1 > 0);
    let pages = rig.end(id);
    assert_eq!(pages.len(), 208);
    rig.check();
    for page in pages {
        assert!(rig.machine.memory().is_zero(page), "nothing is left in page {page:#x}");
    }
}

#[test]
fn memory_below_a_page_can_come_and_go() {
    let mut rig = Rig::new();
    let (id, _, script) = kernel(&mut rig);
    let mut unmap = parterre_abi::hypercall::UnmapGpaPagesInput::new_zeroed();
    (unmap.target_partition_id, unmap.target_gpa_base) = (id, SIMP >> 12);
    let unmapped = rig.cpu().rep(Code::UNMAP_GPA_PAGES, &unmap, &[0u8; 0], [0, 1]);
    assert_eq!(unmapped, (HvStatus::SUCCESS, 1));
    assert_eq!(rig.cpu().post(id, 2, &hello()), Ok(()), "the page is still the hypervisor's");
    let bytes = seen();
    read(&script, &bytes, SLOT, 1);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(bytes.lock().unwrap()[0], [1]);
    rig.give_memory(id, SIMP >> 12, 1);
    rig.check();
}

#[test]
fn a_single_register_can_be_the_parents() {
    let mut rig = Rig::new();
    let (id, shared, script) = kernel(&mut rig);
    let crash = u64::from(msr::CRASH_CTL);
    assert_eq!(rig.cpu().install(id, InterceptType::X64_MSR_INDEX, crash), Ok(()));
    write(&script, msr::CRASH_P0, 0xDEAD);
    write(&script, msr::CRASH_CTL, 1 << 63);
    assert_eq!(rig.cpu().dispatch(id, 0), INTERCEPTED);
    let payload: MsrInterceptMessage = rig.intercept(shared).payload_as();
    assert_eq!(payload.msr_number, msr::CRASH_CTL);
    assert_eq!(rig.cpu().get_u64(id, 0, RegisterName::GUEST_CRASH_P0), 0xDEAD);
    for index in 1..8 {
        assert_eq!(rig.cpu().install(id, InterceptType::X64_MSR_INDEX, index), Ok(()));
    }
    let full = rig.cpu().install(id, InterceptType::X64_MSR_INDEX, 99);
    assert_eq!(full, Err(HvStatus::NO_RESOURCES), "there is an end");
}

#[test]
fn a_running_processor_is_interrupted_for_a_message() {
    let mut rig = Rig::with(Sizes { processors: 2, ..Sizes::default() });
    let (id, _, script) = kernel(&mut rig);
    let other = Arc::new(Mutex::new(rig.cpus.pop().expect("two processors")));
    let there = other.clone();
    script.code(move |_| {
        assert_eq!(there.lock().unwrap().signal(id, 2, 7), Ok(true), "while the other one runs");
        Flow::Next
    });
    script.exit(Exit::Interrupt);
    script.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [Event::Interrupt(VECTOR)]);
}
