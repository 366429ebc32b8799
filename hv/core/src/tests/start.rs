//! `HvCallStartVirtualProcessor`: a guest starts its own virtual processors with a context of its choice.

use super::{Rig, calls::*, steps::*};
use crate::fake::{Flow, Script};
use crate::machine::{Event, Exit, Reg, SegmentName, TableName, Vcpu, gpr};
use parterre_abi::{
    hypercall::{HypercallCode as Code, InitialVpContext, StartVirtualProcessorInput},
    property::SyntheticProcessorFeatures as Feature,
    registers::{RegisterName, SegmentRegister, TableRegister},
    status::HvStatus,
    types::{InputVtl, PartitionId, VpIndex},
};
use proptest::prelude::*;
use std::{sync::Arc, vec::Vec};
use zerocopy::{FromBytes, IntoBytes};

const START: u64 = Code::START_VIRTUAL_PROCESSOR.0 as u64;
/// What `HvRegisterInternalActivityState` says of a processor that waits to be started.
const STARTUP_SUSPEND: u64 = 1;

/// A 64-bit guest on processor 0 whose processor 1 waits to be started; the scripts of both.
fn waiting(rig: &mut Rig) -> (PartitionId, [Arc<Script>; 2]) {
    let (id, scripts) = guest(rig, 1);
    let second = rig.machine.vcpus();
    rig.vp(id, 1);
    rig.release(id, 1);
    assert_eq!(rig.cpu().dispatch(id, 1), BLOCKED);
    rig.cpu().take_signals();
    (id, [scripts[0].clone(), rig.machine.script(second)])
}

fn code(attributes: u16) -> SegmentRegister {
    SegmentRegister { base: 0, limit: u32::MAX, selector: 0x10, attributes: attributes.into() }
}

/// A context as a 64-bit kernel gives it.
fn context() -> InitialVpContext {
    let data = SegmentRegister { selector: 0x18, ..code(0xC093) };
    InitialVpContext {
        rip: 0xFFFF_8000_0000_1234,
        rsp: 0xFFFF_8000_0000_8000,
        rflags: 2,
        cs: code(0xA09B),
        ss: data,
        ds: data,
        tr: SegmentRegister { base: 0x7000, limit: 0x67, selector: 0x40, attributes: 0x8B.into() },
        ldtr: SegmentRegister { attributes: 0x82.into(), ..Default::default() },
        idtr: TableRegister { limit: 0xFFF, base: 0x5000, ..Default::default() },
        gdtr: TableRegister { limit: 0x7F, base: 0x6000, ..Default::default() },
        efer: 0xD01,
        cr0: 0x8005_0033,
        cr3: 0x4000,
        cr4: 0xA0,
        msr_cr_pat: 0x0007_0406_0007_0406,
        ..Default::default()
    }
}

fn input(vp: u32, vp_context: InitialVpContext) -> StartVirtualProcessorInput {
    StartVirtualProcessorInput {
        partition_id: PartitionId::SELF,
        vp_index: VpIndex(vp),
        target_vtl: InputVtl::new(),
        reserved: [0; 3],
        vp_context,
    }
}

fn start(rig: &mut Rig, id: PartitionId, script: &Script, input: &StartVirtualProcessorInput) -> HvStatus {
    let words: Vec<u64> = input
        .as_bytes()
        .chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
        .collect();
    call(rig, id, script, START, &words).status()
}

#[test]
fn a_processor_begins_with_the_context_that_it_is_given() {
    let mut rig = Rig::new();
    let (id, [first, second]) = waiting(&mut rig);
    assert_eq!(start(&mut rig, id, &first, &input(1, context())), HvStatus::SUCCESS);
    assert_eq!(rig.cpu().take_signals(), [(id, 1)], "the parent is told to run it");
    second.code(|vcpu| {
        let c = context();
        let registers = [
            (Reg::Rip, c.rip),
            (Reg::Rflags, c.rflags),
            (Reg::Efer, c.efer),
            (Reg::Cr0, c.cr0),
            (Reg::Cr3, c.cr3),
            (Reg::Cr4, c.cr4),
            (Reg::Pat, c.msr_cr_pat),
        ];
        registers.into_iter().for_each(|(name, value)| assert_eq!(vcpu.get(name), value, "{name:?}"));
        assert_eq!((vcpu.gprs()[gpr::RSP], vcpu.gprs()[gpr::RAX]), (c.rsp, 0));
        let cs = vcpu.segment(SegmentName::Cs);
        assert_eq!((cs.selector, cs.limit, cs.attributes), (0x10, u32::MAX, 0xA09B));
        assert_eq!(vcpu.segment(SegmentName::Tr).base, 0x7000);
        assert_eq!(vcpu.segment(SegmentName::Ldtr).attributes, 0x82);
        assert_eq!((vcpu.table(TableName::Idtr).base, vcpu.table(TableName::Gdtr).limit), (0x5000, 0x7F));
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 1), READY);
    assert_eq!(second.left(), 0, "it has run");
    assert_eq!(rig.cpu().get_u64(id, 1, RegisterName::INTERNAL_ACTIVITY_STATE), 0);
}

