//! The parent's model-specific registers: each that the hypervisor answers for, and that there are no others.

use super::{Rig, Sizes};
use crate::fake::GeneralProtection;
use crate::machine::{Event, Exit, Reg, Vcpu, gpr};
use parterre_abi::{hypercall::HypercallCode as Code, msr, status::HvStatus, types::PartitionId};

const FAULT: Result<(), GeneralProtection> = Err(GeneralProtection);
const TWO: Sizes = Sizes { processors: 2, slots: 4, interrupts: 8, ports: 8, reserve: None };

#[test]
fn registers_that_do_not_exist_fault() {
    let mut rig = Rig::new();
    let exist = |number: u32| {
        let read = matches!(
            number,
            msr::GUEST_OS_ID..=msr::RESET
                | msr::TIME_REF_COUNT..=msr::APIC_FREQUENCY
                | msr::VP_ASSIST_PAGE
                | msr::SCONTROL..=msr::SIRBP
                | msr::SINT0..=msr::SINT15
                | msr::STIMER0_CONFIG..=msr::STIMER3_COUNT
        );
        let constant = matches!(
            number,
            msr::VP_INDEX | msr::TIME_REF_COUNT | msr::TSC_FREQUENCY | msr::APIC_FREQUENCY | msr::SVERSION
        );
        (read, read && !constant)
    };
    for number in
        (0x4000_0000..0x4000_2000).chain([0x4000_FFFF, 0x174, 0x2FF, 0xC001_0117, 0x480, 0x3A, 0x1234_5678])
    {
        let (readable, writable) = exist(number);
        assert_eq!(rig.cpu().rdmsr(number).is_ok(), readable, "reading {number:#x}");
        if number != msr::RESET {
            let value = rig.cpu().rdmsr(number).unwrap_or(0);
            assert_eq!(rig.cpu().wrmsr(number, value).is_ok(), writable, "writing {number:#x}");
        }
    }
}

#[test]
fn page_registers_take_the_page_that_they_name_only() {
    let mut rig = Rig::bare(Sizes::default());
    let registers =
        [msr::HYPERCALL, msr::REFERENCE_TSC, msr::VP_ASSIST_PAGE, msr::SIMP, msr::SIEFP, msr::SIRBP];
    assert_eq!(rig.cpu().wrmsr(msr::GUEST_OS_ID, 1), Ok(()));
    let mut pages = std::collections::BTreeSet::new();
    for register in registers {
        let reset = rig.cpu().rdmsr(register).expect("the register is there");
        assert_eq!(reset & 0xFFF, 0, "{register:#x} is disabled after reset");
        assert!(pages.insert(reset >> 12), "{register:#x} has a page of its own");
        assert!(reset >> 12 >= rig.ram(), "it is no RAM of the parent");
        for wrong in [reset + 0x1000, 0x5000, 0, !0xFFF] {
            assert_eq!(rig.cpu().wrmsr(register, wrong | 1), FAULT, "{register:#x} with {wrong:#x}");
        }
        assert_eq!(rig.cpu().rdmsr(register), Ok(reset));
        assert_eq!(rig.cpu().wrmsr(register, reset | 1), Ok(()));
        assert_eq!(rig.cpu().rdmsr(register), Ok(reset | 1));
        assert_eq!(rig.cpu().wrmsr(register, 0), Ok(()), "a parent that goes away clears it as a whole");
        assert_eq!(rig.cpu().rdmsr(register), Ok(reset), "and the next one finds the same page");
    }
}

