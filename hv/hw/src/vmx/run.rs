//! Running a virtual processor under VMX: what of its control block goes into the current structure before an entry, and
//! what comes back after it.

use parterre_core::machine::{Event, Exit, Processor, Vcpu as _, gpr};

use super::capability::{
    CR0_CD, CR0_NE, CR0_NW, CR0_PG, CR4_SMXE, CR4_VMXE, Capabilities, Controls, ENTRY_LONG_MODE, primary,
    secondary,
};
use super::control::{self, CR4_PAE, Cr0Context, EFER_LMA};
use super::exit::{self, reason};
use super::field::{self, Current, Field, Source};
use super::{check, host, state, switch};
use crate::paging::slat;
use crate::processor::{LogicalProcessor, Mode};
use crate::svm::vmcb::{Clean, INTERRUPT_SHADOW, Intercepts, V_INTR_PRIO, V_INTR_PRIO_SHIFT, V_IRQ, V_TPR};
use crate::vcpu::page::PageOf;
use crate::vcpu::{Engine, Vcpu, event};

/// EFER.SVME, which the control block always has and no processor of Intel's.
const EFER_SVME: u64 = 1 << 12;
/// The guest's interruptibility: STI or MOV SS holds interrupts off for one instruction; NMIs are masked.
const BLOCKED_BY_STI: u64 = 1 << 0;
const BLOCKED_BY_MOV_SS: u64 = 1 << 1;
const NMIS_MASKED: u64 = 1 << 3;
const RFLAGS_IF: u64 = 1 << 9;
/// Bits of CR0 whose changes exit.
const CR0_OWNED: u64 = CR0_NE | CR0_NW | CR0_CD;
/// Bits of CR4 whose changes exit, for the parent.
const CR4_OWNED_PARENT: u64 = CR4_VMXE | CR4_SMXE;
/// Bits of CR4 whose changes exit, for children: all that they are not told of.
const CR4_OWNED_CHILD: u64 = !0x77_0fff;
/// Where the task priority is in the virtual APIC page.
const TASK_PRIORITY: usize = 0x80;
/// Set in the code of [`Exit::Failed`] if the processor refused the instruction itself.
const REFUSED: u64 = 1 << 32;
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

/// What only this vendor's part knows of a virtual processor.
#[derive(Debug)]
pub struct Own {
    /// Physical address of the structure.
    vmcs: u64,
    /// Where the guest's task priority is.
    apic_page: PageOf<[u8; 4096]>,
    capabilities: &'static Capabilities,
    controls: Controls,
    /// Physical address of the MSR bitmaps.
    bitmap: u64,
    /// The frame of the top table of the address space.
    root: u64,
    /// The structure has been filled in.
    prepared: bool,
    /// It has been launched on this processor.
    launched: bool,
    /// The processor whose host state it has.
    host: Option<usize>,
    written: Written,
}

/// What the structure holds of what an entry may have to change.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    rip: u64,
    rsp: u64,
    rflags: u64,
    interruptibility: u64,
    primary: u32,
    threshold: u64,
    injection: u64,
}

impl Own {
    /// For a virtual processor with its structure at `vmcs`.
    pub fn new(
        vmcs: u64,
        apic_page: PageOf<[u8; 4096]>,
        capabilities: &'static Capabilities,
        mode: Mode,
        bitmap: u64,
        root: u64,
    ) -> Self {
        let controls = if mode == Mode::Parent { capabilities.parent } else { capabilities.child };
        Self {
            vmcs,
            apic_page,
            capabilities,
            controls,
            bitmap,
            root,
            prepared: false,
            launched: false,
            host: None,
            written: Written::default(),
        }
    }

    /// Physical addresses of the structure and of the virtual APIC page.
    pub fn pages(&self) -> [u64; 2] {
        [self.vmcs, self.apic_page.address()]
    }

