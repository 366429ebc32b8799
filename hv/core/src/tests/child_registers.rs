//! The model-specific registers of a child, and CPUID, as its code meets them.

use super::{Rig, steps::*};
use crate::fake::{Flow, GeneralProtection};
use crate::machine::{Event, Exit, Machine, Vcpu, gpr};
use parterre_abi::{
    hypercall::{
        CpuidResultParameters, HypercallCode as Code, InstallInterceptInput, InterceptAccessTypeMask,
        InterceptType, RegisterInterceptResultInput, SetPartitionPropertyInput,
    },
    message::{MessageType, MsrInterceptMessage},
    msr,
    property::PartitionPropertyCode,
    registers::RegisterName,
    status::HvStatus,
    types::{PartitionId, VpIndex},
};
use std::{
    sync::{Arc, Mutex},
    vec::Vec,
};
use zerocopy::FromZeros;

/// A child with one processor whose code accesses registers.
pub(super) struct Child {
    pub rig: Rig,
    pub id: PartitionId,
    shared: Shared,
}

impl Child {
    pub fn new() -> Self {
        let mut rig = Rig::new();
        let (id, shared) = rig.guest();
        rig.give_memory(id, 0, 16);
        Self { rig, id, shared }
    }

    /// Runs `exit` with these registers set; gives RAX, RBX, RCX, RDX afterwards, or the exception.
    fn run(&mut self, registers: &[(usize, u64)], exit: Exit) -> Result<[u64; 4], Event> {
        let script = self.rig.machine.script(1);
        script.take_delivered();
        let after = Arc::new(Mutex::new([0; 4]));
        let seen = after.clone();
        script.exit_with(registers, exit);
        script.code(move |vcpu| {
            let r = vcpu.gprs();
            *seen.lock().expect("one thread") = [r[gpr::RAX], r[gpr::RBX], r[gpr::RCX], r[gpr::RDX]];
            Flow::Exit(Exit::Pause)
        });
        assert_eq!(self.rig.cpu().dispatch(self.id, 0), READY, "{exit:?}");
        let after = *after.lock().expect("one thread");
        script.take_delivered().pop().map_or(Ok(after), Err)
    }

    pub fn read(&mut self, number: u32) -> Result<u64, GeneralProtection> {
        let answer = self.run(&[], Exit::ReadMsr { msr: number, length: Some(2) });
        answer.map(|[rax, _, _, rdx]| rdx << 32 | rax).map_err(only_gp)
    }

    pub fn write(&mut self, number: u32, value: u64) -> Result<(), GeneralProtection> {
        self.run(&[], Exit::WriteMsr { msr: number, value, length: Some(2) }).map(|_| ()).map_err(only_gp)
    }

    fn cpuid(&mut self, leaf: u64, subleaf: u64) -> [u64; 4] {
        let registers = [(gpr::RAX, leaf), (gpr::RCX, subleaf)];
        self.run(&registers, Exit::Cpuid { length: Some(2) }).expect("CPUID raises nothing")
    }
}

fn only_gp(event: Event) -> GeneralProtection {
    assert_eq!(event, Event::Exception(13, Some(0)), "an access to a register raises #GP only");
    GeneralProtection
}

const FAULT: Result<(), GeneralProtection> = Err(GeneralProtection);

#[test]
fn synthetic_registers_that_a_child_has_no_right_to_fault() {
    let mut child = Child::new();
    let privileges = child.cpuid(0x4000_0003, 0);
    let has = |bit: u32| privileges[0] >> bit & 1 != 0;
    // A register is there exactly if CPUID 0x40000003 EAX says so.
    for (register, bit) in [
        (msr::VP_RUNTIME, 0),
        (msr::TIME_REF_COUNT, 1),
        (msr::SCONTROL, 2),
        (msr::SIMP, 2),
        (msr::SINT0, 2),
        (msr::STIMER0_CONFIG, 3),
        (msr::TPR, 4),
        (msr::VP_ASSIST_PAGE, 4),
        (msr::GUEST_OS_ID, 5),
        (msr::HYPERCALL, 5),
        (msr::VP_INDEX, 6),
        (msr::RESET, 7),
        (msr::REFERENCE_TSC, 9),
        (msr::TSC_FREQUENCY, 11),
        (msr::REENLIGHTENMENT_CONTROL, 13),
        (msr::TSC_INVARIANT_CONTROL, 15),
    ] {
        assert_eq!(child.read(register).is_ok(), has(bit), "{register:#x}");
    }
    for register in
        [0x4000_0004, 0x4000_0024, 0x4000_0074, 0x4000_00FF, 0x4000_0109, 0x4000_1080, 0x4000_FFFF]
    {
        assert_eq!(child.read(register), Err(GeneralProtection), "{register:#x}");
        assert_eq!(child.write(register, 0), FAULT, "{register:#x}");
    }
    for constant in [msr::VP_INDEX, msr::TIME_REF_COUNT, msr::TSC_FREQUENCY, msr::APIC_FREQUENCY] {
        assert_eq!(child.write(constant, 0), FAULT, "{constant:#x}");
    }
}