#[test]
fn the_pages_hold_what_they_should_before_they_are_enabled() {
    let mut rig = Rig::bare(Sizes::default());
    let page = rig.cpu().page_of(msr::HYPERCALL);
    let mut code = [0; 4];
    rig.machine.memory().read(page, 0, &mut code);
    let instruction = crate::fake::HYPERCALL_INSTRUCTION;
    assert_eq!((&code[..3], code[3]), (instruction.as_slice(), 0xC3));
    let page = rig.cpu().page_of(msr::REFERENCE_TSC);
    let mut words = [0; 24];
    rig.machine.memory().read(page, 0, &mut words);
    let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().expect("8 bytes"));
    let (sequence, scale, offset) = (word(0) as u32, word(8), word(16));
    assert_ne!(sequence, 0, "the page counts");
    rig.machine.set_tsc(5_000_000_000);
    let by_page = ((5_000_000_000u128 * u128::from(scale)) >> 64) as u64;
    let by_register = rig.cpu().rdmsr(msr::TIME_REF_COUNT).expect("the register is there");
    assert!(by_page.wrapping_add(offset).abs_diff(by_register) <= 1, "page and register tell the same time");
}

#[test]
fn each_processor_has_registers_of_its_own() {
    let mut rig = Rig::with(TWO);
    for register in [msr::VP_ASSIST_PAGE, msr::SIMP, msr::SIEFP, msr::SIRBP] {
        assert_ne!(rig.cpus[0].page_of(register), rig.cpus[1].page_of(register));
    }
    for (index, cpu) in rig.cpus.iter_mut().enumerate() {
        assert_eq!(cpu.rdmsr(msr::VP_INDEX), Ok(index as u64));
    }
    assert_eq!(rig.cpus[1].wrmsr(msr::SINT0 + 3, 0x55), Ok(()));
    assert_eq!(rig.cpus[0].rdmsr(msr::SINT0 + 3), Ok(1 << 16), "masked since reset");
}

#[test]
fn sources_take_vectors_above_15_unless_they_are_masked() {
    let mut rig = Rig::new();
    for vector in 0..16 {
        assert_eq!(rig.cpu().wrmsr(msr::SINT0 + 1, vector), FAULT, "vector {vector}");
        assert_eq!(rig.cpu().wrmsr(msr::SINT0 + 1, vector | 1 << 16), Ok(()));
    }
    assert_eq!(rig.cpu().wrmsr(msr::SINT0 + 1, 16), Ok(()));
}

#[test]
fn synthetic_timers_interrupt_the_parent() {
    let mut rig = Rig::new();
    let direct = 1 | 1 << 3 | 1 << 12 | 0xED << 4;
    assert_eq!(rig.cpu().wrmsr(msr::STIMER0_CONFIG, direct | 1 << 30), FAULT, "a reserved bit");
    assert_eq!(rig.cpu().wrmsr(msr::STIMER0_CONFIG, direct), Ok(()));
    let now = rig.cpu().rdmsr(msr::TIME_REF_COUNT).expect("the register is there");
    assert_eq!(rig.cpu().wrmsr(msr::STIMER0_COUNT, now + 100), Ok(()));
    rig.cpu().idle();
    let due = rig.cpu().timer().expect("the processor's timer is armed");
    assert!(due.abs_diff((now + 100) * 100) <= 100, "{due} ticks, 10 ns each, for {now}");
    assert_eq!(rig.cpu().take_interrupts(), []);
    // One that is past is due at once.
    assert_eq!(rig.cpu().wrmsr(msr::STIMER0_CONFIG, direct), Ok(()));
    rig.machine.set_tsc(due + 1000);
    assert_eq!(rig.cpu().wrmsr(msr::STIMER0_COUNT, now), Ok(()));
    rig.cpu().idle();
    assert_eq!(rig.cpu().take_interrupts(), [0xED]);
    assert_eq!(rig.cpu().wrmsr(msr::STIMER0_COUNT, 0), Ok(()));
    rig.cpu().idle();
    assert_eq!(rig.cpu().timer(), None);
}

