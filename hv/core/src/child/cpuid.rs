//! What CPUID tells a child: of the physical processor what a partition can have, less what the parent took away, plus the
//! hypervisor's leaves; and over that the leaves that the parent answers itself.

use super::{Child, Policy, cr4, privileges};
use crate::{
    features,
    hypervisor::Hypervisor,
    machine::{Machine, Reg, Vcpu},
    version, xstate,
};
use core::sync::atomic::Ordering::SeqCst;
use parterre_abi::{
    cpuid::{self as leaf, HardwareFeatures, PrivilegeMask},
    hypercall::PartitionCreationFlags,
};

/// A leaf that the parent answers (`HvCallRegisterInterceptResult`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuidOverride {
    /// The leaf.
    pub leaf: u32,
    /// The subleaf, if only that one is meant.
    pub subleaf: Option<u32>,
    /// Values of EAX, EBX, ECX, EDX.
    pub values: [u32; 4],
    /// The bits of each that count.
    pub masks: [u32; 4],
}

/// The hypervisor's last leaf for children.
const LAST_LEAF: u32 = leaf::HARDWARE_FEATURES;
/// Basic and extended leaves beyond these say nothing to a child.
const LAST_BASIC: u32 = 0x0D;
const LAST_EXTENDED: u32 = 0x8000_0021;

/// Bits of CPUID.1 ECX that a child cannot have: DTES64, MONITOR, DS-CPL, VMX, SMX, EST, TM2, CNXT-ID, SDBG, xTPR, PDCM, DCA,
/// and those shown by other rules: x2APIC, OSXSAVE.
const ECX1_CLEAR: u32 = 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 10
    | 1 << 11
    | 1 << 14
    | 1 << 15
    | 1 << 18
    | 1 << 21
    | 1 << 27;
const ECX1_X2APIC: u32 = 1 << 21;
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_OSXSAVE: u32 = 1 << 27;
/// CPUID.1 EDX: PSN, DS, ACPI, HTT, TM, PBE.
const EDX1_CLEAR: u32 = 1 << 18 | 1 << 21 | 1 << 22 | 1 << 28 | 1 << 29 | 1 << 31;
const EDX1_HTT: u32 = 1 << 28;
/// CPUID.7.0 EBX: TSC_ADJUST, SGX, PQM, PQE, PT.
const EBX7_CLEAR: u32 = 1 << 1 | 1 << 2 | 1 << 12 | 1 << 15 | 1 << 25;
/// CPUID.7.0 ECX: OSPKE (shown by CR4), WAITPKG, CET_SS, TME, LA57, KL, BUS_LOCK, ENQCMD, SGX_LC, PKS.
const ECX7_CLEAR: u32 =
    1 << 4 | 1 << 5 | 1 << 7 | 1 << 13 | 1 << 16 | 1 << 23 | 1 << 24 | 1 << 29 | 1 << 30 | 1 << 31;
const ECX7_OSPKE: u32 = 1 << 4;
/// CPUID.7.0 EDX: UINTR, HYBRID, PCONFIG, LBR, CET_IBT, AMX, L1D_FLUSH, ARCH_CAPABILITIES, CORE_CAPABILITIES.
const EDX7_CLEAR: u32 = 1 << 5
    | 1 << 15
    | 1 << 18
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 24
    | 1 << 25
    | 1 << 28
    | 1 << 29
    | 1 << 30;
/// CPUID.80000001 ECX: SVM, OSVW, IBS, SKINIT, WDT, LWP, NodeId, TopologyExtensions, PerfCtrExtCore, PerfCtrExtNB,
/// DataBreakpointExtension, PerfTsc, PerfCtrExtLLC, MONITORX.
const EXT_ECX_CLEAR: u32 = 1 << 2
    | 1 << 9
    | 1 << 10
    | 1 << 12
    | 1 << 13
    | 1 << 15
    | 1 << 19
    | 1 << 22
    | 1 << 23
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 28
    | 1 << 29;
/// CPUID.80000008 EBX that a child can have: CLZERO, XSAVE of error pointers, WBNOINVD, IBPB, IBRS, STIBP, and what says
/// that a processor is not vulnerable.
const EBX8_KEEP: u32 = 1 << 0 | 1 << 2 | 1 << 9 | 1 << 12 | 1 << 14 | 1 << 15 | 1 << 26 | 1 << 29;
/// CPUID.80000021 EAX: LFENCE serializes, null selectors clear bases, automatic IBRS.
const EAX21_KEEP: u32 = 1 << 2 | 1 << 6 | 1 << 8;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;