#[test]
fn a_processor_is_started_once() {
    let mut rig = Rig::new();
    let (id, [first, second]) = waiting(&mut rig);
    // The caller itself has been started long ago.
    assert_eq!(start(&mut rig, id, &first, &input(0, context())), HvStatus::INVALID_VP_STATE);
    assert_eq!(start(&mut rig, id, &first, &input(1, context())), HvStatus::SUCCESS);
    assert_eq!(start(&mut rig, id, &first, &input(1, context())), HvStatus::INVALID_VP_STATE);
    second.exit(Exit::Pause);
    assert_eq!(rig.cpu().dispatch(id, 1), READY);
    assert_eq!(start(&mut rig, id, &first, &input(1, context())), HvStatus::INVALID_VP_STATE);
    // Nor a second time by a start-up message.
    rig.hv.child(id).unwrap().vp(1).unwrap().incoming.post_sipi(9);
    second.code(|vcpu| {
        assert_eq!(vcpu.get(Reg::Cr3), 0x4000);
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 1), READY);
    assert_eq!(second.left(), 0);
}

#[test]
fn init_makes_a_processor_wait_for_a_start_again() {
    let mut rig = Rig::new();
    let (id, [first, second]) = waiting(&mut rig);
    for begun in [false, true] {
        assert_eq!(start(&mut rig, id, &first, &input(1, context())), HvStatus::SUCCESS);
        if begun {
            second.exit(Exit::Pause);
            assert_eq!(rig.cpu().dispatch(id, 1), READY);
        }
        // An INIT before it has begun takes the start back.
        rig.hv.child(id).unwrap().vp(1).unwrap().incoming.post_init();
        assert_eq!(rig.cpu().dispatch(id, 1), BLOCKED);
        let activity = rig.cpu().get_u64(id, 1, RegisterName::INTERNAL_ACTIVITY_STATE);
        assert_eq!(activity, STARTUP_SUSPEND, "begun: {begun}");
    }
    // One that was started by a message cannot be started by a call any more.
    rig.hv.child(id).unwrap().vp(1).unwrap().incoming.post_sipi(9);
    second.code(|vcpu| {
        assert_eq!((vcpu.segment(SegmentName::Cs).base, vcpu.get(Reg::Rip)), (0x9000, 0));
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 1), READY);
    assert_eq!(second.left(), 0);
    assert_eq!(start(&mut rig, id, &first, &input(1, context())), HvStatus::INVALID_VP_STATE);
}

#[test]
fn the_parent_says_who_waits_as_well() {
    let mut rig = Rig::new();
    let (id, [first, _]) = waiting(&mut rig);
    let state = RegisterName::INTERNAL_ACTIVITY_STATE;
    assert_eq!(rig.cpu().set(id, 1, state, 0u64), Ok(()));
    assert_eq!(start(&mut rig, id, &first, &input(1, context())), HvStatus::INVALID_VP_STATE);
    assert_eq!(rig.cpu().set(id, 1, state, STARTUP_SUSPEND), Ok(()));
    assert_eq!(start(&mut rig, id, &first, &input(1, context())), HvStatus::SUCCESS);
}

#[test]
fn a_start_needs_the_privilege() {
    let mut rig = Rig::new();
    let (id, [first, _]) = waiting(&mut rig);
    rig.hv.child(id).unwrap().set_features(!Feature::START_VIRTUAL_PROCESSOR);
    assert_eq!(start(&mut rig, id, &first, &input(1, context())), HvStatus::ACCESS_DENIED);
    rig.hv.child(id).unwrap().set_features(Feature::START_VIRTUAL_PROCESSOR);
    assert_eq!(start(&mut rig, id, &first, &input(1, context())), HvStatus::SUCCESS);
}

#[test]
fn a_start_of_something_else_is_refused() {
    let mut rig = Rig::new();
    let (id, [first, second]) = waiting(&mut rig);
    let good = input(1, context());
    let vtl = |bits: u8| StartVirtualProcessorInput { target_vtl: bits.into(), ..good };
    let of = |partition_id| StartVirtualProcessorInput { partition_id, ..good };
    let calls = [
        (of(PartitionId(1)), HvStatus::ACCESS_DENIED),
        (of(PartitionId(0)), HvStatus::ACCESS_DENIED),
        (StartVirtualProcessorInput { reserved: [0, 1, 0], ..good }, HvStatus::INVALID_PARAMETER),
        (vtl(0x01), HvStatus::INVALID_VTL_STATE),
        (vtl(0x11), HvStatus::INVALID_VTL_STATE),
        (vtl(0x80), HvStatus::INVALID_VTL_STATE),
        (input(2, context()), HvStatus::INVALID_VP_INDEX),
        (input(u32::MAX, context()), HvStatus::INVALID_VP_INDEX),
    ];
    for (input, status) in calls {
        assert_eq!(start(&mut rig, id, &first, &input), status, "{input:x?}");
    }
    for control in [START | FAST, START | reps(1), START | header(1)] {
        let status = call(&mut rig, id, &first, control, &[u64::MAX, 1]).status();
        assert_eq!(status, HvStatus::INVALID_HYPERCALL_INPUT, "{control:#x}");
    }
    assert_eq!(rig.cpu().dispatch(id, 1), BLOCKED, "it still waits");
    assert_eq!(second.runs(), 0);
    assert_eq!(start(&mut rig, id, &first, &of(id)), HvStatus::SUCCESS, "by the partition's own id");
}

