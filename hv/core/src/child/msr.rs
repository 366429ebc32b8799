//! The model-specific registers of a child. Those that the processor switches itself never come here; the rest is answered
//! here or does not exist.

use super::{Child, Inner, Vp, privileges, registers::is_valid_pat};
use crate::{
    apic,
    hypervisor::Hypervisor,
    machine::{Access, Machine, Reg, Vcpu},
    memory::{OverlayId, Visible},
};
use core::sync::atomic::Ordering::SeqCst;
use parterre_abi::{
    hypercall::{InterceptAccessTypeMask, InterceptType},
    msr::{self, HypercallMsr, OverlayPageMsr},
};
use zerocopy::IntoBytes;

/// What a register access comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome<T> {
    /// It is done.
    Done(T),
    /// It raises #GP(0).
    Fault,
    /// The parent answers it.
    Intercept,
}

/// Architectural registers.
mod number {
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

/// Whether writing a register may change when a timer is due, besides those of the local APIC, which says so itself.
pub(super) fn sets_time(number: u32) -> bool {
    matches!(number, TSC | TSC_DEADLINE | msr::STIMER0_CONFIG..=msr::STIMER3_COUNT)
}

impl<M: Machine> Child<M> {
    /// RDMSR of virtual processor `vp`.
    pub(super) fn read_msr(
        &self,
        hv: &Hypervisor<M>,
        vp: &Vp<M>,
        inner: &mut Inner<M>,
        number: u32,
    ) -> Outcome<u64> {
        if self.intercepts_msr(number, InterceptAccessTypeMask::READ) {
            return Outcome::Intercept;
        }
        if let Some(value) = self.architectural(vp, inner, number, hv.machine.tsc()) {
            return value.map_or(Outcome::Fault, Outcome::Done);
        }
        if !self.may(privileges::of_register(number)) {
            return Outcome::Fault;
        }
        match self.synthetic(hv, vp, inner, number) {
            Some(value) => Outcome::Done(value),
            None => self.unknown(0),
        }
    }

    /// Registers of the processor; the outer `None` for others, the inner for those that fault.
    fn architectural(&self, vp: &Vp<M>, inner: &mut Inner<M>, number: u32, tsc: u64) -> Option<Option<u64>> {
        let vcpu = &inner.vcpu;
        Some(Some(match number {
            X2APIC_FIRST..=X2APIC_LAST => {
                let context = inner.context(vp, self.clock.read().effective(tsc));
                return Some(inner.apic.read_msr(number, &context).ok());
            }
            TSC => tsc.wrapping_add(vcpu.get(Reg::TscOffset)),
            APIC_BASE => inner.apic.base().bits(),
            TSC_DEADLINE => inner.apic.tsc_deadline(),
            EFER => vcpu.get(Reg::Efer),
            PAT => vcpu.get(Reg::Pat),
            TSC_AUX => vcpu.get(Reg::TscAux),
            SPEC_CTRL => vcpu.get(Reg::SpecCtrl),
            // A current microcode, so that nobody tries to load one.
            MICROCODE_REVISION => 0xFFFF_FFFF_0000_0000,
            MISC_ENABLE => 1,
            DE_CFG => LFENCE_SERIALIZES,
            VM_CR => VM_CR_DISABLED,
            PLATFORM_ID | MCG_CAP | MCG_STATUS | DEBUG_CTL | XSS | SYSCFG | HWCR | NB_CFG | TSEG_MASK
            | LS_CFG => 0,
            number => return mtrr(number).map(|index| Some(self.policy.read().mtrr(index))),
        }))
    }

    fn synthetic(&self, hv: &Hypervisor<M>, vp: &Vp<M>, inner: &mut Inner<M>, number: u32) -> Option<u64> {
        let machine = &hv.machine;
        Some(match number {
            msr::GUEST_OS_ID => self.guest_os_id.load(SeqCst),
            msr::HYPERCALL => self.hypercall_msr.load(SeqCst),
            msr::VP_INDEX => u64::from(vp.index),
            msr::VP_RUNTIME => inner.counts.run_time(machine),
            // The caller lets it idle.
            msr::GUEST_IDLE => 0,
            msr::TSC_INVARIANT_CONTROL if self.policy.read().has_invariant_tsc(machine) => {
                self.tsc_invariant.load(SeqCst)
            }
            msr::TIME_REF_COUNT => self.clock.read().reference_time(machine.tsc()),
            msr::REFERENCE_TSC => self.reference_tsc_msr.load(SeqCst),
            msr::TSC_FREQUENCY => machine.tsc_frequency(),
            msr::APIC_FREQUENCY => machine.apic_frequency(),
            msr::ICR => inner.apic.read_synthetic_icr().ok()?,
            msr::TPR => inner.apic.read_synthetic_tpr(inner.vcpu.get(Reg::Cr8) as u8),
            msr::VP_ASSIST_PAGE => inner.assist.register,
            msr::CRASH_P0..=msr::CRASH_P4 => self.crash[(number - msr::CRASH_P0) as usize].load(SeqCst),
            msr::CRASH_CTL => CRASH_CAPABILITIES,
            number => return vp.synic.read(number).or_else(|| inner.timers.read(number)),
        })
    }

