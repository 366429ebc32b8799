//! Running a virtual processor under SVM: what is put into its control block before VMRUN, and what is read after it.

use parterre_core::machine::{Event, Exit, Processor, Vcpu as _, gpr};

use super::vmcb::{Clean, Intercepts, TLB_FLUSH_ALL, TLB_FLUSH_ASID, V_INTR_VECTOR_SHIFT, V_IRQ, exit_code};
use super::{exit, processor, switch};
use crate::processor::LogicalProcessor;
use crate::vcpu::asid::AddressSpaceId;
use crate::vcpu::{Vcpu, event};

const TRAP_FLAG: u64 = 1 << 8;
const VECTOR_DB: u8 = 1;
const VECTOR_AC: u8 = 17;
const VECTOR_MC: u8 = 18;
/// DR6: the trap came from RFLAGS.TF.
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// DR6: breakpoints 0 to 3.
const DR6_BREAKPOINTS: u64 = 0xf;
/// DR7: accesses to debug registers trap; the processor clears it when it raises #DB.
const DR7_GENERAL_DETECT: u64 = 1 << 13;

/// One instruction is being executed with RFLAGS.TF set, to find out when NMIs can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// IRET, which ends the masking of NMIs and brings its own flags.
    Iret {
        /// RFLAGS.TF as the guest had it.
        trap_flag: u64,
    },
    /// The instruction in an interrupt shadow.
    Shadow {
        /// RFLAGS.TF as the guest had it.
        trap_flag: u64,
    },
}

impl Vcpu {
    /// Brings intercepts in line with what is awaited.
    pub(crate) fn update_intercepts(&mut self) {
        self.touch(Clean::INTERCEPTS);
        let mut intercepts = self.vmcb.control.intercepts();
        let awaited = self.vmcb.control.interrupt_control & V_IRQ != 0;
        // An interrupt that is taken while an instruction is stepped would put the flags of the step on the guest's stack.
        intercepts.set(Intercepts::VINTR, awaited && (!self.offered || self.step.is_some()));
        intercepts.set(Intercepts::IRET, self.nmi_masked && self.step.is_none());
        self.vmcb.control.set_intercepts(intercepts);
        // A child that makes the processor raise #DB or #AC while it delivers #DB or #AC would hang it for ever; and
        // machine checks are the parent's.
        let always = if self.is_parent() { 0 } else { 1 << VECTOR_DB | 1 << VECTOR_AC | 1 << VECTOR_MC };
        let step = if self.step.is_some() { 1 << VECTOR_DB } else { 0 };
        self.vmcb.control.intercept_exceptions = self.exceptions | always | step;
    }

    /// Does [`parterre_core::machine::Vcpu::refuse_cr4`]: this vendor's processors do not tell bits apart.
    pub(crate) fn refuse_cr4_svm(&mut self, bits: u64) {
        self.vmcb.control.intercept_cr_write = if bits == 0 { 0 } else { 1 << 4 };
        self.touch(Clean::INTERCEPTS);
    }

    /// Makes the block ready for the next entry.
    #[inline]
    fn prepare(&mut self, processor: &LogicalProcessor) {
        self.vmcb.save.rax = self.gprs[gpr::RAX];
        self.vmcb.save.rsp = self.gprs[gpr::RSP];
        let injection = match self.pending {
            None => 0,
            Some(event) => self.prepare_event(event),
        };
        self.vmcb.control.event_injection = injection;
        if self.flush {
            self.prepare_flush(processor);
        }
        self.vmcb.control.clean = if self.features.clean_bits { self.clean.bits() } else { 0 };
    }

    #[cold]
    fn prepare_flush(&mut self, processor: &LogicalProcessor) {
        self.flush = false;
        if self.features.flush_by_asid {
            self.vmcb.control.tlb_control = TLB_FLUSH_ASID;
        } else if self.is_parent() {
            self.vmcb.control.tlb_control = TLB_FLUSH_ALL;
        } else {
            self.space = AddressSpaceId::none();
            self.assign_space(processor);
        }
    }

