//! The calling convention, for every call that the parent has (TLFS "Hypercall Interface"): each good example is spoiled in
//! each way that the convention knows, and must be answered with the status for that and change nothing.

use super::{
    Rig, Sizes,
    samples::{self, Form, Sample, Whose},
    steps::*,
};
use crate::fake::Flow;
use crate::machine::{Event, Exit, Reg, Segment, SegmentName, Vcpu, gpr};
use parterre_abi::{
    hypercall::{HypercallCode as Code, HypercallInput, HypercallOutput},
    msr,
    status::HvStatus,
    types::{PartitionId, VpIndex},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    vec::Vec,
};

const UNDEFINED: Event = Event::Exception(6, None);

/// A parent with two processors, of which it has added one; a child with processor 0, suspended; and all examples.
fn example() -> (Rig, PartitionId, Vec<Sample>) {
    let mut rig = Rig::bare(Sizes { processors: 2, ..Sizes::default() });
    rig.cpu().enable_hypercalls();
    rig.cpu().enable_synic();
    let id = rig.guest_with(208);
    rig.vp(id, 0);
    let spare = rig.pages(4);
    assert_eq!(rig.cpu().deposit(PartitionId::SELF, &spare), HvStatus::SUCCESS);
    let samples = samples::all(&mut rig, id);
    (rig, id, samples)
}

impl Rig {
    fn status(&mut self, control: HypercallInput, input: u64, output: u64) -> HypercallOutput {
        self.cpu().hypercall(control.into(), input, output).expect("no exception")
    }

    /// The call as it should be, but with another control word.
    fn with_control(&mut self, sample: &Sample, control: HypercallInput) -> HvStatus {
        let (input, output) = (self.cpu().input(), self.cpu().output());
        self.cpu().write_input(&sample.input);
        self.status(control, input, output).status()
    }

    /// What a call that fails must not change: whose pages are, what is deposited, who is there.
    fn holdings(&mut self, id: PartitionId) -> (usize, (u64, u64), (u64, u64), usize) {
        let own = self.cpu().balance(PartitionId::SELF);
        (self.missing(), self.cpu().balance(id), own, self.machine.live_pages())
    }
}

#[test]
fn every_example_succeeds() {
    let (mut rig, _, samples) = example();
    for sample in samples {
        assert_eq!(rig.with_control(&sample, sample.control()), HvStatus::SUCCESS, "{:?}", sample.code);
    }
}

#[test]
fn codes_without_a_call_are_refused() {
    let (mut rig, _, samples) = example();
    let known: BTreeSet<u16> = samples.iter().map(|sample| sample.code.0).collect();
    let elsewhere = [
        Code::INITIALIZE_PARTITION,
        Code::FINALIZE_PARTITION,
        Code::DELETE_PARTITION,
        Code::DELETE_VP,
        Code::GET_PARTITION_ID,
        Code::ENTER_SLEEP_STATE,
    ];
    for code in 0..=u16::MAX {
        if known.contains(&code) || elsewhere.iter().any(|other| other.0 == code) {
            continue;
        }
        let (input, output) = (rig.cpu().input(), rig.cpu().output());
        let result = rig.status(HypercallInput::new().with_call_code(code), input, output);
        assert_eq!(u64::from(result), u64::from(HvStatus::INVALID_HYPERCALL_CODE.0), "code {code:#x}");
    }
}

#[test]
fn reserved_bits_of_the_control_word_are_refused() {
    let (mut rig, id, samples) = example();
    let before = rig.holdings(id);
    for sample in &samples {
        for bit in [27, 30, 44, 47, 60, 63] {
            let control = HypercallInput::from(u64::from(sample.control()) | 1 << bit);
            let status = rig.with_control(sample, control);
            assert_eq!(status, HvStatus::INVALID_HYPERCALL_INPUT, "{:?} with bit {bit}", sample.code);
        }
    }
    assert_eq!(rig.holdings(id), before);
}