    /// What an access to a register that does not exist comes to.
    fn unknown<T>(&self, ignored: T) -> Outcome<T> {
        let policy = self.policy.read();
        if policy.intercepts(InterceptType::X64_MSR) {
            Outcome::Intercept
        } else if policy.ignore_unknown_msrs {
            Outcome::Done(ignored)
        } else {
            Outcome::Fault
        }
    }

    /// WRMSR of virtual processor `vp`. The effect is of the local APIC's.
    pub(super) fn write_msr(
        &self,
        hv: &Hypervisor<M>,
        vp: &Vp<M>,
        inner: &mut Inner<M>,
        number: u32,
        value: u64,
    ) -> Outcome<apic::Effect> {
        if self.intercepts_msr(number, InterceptAccessTypeMask::WRITE) {
            return Outcome::Intercept;
        }
        if !self.may(privileges::of_register(number)) {
            return Outcome::Fault;
        }
        let effect = match number {
            X2APIC_FIRST..=X2APIC_LAST | msr::EOI | msr::ICR | msr::TPR => {
                self.write_apic(hv, vp, inner, number, value)
            }
            _ => match self.set_msr(hv, vp, inner, number, value) {
                Some(done) => done.map(|()| apic::Effect::None),
                None => return self.unknown(apic::Effect::None),
            },
        };
        effect.map_or(Outcome::Fault, Outcome::Done)
    }

    fn write_apic(
        &self,
        hv: &Hypervisor<M>,
        vp: &Vp<M>,
        inner: &mut Inner<M>,
        number: u32,
        value: u64,
    ) -> Option<apic::Effect> {
        let context = inner.context(vp, self.clock.read().effective(hv.machine.tsc()));
        let effect = match number {
            msr::EOI => inner.apic.write_synthetic_eoi(value, &context),
            msr::ICR => inner.apic.write_synthetic_icr(value, &context),
            msr::TPR => inner.apic.write_synthetic_tpr(value),
            _ => inner.apic.write_msr(number, value, &context),
        };
        effect.ok()
    }

    /// The outer `None` for registers that do not exist, the inner for values that fault.
    fn set_msr(
        &self,
        hv: &Hypervisor<M>,
        vp: &Vp<M>,
        inner: &mut Inner<M>,
        number: u32,
        value: u64,
    ) -> Option<Option<()>> {
        let now = hv.machine.tsc();
        let allowed = |allowed: bool| allowed.then_some(());
        Some(match number {
            TSC => {
                inner.vcpu.set(Reg::TscOffset, value.wrapping_sub(now));
                Some(())
            }
            APIC_BASE => inner.apic.write_base(value, &vp.incoming).ok(),
            TSC_DEADLINE => {
                inner.apic.write_tsc_deadline(value);
                Some(())
            }
            EFER => inner.set_efer_as_guest(value),
            PAT => inner.set_checked(Reg::Pat, value, is_valid_pat(value)).ok(),
            TSC_AUX => inner.set_checked(Reg::TscAux, value, value >> 32 == 0).ok(),
            SPEC_CTRL => inner.set_checked(Reg::SpecCtrl, value, value & !7 == 0).ok(),
            PRED_CMD => allowed(value & !1 == 0 && hv.machine.write_msr(PRED_CMD, value)),
            XSS | DEBUG_CTL => allowed(value == 0),
            MTRR_CAP => None,
            // Passed over, as hypervisors do: what they would change is not a partition's.
            MICROCODE_UPDATE | PATCH_LOADER | MICROCODE_REVISION | PLATFORM_ID | MCG_STATUS | HWCR
            | NB_CFG | LS_CFG | DE_CFG | MISC_ENABLE => Some(()),
            msr::VP_ASSIST_PAGE => self.set_assist(hv, vp, inner, value),
            number => match mtrr(number) {
                Some(index) if is_valid_mtrr(number, value, self.policy.read().physical_bits) => {
                    self.policy.write().set_mtrr(index, value);
                    Some(())
                }
                Some(_) => None,
                None => {
                    return self
                        .set_synthetic(hv, number, value)
                        .or_else(|| self.write_synic(hv, vp, number, value))
                        .or_else(|| self.set_timer(hv, inner, number, value));
                }
            },
        })
    }