    /// Gives the guest an address space identifier that no other guest uses on this processor.
    fn assign_space(&mut self, processor: &LogicalProcessor) {
        // SAFETY: the reference ends here, and only the code on this processor makes such.
        let allocator = unsafe { &mut processor::state(processor).asids };
        let assigned = self.space.assign(allocator, processor.index(), self.features.asids);
        if assigned.flush_all {
            self.vmcb.control.tlb_control = TLB_FLUSH_ALL;
        }
        self.vmcb.control.asid = assigned.asid;
        self.touch(Clean::ASID);
    }

    fn prepare_event(&mut self, event: Event) -> u64 {
        match event {
            Event::Nmi if !self.nmi_masked => {
                self.nmi_masked = true;
                self.update_intercepts();
            }
            // The return address is the next instruction's.
            Event::Software(_, length) if self.features.next_rip => {
                self.vmcb.control.next_rip = self.vmcb.save.rip.wrapping_add(length.into());
            }
            Event::Software(_, length) => {
                self.vmcb.save.rip = self.vmcb.save.rip.wrapping_add(length.into());
                self.advanced = length;
            }
            _ => {}
        }
        event::encode(event)
    }

    /// Reads what an exit left in the block; `None` if the guest goes on.
    #[inline]
    fn finish(&mut self, processor: &mut LogicalProcessor) -> Option<Exit> {
        self.gprs[gpr::RAX] = self.vmcb.save.rax;
        self.gprs[gpr::RSP] = self.vmcb.save.rsp;
        self.vmcb.control.tlb_control = 0;
        self.clean = Clean::all();
        let info = self.vmcb.control.exit_interrupt_info;
        let injected = self.pending.take();
        if injected.is_some() || event::is_valid(info) {
            self.finish_event(injected, info);
        }
        if self.step.is_some() {
            return self.finish_step(processor);
        }
        self.finish_exit(processor)
    }

    /// Notes the event whose delivery the exit cut short.
    #[cold]
    fn finish_event(&mut self, injected: Option<Event>, info: u64) {
        self.pending = match injected {
            Some(Event::Software(..)) if event::is_software(info) => {
                self.vmcb.save.rip = self.vmcb.save.rip.wrapping_sub(self.advanced.into());
                injected
            }
            _ => event::decode(info),
        };
        self.advanced = 0;
        let offered =
            Some(Event::Interrupt((self.vmcb.control.interrupt_control >> V_INTR_VECTOR_SHIFT) as u8));
        if self.offered && self.pending == offered && injected != offered {
            // Its delivery has begun. QEMU's emulation says so only when it ends.
            self.vmcb.control.interrupt_control &= !V_IRQ;
            self.touch(Clean::INTERRUPT);
        }
        if self.pending == Some(Event::Nmi) {
            self.nmi_masked = false;
            self.update_intercepts();
        }
    }

    #[inline]
    fn finish_exit(&mut self, processor: &mut LogicalProcessor) -> Option<Exit> {
        match self.vmcb.control.exit_code {
            exit_code::NMI => processor.take_nmi(self.mode),
            exit_code::VINTR => {
                self.request_interrupt_window(None);
                Some(Exit::InterruptWindow)
            }
            exit_code::IRET => {
                self.begin_step(Step::Iret { trap_flag: self.vmcb.save.rflags & TRAP_FLAG });
                None
            }
            code @ exit_code::EXCEPTION_FIRST..=exit_code::EXCEPTION_LAST => {
                self.finish_exception((code - exit_code::EXCEPTION_FIRST) as u8)
            }
            _ => Some(self.decode()),
        }
    }

    fn decode(&self) -> Exit {
        exit::decode(&self.vmcb, &self.gprs, self.features.next_rip)
    }

