//! The registers of a virtual processor by their TLFS names (`HvCallGetVpRegisters`, `HvCallSetVpRegisters`), and which
//! values they can hold.

use super::{Activity, Child, Inner, Vp, vp::NO_NOTIFICATION};
use crate::{
    apic::{self, Register},
    hypervisor::Hypervisor,
    machine::{Event, Machine, Reg, Segment, SegmentName, Table, TableName, Vcpu},
    xstate,
};
use core::sync::atomic::Ordering::SeqCst;
use parterre_abi::{
    msr,
    registers::{
        DeliverabilityNotificationsRegister, InternalActivityRegister, InterruptStateRegister,
        InterruptionType, PendingEventType, PendingExtIntEvent, PendingInterruptionRegister,
        RegisterName as Name, RegisterValue, SegmentAttributes, SegmentRegister, TableRegister,
    },
    status::{HvResult, HvStatus},
};

/// The registers of one virtual processor that is not running.
pub(crate) struct RegisterAccess<'a, M: Machine> {
    /// The hypervisor.
    pub hv: &'a Hypervisor<M>,
    /// Its partition.
    pub child: &'a Child<M>,
    /// Itself.
    pub vp: &'a Vp<M>,
    /// Its state.
    pub inner: &'a mut Inner<M>,
}

/// Registers that are just a register of the processor.
const PLAIN: [(Name, Reg); 18] = [
    (Name::CR2, Reg::Cr2),
    (Name::DR0, Reg::Dr0),
    (Name::DR1, Reg::Dr1),
    (Name::DR2, Reg::Dr2),
    (Name::DR3, Reg::Dr3),
    (Name::KERNEL_GS_BASE, Reg::KernelGsBase),
    (Name::STAR, Reg::Star),
    (Name::LSTAR, Reg::Lstar),
    (Name::CSTAR, Reg::Cstar),
    (Name::SFMASK, Reg::Sfmask),
    (Name::SYSENTER_CS, Reg::SysenterCs),
    (Name::SYSENTER_EIP, Reg::SysenterEip),
    (Name::SYSENTER_ESP, Reg::SysenterEsp),
    (Name::TSC_AUX, Reg::TscAux),
    (Name::RIP, Reg::Rip),
    (Name::RFLAGS, Reg::Rflags),
    (Name::CR0, Reg::Cr0),
    (Name::CR3, Reg::Cr3),
];

/// A write of a control register, where it is intercepted, is over before anybody asks: there is no value between the old and the
/// new one.
fn own_name(name: Name) -> Name {
    match name {
        Name::INTERMEDIATE_CR0 => Name::CR0,
        Name::INTERMEDIATE_CR3 => Name::CR3,
        Name::INTERMEDIATE_CR4 => Name::CR4,
        Name::INTERMEDIATE_CR8 => Name::CR8,
        other => other,
    }
}

fn plain(name: Name) -> Option<Reg> {
    PLAIN.iter().find(|(plain, _)| *plain == name).map(|(_, register)| *register)
}

/// A segment register by its TLFS name.
fn segment_name(name: Name) -> Option<SegmentName> {
    use SegmentName::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
    [Es, Cs, Ss, Ds, Fs, Gs, Ldtr, Tr].get(name.0.checked_sub(Name::ES.0)? as usize).copied()
}

