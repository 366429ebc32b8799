//! What an exit left in the current structure: registers, the event that it cut short, and what the guest may go on after
//! without core.

use parterre_core::machine::{Access, Event, Exit, Reg, Vcpu as _, gpr};

use super::capability::CR0_PG;
use super::control::{self, CR4_PAE, Cr0Context, EFER_LMA};
use super::entry::is_valid_pdpte;
use super::exit::{self, reason};
use super::field::{Current, Field, Source};
use super::run::{
    BLOCKED_BY_MOV_SS, BLOCKED_BY_STI, CR0_OWNED, EFER_SVME, NMIS_MASKED, TASK_PRIORITY, Written,
};
use super::{check, state, switch};
use crate::apic;
use crate::paging::slat;
use crate::processor::LogicalProcessor;
use crate::svm::vmcb::{Clean, INTERRUPT_SHADOW, V_TPR};
use crate::vcpu::{Vcpu, event};

/// Interruption information: an exception had an error code; the exit came of an IRET that had unmasked NMIs.
const HAS_ERROR: u64 = 1 << 11;
const UNMASKED_NMIS: u64 = 1 << 12;
const TYPE_NMI: u64 = 2;
const VECTOR_DB: u8 = 1;
const VECTOR_DOUBLE_FAULT: u8 = 8;
const VECTOR_MC: u8 = 18;
const DR6_SET: u64 = 0x600f;
const DR6_FIXED: u64 = 0xffff_0ff0;
const DR7_GENERAL_DETECT: u64 = 1 << 13;

impl Vcpu {
    /// Reads what an exit left in the structure; `None` if the guest goes on.
    pub(super) fn finish_exit_vmx(
        &mut self,
        vmcs: Current,
        processor: &mut LogicalProcessor,
    ) -> Option<Exit> {
        let reason = vmcs.read(Field::ExitReason) as u32;
        self.vmx().launched |= reason & reason::ENTRY_FAILED == 0;
        if reason & reason::ENTRY_FAILED != 0 {
            check::report(&vmcs, reason);
            return Some(Exit::Failed(reason.into()));
        }
        self.read_moving(vmcs);
        let vectoring = vmcs.read(Field::IdtVectoringInfo);
        let injected = self.pending.take();
        self.vmx().written.injection = 0;
        if event::is_valid(vectoring) {
            self.finish_event_vmx(vmcs, injected, vectoring);
        }
        match reason {
            reason::EXCEPTION_OR_NMI => self.finish_exception_or_nmi(vmcs, processor),
            reason::CONTROL_REGISTER => {
                self.finish_control_register(vmcs);
                None
            }
            reason::INTERRUPT_WINDOW | reason::TPR_BELOW_THRESHOLD => {
                self.request_interrupt_window(None);
                Some(Exit::InterruptWindow)
            }
            reason::TASK_SWITCH => {
                let rip = self.vmcb.save.rip;
                log::warn!(
                    "VMX: a guest's hardware task switch at RIP {rip:#x} is not carried out; the guest is stopped"
                );
                Some(exit::decode(&vmcs, reason, &self.gprs))
            }
            reason::PREEMPTION_TIMER => apic::any_requested().then_some(Exit::Interrupt),
            reason::NMI_WINDOW => {
                self.nmi_window = false;
                Some(Exit::NmiWindow)
            }
            reason::EPT_VIOLATION => {
                let unmasked = vmcs.read(Field::ExitQualification) & UNMASKED_NMIS != 0;
                self.nmi_masked |= unmasked && !event::is_valid(vectoring);
                self.finish_violation(exit::decode(&vmcs, reason, &self.gprs))
            }
            _ => Some(exit::decode(&vmcs, reason, &self.gprs)),
        }
    }

