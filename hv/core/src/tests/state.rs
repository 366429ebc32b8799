//! Properties, state in bulk, translation, statistics, and the pages that a virtual processor shares with the parent.

use super::{Rig, steps::*};
use crate::fake::Flow;
use crate::machine::{Access, Event, Exit, IoExit, Reg, SegmentName, Vcpu, gpr};
use parterre_abi::{
    hypercall::{
        DispatchVpFlags, GetNextChildPartitionInput, GetPartitionPropertyExInput, GetPartitionPropertyInput,
        GetVpStateInput, HypercallCode as Code, HypercallInput, MapVpStatePageInput, PartitionCreationFlags,
        SetPartitionPropertyInput, TranslateVirtualAddressInput, TranslateVirtualAddressOutput,
        UnmapVpStatePageInput, VpStatePageType, VpStateType,
    },
    property::PartitionPropertyCode as Property,
    registers::RegisterName,
    stats::{StatsAreaType, StatsObjectType, VpCounter},
    status::{HvResult, HvStatus},
    types::PartitionId,
    vp_page::{RegisterPageDirty, VpRegisterPage},
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const IO: Exit =
    Exit::Io(IoExit { port: 0x80, size: 1, input: false, string: false, repeat: false, length: Some(2) });

impl Rig {
    fn property(&mut self, partition_id: PartitionId, property_code: Property) -> HvResult<u64> {
        let input = GetPartitionPropertyInput { partition_id, property_code, padding: 0 };
        self.cpu().query(Code::GET_PARTITION_PROPERTY, &input)
    }

    fn set_property(
        &mut self,
        partition_id: PartitionId,
        property_code: Property,
        value: u64,
    ) -> HvResult<()> {
        let input =
            SetPartitionPropertyInput { partition_id, property_code, padding: 0, property_value: value };
        self.cpu().simple(Code::SET_PARTITION_PROPERTY, &input)
    }

    /// `HvCallGetVpState` or `HvCallSetVpState` with a list of one page.
    fn vp_state(
        &mut self,
        code: Code,
        partition_id: PartitionId,
        state_type: VpStateType,
        page: u64,
    ) -> HvStatus {
        let mut input = GetVpStateInput::new_zeroed();
        (input.partition_id, input.state_type) = (partition_id, state_type);
        let cpu = self.cpu();
        cpu.write_input(&[input.as_bytes(), page.as_bytes()].concat());
        let control = HypercallInput::new().with_call_code(code.0).with_variable_header_size(1);
        let (rdx, r8) = (cpu.input(), cpu.output());
        cpu.hypercall(control.into(), rdx, r8).expect("no exception").status()
    }

    fn register_page(&self, shared: Shared) -> VpRegisterPage {
        let mut bytes = [0; size_of::<VpRegisterPage>()];
        self.machine.memory().read(shared.registers, 0, &mut bytes);
        VpRegisterPage::read_from_bytes(&bytes).expect("it has this size")
    }
}

#[test]
fn properties_that_vmms_cannot_do_without_are_there() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    for property in [Property::PROCESSOR_FEATURES0, Property::PROCESSOR_FEATURES1] {
        assert!(rig.property(PartitionId::SELF, property).is_ok(), "{property:?}");
    }
    for code in [Property::ASSIGNABLE_SYNTHETIC_PROC_FEATURES, Property::VMM_CAPABILITIES] {
        let input = GetPartitionPropertyExInput {
            partition_id: PartitionId::SELF,
            property_code: code,
            padding: 0,
            argument: 0,
        };
        let [count, bank]: [u64; 2] =
            rig.cpu().query(Code::GET_PARTITION_PROPERTY_EX, &input).expect("it is there");
        assert_eq!(count & 0xFFFF, 1, "{code:?} has one bank");
        assert_ne!(bank == 0, code == Property::ASSIGNABLE_SYNTHETIC_PROC_FEATURES);
    }
    assert_eq!(rig.property(id, Property::PHYSICAL_ADDRESS_WIDTH), Ok(40));
    assert_eq!(rig.property(id, Property::PROCESSOR_VENDOR), Ok(0), "AMD");
    assert_eq!(rig.property(id, Property::XSAVE_STATES), Ok(7));
    assert_eq!(rig.property(id, Property::MAX_XSAVE_DATA_SIZE), Ok(832));
    for unknown in [Property(0), Property(0x1234_5678), Property(u32::MAX), Property::SUSPEND] {
        assert_eq!(rig.property(id, unknown), Err(HvStatus::UNKNOWN_PROPERTY), "{unknown:?}");
        assert_eq!(rig.set_property(id, unknown, 0), Err(HvStatus::UNKNOWN_PROPERTY), "{unknown:?}");
    }
    assert_eq!(rig.set_property(id, Property::XSAVE_STATES, 1), Err(HvStatus::UNKNOWN_PROPERTY), "read-only");
    assert_eq!(
        rig.set_property(PartitionId::SELF, Property::REFERENCE_TIME, 1),
        Err(HvStatus::INVALID_PARTITION_ID)
    );
}