impl<M: Machine> RegisterAccess<'_, M> {
    /// Reads a register.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`]: there is no such register.
    pub fn get(&mut self, name: Name) -> HvResult<RegisterValue> {
        let (vcpu, name) = (&mut self.inner.vcpu, own_name(name));
        if let Some(register) = plain(name) {
            return Ok(vcpu.get(register).into());
        }
        if let Some(segment) = segment_name(name) {
            return Ok(segment_layout(vcpu.segment(segment)).into());
        }
        let value = match name {
            name if (Name::RAX.0..=Name::R15.0).contains(&name.0) => {
                vcpu.gprs()[(name.0 - Name::RAX.0) as usize]
            }
            name if (Name::XMM0.0..=Name::XMM15.0).contains(&name.0) => {
                return Ok(vcpu.xmm((name.0 - Name::XMM0.0) as usize).into());
            }
            name if (Name::FP_MMX0.0..=Name::FP_MMX7.0).contains(&name.0) => {
                return Ok(self.fp_register(name));
            }
            Name::FP_CONTROL_STATUS => return Ok(self.legacy_field::<0>().into()),
            Name::XMM_CONTROL_STATUS => return Ok(self.legacy_field::<16>().into()),
            Name::CR4 => vcpu.get(Reg::Cr4),
            Name::CR8 => vcpu.get(Reg::Cr8),
            Name::XFEM => vcpu.get(Reg::Xcr0),
            Name::DR6 => vcpu.get(Reg::Dr6),
            Name::DR7 => vcpu.get(Reg::Dr7),
            Name::EFER => vcpu.get(Reg::Efer),
            Name::PAT => vcpu.get(Reg::Pat),
            Name::XSS => vcpu.get(Reg::Xss),
            Name::SPEC_CTRL => vcpu.get(Reg::SpecCtrl),
            Name::IDTR => return Ok(table_layout(vcpu.table(TableName::Idtr)).into()),
            Name::GDTR => return Ok(table_layout(vcpu.table(TableName::Gdtr)).into()),
            Name::TSC => self
                .child
                .clock
                .read()
                .effective(self.hv.machine.tsc())
                .wrapping_add(vcpu.get(Reg::TscOffset)),
            Name::APIC_BASE => self.inner.apic.base().bits(),
            Name::INITIAL_APIC_ID => u64::from(self.vp.index),
            Name::TSC_DEADLINE => self.inner.apic.tsc_deadline(),
            Name::PENDING_INTERRUPTION => pending_interruption(vcpu.pending_event()).into(),
            Name::INTERRUPT_STATE => InterruptStateRegister::new()
                .with_interrupt_shadow(vcpu.interrupt_shadow())
                .with_nmi_masked(vcpu.nmi_masked())
                .into(),
            Name::PENDING_EVENT0 => return Ok(self.pending_ext_int()),
            Name::PENDING_EVENT1 => 0,
            Name::DELIVERABILITY_NOTIFICATIONS => self.inner.notify_deliverable,
            Name::EXPLICIT_SUSPEND => u64::from(self.inner.explicit_suspend),
            Name::INTERCEPT_SUSPEND => u64::from(self.inner.intercept_suspend),
            Name::DISPATCH_SUSPEND => u64::from(self.vp.schedule.is_stopped()),
            Name::INTERNAL_ACTIVITY_STATE => self.activity().into(),
            Name::VP_ROOT_SIGNAL_COUNT => self.vp.schedule.signals(),
            _ => return self.synthetic(name),
        };
        Ok(value.into())
    }

    /// The registers that are a guest's synthetic or APIC registers under another name.
    fn synthetic(&mut self, name: Name) -> HvResult<RegisterValue> {
        if let Some(register) = Register::from_name(name.0) {
            let context = self.inner.context(self.vp, self.child.now(self.hv));
            let value = self.inner.apic.read(register, &context).map_err(|_| HvStatus::INVALID_PARAMETER)?;
            return Ok(value.into());
        }
        if let Some(number) = mtrr(name) {
            return Ok(self.child.policy.read().mtrr(number).into());
        }
        let value = match name {
            Name::GUEST_OS_ID => self.child.guest_os_id.load(SeqCst),
            Name::HYPERCALL => self.child.hypercall_msr.load(SeqCst),
            Name::REFERENCE_TSC => self.child.reference_tsc_msr.load(SeqCst),
            Name::VP_INDEX => u64::from(self.vp.index),
            Name::VP_ASSIST_PAGE => self.inner.assist.register,
            Name::VP_RUNTIME => self.inner.counts.run_time(self.hv),
            Name::TIME_REF_COUNT => self.child.clock.read().reference_time(self.hv.machine.tsc()),
            name if (Name::GUEST_CRASH_P0.0..=Name::GUEST_CRASH_P4.0).contains(&name.0) => {
                self.child.crash[(name.0 - Name::GUEST_CRASH_P0.0) as usize].load(SeqCst)
            }
            name if (Name::STIMER0_CONFIG.0..=Name::STIMER3_COUNT.0).contains(&name.0) => {
                let msr = msr::STIMER0_CONFIG + name.0 - Name::STIMER0_CONFIG.0;
                self.inner.timers.read(msr).ok_or(HvStatus::INVALID_PARAMETER)?
            }
            name => {
                let value = synic_msr(name).and_then(|msr| self.vp.synic.read(msr));
                value.ok_or(HvStatus::INVALID_PARAMETER)?
            }
        };
        Ok(value.into())
    }

    /// Writes a register.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`]: there is no such register, or it cannot be written;
    /// [`HvStatus::INVALID_REGISTER_VALUE`]: it cannot hold this value.
    pub fn set(&mut self, name: Name, value: RegisterValue) -> HvResult<()> {
        let (low, name) = (value.as_u64(), own_name(name));
        let inner = &mut *self.inner;
        if let Some(segment) = segment_name(name) {
            return inner.set_segment(segment, value.as_segment());
        }
        match name {
            name if (Name::RAX.0..=Name::R15.0).contains(&name.0) => {
                inner.vcpu.gprs_mut()[(name.0 - Name::RAX.0) as usize] = low;
            }
            name if (Name::XMM0.0..=Name::XMM15.0).contains(&name.0) => {
                inner.vcpu.set_xmm((name.0 - Name::XMM0.0) as usize, value.as_u128());
            }
            name if (Name::FP_MMX0.0..=Name::FP_MMX7.0).contains(&name.0) => {
                self.set_fp_register(name, value)
            }
            Name::FP_CONTROL_STATUS => self.set_legacy_field::<0>(value.as_u128()),
            Name::XMM_CONTROL_STATUS => self.set_mxcsr(value)?,
            Name::RFLAGS => inner.set_rflags(low),
            Name::CR0 => inner.set_cr0(low)?,
            Name::CR4 => inner.set_cr4(low)?,
            Name::CR8 => inner.set_checked(Reg::Cr8, low, low < 16)?,
            Name::XFEM => inner.set_checked(Reg::Xcr0, low, xstate::is_valid_xcr0(&self.hv.machine, low))?,
            Name::EFER => inner.set_efer(low)?,
            Name::PAT => inner.set_checked(Reg::Pat, low, is_valid_pat(low))?,
            Name::DR6 => inner.set_checked(Reg::Dr6, low & 0x1_E00F | 0xFFFE_0FF0, low >> 32 == 0)?,
            Name::DR7 => inner.set_checked(Reg::Dr7, low | 0x400, low >> 32 == 0)?,
            Name::XSS => inner.set_checked(Reg::Xss, low, low == 0)?,
            Name::SPEC_CTRL => inner.set_checked(Reg::SpecCtrl, low, low & !0x7 == 0)?,
            Name::IDTR => inner.vcpu.set_table(TableName::Idtr, table(value.as_table())),
            Name::GDTR => inner.vcpu.set_table(TableName::Gdtr, table(value.as_table())),
            Name::TSC => {
                let now = self.child.clock.read().effective(self.hv.machine.tsc());
                inner.vcpu.set(Reg::TscOffset, low.wrapping_sub(now));
            }
            Name::APIC_BASE => {
                inner.apic.set_base(low, &self.vp.incoming).map_err(|_| HvStatus::INVALID_REGISTER_VALUE)?;
            }
            Name::TSC_DEADLINE => inner.apic.write_tsc_deadline(low),
            Name::PENDING_INTERRUPTION => inner.vcpu.inject(event(low.into())?),
            Name::INTERRUPT_STATE => {
                let state = InterruptStateRegister::from(low);
                inner.vcpu.set_interrupt_shadow(state.interrupt_shadow());
                inner.vcpu.set_nmi_masked(state.nmi_masked());
            }
            Name::PENDING_EVENT0 => self.set_pending_event(value.as_u128())?,
            Name::DELIVERABILITY_NOTIFICATIONS => inner.notify_deliverable = low,
            Name::EXPLICIT_SUSPEND => self.set_explicit_suspend(low & 1 != 0),
            Name::INTERCEPT_SUSPEND => inner.intercept_suspend = low & 1 != 0,
            Name::DISPATCH_SUSPEND => self.vp.schedule.set_stopped(low & 1 != 0),
            Name::INTERNAL_ACTIVITY_STATE => self.set_activity(low.into())?,
            name => match plain(name) {
                Some(register) => inner.set_checked(register, low, can_hold(register, low))?,
                None => return self.set_synthetic(name, low),
            },
        }
        Ok(())
    }

    fn set_synthetic(&mut self, name: Name, value: u64) -> HvResult<()> {
        if let Some(register) = Register::from_name(name.0) {
            let context = self.inner.context(self.vp, self.child.now(self.hv));
            let effect = self
                .inner
                .apic
                .set(register, value, &context)
                .map_err(|_| HvStatus::INVALID_REGISTER_VALUE)?;
            if let apic::Effect::SetCr8(cr8) = effect {
                self.inner.vcpu.set(Reg::Cr8, u64::from(cr8));
            }
            return Ok(());
        }
        if let Some(number) = mtrr(name) {
            self.child.policy.write().set_mtrr(number, value);
            return Ok(());
        }
        match name {
            Name::GUEST_OS_ID => self.child.guest_os_id.store(value, SeqCst),
            Name::HYPERCALL => {
                self.child.set_hypercall_msr(self.hv, value).ok_or(HvStatus::INVALID_REGISTER_VALUE)?
            }
            Name::VP_ASSIST_PAGE => {
                let set = self.child.set_assist(self.hv, self.vp, self.inner, value);
                set.ok_or(HvStatus::INVALID_REGISTER_VALUE)?;
            }
            Name::REFERENCE_TSC => {
                self.child.set_reference_tsc_msr(self.hv, value).ok_or(HvStatus::INVALID_REGISTER_VALUE)?;
            }
            name if (Name::GUEST_CRASH_P0.0..=Name::GUEST_CRASH_P4.0).contains(&name.0) => {
                self.child.crash[(name.0 - Name::GUEST_CRASH_P0.0) as usize].store(value, SeqCst);
            }
            name if (Name::STIMER0_CONFIG.0..=Name::STIMER3_COUNT.0).contains(&name.0) => {
                let msr = msr::STIMER0_CONFIG + name.0 - Name::STIMER0_CONFIG.0;
                let written = self.child.set_timer(self.hv, self.inner, msr, value);
                written.ok_or(HvStatus::INVALID_PARAMETER)?.ok_or(HvStatus::INVALID_REGISTER_VALUE)?;
            }
            name => {
                let msr = synic_msr(name).ok_or(HvStatus::INVALID_PARAMETER)?;
                let written = self.child.write_synic(self.hv, self.vp, msr, value);
                written.ok_or(HvStatus::INVALID_PARAMETER)?.ok_or(HvStatus::INVALID_REGISTER_VALUE)?;
            }
        }
        Ok(())
    }

    fn activity(&self) -> InternalActivityRegister {
        InternalActivityRegister::new()
            .with_startup_suspend(self.inner.activity == Activity::WaitForStartup)
            .with_halt_suspend(self.inner.activity == Activity::Halted)
            .with_idle_suspend(self.inner.activity == Activity::Idle)
    }

    fn set_activity(&mut self, value: InternalActivityRegister) -> HvResult<()> {
        self.inner.activity = match (value.startup_suspend(), value.halt_suspend(), value.idle_suspend()) {
            (false, false, false) => Activity::Active,
            (true, _, _) => Activity::WaitForStartup,
            (false, true, _) => Activity::Halted,
            (false, false, true) => Activity::Idle,
        };
        self.vp.follow(self.inner.activity);
        self.child.wake(self.hv, self.vp);
        Ok(())
    }

    fn set_explicit_suspend(&mut self, suspend: bool) {
        self.inner.explicit_suspend = suspend;
        if !suspend {
            let woken = self.vp.schedule.resume();
            self.child.carry_out(self.hv, self.vp, woken);
        }
    }

    fn pending_ext_int(&self) -> RegisterValue {
        let Some(vector) = self.vp.incoming.ext_int() else { return 0u64.into() };
        PendingExtIntEvent::new()
            .with_event_pending(true)
            .with_event_type(PendingEventType::EXT_INT.0)
            .with_vector(vector)
            .into()
    }

    fn set_pending_event(&mut self, value: u128) -> HvResult<()> {
        let pending = PendingExtIntEvent::from(value);
        match (pending.event_pending(), PendingEventType(pending.event_type())) {
            (false, _) => {
                self.vp.incoming.take_ext_int();
            }
            (true, PendingEventType::EXT_INT) => {
                self.vp.incoming.post_ext_int(pending.vector());
            }
            (true, PendingEventType::EXCEPTION) => {
                let pending = parterre_abi::registers::PendingExceptionEvent::from(value);
                let error = pending.deliver_error_code().then_some(pending.error_code());
                let vector = u8::try_from(pending.vector()).ok().filter(|vector| *vector < 32);
                let vector = vector.ok_or(HvStatus::INVALID_REGISTER_VALUE)?;
                self.inner.vcpu.inject(Some(Event::Exception(vector, error)));
            }
            _ => return Err(HvStatus::INVALID_REGISTER_VALUE),
        }
        Ok(())
    }

    /// 16 bytes of the legacy FXSAVE area from byte `AT` on.
    fn legacy_field<const AT: usize>(&self) -> u128 {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.inner.vcpu.xsave()[AT..AT + 16]);
        u128::from_le_bytes(bytes)
    }

    fn set_legacy_field<const AT: usize>(&mut self, value: u128) {
        self.inner.vcpu.xsave_mut()[AT..AT + 16].copy_from_slice(&value.to_le_bytes());
        xstate::mark_legacy(self.inner.vcpu.xsave_mut());
    }

    fn set_mxcsr(&mut self, value: RegisterValue) -> HvResult<()> {
        let register = value.as_xmm_control_status();
        if register.xmm_status_control & !0xFFFF != 0 {
            return Err(HvStatus::INVALID_REGISTER_VALUE);
        }
        self.set_legacy_field::<16>(value.as_u128());
        Ok(())
    }

    fn fp_register(&self, name: Name) -> RegisterValue {
        let at = 32 + 16 * (name.0 - Name::FP_MMX0.0) as usize;
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.inner.vcpu.xsave()[at..at + 16]);
        u128::from_le_bytes(bytes).into()
    }

    fn set_fp_register(&mut self, name: Name, value: RegisterValue) {
        let at = 32 + 16 * (name.0 - Name::FP_MMX0.0) as usize;
        let area = self.inner.vcpu.xsave_mut();
        area[at..at + 16].copy_from_slice(&value.as_u128().to_le_bytes());
        xstate::mark_legacy(area);
    }
}