#[test]
fn the_hypercall_page_lies_where_the_guest_wants_it() {
    let mut child = Child::new();
    let frames = |rig: &mut Rig| rig.cpu().balance(PartitionId::SELF);
    let before = frames(&mut child.rig);
    assert_eq!(child.write(msr::HYPERCALL, 0x5001), Ok(()));
    assert_eq!(child.read(msr::HYPERCALL), Ok(0x5000), "nobody enables it who has not said who he is");
    assert_eq!(child.write(msr::GUEST_OS_ID, 0x8100 << 48), Ok(()));
    assert_eq!(child.write(msr::HYPERCALL, 0x5001), Ok(()));
    assert_eq!(child.read(msr::HYPERCALL), Ok(0x5001));
    let page = Arc::new(Mutex::new(([0; 4], [0; 4], true)));
    let seen = page.clone();
    child.rig.machine.script(1).code(move |vcpu| {
        let mut seen = seen.lock().expect("one thread");
        vcpu.read_memory(0x5000, &mut seen.0).expect("it is there");
        vcpu.read_memory(0x6000, &mut seen.1).expect("memory");
        seen.2 = vcpu.write_memory(0x5000, &[1]).is_err();
        Flow::Exit(Exit::Pause)
    });
    child.rig.cpu().dispatch(child.id, 0);
    let (code, other, refused) = *page.lock().expect("one thread");
    assert_eq!(&code[..3], crate::fake::HYPERCALL_INSTRUCTION.as_slice());
    assert_eq!((code[3], other, refused), (0xC3, [0; 4], true));
    // Beyond the address space there is no place for it; where it was it stays.
    assert_eq!(child.write(msr::HYPERCALL, 1 << 50 | 1), FAULT);
    assert_eq!(child.read(msr::HYPERCALL), Ok(0x5001));
    assert_eq!(child.write(msr::GUEST_OS_ID, 0), Ok(()));
    assert_eq!(child.read(msr::HYPERCALL), Ok(0x5000), "with the identity goes the page");
    assert_eq!(frames(&mut child.rig), before);
    assert_eq!(child.rig.end(child.id).len(), 208);
    assert_eq!(child.rig.missing(), 1);
}

#[test]
fn a_locked_hypercall_page_stays() {
    let mut child = Child::new();
    assert_eq!(child.write(msr::GUEST_OS_ID, 1), Ok(()));
    assert_eq!(child.write(msr::HYPERCALL, 0x5003), Ok(()));
    assert_eq!(child.write(msr::HYPERCALL, 0x6001), Ok(()));
    assert_eq!(child.read(msr::HYPERCALL), Ok(0x5003));
    assert_eq!(child.rig.end(child.id).len(), 208);
}

#[test]
fn the_reference_time_page_and_register_agree() {
    let mut child = Child::new();
    assert_eq!(child.write(msr::REFERENCE_TSC, 1 << 51 | 1), FAULT);
    assert_eq!(child.write(msr::REFERENCE_TSC, 0x7001), Ok(()));
    let page = Arc::new(Mutex::new([0; 24]));
    let seen = page.clone();
    child.rig.machine.script(1).code(move |vcpu| {
        vcpu.read_memory(0x7000, &mut *seen.lock().expect("one thread")).expect("it is there");
        Flow::Exit(Exit::Pause)
    });
    child.rig.cpu().dispatch(child.id, 0);
    let words = *page.lock().expect("one thread");
    let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().expect("8 bytes"));
    let tsc = child.rig.machine.tsc() + 7_000_000_000;
    child.rig.machine.set_tsc(tsc);
    let guest_tsc = child.read(0x10).expect("the time stamp counter");
    let by_page = ((u128::from(guest_tsc) * u128::from(word(8))) >> 64) as u64;
    let by_register = child.read(msr::TIME_REF_COUNT).expect("the register is there");
    assert!(by_page.wrapping_add(word(16)).abs_diff(by_register) <= 1);
    assert!(by_register.abs_diff(70_000_000) < 1000, "seven seconds: {by_register}");
}