#[test]
fn properties_keep_what_was_set() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    for (property, good, bad) in [
        (Property::PROCESSORS_PER_SOCKET, 4, 257),
        (Property::UNIMPLEMENTED_MSR_ACTION, 1, 2),
        (Property::GPA_PAGE_ACCESS_TRACKING, 1, 2),
        (Property::TIME_FREEZE, 1, 2),
    ] {
        assert_eq!(rig.set_property(id, property, good), Ok(()));
        assert_eq!(rig.set_property(id, property, bad), Err(HvStatus::INVALID_PARAMETER), "{property:?}");
        assert_eq!(rig.property(id, property), Ok(good), "{property:?}");
    }
    // Time is frozen now, so it is exact.
    assert_eq!(rig.set_property(id, Property::REFERENCE_TIME, 123_456_789), Ok(()));
    assert!(rig.property(id, Property::REFERENCE_TIME).expect("it is there").abs_diff(123_456_789) <= 1);
    // Synthetic features belong before initialization.
    let early = Property::SYNTHETIC_PROC_FEATURES;
    assert_eq!(rig.set_property(id, early, u64::MAX), Err(HvStatus::INVALID_PARTITION_STATE));
    let young = rig.create();
    assert_eq!(rig.set_property(young, early, u64::MAX), Ok(()));
    assert_ne!(rig.property(young, early), Ok(u64::MAX), "what there is not cannot be given");
}

#[test]
fn partitions_are_created_as_they_can_be_only() {
    let mut rig = Rig::new();
    let page = rig.pages(1);
    assert_eq!(rig.cpu().deposit(PartitionId::SELF, &page), HvStatus::SUCCESS);
    for flags in [
        PartitionCreationFlags::empty(),
        FLAGS - PartitionCreationFlags::LAPIC_ENABLED,
        FLAGS | PartitionCreationFlags::NESTED_VIRTUALIZATION_CAPABLE,
        FLAGS | PartitionCreationFlags::SMT_ENABLED_GUEST,
        FLAGS | PartitionCreationFlags(1 << 40),
    ] {
        let created: HvResult<u64> = rig.cpu().query(Code::CREATE_PARTITION, &creation(flags));
        assert_eq!(created, Err(HvStatus::INVALID_PARAMETER), "{flags:?}");
    }
    let mut isolated = creation(FLAGS);
    isolated.isolation_properties = 1;
    assert_eq!(
        rig.cpu().query::<_, u64>(Code::CREATE_PARTITION, &isolated),
        Err(HvStatus::INVALID_PARAMETER)
    );
    assert_eq!(rig.cpu().balance(PartitionId::SELF), (1, 0));
    assert!(rig.cpu().query::<_, u64>(Code::CREATE_PARTITION, &creation(FLAGS)).is_ok());
    let short = rig.cpu().query::<_, u64>(Code::CREATE_PARTITION, &creation(FLAGS));
    assert_eq!(short, Err(HvStatus::INSUFFICIENT_MEMORY), "the parent has to deposit for each");
}