/// Whether a plain register can hold a value: what its WRMSR refuses would stop the hypervisor when it loads it.
fn can_hold(register: Reg, value: u64) -> bool {
    match register {
        Reg::TscAux => value >> 32 == 0,
        Reg::KernelGsBase | Reg::Lstar | Reg::Cstar => is_canonical(value),
        _ => true,
    }
}

/// Whether an address of four-level paging is canonical.
pub(super) fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// The model-specific register of the SynIC that a name means.
fn synic_msr(name: Name) -> Option<u32> {
    Some(match name {
        name if (Name::SINT0.0..=Name::SINT15.0).contains(&name.0) => msr::SINT0 + name.0 - Name::SINT0.0,
        Name::SCONTROL => msr::SCONTROL,
        Name::SVERSION => msr::SVERSION,
        Name::SIEFP => msr::SIEFP,
        Name::SIMP => msr::SIMP,
        Name::EOM => msr::EOM,
        _ => return None,
    })
}

/// The index of an MTRR register in [`super::Policy`]'s list.
fn mtrr(name: Name) -> Option<u32> {
    (Name::MSR_MTRR_CAP.0..=Name::MSR_MTRR_FIX4KF8000.0)
        .contains(&name.0)
        .then(|| name.0 - Name::MSR_MTRR_CAP.0)
}

