//! What of a virtual processor's control block goes into the current structure before an entry.

use parterre_core::machine::{Event, Reg, Vcpu as _, gpr};

use super::capability::{ENTRY_LONG_MODE, primary};
use super::control::{self, EFER_LMA};
use super::field::{self, Current, Field};
use super::run::{BLOCKED_BY_MOV_SS, BLOCKED_BY_STI, NMIS_MASKED, TASK_PRIORITY};
use crate::paging::slat;
use crate::svm::vmcb::{Clean, INTERRUPT_SHADOW, Intercepts, V_INTR_PRIO, V_INTR_PRIO_SHIFT, V_IRQ};
use crate::vcpu::{Vcpu, event};

const RFLAGS_IF: u64 = 1 << 9;
/// Bits of EFER that Intel's processors have: SCE, LME, LMA, NXE. Others would have the entry fail.
pub(super) const EFER_EXISTING: u64 = 1 << 0 | 1 << 8 | 1 << 10 | 1 << 11;

impl Vcpu {
    /// Makes the structure ready for the next entry.
    #[inline]
    pub(super) fn prepare_entry(&mut self, vmcs: Current) {
        let changed = Clean::all() - self.clean;
        if !changed.is_empty() {
            self.write_groups(vmcs, changed);
        }
        if self.pending.is_some() || self.vmx().written.injection {
            self.write_injection(vmcs);
        }
        let (rip, rsp, rflags) = (self.vmcb.save.rip, self.gprs[gpr::RSP], self.vmcb.save.rflags);
        let held = self.vmcb.control.interrupt_state & INTERRUPT_SHADOW | u64::from(self.nmi_masked);
        let written = &mut self.vmx().written;
        vmcs.write(Field::GuestRip, rip);
        if rsp != written.rsp {
            written.rsp = rsp;
            vmcs.write(Field::GuestRsp, rsp);
        }
        if rflags != written.rflags {
            written.rflags = rflags;
            vmcs.write(Field::GuestRflags, rflags);
        }
        if held | written.interruptibility != 0 {
            self.write_interruptibility(vmcs);
        }
        if self.flush {
            self.flush_tables();
        }
    }

    #[cold]
    fn flush_tables(&mut self) {
        self.flush = false;
        let own = self.vmx();
        let (pointer, all) = (own.capabilities.ept_pointer(own.root), !own.capabilities.invept_single);
        // SAFETY: the processor is in VMX operation; `Capabilities` says which form there is.
        unsafe { field::invept(pointer, all) };
    }

    /// Writes what has changed of the block since the last exit.
    #[inline(never)]
    fn write_groups(&mut self, vmcs: Current, changed: Clean) {
        self.clean = Clean::all();
        if changed.contains(Clean::CONTROL) {
            self.recall();
            self.write_control_registers(vmcs);
        }
        if changed.contains(Clean::INTERCEPTS) {
            vmcs.write(Field::ExceptionBitmap, self.vmcb.control.intercept_exceptions.into());
            if self.vmx().controls.primary & primary::TSC_OFFSETTING != 0 {
                vmcs.write(Field::TscOffset, self.vmcb.control.tsc_offset);
            }
        }
        if changed.intersects(Clean::INTERRUPT | Clean::INTERCEPTS) {
            let priority = self.get(Reg::Cr8);
            self.write_task_priority(vmcs, priority);
            let primary = self.primary(priority);
            if core::mem::replace(&mut self.vmx().written.primary, primary) != primary {
                vmcs.write(Field::PrimaryControls, primary.into());
            }
        }
    }

    fn write_control_registers(&mut self, vmcs: Current) {
        let save = &mut self.vmcb.save;
        save.efer = control::with_long_mode(save.efer, save.cr0);
        let (cr0, cr3, cr4, efer) = (save.cr0, save.cr3, save.cr4, save.efer & EFER_EXISTING);
        let own = self.vmx();
        vmcs.write(Field::GuestCr0, own.capabilities.real_cr0(cr0));
        vmcs.write(Field::Cr0Shadow, cr0);
        vmcs.write(Field::GuestCr3, cr3);
        vmcs.write(Field::GuestCr4, own.capabilities.real_cr4(cr4));
        vmcs.write(Field::Cr4Shadow, cr4);
        vmcs.write(Field::Cr4Mask, own.cr4_owned);
        vmcs.write(Field::GuestEfer, efer);
        let long = if efer & EFER_LMA != 0 { ENTRY_LONG_MODE } else { 0 };
        vmcs.write(Field::EntryControls, (own.controls.entry | long).into());
        if control::has_pdptes(cr0, cr4, efer) {
            let fields = [Field::GuestPdpte0, Field::GuestPdpte1, Field::GuestPdpte2, Field::GuestPdpte3];
            for (field, address) in fields.into_iter().zip((cr3 & 0xffff_ffe0..).step_by(8)) {
                // SAFETY: core waits for processors that run in an address space before it takes tables out of it, and this
                // one counts as running.
                let entry = unsafe { slat::read_word(own.root, address) };
                vmcs.write(field, entry.filter(|entry| is_valid_pdpte(*entry)).unwrap_or(0));
            }
        }
    }