    /// Reads the registers that core looks at after most exits.
    fn read_moving(&mut self, vmcs: Current) {
        let rflags = vmcs.read(Field::GuestRflags);
        let (rip, rsp) = (vmcs.read(Field::GuestRip), vmcs.read(Field::GuestRsp));
        let interruptibility = vmcs.read(Field::GuestInterruptibility);
        let cr4_owned = self.cr4_owned();
        let own = self.vmx();
        own.written = Written { rip, rsp, rflags, interruptibility, ..own.written };
        let priority = u64::from(own.apic_page[TASK_PRIORITY] >> 4);
        self.gprs[gpr::RSP] = rsp;
        self.nmi_masked = interruptibility & NMIS_MASKED != 0;
        let control = &mut self.vmcb.control;
        control.interrupt_control = control.interrupt_control & !V_TPR | priority;
        let blocked = interruptibility & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS) != 0;
        control.interrupt_state = control.interrupt_state & !INTERRUPT_SHADOW | u64::from(blocked);
        let save = &mut self.vmcb.save;
        (save.rip, save.rsp, save.rflags) = (rip, rsp, rflags);
        save.cr0 = vmcs.read(Field::GuestCr0) & !CR0_OWNED | save.cr0 & CR0_OWNED;
        save.cr3 = vmcs.read(Field::GuestCr3);
        save.cr4 = vmcs.read(Field::GuestCr4) & !cr4_owned | save.cr4 & cr4_owned;
        save.efer = vmcs.read(Field::GuestEfer) | EFER_SVME;
        save.cs = state::read_segment(&vmcs, 1);
        save.cpl = state::privilege_level(&vmcs);
    }

    /// An access that the tables do not allow; `None` if it was a write that had to be noticed, and now was. The violation
    /// itself has the processor forget the translation (SDM volume 3C, 29.4.3.1).
    fn finish_violation(&mut self, exit: Exit) -> Option<Exit> {
        let own = self.vmx();
        if !own.capabilities.accessed_dirty
            && let Exit::SlatFault { gpa, access: Access::WRITE, .. } = exit
        {
            // SAFETY: core waits for processors that run in an address space before it takes tables out of it, and this one
            // counts as running.
            let noted = unsafe { slat::note_write(own.root, gpa) };
            return (!noted).then_some(exit);
        }
        Some(exit)
    }

    /// Notes the event whose delivery the exit cut short. RIP is at the instruction then, if it was one's.
    #[cold]
    fn finish_event_vmx(&mut self, vmcs: Current, injected: Option<Event>, vectoring: u64) {
        let error = if vectoring & HAS_ERROR != 0 { vmcs.read(Field::IdtVectoringError) } else { 0 };
        self.pending = match injected {
            Some(Event::Software(..)) if event::is_software(vectoring) => injected,
            _ => event::decode(vectoring & u64::from(u32::MAX) | error << 32),
        };
        if self.pending == Some(Event::Nmi) {
            self.nmi_masked = false;
        }
    }

    #[cold]
    fn finish_exception_or_nmi(&mut self, vmcs: Current, processor: &mut LogicalProcessor) -> Option<Exit> {
        let info = vmcs.read(Field::ExitInterruptionInfo);
        if info >> 8 & 7 == TYPE_NMI {
            // The guest may have been halted. An event can be injected only into one that is not, so it goes on; software
            // that halts is prepared for that.
            vmcs.write(Field::GuestActivity, 0);
            // SAFETY: the hypervisor's descriptor tables were loaded by the exit.
            unsafe { switch::handle_nmi() };
            return processor.take_nmi(self.mode);
        }
        let vector = info as u8;
        if info & UNMASKED_NMIS != 0 && vector != VECTOR_DOUBLE_FAULT && self.pending.is_none() {
            self.nmi_masked = true;
        }
        let wanted = vector < 32 && self.exceptions >> vector & 1 != 0 || vector == VECTOR_MC;
        if wanted {
            return Some(exit::decode(&vmcs, reason::EXCEPTION_OR_NMI, &self.gprs));
        }
        if vector == VECTOR_DB {
            raise_debug(vmcs);
        }
        let error = (info & HAS_ERROR != 0).then(|| vmcs.read(Field::ExitInterruptionError) as u32);
        self.pending = Some(Event::Exception(vector, error));
        None
    }

    /// A MOV to CR0 or CR4 that would change a bit that is not the guest's.
    #[cold]
    fn finish_control_register(&mut self, vmcs: Current) {
        let save = &self.vmcb.save;
        let long_code = save.efer & EFER_LMA != 0 && save.cs.to_segment().attributes & 1 << 13 != 0;
        let context = Cr0Context { old: save.cr0, cr4: save.cr4, efer: save.efer, long_code };
        // CR4's such bits can never be set, and those that are there cannot be cleared.
        let written = match control::moved_to(vmcs.read(Field::ExitQualification)) {
            Some((0, register)) => control::write_cr0(self.gprs[register], &context),
            _ => None,
        };
        let Some(cr0) = written.filter(|cr0| self.can_page(*cr0)) else {
            self.pending = Some(Event::Exception(13, Some(0)));
            return;
        };
        self.flush |= (cr0 ^ context.old) & (CR0_PG | 1) != 0;
        let length = exit::length(&vmcs).unwrap_or(3).into();
        let next = self.vmcb.save.rip.wrapping_add(length);
        let save = &mut self.vmcb.save;
        save.cr0 = cr0;
        save.rip = if long_code { next } else { next & u64::from(u32::MAX) };
        self.touch(Clean::CONTROL);
        self.set_interrupt_shadow(false);
    }

    /// Whether the four entries that PAE paging begins with, if CR0 turns that on, can be loaded.
    fn can_page(&mut self, cr0: u64) -> bool {
        let save = &self.vmcb.save;
        let efer = control::with_long_mode(save.efer, cr0);
        let (begins, cr3) = (save.cr0 & CR0_PG == 0 && cr0 & CR0_PG != 0, save.cr3 & 0xffff_ffe0);
        if !begins || save.cr4 & CR4_PAE == 0 || efer & EFER_LMA != 0 {
            return true;
        }
        let root = self.vmx().root;
        // SAFETY: as in `write_control_registers`.
        (cr3..).step_by(8).take(4).all(|at| unsafe { slat::read_word(root, at) }.is_none_or(is_valid_pdpte))
    }
}

/// Does what a debug exception does before it is delivered: an exit instead of it leaves DR6 and DR7 as they were.
fn raise_debug(vmcs: Current) {
    let causes = vmcs.read(Field::ExitQualification) & DR6_SET;
    let before = state::read(vmcs, Reg::Dr6).unwrap_or(0);
    state::write(vmcs, Reg::Dr6, before & !0xf | causes | DR6_FIXED);
    vmcs.write(Field::GuestDr7, vmcs.read(Field::GuestDr7) & !DR7_GENERAL_DETECT);
}