    /// Gives an exception that was intercepted for the processor's sake back to the guest.
    #[cold]
    fn finish_exception(&mut self, vector: u8) -> Option<Exit> {
        let wanted = self.exceptions >> vector & 1 != 0 || vector == VECTOR_MC;
        if wanted {
            return Some(self.decode());
        }
        let error = (vector == VECTOR_AC).then_some(0);
        if vector == VECTOR_DB {
            self.vmcb.save.dr7 &= !DR7_GENERAL_DETECT;
            self.touch(Clean::DEBUG);
        }
        self.pending = Some(Event::Exception(vector, error));
        None
    }

    #[cold]
    fn begin_step(&mut self, step: Step) {
        self.step = Some(step);
        self.vmcb.save.rflags |= TRAP_FLAG;
        self.update_intercepts();
    }

    /// Ends stepping, successful or not. `executed` says that the instruction has been executed.
    #[cold]
    fn end_step(&mut self, executed: bool) {
        let Some(step) = self.step.take() else { return };
        match step {
            // IRET has loaded the flags that are right.
            Step::Iret { .. } if executed => self.nmi_masked = false,
            Step::Iret { trap_flag } | Step::Shadow { trap_flag } => {
                self.vmcb.save.rflags = self.vmcb.save.rflags & !TRAP_FLAG | trap_flag;
            }
        }
        self.update_intercepts();
    }

    /// After an exit with RFLAGS.TF set by us.
    #[cold]
    fn finish_step(&mut self, processor: &mut LogicalProcessor) -> Option<Exit> {
        let trapped = self.vmcb.control.exit_code == exit_code::EXCEPTION_DB
            && self.vmcb.save.dr6 & DR6_SINGLE_STEP != 0;
        let own = matches!(self.step, Some(Step::Iret { trap_flag: 0 } | Step::Shadow { trap_flag: 0 }));
        self.end_step(trapped);
        if !trapped {
            return self.finish_exit(processor);
        }
        if own {
            self.vmcb.save.dr6 &= !DR6_SINGLE_STEP;
            self.touch(Clean::DEBUG);
        }
        if !own || self.vmcb.save.dr6 & DR6_BREAKPOINTS != 0 {
            return self.finish_exit(processor);
        }
        None
    }

    /// What an awaited NMI window asks for before entering: an exit at once, a step, or nothing but waiting for IRET.
    #[cold]
    fn await_nmi_window(&mut self) -> Option<Exit> {
        if self.nmi_masked || self.step.is_some() || self.pending.is_some() {
            return None;
        }
        if self.interrupt_shadow() {
            self.begin_step(Step::Shadow { trap_flag: self.vmcb.save.rflags & TRAP_FLAG });
            return None;
        }
        self.nmi_window = false;
        Some(Exit::NmiWindow)
    }

    /// Finishes [`parterre_core::machine::Vcpu::load`].
    pub(crate) fn load_svm(&mut self, processor: &LogicalProcessor) {
        // SAFETY: the reference ends here, and only the code on this processor makes such.
        let current = unsafe { &processor::state(processor).asids };
        if !self.space.is_current(current, processor.index()) {
            // Another processor's cache of the block may be newer than what this one remembers.
            self.clean = Clean::empty();
            self.assign_space(processor);
        }
    }

    /// Runs until an exit that is core's.
    #[inline(never)]
    pub(crate) fn run_svm(&mut self, processor: &mut LogicalProcessor) -> Exit {
        loop {
            if self.nmi_window
                && let Some(exit) = self.await_nmi_window()
            {
                return exit;
            }
            if let Some(exit) = processor.enter(self.mode) {
                self.end_step(false);
                return exit;
            }
            self.prepare(processor);
            let host = processor::host_state(processor);
            // SAFETY: `enable` has set up this processor and `host`; the block and the registers are this value's own,
            // and nested page tables come from a `Space`, which maps only what core's tokens allow.
            unsafe { switch::run(self.vmcb.address(), &raw mut self.gprs, host) };
            processor.leave();
            if let Some(exit) = self.finish(processor) {
                return exit;
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