#[test]
fn frozen_time_stands_still_and_goes_on_from_there() {
    let mut child = Child::new();
    let freeze = |child: &mut Child, value: u64| {
        let mut input = SetPartitionPropertyInput::new_zeroed();
        (input.partition_id, input.property_code) = (child.id, PartitionPropertyCode::TIME_FREEZE);
        input.property_value = value;
        child.rig.cpu().simple(Code::SET_PARTITION_PROPERTY, &input)
    };
    child.rig.machine.pass(1_000_000);
    assert_eq!(freeze(&mut child, 1), Ok(()));
    let time = child.read(msr::TIME_REF_COUNT).expect("the register is there");
    child.rig.machine.pass(50_000_000);
    assert_eq!(child.read(msr::TIME_REF_COUNT), Ok(time));
    assert_eq!(freeze(&mut child, 0), Ok(()));
    let after = child.read(msr::TIME_REF_COUNT).expect("the register is there");
    assert!(after.abs_diff(time) <= 1, "{time}, then {after}");
    assert_eq!(freeze(&mut child, 2), Err(HvStatus::INVALID_PARAMETER));
}

#[test]
fn what_a_guest_may_not_set_faults() {
    let mut child = Child::new();
    for (number, value) in [
        (0x1B, 0xFEE0_0500),
        (0x1B, 1 << 50),
        (0x48, 0x100),
        (0xFE, 0),
        (0x277, 0x0202_0202_0202_0202),
        (0xDA0, 1),
        (0x1D9, 1),
        (0xC000_0080, 1 << 12),
        (0xC000_0080, 1 << 13),
        (0xC000_0103, 1 << 32),
        (msr::TPR, 0x100),
        (msr::EOI, 1 << 32),
        (0x9999_9999, 0),
        (0xC001_0114, 0),
        (0x480, 0),
    ] {
        assert_eq!(child.write(number, value), FAULT, "{number:#x} = {value:#x}");
    }
    for (number, value) in
        [(0x277, 0x0007_0406_0007_0406), (0xC000_0103, 5), (0xC000_0080, 0x901), (0x2FF, 0xC06)]
    {
        assert_eq!(child.write(number, value), Ok(()), "{number:#x}");
        assert_eq!(child.read(number), Ok(value), "{number:#x}");
    }
}

#[test]
fn unknown_registers_are_as_the_parent_wants_them() {
    let mut child = Child::new();
    let mut input = SetPartitionPropertyInput::new_zeroed();
    (input.partition_id, input.property_code) = (child.id, PartitionPropertyCode::UNIMPLEMENTED_MSR_ACTION);
    input.property_value = 1;
    assert_eq!(child.rig.cpu().simple(Code::SET_PARTITION_PROPERTY, &input), Ok(()));
    assert_eq!(child.read(0x9999), Ok(0));
    assert_eq!(child.write(0x9999, 5), Ok(()));
    assert_eq!(child.write(0x277, 0x0202), FAULT, "a bad value of a known register stays bad");
    let mut install = InstallInterceptInput::new_zeroed();
    (install.partition_id, install.intercept_type) = (child.id, InterceptType::X64_MSR);
    install.access_type = InterceptAccessTypeMask::READ | InterceptAccessTypeMask::WRITE;
    assert_eq!(child.rig.cpu().simple(Code::INSTALL_INTERCEPT, &install), Ok(()));
    let exit = Exit::WriteMsr { msr: 0x9999, value: 5, length: Some(2) };
    child.rig.machine.script(1).exit_with(&[(gpr::RAX, 5), (gpr::RDX, 1)], exit);
    assert_eq!(child.rig.cpu().dispatch(child.id, 0), INTERCEPTED);
    let message = child.rig.intercept(child.shared);
    assert_eq!(message.header.message_type, MessageType::X64_MSR_INTERCEPT);
    let payload: MsrInterceptMessage = message.payload_as();
    assert_eq!((payload.msr_number, payload.rax, payload.rdx), (0x9999, 5, 1));
    assert_eq!(payload.header.instruction_length_and_cr8.instruction_length(), 2);
}