#[test]
fn element_counts_and_variable_headers_belong_where_they_are_defined() {
    let (mut rig, id, samples) = example();
    let before = rig.holdings(id);
    for sample in &samples {
        let good = sample.control();
        let bad: &[HypercallInput] = match sample.form {
            Form::Simple => &[
                good.with_rep_count(1),
                good.with_rep_start(1),
                good.with_rep_count(2).with_rep_start(1),
                good.with_variable_header_size(1),
            ],
            Form::Rep => &[
                good.with_rep_count(0),
                good.with_rep_start(1),
                good.with_rep_count(3).with_rep_start(4),
                good.with_variable_header_size(1),
                good.with_fast(true),
            ],
            Form::Variable(words) => {
                &[good.with_rep_start(1), good.with_rep_count(1), good.with_variable_header_size(words + 1)]
            }
        };
        for control in bad {
            let status = rig.with_control(sample, *control);
            let fits = matches!(status, HvStatus::INVALID_HYPERCALL_INPUT | HvStatus::INVALID_PARAMETER);
            assert!(fits, "{:?} with {control:?}: {status:?}", sample.code);
        }
    }
    assert_eq!(rig.holdings(id), before);
}

#[test]
fn what_does_not_fit_into_registers_cannot_be_fast() {
    let (mut rig, id, samples) = example();
    let before = rig.holdings(id);
    for sample in samples.iter().filter(|sample| sample.input.len() > 16 || sample.output != 0) {
        let status = rig.with_control(sample, sample.control().with_fast(true));
        assert!(!status.is_success(), "{:?}: {status:?}", sample.code);
        if sample.form == Form::Simple && sample.input.len() > 16 {
            assert_eq!(status, HvStatus::INVALID_HYPERCALL_INPUT, "{:?}", sample.code);
        }
    }
    assert_eq!(rig.holdings(id), before);
    // What a fast call tried to add is not there.
    assert_eq!(
        rig.cpu().query(Code::GET_LOGICAL_PROCESSOR_RUN_TIME, &1u32),
        Err::<[u64; 4], _>(HvStatus::INVALID_LP_INDEX)
    );
}

#[test]
fn pointers_are_aligned() {
    let (mut rig, id, samples) = example();
    let before = rig.holdings(id);
    let (input, output) = (rig.cpu().input(), rig.cpu().output());
    for sample in &samples {
        rig.cpu().write_input(&sample.input);
        for (input, output) in [(input + 4, output), (input + 1, output), (input, output + 4)] {
            let status = rig.status(sample.control(), input, output).status();
            assert_eq!(status, HvStatus::INVALID_ALIGNMENT, "{:?}", sample.code);
        }
    }
    assert_eq!(rig.holdings(id), before);
}

#[test]
fn input_lies_in_one_page_that_can_be_read() {
    let (mut rig, id, samples) = example();
    let before = rig.holdings(id);
    let ram = rig.ram();
    let (own, output) = (rig.cpu().input(), rig.cpu().output());
    let deposited = rig.pages(1)[0];
    assert_eq!(rig.cpu().deposit(id, &[deposited]), HvStatus::SUCCESS);
    for sample in &samples {
        if sample.input.len() > 8 {
            rig.machine.memory().write(own >> 12, 4096 - 8, &sample.input[..8]);
            let status = rig.status(sample.control(), own + 4096 - 8, output).status();
            assert_eq!(status, HvStatus::INVALID_ALIGNMENT, "{:?} crosses a page", sample.code);
        }
        for page in [0, ram, deposited, u64::MAX >> 12, 1 << 40] {
            let status = rig.status(sample.control(), page << 12, output).status();
            assert_eq!(status, HvStatus::INVALID_PARAMETER, "{:?} from page {page:#x}", sample.code);
        }
    }
    let (missing, ..) = rig.holdings(id);
    assert_eq!(missing, before.0 + 1);
}

#[test]
fn output_goes_to_one_page_that_can_be_written() {
    let (mut rig, id, samples) = example();
    let before = rig.holdings(id);
    let (ram, input, own) = (rig.ram(), rig.cpu().input(), rig.cpu().output());
    let hypercall_page = rig.cpu().page_of(msr::HYPERCALL);
    for sample in samples.iter().filter(|sample| sample.output != 0) {
        rig.cpu().write_input(&sample.input);
        if sample.output > 8 {
            let status = rig.status(sample.control(), input, own + 4096 - 8).status();
            assert_eq!(status, HvStatus::INVALID_ALIGNMENT, "{:?} crosses a page", sample.code);
        }
        for page in [0, ram, hypercall_page, 1 << 40] {
            let status = rig.status(sample.control(), input, page << 12).status();
            assert_eq!(status, HvStatus::INVALID_PARAMETER, "{:?} to page {page:#x}", sample.code);
        }
    }
    let after = rig.holdings(id);
    assert_eq!(after.0, before.0);
    assert_eq!(after.3, before.3, "nothing was made that the parent does not know of");
    assert_eq!(
        rig.cpu().query(Code::GET_LOGICAL_PROCESSOR_RUN_TIME, &1u32),
        Err::<[u64; 4], _>(HvStatus::INVALID_LP_INDEX)
    );
}