#[test]
fn children_are_found_one_after_the_other() {
    let mut rig = Rig::new();
    let ids = [rig.create(), rig.create(), rig.create()];
    let mut next = |previous_child_id| {
        let input = GetNextChildPartitionInput { parent_id: PartitionId::SELF, previous_child_id };
        rig.cpu().query::<_, PartitionId>(Code::GET_NEXT_CHILD_PARTITION, &input)
    };
    assert_eq!(next(PartitionId::INVALID), Ok(ids[0]));
    assert_eq!(next(ids[0]), Ok(ids[1]));
    assert_eq!(next(ids[2]), Ok(PartitionId::INVALID));
    assert_eq!(next(PartitionId(77)), Err(HvStatus::INVALID_PARTITION_ID));
    assert_eq!(rig.cpu().about(Code::DELETE_PARTITION, ids[1]), Ok(()));
    let input = GetNextChildPartitionInput { parent_id: PartitionId::SELF, previous_child_id: ids[0] };
    assert_eq!(rig.cpu().query::<_, PartitionId>(Code::GET_NEXT_CHILD_PARTITION, &input), Ok(ids[2]));
}

#[test]
fn state_in_bulk_goes_to_a_page_of_the_parent_only() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    let page = rig.pages(1)[0];
    let deposited = rig.pages(1);
    assert_eq!(rig.cpu().deposit(id, &deposited), HvStatus::SUCCESS);
    let frames = rig.give_memory(id, 0x30, 1);
    rig.enable_synic_of(id, 0);
    rig.machine.memory().write(page, 0, &[7; 4096]);
    for kind in [VpStateType::SIM_PAGE, VpStateType::SIEF_PAGE] {
        assert_eq!(rig.vp_state(Code::SET_VP_STATE, id, kind, page), HvStatus::SUCCESS);
    }
    assert!(rig.machine.memory().is_zero(frames[0]), "not the memory below");
    let kinds = [VpStateType::LAPIC_STATE, VpStateType::XSAVE, VpStateType::SIM_PAGE, VpStateType::SIEF_PAGE];
    for kind in kinds {
        rig.machine.memory().zero(page);
        assert_eq!(rig.vp_state(Code::GET_VP_STATE, id, kind, page), HvStatus::SUCCESS);
        assert!(!rig.machine.memory().is_zero(page), "{kind:?}");
        assert_eq!(rig.vp_state(Code::SET_VP_STATE, id, kind, page), HvStatus::SUCCESS, "what was read fits");
        for wrong in [0, rig.ram(), deposited[0], 1 << 52, u64::MAX] {
            let status = rig.vp_state(Code::GET_VP_STATE, id, kind, wrong);
            assert_eq!(status, HvStatus::INVALID_PARAMETER, "{kind:?} to {wrong:#x}");
            assert_eq!(rig.vp_state(Code::SET_VP_STATE, id, kind, wrong), HvStatus::INVALID_PARAMETER);
        }
    }
    assert_eq!(rig.owner(shared.message), rig.owner(shared.registers));
    for kind in [VpStateType(0x8000_0077), VpStateType(0)] {
        assert_eq!(rig.vp_state(Code::GET_VP_STATE, id, kind, page), HvStatus::INVALID_PARAMETER, "{kind:?}");
    }
}