#[test]
fn the_parent_answers_cpuid_leaves_that_it_has_registered() {
    let mut child = Child::new();
    let before = child.cpuid(0x8000_0002, 0);
    let parameters = CpuidResultParameters {
        leaf: 0x8000_0002,
        eax: 0x1234_5678,
        eax_mask: 0xFFFF,
        edx: u32::MAX,
        edx_mask: u32::MAX,
        ..CpuidResultParameters::default()
    };
    let input = RegisterInterceptResultInput {
        partition_id: child.id,
        vp_index: VpIndex::ANY,
        intercept_type: InterceptType::X64_CPUID,
        parameters: parameters.into(),
    };
    assert_eq!(child.rig.cpu().simple(Code::REGISTER_INTERCEPT_RESULT, &input), Ok(()));
    let after = child.cpuid(0x8000_0002, 0);
    assert_eq!(after, [before[0] & 0xFFFF_0000 | 0x5678, before[1], before[2], 0xFFFF_FFFF]);
    // There is room for a few; a leaf that is there already takes none.
    let statuses: Vec<_> = (0..40)
        .map(|leaf| {
            let parameters = CpuidResultParameters { leaf, ..parameters };
            let input = RegisterInterceptResultInput { parameters: parameters.into(), ..input };
            child.rig.cpu().simple(Code::REGISTER_INTERCEPT_RESULT, &input)
        })
        .collect();
    assert!(statuses.contains(&Err(HvStatus::NO_RESOURCES)));
    assert_eq!(child.rig.cpu().simple(Code::REGISTER_INTERCEPT_RESULT, &input), Ok(()));
}

#[test]
fn a_guest_finds_no_virtualization_of_its_own() {
    let mut child = Child::new();
    child.rig.machine.set_cpuid(0x8000_0001, 0, [0, 0, u32::MAX, 0]);
    child.rig.machine.set_cpuid(0x8000_000A, 0, [1, 1, 1, 1]);
    let [_, _, ecx, _] = child.cpuid(0x8000_0001, 0);
    assert_eq!(ecx & (1 << 2), 0, "SVM");
    assert_eq!(child.cpuid(0x8000_000A, 0), [0; 4]);
    let [_, _, ecx, _] = child.cpuid(1, 0);
    assert_eq!((ecx >> 5 & 1, ecx >> 31), (0, 1), "no VMX; a hypervisor");
    let [last, ebx, ecx, edx] = child.cpuid(0x4000_0000, 0);
    let vendor: Vec<u8> = [ebx, ecx, edx].iter().flat_map(|word| (*word as u32).to_le_bytes()).collect();
    assert_eq!(vendor, b"Microsoft Hv");
    assert!((0x4000_0005..0x4000_0100).contains(&last));
    for exit in [Exit::InvalidInstruction, Exit::Monitor { length: None }, Exit::Mwait { length: None }] {
        assert_eq!(child.run(&[], exit), Err(Event::Exception(6, None)), "{exit:?}");
    }
    assert_eq!(child.run(&[], Exit::ReadPerformanceCounter), Err(Event::Exception(13, Some(0))));
    // Nor the hypercall instruction before it says who it is.
    assert_eq!(child.run(&[], Exit::Hypercall { length: Some(3) }), Err(Event::Exception(6, None)));
}

