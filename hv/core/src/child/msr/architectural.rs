//! Registers that the architecture defines: the processor's, and those that a partition has for looks only.

use super::super::{Child, Inner, Vp, registers::is_valid_pat};
use crate::{
    hypervisor::Hypervisor,
    machine::{Machine, Reg, Vcpu},
};

/// Their numbers.
pub(super) mod number {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1B;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const MICROCODE_UPDATE: u32 = 0x79;
    pub const MICROCODE_REVISION: u32 = 0x8B;
    pub const MTRR_CAP: u32 = 0xFE;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17A;
    pub const MISC_ENABLE: u32 = 0x1A0;
    pub const DEBUG_CTL: u32 = 0x1D9;
    pub const MTRR_PHYS_BASE0: u32 = 0x200;
    pub const MTRR_PHYS_LAST: u32 = 0x20F;
    pub const MTRR_FIX_64K: u32 = 0x250;
    pub const MTRR_FIX_16K_80000: u32 = 0x258;
    pub const MTRR_FIX_16K_A0000: u32 = 0x259;
    pub const MTRR_FIX_4K: u32 = 0x268;
    pub const MTRR_FIX_4K_LAST: u32 = 0x26F;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2FF;
    pub const TSC_DEADLINE: u32 = 0x6E0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8FF;
    pub const XSS: u32 = 0xDA0;
    pub const EFER: u32 = 0xC000_0080;
    pub const TSC_AUX: u32 = 0xC000_0103;
    pub const SYSCFG: u32 = 0xC001_0010;
    pub const HWCR: u32 = 0xC001_0015;
    pub const NB_CFG: u32 = 0xC001_001F;
    pub const TSEG_MASK: u32 = 0xC001_0113;
    pub const VM_CR: u32 = 0xC001_0114;
    pub const PATCH_LOADER: u32 = 0xC001_0020;
    pub const LS_CFG: u32 = 0xC001_1020;
    pub const DE_CFG: u32 = 0xC001_1029;
}
use number::*;

/// DE_CFG: LFENCE serializes, as on every processor that partitions meet.
const LFENCE_SERIALIZES: u64 = 1 << 1;
/// VM_CR as a processor without SVM for software has it.
const VM_CR_DISABLED: u64 = 1 << 4 | 1 << 3;

/// The index of an MTRR in [`super::Policy`]'s list, which follows the TLFS names.
fn mtrr(number: u32) -> Option<u32> {
    Some(match number {
        MTRR_CAP => 0,
        MTRR_DEF_TYPE => 1,
        MTRR_PHYS_BASE0..=MTRR_PHYS_LAST => {
            let pair = (number - MTRR_PHYS_BASE0) / 2;
            if number.is_multiple_of(2) { 3 + pair } else { 0x33 + pair }
        }
        MTRR_FIX_64K => 0x63,
        MTRR_FIX_16K_80000 => 0x64,
        MTRR_FIX_16K_A0000 => 0x65,
        MTRR_FIX_4K..=MTRR_FIX_4K_LAST => 0x66 + number - MTRR_FIX_4K,
        _ => return None,
    })
}

/// Whether an MTRR can hold `value` (Intel SDM 3A 12.11.2): memory types that exist, no reserved bits.
fn is_valid_mtrr(number: u32, value: u64, physical_bits: u8) -> bool {
    let is_type = |kind: u8| matches!(kind, 0 | 1 | 4..=6);
    let address = (1u64 << physical_bits.min(63)) - 1;
    match number {
        MTRR_DEF_TYPE => value & !0xCFF == 0 && is_type(value as u8),
        MTRR_PHYS_BASE0..=MTRR_PHYS_LAST if number.is_multiple_of(2) => {
            value & !(address & !0xFFF | 0xFF) == 0 && is_type(value as u8)
        }
        MTRR_PHYS_BASE0..=MTRR_PHYS_LAST => value & !(address & !0xFFF | 1 << 11) == 0,
        _ => value.to_le_bytes().into_iter().all(is_type),
    }
}

/// Where the value of a plain register comes from.
enum Read {
    /// There is none: it can only be written.
    Nowhere,
    /// It is always the same.
    Always(u64),
    /// It is a register of the processor.
    From(Reg),
}

/// Where a value goes that is written to a plain register.
enum Write {
    /// It cannot be written.
    Nowhere,
    /// Passed over, as hypervisors do: what it would change is not a partition's.
    Ignored,
    /// It is zero and stays zero.
    Zero,
    /// Into a register of the processor, if it can hold it.
    To(Reg, fn(u64) -> bool),
}