#[test]
fn an_xsave_area_that_would_fault_is_refused() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    let page = rig.pages(1)[0];
    let set = |rig: &mut Rig, at: usize, bytes: &[u8]| {
        assert_eq!(rig.vp_state(Code::GET_VP_STATE, id, VpStateType::XSAVE, page), HvStatus::SUCCESS);
        rig.machine.memory().write(page, at, bytes);
        rig.vp_state(Code::SET_VP_STATE, id, VpStateType::XSAVE, page)
    };
    let mxcsr = 24;
    assert_eq!(set(&mut rig, mxcsr, &0x1F80u32.to_le_bytes()), HvStatus::SUCCESS);
    assert_eq!(set(&mut rig, mxcsr, &0xFFFF_1F80u32.to_le_bytes()), HvStatus::INVALID_REGISTER_VALUE);
    let xstate_bv = 512;
    assert_eq!(set(&mut rig, xstate_bv, &[3]), HvStatus::SUCCESS);
    assert_eq!(
        set(&mut rig, xstate_bv, &[0x27]),
        HvStatus::INVALID_REGISTER_VALUE,
        "a component that is not there"
    );
    assert_eq!(
        set(&mut rig, xstate_bv + 8, &[0, 0, 0, 0, 0, 0, 0, 0x80]),
        HvStatus::INVALID_REGISTER_VALUE,
        "compacted"
    );
    assert_eq!(set(&mut rig, xstate_bv + 16, &[1]), HvStatus::INVALID_REGISTER_VALUE, "reserved");
}

#[test]
fn addresses_are_translated_by_the_guests_tables() {
    let mut rig = Rig::new();
    let (id, _) = rig.guest();
    let frames = rig.give_memory(id, 0, 16);
    // A table at each of pages 1 to 4; GVA page 5 is GPA page 9, read-only.
    for (level, entry) in [(1, 0x2007u64), (2, 0x3007), (3, 0x4007)] {
        rig.machine.memory().write(frames[level], 0, &entry.to_le_bytes());
    }
    rig.machine.memory().write(frames[4], 8 * 5, &0x9005u64.to_le_bytes());
    for (name, value) in [
        (RegisterName::CR3, 0x1000u64),
        (RegisterName::CR4, 0x20),
        (RegisterName::EFER, 0x500),
        (RegisterName::CR0, 0x8001_0011),
    ] {
        assert_eq!(rig.cpu().set(id, 0, name, value), Ok(()));
    }
    let translate = |rig: &mut Rig, gva_page, flags| {
        let mut input = TranslateVirtualAddressInput::new_zeroed();
        (input.partition_id, input.gva_page) = (id, gva_page);
        input.control_flags.0 = flags;
        let output: HvResult<TranslateVirtualAddressOutput> =
            rig.cpu().query(Code::TRANSLATE_VIRTUAL_ADDRESS, &input);
        output.map(|output| (output.translation_result.result_code.0, output.gpa_page))
    };
    assert_eq!(translate(&mut rig, 5, 1), Ok((0, 9)));
    assert_eq!(translate(&mut rig, 5, 2), Ok((2, 0)), "not writable");
    assert_eq!(translate(&mut rig, 6, 1), Ok((1, 0)), "not present");
    assert_eq!(translate(&mut rig, 1 << 47, 1), Ok((1, 0)), "not canonical");
    assert_eq!(translate(&mut rig, 5, 0x100 | 0x200), Err(HvStatus::INVALID_PARAMETER), "a contradiction");
    rig.machine.memory().write(frames[3], 8, &0x7000_0007u64.to_le_bytes());
    assert_eq!(translate(&mut rig, 512, 1), Ok((4, 0)), "a table that is not there");
    // Marks only when they are asked for.
    let accessed = |rig: &Rig| {
        let mut byte = [0];
        rig.machine.memory().read(frames[4], 8 * 5, &mut byte);
        byte[0] >> 5 & 1
    };
    assert_eq!(accessed(&rig), 0);
    assert_eq!(translate(&mut rig, 5, 0x11), Ok((0, 9)));
    assert_eq!(accessed(&rig), 1);
}