#[test]
fn partitions_and_processors_must_be_there() {
    let (mut rig, id, samples) = example();
    let gone = rig.create();
    assert_eq!(rig.cpu().about(Code::DELETE_PARTITION, gone), Ok(()));
    let before = rig.holdings(id);
    for sample in samples.iter().filter(|sample| sample.whose != Whose::None) {
        let foreign = [0, gone.0, id.0 + 1, id.0 + (1 << 12), 0xFFF, u64::MAX - 1];
        let own = (sample.whose == Whose::Child).then_some([1, u64::MAX]);
        let child = (sample.whose == Whose::Own).then_some(id.0);
        for other in foreign.into_iter().chain(own.into_iter().flatten()).chain(child) {
            let mut spoiled = sample.clone();
            spoiled.input[..8].copy_from_slice(&other.to_le_bytes());
            let status = rig.with_control(&spoiled, sample.control());
            assert_eq!(status, HvStatus::INVALID_PARTITION_ID, "{:?} of {other:#x}", sample.code);
        }
    }
    for sample in &samples {
        let Some(place) = sample.vp_at else { continue };
        for other in [1, 127, 128, 255, 256, 4096, u32::MAX] {
            let mut spoiled = sample.clone();
            spoiled.input[place..place + 4].copy_from_slice(&other.to_le_bytes());
            let status = rig.with_control(&spoiled, sample.control());
            assert_eq!(status, HvStatus::INVALID_VP_INDEX, "{:?} of processor {other}", sample.code);
        }
    }
    assert_eq!(rig.holdings(id), before);
}

#[test]
fn a_partition_that_has_ended_can_do_nothing_any_more() {
    let (mut rig, id, samples) = example();
    assert_eq!(rig.cpu().about(Code::FINALIZE_PARTITION, id), Ok(()));
    for sample in samples.iter().filter(|sample| sample.vp_at.is_some()) {
        let status = rig.with_control(sample, sample.control());
        let ended = matches!(status, HvStatus::INVALID_VP_INDEX | HvStatus::INVALID_PARTITION_STATE);
        assert!(ended, "{:?}: {status:?}", sample.code);
    }
    for sample in &samples {
        let state =
            [Code::CREATE_VP, Code::MAP_GPA_PAGES, Code::UNMAP_GPA_PAGES, Code::GET_GPA_PAGES_ACCESS_STATES];
        if state.contains(&sample.code) {
            let status = rig.with_control(sample, sample.control());
            assert_eq!(status, HvStatus::INVALID_PARTITION_STATE, "{:?}", sample.code);
        }
    }
    for code in [Code::INITIALIZE_PARTITION, Code::FINALIZE_PARTITION] {
        assert_eq!(rig.cpu().about(code, id), Err(HvStatus::INVALID_PARTITION_STATE));
    }
    assert_eq!(rig.cpu().about(Code::DELETE_PARTITION, id), Ok(()));
    assert_eq!(rig.cpu().about(Code::DELETE_PARTITION, id), Err(HvStatus::INVALID_PARTITION_ID));
}