/// The registers that are no more than a value.
fn plain(number: u32) -> Option<(Read, Write)> {
    let both = |register, is_valid| (Read::From(register), Write::To(register, is_valid));
    Some(match number {
        PAT => both(Reg::Pat, is_valid_pat),
        TSC_AUX => both(Reg::TscAux, |value| value >> 32 == 0),
        SPEC_CTRL => both(Reg::SpecCtrl, |value| value & !7 == 0),
        XSS | DEBUG_CTL => (Read::Always(0), Write::Zero),
        MISC_ENABLE => (Read::Always(1), Write::Ignored),
        DE_CFG => (Read::Always(LFENCE_SERIALIZES), Write::Ignored),
        // A current microcode, so that nobody tries to load one.
        MICROCODE_REVISION => (Read::Always(0xFFFF_FFFF_0000_0000), Write::Ignored),
        MICROCODE_UPDATE | PATCH_LOADER => (Read::Nowhere, Write::Ignored),
        PLATFORM_ID | MCG_STATUS | HWCR | NB_CFG | LS_CFG => (Read::Always(0), Write::Ignored),
        MCG_CAP | SYSCFG | TSEG_MASK => (Read::Always(0), Write::Nowhere),
        VM_CR => (Read::Always(VM_CR_DISABLED), Write::Nowhere),
        _ => return None,
    })
}

impl<M: Machine> Child<M> {
    /// Reads a register of the processor; the outer `None` for others, the inner for those that fault.
    pub(super) fn architectural(
        &self,
        hv: &Hypervisor<M>,
        vp: &Vp<M>,
        inner: &mut Inner<M>,
        number: u32,
    ) -> Option<Option<u64>> {
        let vcpu = &inner.vcpu;
        Some(Some(match number {
            X2APIC_FIRST..=X2APIC_LAST => {
                let context = inner.context(vp, self.now(hv));
                return Some(inner.apic.read_msr(number, &context).ok());
            }
            TSC => hv.machine.tsc().wrapping_add(vcpu.get(Reg::TscOffset)),
            APIC_BASE => inner.apic.base().bits(),
            TSC_DEADLINE => inner.apic.tsc_deadline(),
            EFER => vcpu.get(Reg::Efer),
            number => match plain(number) {
                Some((Read::Always(value), _)) => value,
                Some((Read::From(register), _)) => vcpu.get(register),
                Some((Read::Nowhere, _)) => return None,
                None => return mtrr(number).map(|index| Some(self.policy.read().mtrr(index))),
            },
        }))
    }

    /// Writes one; the outer `None` for registers that are none or that cannot be written, the inner for values that fault.
    pub(super) fn set_architectural(
        &self,
        hv: &Hypervisor<M>,
        vp: &Vp<M>,
        inner: &mut Inner<M>,
        number: u32,
        value: u64,
    ) -> Option<Option<()>> {
        let allowed = |allowed: bool| allowed.then_some(());
        Some(match number {
            TSC => {
                inner.vcpu.set(Reg::TscOffset, value.wrapping_sub(hv.machine.tsc()));
                Some(())
            }
            TSC_DEADLINE => {
                inner.apic.write_tsc_deadline(value);
                Some(())
            }
            APIC_BASE => inner.apic.write_base(value, &vp.incoming).ok(),
            EFER => inner.set_efer_as_guest(value),
            PRED_CMD => allowed(value & !1 == 0 && hv.machine.write_msr(PRED_CMD, value)),
            MTRR_CAP => None,
            number => match plain(number) {
                Some((_, Write::Ignored)) => Some(()),
                Some((_, Write::Zero)) => allowed(value == 0),
                Some((_, Write::To(register, is_valid))) => {
                    inner.set_checked(register, value, is_valid(value)).ok()
                }
                Some((_, Write::Nowhere)) => return None,
                None => allowed(self.set_mtrr(number, mtrr(number)?, value)),
            },
        })
    }

    fn set_mtrr(&self, number: u32, index: u32, value: u64) -> bool {
        let valid = is_valid_mtrr(number, value, self.policy.read().physical_bits);
        if valid {
            self.policy.write().set_mtrr(index, value);
        }
        valid
    }
}

impl<M: Machine> Inner<M> {
    /// The guest writes EFER: LMA is the processor's, and LME cannot change while paging is on.
    fn set_efer_as_guest(&mut self, value: u64) -> Option<()> {
        const LME: u64 = 1 << 8;
        const LMA: u64 = 1 << 10;
        const PG: u64 = 1 << 31;
        let old = self.vcpu.get(Reg::Efer);
        if (value ^ old) & LME != 0 && self.vcpu.get(Reg::Cr0) & PG != 0 {
            return None;
        }
        self.set_efer(value & !LMA | old & LMA).ok()
    }
}
