//! The model-specific registers of the parent that the hypervisor answers for: the synthetic ones, those of the local
//! APIC that it keeps for itself, and those that would take the machine from it.

use super::{
    run::ParentVp,
    startup::{self, Icr},
    synic::PageRegister,
};
use crate::{
    apic, events,
    instruction::Exiting,
    machine::{Machine, Reg, Vcpu, gpr},
};
use core::sync::atomic::Ordering::SeqCst;
use parterre_abi::msr::{self, HypercallMsr, OverlayPageMsr};

/// Architectural registers that core has a say in.
mod number {
    pub const APIC_BASE: u32 = 0x1B;
    pub const FEATURE_CONTROL: u32 = 0x3A;
    pub const MICROCODE_UPDATE: u32 = 0x79;
    pub const MICROCODE_REVISION: u32 = 0x8B;
    pub const X2APIC_LVT_TIMER: u32 = 0x832;
    pub const X2APIC_ICR: u32 = 0x830;
    pub const X2APIC_INITIAL_COUNT: u32 = 0x838;
    pub const X2APIC_CURRENT_COUNT: u32 = 0x839;
    pub const X2APIC_DIVIDE: u32 = 0x83E;
    pub const EFER: u32 = 0xC000_0080;
    pub const AMD_MICROCODE_UPDATE: u32 = 0xC001_0020;
    pub const VM_CR: u32 = 0xC001_0114;
    /// The banks of the scalable machine check architecture (AMD APM 2, 9.3.3), which no permission map covers.
    pub const SCALABLE_MCA: core::ops::RangeInclusive<u32> = 0xC000_2000..=0xC000_2FFF;
}
use number::*;

/// EFER bits that the parent may set: SCE, LME, LMA, NXE, FFXSR, TCE, AutoIBRS. LMSLE and SVME are not among them.
const EFER_ALLOWED: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 15 | 1 << 21;
/// VM_CR as a processor has it whose firmware disabled and locked SVM.
const VM_CR_DISABLED: u64 = 1 << 4 | 1 << 3;
/// Feature control as a processor has it whose firmware disabled and locked VMX.
const FEATURE_CONTROL_LOCKED: u64 = 1;

impl<M: Machine> ParentVp<M> {
    /// RDMSR.
    pub(super) fn read_msr(&mut self, number: u32, length: Option<u8>) {
        let Some(value) = self.msr(number) else {
            return events::general_protection(&mut self.vcpu);
        };
        let r = self.vcpu.gprs_mut();
        r[gpr::RAX] = value & 0xFFFF_FFFF;
        r[gpr::RDX] = value >> 32;
        self.skip(length, Exiting::ReadMsr);
    }

    /// WRMSR.
    pub(super) fn write_msr(&mut self, number: u32, value: u64, length: Option<u8>) {
        // What was set until now must not be mistaken for what is being set. The other kind of timer goes on: its
        // interrupt may be due and not have come yet.
        if is_synthetic_timer(number) {
            self.expire_own(false, true);
        } else if is_local_timer(number) {
            self.expire_own(true, false);
        }
        match self.set_msr(number, value) {
            Some(()) => self.skip(length, Exiting::WriteMsr),
            None => events::general_protection(&mut self.vcpu),
        }
    }

    fn msr(&mut self, number: u32) -> Option<u64> {
        let parent = &self.hv.parent;
        let machine = &self.hv.machine;
        Some(match number {
            EFER => self.vcpu.get(Reg::Efer),
            VM_CR => VM_CR_DISABLED,
            FEATURE_CONTROL => machine.read_msr(number).map(|_| FEATURE_CONTROL_LOCKED)?,
            APIC_BASE | X2APIC_ICR | MICROCODE_REVISION => machine.read_msr(number)?,
            number if SCALABLE_MCA.contains(&number) => machine.read_msr(number)?,
            X2APIC_LVT_TIMER | X2APIC_INITIAL_COUNT | X2APIC_CURRENT_COUNT | X2APIC_DIVIDE => {
                self.apic.read_msr(number, &self.apic_context()).ok()?
            }
            msr::GUEST_OS_ID => parent.guest_os_id.load(SeqCst),
            msr::HYPERCALL => HypercallMsr::new()
                .with_enabled(parent.hypercall_enabled.load(SeqCst))
                .with_page_number(parent.hypercall_page.number())
                .into(),
            msr::VP_INDEX => u64::from(self.lp.vp_index().unwrap_or(self.lp.index as u32)),
            msr::RESET => 0,
            msr::TIME_REF_COUNT => parent.clock.reference_time(machine.tsc()),
            msr::REFERENCE_TSC => OverlayPageMsr::new()
                .with_enabled(parent.reference_tsc_enabled.load(SeqCst))
                .with_page_number(parent.reference_tsc_page.number())
                .into(),
            msr::TSC_FREQUENCY => machine.tsc_frequency(),
            msr::APIC_FREQUENCY => machine.apic_frequency(),
            msr::VP_ASSIST_PAGE => OverlayPageMsr::new()
                .with_enabled(self.assist_enabled)
                .with_page_number(self.lp.assist.number())
                .into(),
            msr::SCONTROL => self.lp.synic.lock().scontrol(),
            msr::SVERSION => msr::SYNIC_VERSION_1,
            msr::SIMP => self.lp.synic.lock().page_register(PageRegister::Messages),
            msr::SIEFP => self.lp.synic.lock().page_register(PageRegister::Events),
            msr::SIRBP => self.lp.synic.lock().page_register(PageRegister::Rings),
            msr::EOM => 0,
            msr::SINT0..=msr::SINT15 => self.lp.synic.lock().sint((number - msr::SINT0) as usize),
            msr::STIMER0_CONFIG..=msr::STIMER3_COUNT => self.stimers.read(number)?,
            _ => return None,
        })
    }