#[test]
fn the_register_page_tells_and_takes_registers() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    let script = rig.machine.script(1);
    script.exit_with(&[(gpr::RAX, 0x11), (gpr::RBX, 0x22)], IO);
    assert_eq!(rig.cpu().dispatch(id, 0), INTERCEPTED);
    let page = rig.register_page(shared);
    assert_eq!((page.version, page.is_valid, page.dirty), (1, 1, RegisterPageDirty::empty()));
    assert_eq!((page.gp_registers[0], page.gp_registers[3], page.rip), (0x11, 0x22, 0xFFF0));
    // Only what is marked counts.
    let mut changed = page;
    (changed.gp_registers[0], changed.rip, changed.rflags) = (0x33, 0xFFF2, u64::MAX);
    changed.cr3 = 0x5000;
    changed.dirty =
        RegisterPageDirty::GENERAL | RegisterPageDirty::INSTRUCTION_POINTER | RegisterPageDirty::FLAGS;
    rig.machine.memory().write(shared.registers, 0, changed.as_bytes());
    script.code(|vcpu| {
        assert_eq!((vcpu.gprs()[gpr::RAX], vcpu.get(Reg::Rip), vcpu.get(Reg::Cr3)), (0x33, 0xFFF2, 0));
        assert_eq!(vcpu.get(Reg::Rflags) & !0x3F_7FD7, 0, "only bits that exist");
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().resume_dispatch(id, 0), READY);
    assert_eq!(rig.register_page(shared).dirty, RegisterPageDirty::empty());
    // While nothing is handled the page does not count.
    rig.machine.memory().write(shared.registers, 0, changed.as_bytes());
    assert_eq!(rig.cpu().set(id, 0, RegisterName::RAX, 7u64), Ok(()));
    rig.cpu().dispatch(id, 0);
    assert_eq!(rig.cpu().get_u64(id, 0, RegisterName::RAX), 7);
}

#[test]
fn vectors_in_the_register_page_are_taken_once() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    let script = rig.machine.script(1);
    script.exit(Exit::WriteMsr { msr: 0x1B, value: 0xFEE0_0D00, length: Some(2) });
    script.exit(Exit::WriteMsr { msr: 0x80F, value: 0x1FF, length: Some(2) });
    script.code(|vcpu| {
        vcpu.set(Reg::Rflags, 0x202);
        Flow::Exit(Exit::Pause)
    });
    rig.cpu().dispatch(id, 0);
    let place = VpRegisterPage::INTERRUPT_VECTORS_OFFSET;
    rig.machine.memory().write(shared.registers, place, &[200, 0x41, 3, 0x41, 0, 0, 0, 0]);
    script.exit(Exit::Pause);
    let scan = DispatchVpFlags::SCAN_INTERRUPT_INJECTION;
    assert_eq!(rig.cpu().dispatch_with(id, 0, scan), Ok(READY));
    assert_eq!(script.take_delivered(), [crate::machine::Event::Interrupt(0x41)]);
    let mut vectors = [0xFF; 8];
    rig.machine.memory().read(shared.registers, place, &mut vectors);
    assert_eq!(vectors, [0; 8]);
    let unknown = rig.cpu().dispatch_with(id, 0, DispatchVpFlags(1 << 20));
    assert_eq!(unknown, Err(HvStatus::INVALID_PARAMETER));
}