/// Answers CPUID for virtual processor `index`.
pub(super) fn answer<M: Machine>(
    hv: &Hypervisor<M>,
    child: &Child<M>,
    index: u32,
    vcpu: &M::Vcpu,
    eax: u32,
    ecx: u32,
) -> [u32; 4] {
    let policy = child.policy.read();
    let mut answer = match eax {
        leaf::FIRST..=leaf::LAST => hypervisor_leaf(&hv.machine, &policy, eax),
        // Shown to a guest that has said that it can live with it.
        0x8000_0007 => {
            let shown = policy.has_invariant_tsc(&hv.machine) && child.tsc_invariant.load(SeqCst) & 1 != 0;
            [0, 0, 0, u32::from(shown) << 8]
        }
        _ => processor_leaf(&hv.machine, &policy, vcpu, index, (eax, ecx)),
    };
    put_overrides(&policy, (eax, ecx), &mut answer);
    answer
}

/// What the parent answers itself.
#[inline(always)]
fn put_overrides(policy: &Policy, (eax, ecx): (u32, u32), answer: &mut [u32; 4]) {
    for over in
        policy.cpuid.iter().filter(|o| o.leaf == eax && o.subleaf.is_none_or(|subleaf| subleaf == ecx))
    {
        for (word, (value, mask)) in answer.iter_mut().zip(over.values.iter().zip(over.masks)) {
            *word = *word & !mask | value & mask;
        }
    }
}

/// Bits of CR4 that the processor has, and which of them a child may set: those that its CPUID tells of.
#[cold]
#[inline(never)]
pub(super) fn cr4<M: Machine>(machine: &M, policy: &Policy) -> Cr4 {
    let existing = cr4::told(|leaf, subleaf| {
        let there = subleaf == 0 || machine.cpuid(leaf, 0)[0] >= subleaf;
        if there { machine.cpuid(leaf, subleaf) } else { [0; 4] }
    });
    let allowed = cr4::told(|leaf, subleaf| {
        let mut answer = [0; 4];
        if subleaf == 0 {
            answer = machine.cpuid(leaf, 0);
            clear(leaf, &mut answer);
            features::take_away(leaf, &mut answer, policy.disabled);
        }
        put_overrides(policy, (leaf, subleaf), &mut answer);
        answer
    });
    Cr4 { existing, allowed: allowed & existing }
}

/// See [`cr4`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) struct Cr4 {
    pub existing: u64,
    pub allowed: u64,
}

/// Takes out of a leaf's features what no child can have.
#[cold]
#[inline(never)]
fn clear(leaf: u32, r: &mut [u32; 4]) {
    match leaf {
        1 => {
            r[2] &= !ECX1_CLEAR;
            r[3] &= !EDX1_CLEAR;
        }
        7 => {
            r[1] &= !EBX7_CLEAR;
            r[2] &= !ECX7_CLEAR;
            r[3] &= !EDX7_CLEAR;
        }
        0x8000_0001 => r[2] &= !EXT_ECX_CLEAR,
        _ => {}
    }
}

fn processor_leaf<M: Machine>(
    machine: &M,
    policy: &Policy,
    vcpu: &M::Vcpu,
    index: u32,
    (eax, ecx): (u32, u32),
) -> [u32; 4] {
    let mut r = machine.cpuid(eax, ecx);
    let processors = policy.processors();
    match eax {
        0 => r[0] = r[0].clamp(0x0B, LAST_BASIC),
        1 => basic(policy, vcpu, index, processors, &mut r),
        // Caches and TLBs, as far as they say nothing about cores.
        2 | 0x8000_0000..=0x8000_0006 => extended(eax, &mut r),
        4 => r[0] &= 0x3FFF,
        // The local APIC's timer does not stop.
        6 => r = [1 << 2, 0, 0, 0],
        7 if ecx == 0 => structured(vcpu, &mut r),
        0x0B => r = topology(ecx, index, processors),
        0x0D => r = xsave_leaf(machine, policy, vcpu, ecx, r),
        0x8000_0008 => {
            let bits = apic_id_bits(processors);
            r = [
                r[0] & 0xFF00 | u32::from(policy.physical_bits),
                r[1] & EBX8_KEEP,
                bits << 12 | (processors - 1),
                0,
            ];
        }
        0x8000_0019 | 0x8000_001A => {}
        0x8000_0021 => r = [r[0] & EAX21_KEEP, 0, 0, 0],
        _ => r = [0; 4],
    }
    if ecx == 0 || eax != 7 {
        features::take_away(eax, &mut r, policy.disabled);
    }
    r
}