    fn set_synthetic(&self, hv: &Hypervisor<M>, number: u32, value: u64) -> Option<Option<()>> {
        Some(match number {
            msr::GUEST_OS_ID => {
                self.guest_os_id.store(value, SeqCst);
                if value == 0 {
                    let enabled = HypercallMsr::from(self.hypercall_msr.load(SeqCst)).with_enabled(false);
                    return Some(self.set_hypercall_msr(hv, enabled.into()));
                }
                Some(())
            }
            msr::HYPERCALL => self.set_hypercall_msr(hv, value),
            msr::REFERENCE_TSC => self.set_reference_tsc_msr(hv, value),
            msr::CRASH_P0..=msr::CRASH_P4 => {
                self.crash[(number - msr::CRASH_P0) as usize].store(value, SeqCst);
                Some(())
            }
            msr::CRASH_CTL => Some(()),
            msr::TSC_INVARIANT_CONTROL if self.policy.read().has_invariant_tsc(&hv.machine) => {
                if value & !1 != 0 {
                    return Some(None);
                }
                self.tsc_invariant.store(value, SeqCst);
                Some(())
            }
            msr::VP_INDEX
            | msr::VP_RUNTIME
            | msr::TIME_REF_COUNT
            | msr::TSC_FREQUENCY
            | msr::APIC_FREQUENCY
            | msr::GUEST_IDLE => None,
            _ => return None,
        })
    }

    /// Writes a register of a synthetic timer. The caller looks at the timers next.
    pub(super) fn set_timer(
        &self,
        hv: &Hypervisor<M>,
        inner: &mut Inner<M>,
        number: u32,
        value: u64,
    ) -> Option<Option<()>> {
        let written = inner.timers.write(number, value, self.reference_time(hv))?;
        Some(written.ok())
    }

    /// Writes the hypercall page register: lays the page over the guest's memory, or takes it off. `None` refuses.
    pub(super) fn set_hypercall_msr(&self, hv: &Hypervisor<M>, value: u64) -> Option<()> {
        const RET: u8 = 0xC3;
        let old = HypercallMsr::from(self.hypercall_msr.load(SeqCst));
        if old.locked() {
            return Some(());
        }
        let mut new = HypercallMsr::from(value);
        new.set_enabled(new.enabled() && self.guest_os_id.load(SeqCst) != 0);
        let call = M::HYPERCALL_INSTRUCTION;
        let code = [call[0], call[1], call[2], RET];
        let place = new.enabled().then(|| new.page_number());
        self.overlay(hv, OverlayId::Hypercall, place, &code, Access::READ | Access::EXECUTE)?;
        self.hypercall_msr.store(new.into(), SeqCst);
        Some(())
    }

    /// Writes the reference TSC page register. `None` refuses.
    pub(super) fn set_reference_tsc_msr(&self, hv: &Hypervisor<M>, value: u64) -> Option<()> {
        let new = OverlayPageMsr::from(value);
        let contents = self.clock.read().page();
        let place = new.enabled().then(|| new.page_number());
        self.overlay(hv, OverlayId::ReferenceTsc, place, contents.as_bytes(), Access::READ)?;
        self.reference_tsc_msr.store(value, SeqCst);
        Some(())
    }

    /// Puts the start of an overlay page where `place` says, or takes the page off.
    fn overlay(
        &self,
        hv: &Hypervisor<M>,
        id: OverlayId,
        place: Option<u64>,
        bytes: &[u8],
        access: Access,
    ) -> Option<()> {
        let overlays = self.overlays.lock();
        let frame = overlays.get(Self::overlay_index(id)?)?.as_ref()?;
        self.lay(hv, id, place, frame, bytes, access)
    }

    /// Writes the VP assist page register. `None` refuses.
    pub(super) fn set_assist(
        &self,
        hv: &Hypervisor<M>,
        vp: &Vp<M>,
        inner: &mut Inner<M>,
        value: u64,
    ) -> Option<()> {
        let new = OverlayPageMsr::from(value);
        let place = new.enabled().then(|| new.page_number());
        let id = OverlayId::VpAssist(vp.index);
        inner.require_eoi(&hv.machine);
        self.lay(hv, id, place, &inner.assist.page, &[0; 4], Access::READ | Access::WRITE)?;
        inner.assist.register = value;
        Some(())
    }

    /// Lays a page of the hypervisor over the guest's memory, its first bytes set to `bytes`, or takes it off. `None` if there
    /// is no such place.
    pub(super) fn lay(
        &self,
        hv: &Hypervisor<M>,
        id: OverlayId,
        place: Option<u64>,
        frame: &Visible,
        bytes: &[u8],
        access: Access,
    ) -> Option<()> {
        self.with_space(hv, |space, tables| {
            match place {
                Some(page) => {
                    hv.machine.write_frame(frame.frame(), 0, bytes);
                    let placed = space.place_overlay(tables, id, page, frame, access);
                    placed.map(|_| ()).map_err(|_| parterre_abi::status::HvStatus::INVALID_PARAMETER)?;
                }
                None => {
                    space.remove_overlay(tables, id);
                }
            }
            Ok(())
        })
        .ok()?;
        // What lay under the page must not be reached through cached translations, nor the page itself afterwards.
        self.translations.advance();
        for vp in self.vps() {
            vp.schedule.interrupt(&hv.machine);
        }
        Some(())
    }

    /// Whether the guest can call the hypervisor.
    pub(super) fn may_call(&self) -> bool {
        self.guest_os_id.load(SeqCst) != 0
    }
}

/// What CRASH_CTL reads: a message can be left, a crash can be told.
const CRASH_CAPABILITIES: u64 = 1 << 63 | 1 << 62;

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