#[test]
fn shared_pages_are_mapped_once_and_come_back_when_they_are_unmapped() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    let used = rig.cpu().balance(id).1;
    assert_eq!(
        rig.state_page(id, 0, VpStatePageType::REGISTERS),
        Ok(shared.registers),
        "the same page again"
    );
    assert_eq!(rig.cpu().balance(id).1, used);
    for (page_type, flags) in
        [(VpStatePageType::GHCB, 0), (VpStatePageType(9), 0), (VpStatePageType::REGISTERS, 1)]
    {
        let mut input = MapVpStatePageInput::new_zeroed();
        (input.partition_id, input.page_type, input.flags) = (id, page_type, flags);
        let mapped: HvResult<u64> = rig.cpu().query(Code::MAP_VP_STATE_PAGE, &input);
        assert_eq!(mapped, Err(HvStatus::INVALID_PARAMETER));
    }
    let mut input = UnmapVpStatePageInput::new_zeroed();
    (input.partition_id, input.page_type) = (id, VpStatePageType::REGISTERS);
    assert_eq!(rig.cpu().simple(Code::UNMAP_VP_STATE_PAGE, &input), Ok(()));
    assert_eq!(rig.cpu().simple(Code::UNMAP_VP_STATE_PAGE, &input), Err(HvStatus::INVALID_PARAMETER));
    assert!(!rig.sees(shared.registers));
    assert_eq!(rig.cpu().withdraw_all(id).len() as u64 + used - 1, 208, "it can be withdrawn now");
    // Without a page for messages an intercept cannot be told; nothing breaks.
    input.page_type = VpStatePageType::INTERCEPT_MESSAGE;
    assert_eq!(rig.cpu().simple(Code::UNMAP_VP_STATE_PAGE, &input), Ok(()));
    rig.machine.script(1).exit(IO);
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    assert_eq!(rig.cpu().dispatch(id, 0), SUSPENDED);
    rig.end(id);
    assert_eq!(rig.missing(), 1);
}

#[test]
fn statistics_count_and_their_pages_come_back() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    let script = rig.machine.script(1);
    script.exit(Exit::Cpuid { length: Some(2) }).exit(Exit::Cpuid { length: Some(2) });
    script.exit(Exit::InterruptWindow).exit(Exit::NmiWindow).exit(Exit::InterruptWindow);
    script.exit(Exit::Kick).exit(Exit::Pause).exit(Exit::InvalidInstruction).exit(IO);
    assert_eq!(rig.cpu().dispatch(id, 0), INTERCEPTED);
    for (counter, count) in [
        (VpCounter::CPUID_INSTRUCTIONS_COUNT, 2),
        (VpCounter::IO_INSTRUCTIONS_COUNT, 1),
        (VpCounter::PENDING_INTERRUPTS_COUNT, 3),
        (VpCounter::OTHER_INTERCEPTS_COUNT, 2),
        (VpCounter::EXTERNAL_INTERRUPTS_COUNT, 0),
    ] {
        assert_eq!(rig.counter(shared.stats, counter.0), count, "{counter:?}");
    }
    let spare = rig.pages(6);
    assert_eq!(rig.cpu().deposit(PartitionId::SELF, &spare), HvStatus::SUCCESS);
    let hypervisor = rig.stats_page(StatsObjectType::HYPERVISOR, u64::MAX, 0).expect("there is memory");
    assert_eq!(rig.counter(hypervisor, 1), 1, "processors");
    assert!(rig.stats_page(StatsObjectType::LOGICAL_PROCESSOR, 0, 0).is_ok());
    assert_eq!(rig.stats_page(StatsObjectType::LOGICAL_PROCESSOR, 1, 0), Err(HvStatus::INVALID_LP_INDEX));
    assert_eq!(rig.stats_page(StatsObjectType::VP, 1, 7), Err(HvStatus::INVALID_VP_INDEX));
    assert_eq!(rig.stats_page(StatsObjectType::VP, id.0, 7), Err(HvStatus::INVALID_VP_INDEX));
    assert_eq!(rig.stats_page(StatsObjectType(5), id.0, 0), Err(HvStatus::INVALID_PARAMETER));
    let mut parents = stats(StatsObjectType::VP, id.0, 0);
    parents.identity.area_type = StatsAreaType::PARENT;
    let refused: HvResult<u64> = rig.cpu().query(Code::MAP_STATS_PAGE, &parents);
    assert_eq!(refused, Err(HvStatus::INVALID_PARAMETER), "Linux takes the object's own then");
    let unmap = |rig: &mut Rig, kind, id| rig.cpu().simple(Code::UNMAP_STATS_PAGE, &stats(kind, id, 0));
    assert_eq!(unmap(&mut rig, StatsObjectType::HYPERVISOR, u64::MAX), Ok(()));
    assert_eq!(unmap(&mut rig, StatsObjectType::HYPERVISOR, u64::MAX), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(unmap(&mut rig, StatsObjectType::LOGICAL_PROCESSOR, 0), Ok(()));
    assert_eq!(rig.cpu().withdraw_all(PartitionId::SELF).len(), 6);
    // The partition's page outlives its finalization, and comes back with its deletion.
    let page = rig.stats_page(StatsObjectType::PARTITION, id.0, 0).expect("there is memory");
    assert_eq!(rig.end(id).len(), 207);
    assert_eq!(rig.owner(page), crate::memory::PageOwner::Parent { lends: 0 });
}

