//! The model-specific registers of a child. Those that the processor switches itself never come here; the rest is answered
//! here or does not exist.

mod architectural;

use super::{Child, Inner, Vp, privileges};
use crate::{
    apic,
    hypervisor::Hypervisor,
    machine::{Machine, Reg, Vcpu},
};
use architectural::number::{TSC, TSC_DEADLINE, X2APIC_FIRST, X2APIC_LAST};
use core::sync::atomic::Ordering::SeqCst;
use parterre_abi::{
    hypercall::{InterceptAccessTypeMask, InterceptType},
    msr::{self, HypercallMsr},
};

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
        if let Some(value) = self.architectural(hv, vp, inner, number) {
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

    fn synthetic(&self, hv: &Hypervisor<M>, vp: &Vp<M>, inner: &mut Inner<M>, number: u32) -> Option<u64> {
        let machine = &hv.machine;
        Some(match number {
            msr::GUEST_OS_ID => self.guest_os_id.load(SeqCst),
            msr::HYPERCALL => self.hypercall_msr.load(SeqCst),
            msr::VP_INDEX => u64::from(vp.index),
            msr::VP_RUNTIME => inner.counts.run_time(hv),
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
        if number == msr::VP_ASSIST_PAGE {
            return Some(self.set_assist(hv, vp, inner, value));
        }
        self.set_architectural(hv, vp, inner, number, value)
            .or_else(|| self.set_synthetic(hv, number, value))
            .or_else(|| self.write_synic(hv, vp, number, value))
            .or_else(|| self.set_timer(hv, inner, number, value))
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

    /// Whether the guest can call the hypervisor.
    pub(super) fn may_call(&self) -> bool {
        self.guest_os_id.load(SeqCst) != 0
    }
}

/// What CRASH_CTL reads: a message can be left, a crash can be told.
const CRASH_CAPABILITIES: u64 = 1 << 63 | 1 << 62;
