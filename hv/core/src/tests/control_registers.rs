//! CR4 of a child, as its code writes it: bits that its CPUID does not tell of raise #GP.

use super::{Rig, steps::*};
use crate::fake::{FakeVcpu, Flow};
use crate::machine::{Event, Exit, Reg, Vcpu, gpr};
use parterre_abi::{
    hypercall::{CpuidResultParameters, HypercallCode as Code, InterceptType, RegisterInterceptResultInput},
    types::{PartitionId, VpIndex},
};
use std::sync::{Arc, Mutex};

const PAE: u64 = 1 << 5;
const PGE: u64 = 1 << 7;
const VMXE: u64 = 1 << 13;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;
const CET: u64 = 1 << 23;
/// CPUID.7.0.
const EBX_SMEP: u32 = 1 << 7;
const EBX_SMAP: u32 = 1 << 20;
const ECX_CET: u32 = 1 << 7;

/// A 64-bit child on a machine with SMEP, SMAP and shadow stacks.
fn child(rig: &mut Rig) -> PartitionId {
    rig.machine.set_cpuid(7, 0, [0, EBX_SMEP | EBX_SMAP, ECX_CET, 0]);
    let (id, _) = rig.guest();
    rig.give_memory(id, 0, 16);
    rig.machine.script(1).code(|vcpu| {
        long_mode(vcpu);
        vcpu.set(Reg::Cr4, PAE);
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    id
}

/// What the code finds after `exit`, or the exception that it raised.
fn after<T: Copy + Default + Send + 'static>(
    rig: &mut Rig,
    id: PartitionId,
    exit: (&[(usize, u64)], Exit),
    look: impl Fn(&FakeVcpu) -> T + Send + 'static,
) -> Result<T, Event> {
    let script = rig.machine.script(1);
    script.take_delivered();
    let found = Arc::new(Mutex::new(T::default()));
    let seen = found.clone();
    script.exit_with(exit.0, exit.1);
    script.code(move |vcpu| {
        *seen.lock().expect("one thread") = look(vcpu);
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    let found = *found.lock().expect("one thread");
    script.take_delivered().pop().map_or(Ok(found), Err)
}

/// MOV CR4, R9, by a machine that says so: CR4 and how far RIP moved.
fn write(rig: &mut Rig, id: PartitionId, value: u64) -> Result<(u64, u64), Event> {
    let exit = Exit::WriteCr4 { register: Some(9), length: Some(4) };
    let before = after(rig, id, (&[], Exit::Pause), |vcpu| vcpu.get(Reg::Rip))?;
    let (cr4, rip) = after(rig, id, (&[(9, value)], exit), |vcpu| (vcpu.get(Reg::Cr4), vcpu.get(Reg::Rip)))?;
    Ok((cr4, rip - before))
}

const GP: Event = Event::Exception(13, Some(0));

#[test]
fn bits_that_cpuid_does_not_tell_of_fault() {
    let mut rig = Rig::new();
    let id = child(&mut rig);
    let refused = after(&mut rig, id, (&[], Exit::Pause), FakeVcpu::refused_cr4);
    assert_eq!(refused, Ok(CET), "what the machine has and no child is told of");
    assert_eq!(write(&mut rig, id, PAE | SMEP | SMAP), Ok((PAE | SMEP | SMAP, 4)));
    for value in [PAE | CET, PAE | VMXE, PAE | 1 << 15, PAE | 1 << 40, SMEP] {
        assert_eq!(write(&mut rig, id, value), Err(GP), "{value:#x}");
    }
    assert_eq!(write(&mut rig, id, PAE), Ok((PAE, 4)));
}

#[test]
fn what_the_parent_takes_away_is_gone_at_the_next_dispatch() {
    let mut rig = Rig::new();
    let id = child(&mut rig);
    assert_eq!(write(&mut rig, id, PAE | SMAP), Ok((PAE | SMAP, 4)));
    let parameters =
        CpuidResultParameters { leaf: 7, ebx_mask: EBX_SMAP, ..CpuidResultParameters::default() };
    let input = RegisterInterceptResultInput {
        partition_id: id,
        vp_index: VpIndex::ANY,
        intercept_type: InterceptType::X64_CPUID,
        parameters: parameters.into(),
    };
    assert_eq!(rig.cpu().simple(Code::REGISTER_INTERCEPT_RESULT, &input), Ok(()));
    let refused = after(&mut rig, id, (&[], Exit::Pause), FakeVcpu::refused_cr4);
    assert_eq!(refused, Ok(CET | SMAP));
    assert_eq!(write(&mut rig, id, PAE | SMAP), Err(GP));
    assert_eq!(write(&mut rig, id, PAE | SMEP), Ok((PAE | SMEP, 4)));
}

#[test]
fn the_instruction_is_decoded_where_the_machine_does_not_say() {
    let mut rig = Rig::new();
    let id = child(&mut rig);
    // MOV CR4, R12; MOV CR3, RAX.
    let script = rig.machine.script(1);
    script.code(|vcpu| {
        vcpu.write_memory(0x3000, &[0x41, 0x0F, 0x22, 0xE4]).expect("memory");
        vcpu.write_memory(0x4000, &[0x0F, 0x22, 0xD8, 0x90]).expect("memory");
        // Page tables: the first GiB as it is.
        for (at, entry) in [(0x5000_u64, 0x6003_u64), (0x6000, 0x7003), (0x7000, 0x83)] {
            vcpu.write_memory(at, &entry.to_le_bytes()).expect("memory");
        }
        vcpu.set(Reg::Cr0, 0x8000_0011);
        vcpu.set(Reg::Cr3, 0x5000);
        vcpu.set(Reg::Rip, 0x3000);
        Flow::Exit(Exit::Pause)
    });
    assert_eq!(rig.cpu().dispatch(id, 0), READY);
    let exit = Exit::WriteCr4 { register: None, length: None };
    let look = |vcpu: &FakeVcpu| (vcpu.get(Reg::Cr4), vcpu.get(Reg::Rip));
    let written = after(&mut rig, id, (&[(12, PAE | PGE), (gpr::RAX, 1)], exit), look);
    assert_eq!(written, Ok((PAE | PGE, 0x3004)));
    script.code(|vcpu| {
        vcpu.set(Reg::Rip, 0x4000);
        Flow::Next
    });
    let other = after(&mut rig, id, (&[(12, 0)], exit), look);
    assert_eq!(other, Ok((PAE | PGE, 0x4000)), "it is another instruction now, for the processor to execute");
}

#[test]
fn translations_are_dropped_when_paging_changes_and_not_else() {
    let mut rig = Rig::new();
    let id = child(&mut rig);
    let script = rig.machine.script(1);
    let flushes = |rig: &mut Rig, value| {
        let before = script.flushes();
        write(rig, id, value).expect("allowed");
        script.flushes() - before
    };
    assert_eq!(flushes(&mut rig, PAE | PGE), 1);
    assert_eq!(flushes(&mut rig, PAE | PGE | 4), 0, "TSD");
    assert_eq!(flushes(&mut rig, PAE), 1);
}