/// CR0 bits that exist: PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG.
const CR0_EXISTING: u64 = 0xE005_003F;
pub(super) const CR0_PE: u64 = 1;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
pub(super) const CR0_PG: u64 = 1 << 31;
/// CR4 bits: VME to OSXMMEXCPT, UMIP, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE. Not: VMXE, SMXE, LA57.
const CR4_EXISTING: u64 = 0x77_0FFF;
/// EFER bits that a child can set: SCE, LME, LMA, NXE, FFXSR, TCE, AutoIBRS.
const EFER_EXISTING: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 15 | 1 << 21;
/// RFLAGS bits that exist.
const RFLAGS_EXISTING: u64 = 0x3F_7FD7;

impl<M: Machine> Inner<M> {
    /// Sets a register if its value is allowed.
    pub(super) fn set_checked(&mut self, register: Reg, value: u64, allowed: bool) -> HvResult<()> {
        if !allowed {
            return Err(HvStatus::INVALID_REGISTER_VALUE);
        }
        self.vcpu.set(register, value);
        Ok(())
    }

    /// Sets RFLAGS; bits that do not exist are left out.
    pub(super) fn set_rflags(&mut self, value: u64) {
        self.vcpu.set(Reg::Rflags, value & RFLAGS_EXISTING | 2);
    }

