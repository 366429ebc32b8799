//! What an exit left in the current structure: registers, the event that it cut short, and what the guest may go on after
//! without core.

use parterre_core::machine::{Access, Event, Exit, Reg, Vcpu as _, gpr};

use super::capability::CR0_PG;
use super::control::{self, CR4_PAE, Cr0Context, EFER_LMA};
use super::entry::is_valid_pdpte;
use super::exit::{self, reason};
use super::field::{Current, Field, Source};
use super::run::{BLOCKED_BY_MOV_SS, BLOCKED_BY_STI, NMIS_MASKED};
use super::{check, msrs, switch};
use crate::apic;
use crate::cpu::msr;
use crate::paging::slat;
use crate::processor::LogicalProcessor;
use crate::svm::vmcb::{Clean, INTERRUPT_SHADOW};
use crate::vcpu::event::{HAS_ERROR, TYPE_NMI};
use crate::vcpu::{Vcpu, event};

/// Interruption information: the exit came of an IRET that had unmasked NMIs.
const UNMASKED_NMIS: u64 = 1 << 12;
const VECTOR_DB: u8 = 1;
const VECTOR_DOUBLE_FAULT: u8 = 8;
const VECTOR_GP: u8 = 13;
const VECTOR_MC: u8 = 18;
const DR6_SET: u64 = 0x600f;
const DR6_FIXED: u64 = 0xffff_0ff0;
const DR7_GENERAL_DETECT: u64 = 1 << 13;

/// What [`Vcpu::begin_exit`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// The guest goes on.
    Done,
    /// An exit with this reason that came of an instruction's execution, and is core's.
    Instruction(u32),
    /// Another one.
    Other(u32),
}

impl Vcpu {
    /// Reads what every exit leaves in the structure.
    #[inline]
    pub(super) fn begin_exit(&mut self, vmcs: Current) -> Begun {
        let reason = vmcs.read(Field::ExitReason) as u32;
        if reason & reason::ENTRY_FAILED != 0 {
            return Begun::Other(reason);
        }
        let own = self.vmx();
        (own.launched, own.written.injection) = (true, false);
        self.resident = true;
        self.read_moving(vmcs);
        if !exit::is_of_instruction(reason) {
            return Begun::Other(reason);
        }
        // An instruction runs when no event is being delivered.
        self.pending = None;
        match reason {
            reason::WRMSR if self.write_system_call_register(vmcs) => return Begun::Done,
            // Core will look at more of the registers.
            reason::VMCALL | reason::IO if !self.is_parent() => self.copy_resident(vmcs),
            _ => {}
        }
        Begun::Instruction(reason)
    }