#[test]
fn a_fault_message_tells_the_instruction() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    rig.give_memory(id, 0, 2);
    let code = [0x8B, 0x03, 0x90, 0x90];
    rig.machine.script(1).code(move |vcpu| {
        let cs = crate::machine::Segment { base: 0, limit: u32::MAX, selector: 8, attributes: 0xC09B };
        vcpu.set_segment(SegmentName::Cs, cs);
        vcpu.set(Reg::Cr0, 0x11);
        // The page ends before the instruction could; the next one is not there.
        vcpu.set(Reg::Rip, 0x1FFC);
        vcpu.write_memory(0x1FFC, &code).expect("memory");
        Flow::Exit(Exit::SlatFault {
            gpa: 0xD000_0000,
            gva: None,
            access: Access::READ,
            page_table_walk: false,
        })
    });
    assert_eq!(rig.cpu().dispatch(id, 0), INTERCEPTED);
    let payload: parterre_abi::message::MemoryInterceptMessage = rig.intercept(shared).payload_as();
    assert_eq!((payload.guest_physical_address, payload.instruction_byte_count), (0xD000_0000, 4));
    assert_eq!(payload.instruction_bytes[..4], code);
    assert_eq!(payload.instruction_bytes[4..], [0; 12]);
}

#[test]
fn a_triple_fault_is_told_and_only_that_partition_ends() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    for exit in [Exit::Shutdown, Exit::Failed(0xFFFF_FFFF)] {
        rig.machine.script(1).exit(exit);
        assert_eq!(rig.cpu().resume_dispatch(id, 0), INTERCEPTED);
        let kind = rig.intercept(shared).header.message_type;
        assert_eq!(kind, parterre_abi::message::MessageType::UNRECOVERABLE_EXCEPTION);
    }
    assert_eq!(rig.end(id).len(), 208);
}

/// Emulated processors refuse to go on at a MOV to a control register that has to end in #GP.
#[test]
fn a_refused_control_register_is_a_general_protection_fault() {
    let mut rig = Rig::new();
    let (id, shared) = rig.guest();
    rig.give_memory(id, 0, 2);
    for (code, refused) in [([0x0F, 0x22, 0xE0], true), ([0x0F, 0x22, 0xC0], false)] {
        rig.machine.script(1).code(move |vcpu| {
            let cs = crate::machine::Segment { base: 0, limit: u32::MAX, selector: 8, attributes: 0xC09B };
            vcpu.set_segment(SegmentName::Cs, cs);
            vcpu.set(Reg::Cr0, 0x11);
            vcpu.set(Reg::Rip, 0x1000);
            vcpu.write_memory(0x1000, &code).expect("memory");
            Flow::Exit(Exit::Failed(u64::MAX))
        });
        if refused {
            assert_eq!(rig.cpu().resume_dispatch(id, 0), READY);
            rig.machine.script(1).exit(Exit::Shutdown);
        }
        assert_eq!(rig.cpu().resume_dispatch(id, 0), INTERCEPTED);
        let kind = rig.intercept(shared).header.message_type;
        assert_eq!(kind, parterre_abi::message::MessageType::UNRECOVERABLE_EXCEPTION);
    }
    assert_eq!(rig.machine.script(1).delivered(), [Event::Exception(13, Some(0))]);
}