    fn set_cr0(&mut self, value: u64) -> HvResult<()> {
        self.set_checked(Reg::Cr0, value | 0x10, is_valid_cr0(value))
    }

    fn set_cr4(&mut self, value: u64) -> HvResult<()> {
        self.set_checked(Reg::Cr4, value, is_valid_cr4(value))
    }

    /// Sets EFER; also for the guest's own WRMSR.
    pub(super) fn set_efer(&mut self, value: u64) -> HvResult<()> {
        self.set_checked(Reg::Efer, value, is_valid_efer(value))
    }

    /// Sets a segment register from its TLFS layout.
    pub(super) fn set_segment(&mut self, name: SegmentName, value: SegmentRegister) -> HvResult<()> {
        self.vcpu.set_segment(name, segment(value));
        Ok(())
    }

    /// Whether the parent wants to know when an interrupt or NMI can be taken.
    pub(super) fn notification(&self) -> Option<DeliverabilityNotificationsRegister> {
        (self.notify_deliverable != NO_NOTIFICATION).then(|| self.notify_deliverable.into())
    }
}

/// Whether CR0 can hold `value`.
pub(super) fn is_valid_cr0(value: u64) -> bool {
    value & !CR0_EXISTING == 0
        && (value & CR0_PG == 0 || value & CR0_PE != 0)
        && (value & CR0_NW == 0 || value & CR0_CD != 0)
}