    /// Fills in what never changes.
    fn prepare(&mut self, vmcs: Current, cr4_owned: u64) {
        self.prepared = true;
        let Controls { pin, primary, secondary, exit, .. } = self.controls;
        for (field, value) in [
            (Field::PinControls, pin),
            (Field::PrimaryControls, primary),
            (Field::SecondaryControls, secondary),
            (Field::ExitControls, exit),
        ] {
            vmcs.write(field, value.into());
        }
        for zero in [
            Field::PageFaultMask,
            Field::PageFaultMatch,
            Field::Cr3TargetCount,
            Field::ExitMsrStoreCount,
            Field::ExitMsrLoadCount,
            Field::EntryMsrLoadCount,
            Field::EntryInterruptionInfo,
            Field::GuestActivity,
            Field::GuestInterruptibility,
            Field::GuestPendingDebug,
        ] {
            vmcs.write(zero, 0);
        }
        vmcs.write(Field::MsrBitmap, self.bitmap);
        vmcs.write(Field::EptPointer, self.capabilities.ept_pointer(self.root));
        vmcs.write(Field::VmcsLink, u64::MAX);
        vmcs.write(Field::Cr0Mask, CR0_OWNED);
        vmcs.write(Field::Cr4Mask, cr4_owned);
        if primary & primary::TPR_SHADOW != 0 {
            vmcs.write(Field::VirtualApicPage, self.apic_page.address());
            vmcs.write(Field::TprThreshold, 0);
        }
        if secondary & secondary::XSAVES != 0 {
            vmcs.write(Field::XssExitingBitmap, 0);
        }
        self.written = Written { primary, ..Written::default() };
        for (field, value) in [(Field::GuestRip, 0), (Field::GuestRsp, 0), (Field::GuestRflags, 0)] {
            vmcs.write(field, value);
        }
    }
}

impl Vcpu {
    fn vmx(&mut self) -> &mut Own {
        match &mut self.engine {
            Engine::Vmx(own) => own,
            Engine::Svm => unreachable!("only VMX's processors come here"),
        }
    }

    /// The current structure, if it is this virtual processor's.
    pub(crate) fn in_structure(&self) -> Option<Current> {
        // SAFETY: while a virtual processor is loaded its structure is current.
        (self.loaded && matches!(self.engine, Engine::Vmx(_))).then(|| unsafe { Current::new() })
    }

    fn cr4_owned(&self) -> u64 {
        if self.is_parent() { CR4_OWNED_PARENT } else { CR4_OWNED_CHILD }
    }

    /// Finishes [`parterre_core::machine::Vcpu::load`].
    pub(crate) fn load_vmx(&mut self, processor: &LogicalProcessor) {
        let cr4_owned = self.cr4_owned();
        let own = self.vmx();
        let (structure, prepared) = (own.vmcs, own.prepared);
        // SAFETY: `enable` has entered VMX operation on this processor; the structure is this value's own, and `unload` has
        // taken it from the processor that had it before.
        let vmcs = unsafe {
            let cleared = prepared || field::vmclear(structure);
            assert!(cleared && field::vmptrld(structure), "the processor refuses a structure of ours");
            Current::new()
        };
        if !prepared {
            own.prepare(vmcs, cr4_owned);
        }
        if own.host.replace(processor.index()) != Some(processor.index()) {
            host::write(vmcs);
        }
        state::load(vmcs, &mut self.vmcb.save);
        self.clean = Clean::empty();
        // SAFETY: the reference ends here, and only the code on this processor makes such.
        let allocator = unsafe { &mut host::state(processor).vpids };
        if !self.space.is_current(allocator, processor.index()) {
            let assigned = self.space.assign(allocator, processor.index(), self.features.asids);
            // Another address space may have had these tables, or this identifier.
            self.flush = true;
            self.vmcb.control.asid = assigned.asid;
        }
        if self.vmx().controls.secondary & secondary::VPID != 0 {
            vmcs.write(Field::Vpid, self.vmcb.control.asid.into());
        }
    }