fn basic<V: Vcpu>(policy: &Policy, vcpu: &V, index: u32, processors: u32, r: &mut [u32; 4]) {
    r[1] = r[1] & 0xFFFF | (index & 0xFF) << 24 | processors.min(255) << 16;
    clear(1, r);
    r[2] |= leaf::HYPERVISOR_PRESENT | ECX1_TSC_DEADLINE;
    if policy.flags.contains(PartitionCreationFlags::X2APIC_CAPABLE) {
        r[2] |= ECX1_X2APIC;
    }
    if vcpu.get(Reg::Cr4) & CR4_OSXSAVE != 0 {
        r[2] |= ECX1_OSXSAVE;
    }
    if processors > 1 {
        r[3] |= EDX1_HTT;
    }
}

fn structured<V: Vcpu>(vcpu: &V, r: &mut [u32; 4]) {
    r[0] = r[0].min(1);
    clear(7, r);
    if vcpu.get(Reg::Cr4) & CR4_PKE != 0 {
        r[2] |= ECX7_OSPKE;
    }
}

fn extended(eax: u32, r: &mut [u32; 4]) {
    match eax {
        0x8000_0000 => r[0] = r[0].min(LAST_EXTENDED),
        0x8000_0001 => clear(eax, r),
        _ => {}
    }
}

/// How many bits of an APIC id tell processors of a socket apart.
fn apic_id_bits(processors: u32) -> u32 {
    processors.next_power_of_two().trailing_zeros()
}

/// Extended topology: one thread to a core, all cores in a socket.
fn topology(level: u32, index: u32, processors: u32) -> [u32; 4] {
    match level {
        0 => [0, 1, 1 << 8, index],
        1 => [apic_id_bits(processors), processors, 2 << 8 | 1, index],
        _ => [0, 0, level & 0xFF, index],
    }
}

fn xsave_leaf<M: Machine>(machine: &M, policy: &Policy, vcpu: &M::Vcpu, ecx: u32, r: [u32; 4]) -> [u32; 4] {
    match ecx {
        0 => {
            let size = xstate::size(machine, vcpu.get(Reg::Xcr0));
            [policy.xsave as u32, size, xstate::size(machine, policy.xsave), (policy.xsave >> 32) as u32]
        }
        // XSAVEOPT and XGETBV with ECX = 1; compaction and supervisor state are not there.
        1 => [r[0] & 0b101, 0, 0, 0],
        2..63 if policy.xsave & 1 << ecx != 0 => [r[0], r[1], 0, 0],
        _ => [0; 4],
    }
}

fn hypervisor_leaf<M: Machine>(machine: &M, policy: &Policy, eax: u32) -> [u32; 4] {
    let features = policy.features;
    match eax {
        leaf::VENDOR_AND_MAX_FUNCTION => [LAST_LEAF, leaf::VENDOR[0], leaf::VENDOR[1], leaf::VENDOR[2]],
        leaf::INTERFACE => [leaf::INTERFACE_SIGNATURE, 0, 0, 0],
        leaf::VERSION => version::cpuid(),
        leaf::FEATURES => {
            let mut privileges = privileges::privileges(features);
            privileges.set(PrivilegeMask::ACCESS_TSC_INVARIANT_CONTROLS, policy.has_invariant_tsc(machine));
            [privileges.eax(), privileges.ebx(), 0, privileges::features(features).bits()]
        }
        leaf::ENLIGHTENMENTS => {
            [privileges::enlightenments(features).bits(), privileges::spin_count(features), 0, 0]
        }
        leaf::IMPLEMENTATION_LIMITS => [super::MAX_VPS, super::MAX_VPS, 0, 0],
        leaf::HARDWARE_FEATURES => {
            let eax = HardwareFeatures::MSR_BITMAPS | HardwareFeatures::SECOND_LEVEL_ADDRESS_TRANSLATION;
            [eax.bits(), 0, 0, 0]
        }
        _ => [0; 4],
    }
}