    fn set_msr(&mut self, number: u32, value: u64) -> Option<()> {
        let parent = &self.hv.parent;
        match number {
            EFER => self.set_efer(value)?,
            // Writing what is there changes nothing; anything else would move or stop the local APIC.
            APIC_BASE | VM_CR | FEATURE_CONTROL => (self.msr(number)? == value).then_some(())?,
            // Microcode is the firmware's business under a hypervisor; the update is passed over.
            MICROCODE_UPDATE | AMD_MICROCODE_UPDATE | MICROCODE_REVISION => {}
            number if SCALABLE_MCA.contains(&number) => {
                self.hv.machine.write_msr(number, value).then_some(())?
            }
            X2APIC_ICR => match startup::decode_icr(value) {
                Icr::Physical => self.hv.machine.write_icr(value),
                Icr::Ignored => {}
                target => self.send_startup(target),
            },
            X2APIC_LVT_TIMER | X2APIC_INITIAL_COUNT | X2APIC_DIVIDE => {
                let context = self.apic_context();
                let _ = self.apic.write_msr(number, value, &context).ok()?;
                self.deadlines_changed();
            }
            msr::GUEST_OS_ID => {
                parent.guest_os_id.store(value, SeqCst);
                if value == 0 {
                    parent.hypercall_enabled.store(false, SeqCst);
                }
            }
            msr::HYPERCALL => self.set_hypercall_page(value)?,
            msr::RESET if value & 1 != 0 => {
                self.hv.machine.reset(format_args!("the parent wrote the reset register"))
            }
            msr::RESET => {}
            msr::REFERENCE_TSC => {
                let enabled = fixed_page(value, parent.reference_tsc_page.number())?;
                parent.reference_tsc_enabled.store(enabled, SeqCst);
            }
            msr::VP_ASSIST_PAGE => self.set_assist(value)?,
            msr::SCONTROL => self.lp.synic.lock().set_scontrol(value),
            msr::SIMP => self.lp.synic.lock().set_page_register(PageRegister::Messages, value)?,
            msr::SIEFP => self.lp.synic.lock().set_page_register(PageRegister::Events, value)?,
            msr::SIRBP => self.lp.synic.lock().set_page_register(PageRegister::Rings, value)?,
            msr::EOM => self.end_of_message(),
            msr::SINT0..=msr::SINT15 => {
                self.lp.synic.lock().set_sint((number - msr::SINT0) as usize, value)?
            }
            msr::STIMER0_CONFIG..=msr::STIMER3_COUNT => self.set_stimer(number, value)?,
            _ => return None,
        }
        Some(())
    }

    fn apic_context(&self) -> apic::Context<'static> {
        apic::Context { incoming: &self.lp.timer_apic, tsc: self.hv.machine.tsc(), tsc_offset: 0, cr8: 0 }
    }

    fn set_efer(&mut self, value: u64) -> Option<()> {
        // LMA follows from LME and paging; the processor keeps it, and software may write back what it read.
        if value & !EFER_ALLOWED != 0 {
            return None;
        }
        let lma = self.vcpu.get(Reg::Efer) & events::EFER_LMA;
        self.vcpu.set(Reg::Efer, value & !events::EFER_LMA | lma);
        Some(())
    }

    fn set_hypercall_page(&mut self, value: u64) -> Option<()> {
        let parent = &self.hv.parent;
        let enabled = fixed_page(value, parent.hypercall_page.number())?;
        let known = parent.guest_os_id.load(SeqCst) != 0;
        parent.hypercall_enabled.store(enabled && known, SeqCst);
        if !enabled {
            self.hv.machine.intercept_icr(true);
        }
        Some(())
    }

    /// The VP assist page goes away when a processor goes offline, and may be followed by INIT when it comes back.
    fn set_assist(&mut self, value: u64) -> Option<()> {
        self.assist_enabled = fixed_page(value, self.lp.assist.number())?;
        if !self.assist_enabled {
            self.lp.synic.lock().restart_rings();
            self.hv.machine.intercept_icr(true);
        }
        Some(())
    }

    fn end_of_message(&mut self) {
        let mut synic = self.lp.synic.lock();
        synic.deliver(&self.hv.machine, self.lp.index);
        let lost = synic.take_signals_lost();
        drop(synic);
        if lost {
            for child in self.hv.children() {
                child.repeat_signals(self.hv, self.lp.index);
            }
        }
    }

    fn set_stimer(&mut self, number: u32, value: u64) -> Option<()> {
        let now = self.hv.parent.clock.reference_time(self.hv.machine.tsc());
        self.stimers.write(number, value, now)?.ok()?;
        self.expire_timers();
        self.deadlines_changed();
        Some(())
    }
}

/// Whether a register sets a synthetic timer.
fn is_synthetic_timer(number: u32) -> bool {
    matches!(number, msr::STIMER0_CONFIG..=msr::STIMER3_COUNT)
}

/// Whether a register sets the local APIC's timer.
fn is_local_timer(number: u32) -> bool {
    matches!(number, X2APIC_LVT_TIMER | X2APIC_INITIAL_COUNT | X2APIC_DIVIDE)
}

/// Reads a register whose page the hypervisor chose: whether it enables it. `None` if it enables another page.
fn fixed_page(value: u64, number: u64) -> Option<bool> {
    let value = OverlayPageMsr::from(value);
    (!value.enabled() || value.page_number() == number).then_some(value.enabled())
}