#[test]
fn a_context_that_no_processor_can_have_is_refused() {
    type Change = fn(&mut InitialVpContext);
    let changes: [Change; 22] = [
        |c| c.cr0 |= 1 << 63,
        |c| c.cr0 &= !1,
        |c| c.cr0 |= 1 << 29,
        |c| c.cr4 |= 1 << 13,
        |c| c.cr4 &= !(1 << 5),
        |c| c.efer |= 1 << 12,
        |c| c.efer &= !(1 << 8),
        |c| c.cr3 |= 1 << 60,
        |c| c.msr_cr_pat = 2,
        |c| c.rip = 1 << 47,
        |c| c.rflags |= 1 << 17,
        |c| c.rflags |= 1 << 40,
        |c| c.fs.base = 1 << 63,
        |c| c.gs.base = 1 << 48,
        |c| c.tr.base = 1 << 48,
        |c| c.gdtr.base = 1 << 48,
        |c| c.idtr.base = 1 << 48,
        |c| c.cs.attributes = 0xE09B.into(),
        |c| c.cs.attributes = 0xA01B.into(),
        |c| c.cs.attributes = 0xC093.into(),
        |c| c.tr.attributes = 0x89.into(),
        |c| c.tr.attributes = 0.into(),
    ];
    let mut rig = Rig::new();
    let (id, [first, second]) = waiting(&mut rig);
    for (number, change) in changes.into_iter().enumerate() {
        let mut context = context();
        change(&mut context);
        let status = start(&mut rig, id, &first, &input(1, context));
        assert_eq!(status, HvStatus::INVALID_REGISTER_VALUE, "change {number}");
    }
    // Long mode is active if it is enabled and paging is on, whether or not the caller says so.
    let mut context = context();
    context.efer &= !(1 << 10);
    assert_eq!(start(&mut rig, id, &first, &input(1, context)), HvStatus::SUCCESS);
    second.code(|vcpu| {
        assert_eq!(vcpu.get(Reg::Efer), 0xD01);
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 1), READY);
    assert_eq!(second.left(), 0);
}

#[test]
fn a_processor_can_begin_in_real_mode() {
    let mut rig = Rig::new();
    let (id, [first, second]) = waiting(&mut rig);
    let mut context = context();
    (context.cr0, context.cr4, context.efer, context.rip) = (0x10, 0, 0, 0x100);
    context.cs = SegmentRegister { base: 0x9000, limit: 0xFFFF, selector: 0x900, attributes: 0x93.into() };
    assert_eq!(start(&mut rig, id, &first, &input(1, context)), HvStatus::SUCCESS);
    second.code(|vcpu| {
        assert_eq!((vcpu.segment(SegmentName::Cs).base, vcpu.get(Reg::Rip)), (0x9000, 0x100));
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 1), READY);
    assert_eq!((second.left(), second.take_delivered()), (0, Vec::<Event>::new()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the input, the call is answered, and the processor runs if and only if the answer is success.
    #[test]
    fn any_start_is_answered(
        flips in prop::collection::vec((0..240usize, 0..8u8), 0..4),
        junk in prop::option::weighted(0.2, prop::collection::vec(any::<u8>(), 240)),
    ) {
        let mut rig = Rig::new();
        let (id, [first, second]) = waiting(&mut rig);
        let mut bytes = junk.unwrap_or_else(|| input(1, context()).as_bytes().to_vec());
        flips.iter().for_each(|(byte, bit)| bytes[*byte] ^= 1 << bit);
        let input = StartVirtualProcessorInput::read_from_bytes(&bytes).expect("it has this size");
        let status = start(&mut rig, id, &first, &input);
        let known = [
            HvStatus::SUCCESS,
            HvStatus::ACCESS_DENIED,
            HvStatus::INVALID_PARAMETER,
            HvStatus::INVALID_VTL_STATE,
            HvStatus::INVALID_VP_INDEX,
            HvStatus::INVALID_VP_STATE,
            HvStatus::INVALID_REGISTER_VALUE,
        ];
        prop_assert!(known.contains(&status), "{:?}", status);
        second.exit(Exit::Pause);
        let expected = if status == HvStatus::SUCCESS { READY } else { BLOCKED };
        prop_assert_eq!(rig.cpu().dispatch(id, 1), expected);
        rig.check();
    }
}