    /// Does its part of [`parterre_core::machine::Vcpu::unload`].
    pub(crate) fn unload_vmx(&mut self) {
        let Some(vmcs) = self.in_structure() else { return };
        state::unload(vmcs, &mut self.vmcb.save);
        if !self.is_parent() {
            let own = self.vmx();
            own.launched = false;
            // SAFETY: the structure is this value's own. From now on any processor may load it, or its page be used for
            // something else.
            let cleared = unsafe { field::vmclear(own.vmcs) };
            assert!(cleared, "the processor refuses a structure of ours");
        }
    }

    /// Runs until an exit that is core's.
    pub(crate) fn run_vmx(&mut self, processor: &mut LogicalProcessor) -> Exit {
        // SAFETY: the processor is loaded, so its structure is current.
        let vmcs = unsafe { Current::new() };
        loop {
            if let Some(exit) = processor.enter(self.mode) {
                return exit;
            }
            self.prepare_entry(vmcs);
            let launched = self.vmx().launched;
            // SAFETY: `enable` and `load` have set up the processor and the structure; its EPT comes from a `Space`, which
            // maps only what core's tokens allow; the registers are this value's own.
            let outcome = unsafe { switch::run(&raw mut self.gprs, launched, processor.nmi_note()) };
            processor.leave();
            let exit = match outcome {
                switch::Outcome::Left => self.finish_exit_vmx(vmcs, processor),
                switch::Outcome::NmiCame => processor.take_nmi(self.mode),
                switch::Outcome::Refused => Some(refused(vmcs)),
            };
            if let Some(exit) = exit {
                return exit;
            }
        }
    }

    /// Makes the structure ready for the next entry.
    fn prepare_entry(&mut self, vmcs: Current) {
        let changed = Clean::all() - self.clean;
        if !changed.is_empty() {
            self.clean = Clean::all();
            self.write_groups(vmcs, changed);
        }
        self.write_injection(vmcs);
        let (rip, rsp, rflags) = (self.vmcb.save.rip, self.gprs[gpr::RSP], self.vmcb.save.rflags);
        let interruptibility = self.interruptibility();
        let primary = self.primary();
        let own = self.vmx();
        let was = own.written;
        own.written = Written { rip, rsp, rflags, interruptibility, primary, ..was };
        for (field, old, new) in [
            (Field::GuestRip, was.rip, rip),
            (Field::GuestRsp, was.rsp, rsp),
            (Field::GuestRflags, was.rflags, rflags),
            (Field::GuestInterruptibility, was.interruptibility, interruptibility),
            (Field::PrimaryControls, was.primary.into(), primary.into()),
        ] {
            if old != new {
                vmcs.write(field, new);
            }
        }
        if core::mem::take(&mut self.flush) {
            self.flush_tables();
        }
    }

    #[cold]
    fn flush_tables(&mut self) {
        let own = self.vmx();
        let (pointer, all) = (own.capabilities.ept_pointer(own.root), !own.capabilities.invept_single);
        // SAFETY: the processor is in VMX operation; `Capabilities` says which form there is.
        unsafe { field::invept(pointer, all) };
    }

    /// Writes what has changed of the block since the last exit.
    #[cold]
    fn write_groups(&mut self, vmcs: Current, changed: Clean) {
        if changed.contains(Clean::CONTROL) {
            self.write_control_registers(vmcs);
        }
        if changed.contains(Clean::SEGMENTS) {
            state::write_segment(vmcs, 1, self.vmcb.save.cs);
        }
        if changed.contains(Clean::INTERCEPTS) {
            vmcs.write(Field::ExceptionBitmap, self.vmcb.control.intercept_exceptions.into());
            if self.vmx().controls.primary & primary::TSC_OFFSETTING != 0 {
                vmcs.write(Field::TscOffset, self.vmcb.control.tsc_offset);
            }
        }
        if changed.contains(Clean::INTERRUPT) {
            self.write_task_priority(vmcs);
        }
    }

