//! What this processor's virtualization can do, out of CPUID, and which of its registers an entry does not switch.

use core::arch::x86_64::{__cpuid, __cpuid_count};

/// How the guest's `SPEC_CTRL` register is kept apart from the hypervisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecCtrl {
    /// There is none.
    Absent,
    /// It is a register like others, switched at load and unload.
    Switched,
    /// The control block holds the guest's.
    Virtual,
}

/// How many virtual processor identifiers VMX has (Intel SDM volume 3C, 25.6.12).
const VPIDS: u32 = 1 << 16;

/// Features of the processors; the same on all.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Address space identifiers, 0 (the hypervisor's) included.
    pub asids: u32,
    /// Exits store the next instruction's address.
    pub next_rip: bool,
    /// VMRUN can be told what did not change.
    pub clean_bits: bool,
    /// One address space's translations can be flushed.
    pub flush_by_asid: bool,
    /// V_INTR_PRIO must be one lower than the vector's class: QEMU's emulation lets an interrupt of the TPR's own class
    /// through, the manual does not (APM 2, 15.21.4).
    pub lower_interrupt_priority: bool,
    /// RDTSCP or RDPID, and with them `TSC_AUX`.
    pub tsc_aux: bool,
    /// XSAVES, and with it `XSS`.
    pub xss: bool,
    /// `SPEC_CTRL`.
    pub spec_ctrl: SpecCtrl,
    /// Bits of MXCSR that may be set.
    pub mxcsr: u32,
    /// Extended states that the machine has and that fit an XSAVE area of one page.
    pub xcr0: u64,
}

impl Features {
    /// Asks the processor that this runs on, which has SVM.
    pub fn of_svm() -> Self {
        let svm = __cpuid(0x8000_000a);
        let common = Self::common();
        let spec_ctrl = match common.spec_ctrl {
            SpecCtrl::Switched if svm.edx & 1 << 20 != 0 => SpecCtrl::Virtual,
            other => other,
        };
        Self {
            asids: svm.ebx.max(2),
            next_rip: svm.edx & 1 << 3 != 0,
            clean_bits: svm.edx & 1 << 5 != 0,
            flush_by_asid: svm.edx & 1 << 6 != 0,
            lower_interrupt_priority: is_qemu_emulation(),
            spec_ctrl,
            ..common
        }
    }

    /// Asks the processor that this runs on, which has VMX.
    pub fn of_vmx() -> Self {
        Self { asids: VPIDS, ..Self::common() }
    }

    /// What both vendors' processors tell in the same way.
    fn common() -> Self {
        let extended = __cpuid(0x8000_0001);
        let sizes = __cpuid(0x8000_0008);
        let structured = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0) } else { __cpuid(0x8000_0000) };
        let has_structured = __cpuid(0).eax >= 7;
        // IBRS, STIBP and SSBD of AMD; Intel's way of saying it too.
        let spec_ctrl = sizes.ebx & (1 << 14 | 1 << 15 | 1 << 24) != 0
            || has_structured && structured.edx & (1 << 26 | 1 << 27 | 1 << 31) != 0;
        Self {
            asids: 2,
            next_rip: true,
            clean_bits: false,
            flush_by_asid: false,
            lower_interrupt_priority: false,
            tsc_aux: extended.edx & 1 << 27 != 0 || has_structured && structured.ecx & 1 << 22 != 0,
            xss: __cpuid(0).eax >= 0xd && __cpuid_count(0xd, 1).eax & 1 << 3 != 0,
            spec_ctrl: if spec_ctrl { SpecCtrl::Switched } else { SpecCtrl::Absent },
            // Bit 17 (misaligned operands) exists where CPUID says so.
            mxcsr: 0xffff | (extended.ecx & 1 << 7) << 10,
            xcr0: extended_states(),
        }
    }
}

/// Whether the processor is emulated by QEMU itself, which says so in the hypervisor leaves.
fn is_qemu_emulation() -> bool {
    let hypervisor_present = __cpuid(1).ecx & 1 << 31 != 0;
    let leaf = __cpuid(0x4000_0000);
    let name = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes);
    hypervisor_present && name.as_flattened() == b"TCGTCGTCGTCG"
}

/// The states of XCR0 that lie within a page in the standard format (Intel SDM 1, 13.5); 0 without XSAVE.
fn extended_states() -> u64 {
    if __cpuid(1).ecx & 1 << 26 == 0 || __cpuid(0).eax < 0xd {
        return 0;
    }
    let main = __cpuid_count(0xd, 0);
    let supported = u64::from(main.edx) << 32 | u64::from(main.eax);
    let fits = |state: &u32| {
        let leaf = __cpuid_count(0xd, *state);
        supported & 1 << state != 0 && u64::from(leaf.ebx) + u64::from(leaf.eax) <= 4096
    };
    (2..63).filter(fits).fold(supported & 3, |states, state| states | 1 << state)
}