#[test]
fn registers_by_name_hold_what_is_possible_only() {
    let mut child = Child::new();
    let (id, cpu) = (child.id, &mut child.rig.cpus[0]);
    for (name, value) in [
        (RegisterName::CR0, 1u64 << 31),
        (RegisterName::CR0, 1 << 40),
        (RegisterName::CR0, 1 << 29 | 1),
        (RegisterName::CR4, 1 << 13),
        (RegisterName::CR8, 16),
        (RegisterName::EFER, 1 << 12),
        (RegisterName::PAT, 0x0202),
        (RegisterName::XFEM, 0),
        (RegisterName::XFEM, 1 << 62 | 1),
        (RegisterName::XSS, 1),
        (RegisterName::DR6, 1 << 32),
        (RegisterName::DR7, 1 << 32),
        (RegisterName::SPEC_CTRL, 1 << 10),
        (RegisterName::TSC_AUX, 1 << 32),
        (RegisterName::LSTAR, 1 << 63),
        (RegisterName::CSTAR, 1 << 48),
        (RegisterName::KERNEL_GS_BASE, 0x8000_0000_0000),
        (RegisterName::APIC_BASE, 1),
        (RegisterName::HYPERCALL, 1 << 50 | 1),
        (RegisterName::REFERENCE_TSC, 1 << 50 | 1),
    ] {
        if name == RegisterName::HYPERCALL {
            assert_eq!(cpu.set(id, 0, RegisterName::GUEST_OS_ID, 1u64), Ok(()));
        }
        let before = cpu.get_u64(id, 0, name);
        assert_eq!(
            cpu.set(id, 0, name, value),
            Err(HvStatus::INVALID_REGISTER_VALUE),
            "{name:?} = {value:#x}"
        );
        assert_eq!(cpu.get_u64(id, 0, name), before);
    }
    for name in [RegisterName(0x7777_7777), RegisterName(0), RegisterName(0x2_0012)] {
        let known = cpu.get(id, 0, name).is_ok();
        assert_eq!(cpu.set(id, 0, name, 1u64).is_ok(), known, "{name:?}");
    }
    for name in [RegisterName::VP_INDEX, RegisterName::VP_ROOT_SIGNAL_COUNT, RegisterName::TIME_REF_COUNT] {
        assert_eq!(cpu.set(id, 0, name, 1u64), Err(HvStatus::INVALID_PARAMETER), "{name:?} is read-only");
    }
}

#[test]
fn lists_of_registers_stop_at_the_first_bad_one() {
    let mut child = Child::new();
    let (id, cpu) = (child.id, &mut child.rig.cpus[0]);
    let assoc = |name, value: u64| {
        let mut assoc = parterre_abi::registers::RegisterAssoc::new_zeroed();
        (assoc.name, assoc.value) = (name, value.into());
        assoc
    };
    let list = [
        assoc(RegisterName::RAX, 1),
        assoc(RegisterName::RCX, 2),
        assoc(RegisterName::CR8, 99),
        assoc(RegisterName::RDX, 3),
    ];
    let set = cpu.rep(Code::SET_VP_REGISTERS, &registers_of(id, 0), &list, [0, 4]);
    assert_eq!(set, (HvStatus::INVALID_REGISTER_VALUE, 2));
    let values: Vec<_> =
        [RegisterName::RAX, RegisterName::RCX].iter().map(|name| cpu.get_u64(id, 0, *name)).collect();
    assert_eq!(values, [1, 2]);
    let rest = cpu.rep(Code::SET_VP_REGISTERS, &registers_of(id, 0), &list, [3, 4]);
    assert_eq!(rest, (HvStatus::SUCCESS, 4));
    assert_eq!(cpu.get_u64(id, 0, RegisterName::RDX), 3);
    // 127 fit the input page, not more.
    let many = std::vec![assoc(RegisterName::RBX, 4); 127];
    assert_eq!(
        cpu.rep(Code::SET_VP_REGISTERS, &registers_of(id, 0), &many, [0, 127]),
        (HvStatus::SUCCESS, 127)
    );
    let too_many = cpu.rep(Code::SET_VP_REGISTERS, &registers_of(id, 0), &many, [0, 128]);
    assert_eq!(too_many, (HvStatus::INVALID_ALIGNMENT, 127));
    let names = std::vec![RegisterName::RBX; 256];
    assert_eq!(
        cpu.rep(Code::GET_VP_REGISTERS, &registers_of(id, 0), &names, [0, 256]),
        (HvStatus::SUCCESS, 256)
    );
}

#[test]
fn cpuid_counts_the_processors_that_there_are() {
    let mut child = Child::new();
    let count = |child: &mut Child| child.cpuid(0xB, 1)[1];
    assert_eq!(count(&mut child), 1);
    child.rig.vp(child.id, 1);
    child.rig.vp(child.id, 2);
    assert_eq!(count(&mut child), 3);
    assert_eq!(child.rig.cpu().simple(Code::DELETE_VP, &[child.id.0, 2]), Ok(()));
    assert_eq!(count(&mut child), 2);
    assert_eq!(child.cpuid(0xB, 0)[3], 0, "its own id");
}