    /// Writes the task priority, and how low it must fall for an exit.
    fn write_task_priority(&mut self, vmcs: Current, priority: u64) {
        if self.vmx().controls.primary & primary::TPR_SHADOW == 0 {
            return;
        }
        let threshold = self.awaited_class().filter(|class| *class <= priority).unwrap_or(0);
        let own = self.vmx();
        own.apic_page[TASK_PRIORITY] = (priority << 4) as u8;
        if own.written.threshold != threshold {
            own.written.threshold = threshold;
            vmcs.write(Field::TprThreshold, threshold);
        }
    }

    /// The priority class of the interrupt that waits for its window.
    fn awaited_class(&self) -> Option<u64> {
        let control = self.vmcb.control.interrupt_control;
        (control & V_IRQ != 0).then_some((control & V_INTR_PRIO) >> V_INTR_PRIO_SHIFT)
    }

    /// The primary controls: the windows that are awaited, and whether HLT exits.
    fn primary(&mut self, priority: u64) -> u32 {
        let mut controls = self.vmx().controls.primary;
        if self.awaited_class().is_some_and(|class| class > priority) {
            controls |= primary::INTERRUPT_WINDOW;
        }
        if self.nmi_window {
            controls |= primary::NMI_WINDOW;
        }
        if self.vmcb.control.intercepts().contains(Intercepts::HLT) {
            controls |= primary::HLT;
        }
        controls
    }

    #[cold]
    fn write_interruptibility(&mut self, vmcs: Current) {
        let interruptibility = self.interruptibility();
        let written = &mut self.vmx().written.interruptibility;
        if core::mem::replace(written, interruptibility) != interruptibility {
            vmcs.write(Field::GuestInterruptibility, interruptibility);
        }
    }

    /// What holds interrupts and NMIs off: as the last exit left it, unless core has changed it.
    fn interruptibility(&mut self) -> u64 {
        let shadow = self.vmcb.control.interrupt_state & INTERRUPT_SHADOW != 0;
        let enabled = self.vmcb.save.rflags & RFLAGS_IF != 0;
        let masked = if self.nmi_masked { NMIS_MASKED } else { 0 };
        let before = self.vmx().written.interruptibility & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS);
        let blocked = match (shadow, before) {
            (false, _) => 0,
            (true, 0 | BLOCKED_BY_STI) if enabled => BLOCKED_BY_STI,
            (true, _) => BLOCKED_BY_MOV_SS,
        };
        masked | blocked
    }

    /// Writes the event that the entry delivers, or that there is none, after one that was not delivered.
    #[inline(never)]
    fn write_injection(&mut self, vmcs: Current) {
        let injection = self.pending.map_or(0, |event| self.injection(event));
        self.vmx().written.injection = injection != 0;
        vmcs.write(Field::EntryInterruptionInfo, injection & u64::from(u32::MAX));
        vmcs.write(Field::EntryExceptionError, injection >> 32);
        if let Some(Event::Software(_, length)) = self.pending {
            vmcs.write(Field::EntryInstructionLength, length.into());
        }
        if matches!(self.pending, Some(Event::Interrupt(_) | Event::Nmi)) {
            self.set_interrupt_shadow(false);
        }
    }

    /// The event as an entry takes it. Error codes are for the exceptions that have one, in protected mode (SDM volume 3C,
    /// 27.2.1.3).
    fn injection(&self, event: Event) -> u64 {
        const WITH_ERROR: u32 = 1 << 8 | 0x1f << 10 | 1 << 17;
        event::encode(match event {
            Event::Exception(vector, error) if vector < 32 => {
                let protected = self.get(Reg::Cr0) & 1 != 0;
                let has_error = protected && WITH_ERROR >> vector & 1 != 0;
                Event::Exception(vector, has_error.then(|| error.unwrap_or(0)))
            }
            other => other,
        })
    }
}

/// Whether an entry of PAE's page directory pointer table has no reserved bit set (SDM volume 3A, 5.4.1).
pub(super) fn is_valid_pdpte(entry: u64) -> bool {
    const RESERVED: u64 = 3 << 1 | 0xf << 5 | 0xfff << 52;
    entry & 1 == 0 || entry & RESERVED == 0
}