    /// The rest, for an exit that did not come of an instruction alone; `None` if the guest goes on.
    #[inline(never)]
    pub(super) fn finish_exit_vmx(
        &mut self,
        vmcs: Current,
        processor: &mut LogicalProcessor,
        reason: u32,
    ) -> Option<Exit> {
        if reason & reason::ENTRY_FAILED != 0 {
            check::report(&vmcs, self.vmx().capabilities, reason);
            return Some(Exit::Failed(reason.into()));
        }
        let injected = self.pending.take();
        let vectoring = vmcs.read(Field::IdtVectoringInfo);
        if event::is_valid(vectoring) {
            self.finish_event_vmx(vmcs, injected, vectoring);
        }
        match reason {
            reason::EXCEPTION_OR_NMI => self.finish_exception_or_nmi(vmcs, processor),
            reason::CONTROL_REGISTER => self.finish_control_register(vmcs),
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
                self.request_nmi_window(false);
                Some(Exit::NmiWindow)
            }
            reason::EPT_VIOLATION => {
                self.copy_resident(vmcs);
                let unmasked = vmcs.read(Field::ExitQualification) & UNMASKED_NMIS != 0;
                self.nmi_masked |= unmasked && !event::is_valid(vectoring);
                self.finish_violation(exit::decode(&vmcs, reason, &self.gprs))
            }
            _ => Some(exit::decode(&vmcs, reason, &self.gprs)),
        }
    }

    /// Reads the registers that core looks at after most exits.
    #[inline]
    fn read_moving(&mut self, vmcs: Current) {
        let rflags = vmcs.read(Field::GuestRflags);
        let (rip, rsp) = (vmcs.read(Field::GuestRip), vmcs.read(Field::GuestRsp));
        let interruptibility = vmcs.read(Field::GuestInterruptibility);
        let written = &mut self.vmx().written;
        (written.rsp, written.rflags, written.interruptibility) = (rsp, rflags, interruptibility);
        self.gprs[gpr::RSP] = rsp;
        let save = &mut self.vmcb.save;
        (save.rip, save.rflags) = (rip, rflags);
        let held = self.vmcb.control.interrupt_state & INTERRUPT_SHADOW | u64::from(self.nmi_masked);
        if held | interruptibility != 0 {
            self.note_interruptibility(interruptibility);
        }
    }

    /// What holds interrupts and NMIs off in the guest.
    #[cold]
    fn note_interruptibility(&mut self, interruptibility: u64) {
        self.nmi_masked = interruptibility & NMIS_MASKED != 0;
        self.set_interrupt_shadow(interruptibility & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS) != 0);
    }

    /// WRMSR of one of the registers that are in the machine while a virtual processor is loaded. Says whether it was one.
    fn write_system_call_register(&mut self, vmcs: Current) -> bool {
        let [number, low, high] = [gpr::RCX, gpr::RAX, gpr::RDX].map(|register| self.gprs[register] as u32);
        let Some(place) = msrs::intercepted(&mut self.vmcb.save, number) else { return false };
        let value = u64::from(high) << 32 | u64::from(low);
        // SAFETY: the hypervisor itself makes no system calls; what it does not take raises #GP as the guest's own would.
        if unsafe { msr::try_write(number, value) } {
            *place = value;
            self.pass_over(vmcs);
        } else {
            self.pending = Some(Event::Exception(VECTOR_GP, Some(0)));
        }
        true
    }

    /// Passes over the exiting instruction.
    fn pass_over(&mut self, vmcs: Current) {
        let length = exit::length(&vmcs).unwrap_or_default();
        let next = self.vmcb.save.rip.wrapping_add(length.into());
        self.vmcb.save.rip = if self.is_long_code() { next } else { next & u64::from(u32::MAX) };
        self.set_interrupt_shadow(false);
    }

    fn is_long_code(&self) -> bool {
        self.get(Reg::Efer) & EFER_LMA != 0 && self.code_attributes() & 1 << 13 != 0
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
            self.raise_debug(vmcs);
        }
        let error = (info & HAS_ERROR != 0).then(|| vmcs.read(Field::ExitInterruptionError) as u32);
        self.pending = Some(Event::Exception(vector, error));
        None
    }

    /// A MOV to CR0 or CR4 that would change a bit that is not the guest's; `None` if the guest goes on.
    #[cold]
    fn finish_control_register(&mut self, vmcs: Current) -> Option<Exit> {
        self.recall();
        let long_code = self.is_long_code();
        let save = &self.vmcb.save;
        let context = Cr0Context { old: save.cr0, cr4: save.cr4, efer: save.efer, long_code };
        let written = match control::moved_to(vmcs.read(Field::ExitQualification)) {
            Some((0, register)) => control::write_cr0(self.gprs[register], &context),
            Some((4, register)) if !self.is_parent() => {
                return Some(Exit::WriteCr4 { register: Some(register as u8), length: exit::length(&vmcs) });
            }
            // The parent can never set such bits of CR4.
            _ => None,
        };
        let Some(cr0) = written.filter(|cr0| self.can_page(*cr0)) else {
            self.pending = Some(Event::Exception(VECTOR_GP, Some(0)));
            return None;
        };
        self.flush |= (cr0 ^ context.old) & (CR0_PG | 1) != 0;
        self.vmcb.save.cr0 = cr0;
        self.touch(Clean::CONTROL);
        self.pass_over(vmcs);
        None
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

    /// Does what a debug exception does before it is delivered: an exit instead of it leaves DR6 and DR7 as they were.
    fn raise_debug(&mut self, vmcs: Current) {
        let causes = vmcs.read(Field::ExitQualification) & DR6_SET;
        let before = self.get(Reg::Dr6);
        self.set(Reg::Dr6, before & !0xf | causes | DR6_FIXED);
        vmcs.write(Field::GuestDr7, vmcs.read(Field::GuestDr7) & !DR7_GENERAL_DETECT);
    }
}