#[test]
fn what_would_take_the_machine_away_is_refused() {
    let mut rig = Rig::new();
    rig.machine.set_msr(0x1B, 0xFEE0_0D00);
    const EFER: u32 = 0xC000_0080;
    assert_eq!(rig.cpu().wrmsr(EFER, 0x901), Ok(()));
    assert_eq!(rig.cpu().rdmsr(EFER), Ok(0x901));
    for bit in [9, 12, 13, 20, 63] {
        assert_eq!(rig.cpu().wrmsr(EFER, 1 << bit), FAULT, "EFER bit {bit}");
    }
    assert_eq!(rig.cpu().wrmsr(0x1B, 0xFEE0_0D00), Ok(()), "what is there already");
    assert_eq!(rig.cpu().wrmsr(0x1B, 0xFEE0_0900), FAULT);
    assert_eq!(rig.cpu().rdmsr(0xC001_0114), Ok(0x18), "SVM is disabled and locked");
    assert_eq!(rig.cpu().wrmsr(0xC001_0114, 0), FAULT);
    assert_eq!(rig.cpu().wrmsr(0xC001_0117, 0x1000), FAULT, "VM_HSAVE_PA");
}

#[test]
fn interrupt_commands_go_to_the_machine_but_for_init_and_startup() {
    let mut rig = Rig::with(TWO);
    rig.machine.take_icr();
    for fixed in [2 << 32 | 0x40FD, 0x4402, 0x8_40F0] {
        assert_eq!(rig.cpu().wrmsr(0x830, fixed), Ok(()));
        assert_eq!(rig.machine.take_icr(), [fixed]);
    }
    assert_eq!(rig.cpu().wrmsr(0x830, 2 << 32 | 0x4500), Ok(()));
    assert!(rig.machine.is_kicked(1), "the other processor is told");
    assert_eq!(rig.cpu().wrmsr(0x830, 2 << 32 | 0x4698), Ok(()));
    assert!(rig.machine.take_icr().is_empty(), "no INIT reaches a processor");
    rig.cpus[1].vcpu().gprs_mut()[gpr::RBX] = 7;
    rig.cpus[1].idle();
    let vcpu = rig.cpus[1].vcpu();
    assert_eq!(vcpu.gprs()[gpr::RBX], 0);
    assert_eq!((vcpu.segment(crate::machine::SegmentName::Cs).base, vcpu.get(Reg::Rip)), (0x98000, 0));
    assert_eq!(rig.cpus[1].rdmsr(msr::SCONTROL), Ok(0), "its SynIC was reset");
}

#[test]
fn a_processor_is_added_once_and_only_if_it_is_there() {
    let mut rig = Rig::bare(TWO);
    rig.cpu().enable_hypercalls();
    let mut add = |index: u32, apic: u32| rig.cpu().simple(Code::ADD_LOGICAL_PROCESSOR, &[index, apic, 0, 0]);
    assert_eq!(add(1, 9), Err(HvStatus::INVALID_PARAMETER), "no such APIC");
    assert_eq!(add(1, 0), Err(HvStatus::INVALID_PARAMETER), "the boot processor is added already");
    assert_eq!(add(0, 2), Err(HvStatus::INVALID_LP_INDEX));
    assert_eq!(add(2, 2), Err(HvStatus::INVALID_LP_INDEX));
    assert_eq!(add(u32::MAX, 2), Err(HvStatus::INVALID_LP_INDEX));
    assert_eq!(add(1, 2), Ok(()));
    assert_eq!(add(1, 2), Err(HvStatus::INVALID_LP_INDEX));
    let run_time: Result<[u64; 4], _> = rig.cpu().query(Code::GET_LOGICAL_PROCESSOR_RUN_TIME, &1u32);
    assert!(run_time.is_ok());
    let mut vp = |index: u64| rig.cpu().simple(Code::CREATE_VP, &[PartitionId::SELF.0, index, index, 0, 0]);
    assert_eq!(vp(1), Ok(()));
    assert_eq!(vp(1), Err(HvStatus::INVALID_VP_INDEX));
    assert_eq!(vp(2), Err(HvStatus::INVALID_LP_INDEX));
}

