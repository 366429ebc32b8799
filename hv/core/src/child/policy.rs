//! What the parent decided about a child: creation flags, features taken away, properties, intercepts, CPUID overrides.

use super::{ASSIGNABLE, CpuidOverride};
use crate::{machine::Machine, xstate};
use arrayvec::ArrayVec;
use parterre_abi::{
    hypercall::{CreatePartitionInput, InterceptAccessTypeMask, InterceptType, PartitionCreationFlags},
    processor_features::{ProcessorFeatures0, ProcessorFeatures1},
    property::SyntheticProcessorFeatures,
};

/// CPUID overrides that a partition can have.
pub(crate) const OVERRIDES: usize = 32;
/// Single registers that the parent can intercept.
pub(crate) const MSR_INTERCEPTS: usize = 8;
/// MTRR registers, from `HvX64RegisterMsrMtrrCap` on.
const MTRRS: usize = 0x7B - 0x0D;
/// The most bits of a guest-physical address: what four levels of tables translate.
const MAX_PHYSICAL_BITS: u8 = 48;

/// A register whose accesses the parent answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MsrIntercept {
    /// Its number.
    pub msr: u32,
    /// Reads, writes, or both.
    pub access: InterceptAccessTypeMask,
}

/// See the module.
pub(crate) struct Policy {
    /// How it was created.
    pub flags: PartitionCreationFlags,
    /// Processor features that it must not see.
    pub disabled: (ProcessorFeatures0, ProcessorFeatures1),
    /// XSAVE components that it can use.
    pub xsave: u64,
    /// Bits of a guest-physical address.
    pub physical_bits: u8,
    /// Intercepts that the parent has installed, a bit for each type.
    pub intercepts: u32,
    /// Registers whose accesses the parent answers, though the hypervisor could.
    pub msrs: ArrayVec<MsrIntercept, MSR_INTERCEPTS>,
    /// CPUID leaves that the parent answers.
    pub cpuid: ArrayVec<CpuidOverride, OVERRIDES>,
    /// What happens at an MSR that is not implemented: #GP, or reading 0 and ignoring writes.
    pub ignore_unknown_msrs: bool,
    /// Processors in a socket, as CPUID tells; 0: all of them.
    pub processors_per_socket: u32,
    /// How many virtual processors there are.
    pub vp_count: u32,
    /// Synthetic features that it has: all that there are, unless the parent has named some.
    pub features: SyntheticProcessorFeatures,
    /// The memory type range registers, which have no effect: the parent's mappings decide.
    mtrrs: [u64; MTRRS],
}

impl Policy {
    /// The policy of a partition that is being created.
    pub fn new<M: Machine>(machine: &M, input: &CreatePartitionInput) -> Self {
        let bits = (machine.cpuid(0x8000_0008, 0)[0] & 0xFF) as u8;
        let mut mtrrs = [0; MTRRS];
        // MTRRCAP: 8 variable ranges, fixed ranges, write combining. Default type: write back, enabled.
        mtrrs[0] = 0x508;
        mtrrs[1] = 0x806;
        Self {
            flags: input.flags,
            disabled: (input.disabled_processor_features0, input.disabled_processor_features1),
            xsave: xstate::supported(machine),
            physical_bits: bits.clamp(36, MAX_PHYSICAL_BITS),
            intercepts: 0,
            msrs: ArrayVec::new(),
            cpuid: ArrayVec::new(),
            ignore_unknown_msrs: false,
            processors_per_socket: 0,
            vp_count: 0,
            features: ASSIGNABLE,
            mtrrs,
        }
    }

    /// Whether the parent wants to see these intercepts.
    pub fn intercepts(&self, kind: InterceptType) -> bool {
        kind.0 < 32 && self.intercepts & 1 << kind.0 != 0
    }

    /// Whether the time stamp counter ticks at one rate always, and the parent lets the guest know.
    pub fn has_invariant_tsc<M: Machine>(&self, machine: &M) -> bool {
        const INVARIANT: u32 = 1 << 8;
        !self.disabled.1.contains(ProcessorFeatures1::TSC_INVARIANT)
            && machine.cpuid(0x8000_0007, 0)[3] & INVARIANT != 0
    }

    /// Whether the parent answers this kind of access to a register.
    pub fn intercepts_msr(&self, msr: u32, access: InterceptAccessTypeMask) -> bool {
        self.msrs.iter().any(|intercept| intercept.msr == msr && intercept.access.contains(access))
    }

    /// Has the parent answer these accesses to a register from now on, and no others. `false` if there are too many such
    /// registers.
    pub fn intercept_msr(&mut self, msr: u32, access: InterceptAccessTypeMask) -> bool {
        self.msrs.retain(|intercept| intercept.msr != msr);
        access.is_empty() || self.msrs.try_push(MsrIntercept { msr, access }).is_ok()
    }

    /// Whether the parent wants to know when level-triggered interrupts end. Every worker has an IO-APIC, so it does unless it
    /// has said otherwise.
    pub fn reports_eoi(&self) -> bool {
        self.flags.contains(PartitionCreationFlags::EXO_PARTITION)
            || self.intercepts(InterceptType::X64_APIC_EOI)
    }

    /// Processors in a socket, as CPUID tells.
    pub fn processors(&self) -> u32 {
        if self.processors_per_socket != 0 { self.processors_per_socket } else { self.vp_count.max(1) }
    }

    /// An MTRR register, by its distance from MTRRCAP's name.
    pub fn mtrr(&self, index: u32) -> u64 {
        self.mtrrs.get(index as usize).copied().unwrap_or(0)
    }

    /// Sets an MTRR register.
    pub fn set_mtrr(&mut self, index: u32, value: u64) {
        if let Some(mtrr) = self.mtrrs.get_mut(index as usize).filter(|_| index != 0) {
            *mtrr = value;
        }
    }
}
