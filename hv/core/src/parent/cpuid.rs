//! What CPUID tells the parent: the physical processor's answers, less what the hypervisor uses itself, and the
//! hypervisor's own leaves.

use crate::machine::{Machine, Reg, Vcpu};
use crate::version;
use parterre_abi::cpuid::{
    self as leaf, CpuManagement, Enlightenments, Features, FeaturesEcx, HardwareFeatures, PrivilegeMask,
};

/// The hypervisor's last leaf for the parent. The nested leaf 0x4000000A is there and empty.
const LAST_LEAF: u32 = leaf::NESTED_FEATURES;

/// The parent's privileges, in CPUID and in what hypercalls check.
pub(crate) const PRIVILEGES: PrivilegeMask = PrivilegeMask::ACCESS_PARTITION_REFERENCE_COUNTER
    .union(PrivilegeMask::ACCESS_SYNIC_REGS)
    .union(PrivilegeMask::ACCESS_SYNTHETIC_TIMER_REGS)
    .union(PrivilegeMask::ACCESS_HYPERCALL_REGS)
    .union(PrivilegeMask::ACCESS_VP_INDEX)
    .union(PrivilegeMask::ACCESS_RESET_REG)
    .union(PrivilegeMask::ACCESS_PARTITION_REFERENCE_TSC)
    .union(PrivilegeMask::ACCESS_FREQUENCY_REGS)
    .union(PrivilegeMask::CREATE_PARTITIONS)
    .union(PrivilegeMask::ACCESS_PARTITION_ID)
    .union(PrivilegeMask::ACCESS_MEMORY_POOL)
    .union(PrivilegeMask::CREATE_PORT)
    .union(PrivilegeMask::CONNECT_PORT)
    .union(PrivilegeMask::ACCESS_STATS)
    .union(PrivilegeMask::CPU_MANAGEMENT);

/// CPUID.1 ECX and EDX, CPUID.7 EBX: what writes to memory behind the hypervisor's back, the debug store and processor trace.
const ECX1_DTES64: u32 = 1 << 2;
const EDX1_DS: u32 = 1 << 21;
const EBX7_PROCESSOR_TRACE: u32 = 1 << 25;
/// CPUID.1 ECX: VMX, TSC-deadline (the hypervisor owns the timer), OSXSAVE (shown as the parent set CR4).
const ECX1_VMX: u32 = 1 << 5;
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_OSXSAVE: u32 = 1 << 27;
/// CPUID.7 ECX: OSPKE.
const ECX7_OSPKE: u32 = 1 << 4;
/// CPUID.80000001 ECX: SVM, SKINIT.
const EXT_ECX_SVM: u32 = 1 << 2 | 1 << 12;
/// CPUID.80000008 EBX: INVLPGB, which guests can execute only where the hypervisor lets them. EDX: how many pages at once.
const EXT8_EBX_INVLPGB: u32 = 1 << 3;
const EXT8_EDX_INVLPGB_COUNT: u32 = 0xFFFF;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;

/// Answers CPUID for the parent's processor `vcpu`, which runs on the processor that this code runs on.
pub(crate) fn answer<M: Machine>(machine: &M, vcpu: &M::Vcpu, eax: u32, ecx: u32) -> [u32; 4] {
    match eax {
        leaf::FIRST..=leaf::LAST => hypervisor_leaf(machine, eax),
        _ => physical_leaf(machine, vcpu, eax, ecx),
    }
}

fn physical_leaf<M: Machine>(machine: &M, vcpu: &M::Vcpu, eax: u32, ecx: u32) -> [u32; 4] {
    let mut r = machine.cpuid(eax, ecx);
    let cr4 = vcpu.get(Reg::Cr4);
    match eax {
        1 => {
            r[3] &= !EDX1_DS;
            r[2] &= !(ECX1_DTES64 | ECX1_VMX | ECX1_TSC_DEADLINE | ECX1_OSXSAVE);
            r[2] |= leaf::HYPERVISOR_PRESENT;
            if cr4 & CR4_OSXSAVE != 0 {
                r[2] |= ECX1_OSXSAVE;
            }
        }
        7 if ecx == 0 => {
            r[1] &= !EBX7_PROCESSOR_TRACE;
            r[2] &= !ECX7_OSPKE;
            if cr4 & CR4_PKE != 0 {
                r[2] |= ECX7_OSPKE;
            }
        }
        0x8000_0001 => r[2] &= !EXT_ECX_SVM,
        0x8000_0008 => {
            r[1] &= !EXT8_EBX_INVLPGB;
            r[3] &= !EXT8_EDX_INVLPGB_COUNT;
        }
        0x14 | 0x8000_000A => r = [0; 4],
        _ => {}
    }
    r
}

fn hypervisor_leaf<M: Machine>(machine: &M, eax: u32) -> [u32; 4] {
    let processors = machine.processor_count() as u32;
    match eax {
        leaf::VENDOR_AND_MAX_FUNCTION => [LAST_LEAF, leaf::VENDOR[0], leaf::VENDOR[1], leaf::VENDOR[2]],
        leaf::INTERFACE => [leaf::INTERFACE_SIGNATURE, 0, 0, 0],
        leaf::VERSION => version::cpuid(),
        leaf::FEATURES => {
            let edx = Features::FREQUENCY_REGS | Features::DIRECT_SYNTHETIC_TIMERS;
            [PRIVILEGES.eax(), PRIVILEGES.ebx(), FeaturesEcx::empty().bits(), edx.bits()]
        }
        leaf::ENLIGHTENMENTS => [Enlightenments::DEPRECATE_AUTO_EOI.bits(), u32::MAX, 0, 0],
        leaf::IMPLEMENTATION_LIMITS => [processors, processors, 0, 0],
        leaf::HARDWARE_FEATURES => {
            let eax = HardwareFeatures::MSR_BITMAPS | HardwareFeatures::SECOND_LEVEL_ADDRESS_TRANSLATION;
            [eax.bits(), 0, 0, 0]
        }
        leaf::CPU_MANAGEMENT_FEATURES => {
            let eax = CpuManagement::START_LOGICAL_PROCESSOR
                | CpuManagement::CREATE_ROOT_VIRTUAL_PROCESSOR
                | CpuManagement::RESERVED_IDENTITY;
            [eax.bits(), 0, 0, 0]
        }
        _ => [0; 4],
    }
}