#[test]
fn instructions_that_do_not_exist_for_partitions_are_undefined() {
    let mut rig = Rig::new();
    for exit in [Exit::InvalidInstruction, Exit::Monitor { length: Some(3) }, Exit::Mwait { length: Some(3) }]
    {
        rig.cpu().exit(&[], exit);
        assert_eq!(rig.cpu().take_event(), Some(Event::Exception(6, None)), "{exit:?}");
    }
    rig.cpu().exit(&[], Exit::ReadPerformanceCounter);
    assert_eq!(rig.cpu().take_event(), Some(Event::Exception(13, Some(0))));
    // INVLPGB is one of them, so CPUID does not tell of it.
    rig.machine.set_cpuid(0x8000_0008, 0, [0x3028, u32::MAX, 0x7F, u32::MAX]);
    rig.cpu().exit(&[(gpr::RAX, 0x8000_0008)], Exit::Cpuid { length: Some(2) });
    let registers = *rig.cpu().vcpu().gprs();
    assert_eq!((registers[gpr::RBX] >> 3 & 1, registers[gpr::RDX] & 0xFFFF), (0, 0));
    let fault = Exit::SlatFault {
        gpa: rig.ram() << 12,
        gva: None,
        access: crate::machine::Access::WRITE,
        page_table_walk: false,
    };
    rig.cpu().exit(&[], fault);
    assert_eq!(rig.cpu().take_event(), Some(Event::Exception(13, Some(0))), "the hypervisor's memory");
}

#[test]
fn extended_states_are_those_that_the_machine_has() {
    let mut rig = Rig::new();
    for (index, value, good) in [
        (0u64, 7u64, true),
        (0, 1, true),
        (0, 0, false),
        (0, 5, false),
        (0, 1 << 9 | 7, false),
        (1, 7, false),
    ] {
        rig.cpu().exit(&[(gpr::RCX, index)], Exit::Xsetbv { value, length: Some(3) });
        assert_eq!(rig.cpu().take_event().is_none(), good, "XCR{index} = {value:#x}");
    }
}

#[test]
fn the_machine_sleeps_when_it_knows_how() {
    let mut rig = Rig::new();
    assert_eq!(rig.cpu().simple(Code::ENTER_SLEEP_STATE, &5u32), Err(HvStatus::INVALID_PARAMETER));
    let set = |state: u32, types: u32| {
        let mut input = [0u32; 18];
        (input[0], input[2], input[3]) = (3, state, types);
        input
    };
    for (state, types) in [(4, 0), (5, 8), (5, 0x0800)] {
        let result = rig.cpu().simple(Code::SET_SYSTEM_PROPERTY, &set(state, types));
        assert_eq!(result, Err(HvStatus::INVALID_PARAMETER), "S{state} by {types:#x}");
    }
    assert_eq!(rig.cpu().simple(Code::SET_SYSTEM_PROPERTY, &set(5, 0x0607)), Ok(()));
    assert_eq!(rig.cpu().simple(Code::ENTER_SLEEP_STATE, &3u32), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(rig.machine.sleep(), None);
    assert!(rig.cpu().simple(Code::ENTER_SLEEP_STATE, &5u32).is_err(), "this machine goes on");
    assert_eq!(rig.machine.sleep(), Some((7, 6)));
}

/// Linux masks the local APIC's timer while a synthetic timer is running.
#[test]
fn setting_one_kind_of_timer_loses_no_interrupt_of_the_other() {
    const LVT_TIMER: u32 = 0x832;
    const MASKED: u64 = 1 << 16;
    let mut rig = Rig::new();
    let direct = u64::from(
        msr::StimerConfig::new().with_auto_enable(true).with_direct_mode(true).with_apic_vector(0xED),
    );
    let now = rig.cpu().rdmsr(msr::TIME_REF_COUNT).expect("the register is there");
    assert_eq!(rig.cpu().wrmsr(msr::STIMER0_CONFIG, direct), Ok(()));
    assert_eq!(rig.cpu().wrmsr(msr::STIMER0_COUNT, now + 100), Ok(()));
    rig.machine.pass(1_000_000_000);
    assert_eq!(rig.cpu().wrmsr(LVT_TIMER, MASKED), Ok(()));
    rig.cpu().idle();
    assert!(rig.cpu().take_interrupts().contains(&0xED), "the tick that was due still comes");
}