/// Whether CR4 can hold `value`.
pub(super) fn is_valid_cr4(value: u64) -> bool {
    value & !CR4_EXISTING == 0
}

/// Whether EFER can hold `value`.
pub(super) fn is_valid_efer(value: u64) -> bool {
    value & !EFER_EXISTING == 0
}

/// Whether all of these bits of RFLAGS exist.
pub(super) fn is_valid_rflags(value: u64) -> bool {
    value & !RFLAGS_EXISTING == 0
}

/// Whether each of the eight memory types of a PAT exists.
pub(super) fn is_valid_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

/// A segment register in TLFS layout.
pub(super) fn segment_layout(segment: Segment) -> SegmentRegister {
    let Segment { base, limit, selector, attributes } = segment;
    SegmentRegister { base, limit, selector, attributes: SegmentAttributes::from(attributes) }
}

/// A segment register from its TLFS layout.
pub(super) fn segment(layout: SegmentRegister) -> Segment {
    let SegmentRegister { base, limit, selector, attributes } = layout;
    Segment { base, limit, selector, attributes: attributes.into() }
}

fn table_layout(table: Table) -> TableRegister {
    TableRegister { pad: [0; 3], limit: table.limit, base: table.base }
}

/// A descriptor table register from its TLFS layout.
pub(super) fn table(layout: TableRegister) -> Table {
    Table { base: layout.base, limit: layout.limit }
}

/// The event that waits for delivery, in TLFS layout.
pub(super) fn pending_interruption(event: Option<Event>) -> PendingInterruptionRegister {
    let register = PendingInterruptionRegister::new();
    let (kind, vector, error, length) = match event {
        None => return register,
        Some(Event::Interrupt(vector)) => (InterruptionType::INTERRUPT, vector, None, 0),
        Some(Event::Nmi) => (InterruptionType::NMI, 2, None, 0),
        Some(Event::Exception(vector, error)) => (InterruptionType::EXCEPTION, vector, error, 0),
        Some(Event::Software(vector, length)) => (InterruptionType::SOFTWARE_INTERRUPT, vector, None, length),
    };
    register
        .with_interruption_pending(true)
        .with_interruption_type(kind.0)
        .with_interruption_vector(u16::from(vector))
        .with_instruction_length(length)
        .with_deliver_error_code(error.is_some())
        .with_error_code(error.unwrap_or(0))
}

/// The event that a register value names.
fn event(register: PendingInterruptionRegister) -> HvResult<Option<Event>> {
    if !register.interruption_pending() {
        return Ok(None);
    }
    let vector =
        u8::try_from(register.interruption_vector()).map_err(|_| HvStatus::INVALID_REGISTER_VALUE)?;
    let error = register.deliver_error_code().then_some(register.error_code());
    Ok(Some(match InterruptionType(register.interruption_type()) {
        InterruptionType::INTERRUPT if vector >= 16 => Event::Interrupt(vector),
        InterruptionType::NMI => Event::Nmi,
        InterruptionType::EXCEPTION if vector < 32 => Event::Exception(vector, error),
        InterruptionType::SOFTWARE_INTERRUPT if (1..=15).contains(&register.instruction_length()) => {
            Event::Software(vector, register.instruction_length())
        }
        _ => return Err(HvStatus::INVALID_REGISTER_VALUE),
    }))
}