#[test]
fn the_instruction_exists_for_a_kernel_that_has_said_who_it_is() {
    let mut rig = Rig::bare(Sizes::default());
    let get_id = |rig: &mut Rig| {
        let output = rig.cpu().output();
        rig.cpu().hypercall(Code::GET_PARTITION_ID.0.into(), 0, output)
    };
    assert_eq!(get_id(&mut rig), Err(UNDEFINED));
    // The page cannot be enabled by someone unknown.
    let page = rig.cpu().rdmsr(msr::HYPERCALL).expect("the register is there");
    assert_eq!(rig.cpu().wrmsr(msr::HYPERCALL, page | 1), Ok(()));
    assert_eq!(rig.cpu().rdmsr(msr::HYPERCALL), Ok(page));
    assert_eq!(get_id(&mut rig), Err(UNDEFINED));
    rig.cpu().enable_hypercalls();
    assert_eq!(get_id(&mut rig), Ok(HypercallOutput::from_status(HvStatus::SUCCESS)));
    assert_eq!(rig.cpu().read_output(8), 1u64.to_le_bytes());
    let user = Segment { attributes: 0x93 | 3 << 5, ..Segment::default() };
    rig.cpu().vcpu().set_segment(SegmentName::Ss, user);
    assert_eq!(get_id(&mut rig), Err(UNDEFINED));
    rig.cpu().vcpu().set_segment(SegmentName::Ss, Segment { attributes: 0x93, ..Segment::default() });
    assert!(get_id(&mut rig).is_ok());
    assert_eq!(rig.cpu().wrmsr(msr::GUEST_OS_ID, 0), Ok(()));
    assert_eq!(get_id(&mut rig), Err(UNDEFINED));
}

#[test]
fn a_call_changes_no_register_but_rax() {
    let mut rig = Rig::new();
    for register in 3..16 {
        rig.cpu().vcpu().gprs_mut()[register] = 0x1111 * register as u64;
    }
    let output = rig.cpu().output();
    rig.cpu().exit(
        &[(gpr::RCX, Code::GET_PARTITION_ID.0.into()), (gpr::RDX, 0), (gpr::R8, output)],
        Exit::Hypercall { length: Some(3) },
    );
    let after = *rig.cpu().vcpu().gprs();
    for register in (3..16).filter(|register| *register != gpr::R8) {
        assert_eq!(after[register], 0x1111 * register as u64);
    }
    assert_eq!((after[gpr::RAX], after[gpr::RCX], after[gpr::RDX]), (0, Code::GET_PARTITION_ID.0.into(), 0));
    assert_eq!(rig.cpu().vcpu().get(Reg::Rflags), 2);
}

/// What a child finds in RAX for each of `codes`, called with input and output in its memory.
fn child_calls(codes: impl Iterator<Item = u16>) -> Vec<(u16, u64)> {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    rig.give_memory(id, 0, 4);
    let script = rig.machine.script(1);
    script.code(|vcpu| {
        long_mode(vcpu);
        Flow::Exit(Exit::WriteMsr { msr: msr::GUEST_OS_ID, value: 0x8100 << 48, length: Some(2) })
    });
    let codes: Vec<u16> = codes.collect();
    let answers = Arc::new(Mutex::new(Vec::new()));
    for code in codes.iter().copied().map(Some).chain([None]) {
        let answers = answers.clone();
        // Each step first sees the answer to the one before.
        script.code(move |vcpu| {
            answers.lock().expect("one thread").push(vcpu.gprs()[gpr::RAX]);
            let Some(code) = code else { return Flow::Exit(Exit::Pause) };
            let r = vcpu.gprs_mut();
            (r[gpr::RCX], r[gpr::RDX], r[gpr::R8]) = (code.into(), 0x1000, 0x2000);
            Flow::Exit(Exit::Hypercall { length: Some(3) })
        });
    }
    // One of the calls lets the parent run.
    while script.left() != 0 {
        assert_eq!(rig.cpu().dispatch(id, 0), READY);
    }
    let answers = answers.lock().expect("one thread").clone();
    codes.into_iter().zip(answers.into_iter().skip(1)).collect()
}