    fn write_control_registers(&mut self, vmcs: Current) {
        let save = &mut self.vmcb.save;
        save.efer = control::with_long_mode(save.efer, save.cr0);
        let (cr0, cr3, cr4, efer) = (save.cr0, save.cr3, save.cr4, save.efer & !EFER_SVME);
        let own = self.vmx();
        vmcs.write(Field::GuestCr0, own.capabilities.real_cr0(cr0));
        vmcs.write(Field::Cr0Shadow, cr0);
        vmcs.write(Field::GuestCr3, cr3);
        vmcs.write(Field::GuestCr4, own.capabilities.real_cr4(cr4));
        vmcs.write(Field::Cr4Shadow, cr4);
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
    fn write_task_priority(&mut self, vmcs: Current) {
        if self.vmx().controls.primary & primary::TPR_SHADOW == 0 {
            return;
        }
        let control = self.vmcb.control.interrupt_control;
        let (priority, class) = (control & V_TPR, self.awaited_class());
        let threshold = class.filter(|class| *class <= priority).unwrap_or(0);
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
    fn primary(&mut self) -> u32 {
        let priority = self.vmcb.control.interrupt_control & V_TPR;
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

    fn write_injection(&mut self, vmcs: Current) {
        let injection = self.pending.map_or(0, |event| self.injection(event));
        let own = self.vmx();
        if injection == 0 && own.written.injection == 0 {
            return;
        }
        own.written.injection = injection;
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
    /// 28.2.1.3).
    fn injection(&self, event: Event) -> u64 {
        const WITH_ERROR: u32 = 1 << 8 | 0x1f << 10 | 1 << 17;
        let protected = self.vmcb.save.cr0 & 1 != 0;
        event::encode(match event {
            Event::Exception(vector, error) if vector < 32 => {
                let has_error = protected && WITH_ERROR >> vector & 1 != 0;
                Event::Exception(vector, has_error.then(|| error.unwrap_or(0)))
            }
            other => other,
        })
    }

    /// Reads what an exit left in the structure; `None` if the guest goes on.
    fn finish_exit_vmx(&mut self, vmcs: Current, processor: &mut LogicalProcessor) -> Option<Exit> {
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
            reason::NMI_WINDOW => {
                self.nmi_window = false;
                Some(Exit::NmiWindow)
            }
            reason::EPT_VIOLATION => {
                let unmasked = vmcs.read(Field::ExitQualification) & UNMASKED_NMIS != 0;
                self.nmi_masked |= unmasked && !event::is_valid(vectoring);
                Some(exit::decode(&vmcs, reason, &self.gprs))
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

/// Whether an entry of PAE's page directory pointer table has no reserved bit set (SDM volume 3A, 5.4.1).
fn is_valid_pdpte(entry: u64) -> bool {
    const RESERVED: u64 = 3 << 1 | 0xf << 5 | 0xfff << 52;
    entry & 1 == 0 || entry & RESERVED == 0
}

/// Does what a debug exception does before it is delivered: an exit instead of it leaves DR6 and DR7 as they were.
fn raise_debug(vmcs: Current) {
    use parterre_core::machine::Reg;
    let causes = vmcs.read(Field::ExitQualification) & DR6_SET;
    let before = state::read(vmcs, Reg::Dr6).unwrap_or(0);
    state::write(vmcs, Reg::Dr6, before & !0xf | causes | DR6_FIXED);
    vmcs.write(Field::GuestDr7, vmcs.read(Field::GuestDr7) & !DR7_GENERAL_DETECT);
}

/// The processor would not even try.
#[cold]
fn refused(vmcs: Current) -> Exit {
    let error = vmcs.read(Field::InstructionError);
    check::report(&vmcs, error as u32);
    Exit::Failed(REFUSED | error)
}