#[test]
fn a_child_has_none_of_the_parents_calls() {
    let (_, _, samples) = example();
    let privileged: BTreeSet<u16> = samples
        .iter()
        .map(|sample| sample.code)
        .chain([
            Code::INITIALIZE_PARTITION,
            Code::FINALIZE_PARTITION,
            Code::DELETE_PARTITION,
            Code::DELETE_VP,
            Code::GET_PARTITION_ID,
            Code::ENTER_SLEEP_STATE,
        ])
        .map(|code| code.0)
        .collect();
    let answers = child_calls(0..=u16::MAX);
    assert_eq!(answers.len(), 0x1_0000);
    for (code, result) in answers {
        let status = HypercallOutput::from(result).status();
        let expected = match code {
            code if privileged.contains(&code) => HvStatus::ACCESS_DENIED,
            // Partition 0 is not its own.
            code if code == Code::START_VIRTUAL_PROCESSOR.0 => HvStatus::ACCESS_DENIED,
            code if code == Code::NOTIFY_LONG_SPIN_WAIT.0 => HvStatus::SUCCESS,
            // No processor is named.
            code if code == Code::FLUSH_VIRTUAL_ADDRESS_SPACE.0 => HvStatus::SUCCESS,
            code if code == Code::FLUSH_VIRTUAL_ADDRESS_SPACE_EX.0 => HvStatus::SUCCESS,
            // No list, and no vector.
            code if code == Code::FLUSH_VIRTUAL_ADDRESS_LIST.0 => HvStatus::INVALID_HYPERCALL_INPUT,
            code if code == Code::FLUSH_VIRTUAL_ADDRESS_LIST_EX.0 => HvStatus::INVALID_HYPERCALL_INPUT,
            code if code == Code::GET_VP_INDEX_FROM_APIC_ID.0 => HvStatus::INVALID_HYPERCALL_INPUT,
            code if code == Code::SEND_SYNTHETIC_CLUSTER_IPI.0 => HvStatus::INVALID_PARAMETER,
            code if code == Code::SEND_SYNTHETIC_CLUSTER_IPI_EX.0 => HvStatus::INVALID_PARAMETER,
            // The input is zero: no type of a message, but a connection that might be.
            code if code == Code::POST_MESSAGE.0 => HvStatus::INVALID_PARAMETER,
            code if code == Code::SIGNAL_EVENT.0 => HvStatus::INVALID_CONNECTION_ID,
            _ => HvStatus::INVALID_HYPERCALL_CODE,
        };
        assert_eq!(status, expected, "code {code:#x}");
    }
}

#[test]
fn the_index_of_any_processor_names_none() {
    let (mut rig, id, _) = example();
    let status = rig.cpu().get(id, VpIndex::ANY.0, parterre_abi::registers::RegisterName::RAX);
    assert_eq!(status.map(|_| ()), Err(HvStatus::INVALID_VP_INDEX));
}

#[test]
fn a_child_in_32_bit_mode_calls_with_register_pairs() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    rig.give_memory(id, 0, 4);
    let script = rig.machine.script(1);
    script.exit(Exit::WriteMsr { msr: msr::GUEST_OS_ID, value: 1, length: Some(2) });
    let answers = Arc::new(Mutex::new(Vec::new()));
    // Fast, with its parameter in EBX:ECX; then with its parameter in memory; then one that there is not.
    let calls = [(0x1_0008, 0), (8, 0x1000), (0x8888, 0)];
    for call in calls.into_iter().map(Some).chain([None]) {
        let answers = answers.clone();
        script.code(move |vcpu| {
            let r = vcpu.gprs();
            answers.lock().expect("one thread").push((r[gpr::RAX], r[gpr::RDX]));
            let Some((control, input)) = call else { return Flow::Exit(Exit::Pause) };
            vcpu.set(Reg::Cr0, 0x11);
            let code = Segment { base: 0, limit: u32::MAX, selector: 8, attributes: 0xC09B };
            vcpu.set_segment(SegmentName::Cs, code);
            // What a 32-bit guest cannot see does not count.
            *vcpu.gprs_mut() = [0xFFFF_FFFF << 32; 16];
            let r = vcpu.gprs_mut();
            (r[gpr::RAX], r[gpr::RCX]) = (r[gpr::RAX] | control, r[gpr::RCX] | input);
            (r[gpr::RDX], r[gpr::RBX], r[gpr::RDI]) = (0, 0, 0);
            Flow::Exit(Exit::Hypercall { length: Some(3) })
        });
    }
    // One of the calls lets the parent run.
    while script.left() != 0 {
        assert_eq!(rig.cpu().dispatch(id, 0), READY);
    }
    let answers = answers.lock().expect("one thread").clone();
    assert_eq!(answers[1..], [(0, 0), (0, 0), (HvStatus::INVALID_HYPERCALL_CODE.0.into(), 0)]);
}

#[test]
fn real_mode_code_cannot_call() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    let script = rig.machine.script(1);
    script.exit(Exit::WriteMsr { msr: msr::GUEST_OS_ID, value: 1, length: Some(2) });
    script.exit(Exit::Hypercall { length: Some(3) }).exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(script.take_delivered(), [UNDEFINED]);
}
