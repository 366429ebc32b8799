//! Running a virtual processor under VMX: its structure, from which processor to which it goes, and the loop of entries
//! ([`super::entry`]) and exits ([`super::finish`]).

use parterre_core::machine::{Exit, Processor};

use super::capability::{
    CR0_CD, CR0_NE, CR0_NW, CR4_SMXE, CR4_VMXE, Capabilities, Controls, pin, primary, secondary,
};
use super::field::{self, Current, Field, Source};
use super::finish::Begun;
use super::host::State;
use super::speculation::IBRS;
use super::{check, exit, host, state, switch};
use crate::apic;
use crate::cpu::msr;
use crate::processor::{LogicalProcessor, Mode};
use crate::svm::vmcb::Clean;
use crate::vcpu::extended::SPEC_CTRL;
use crate::vcpu::features::SpecCtrl;
use crate::vcpu::page::PageOf;
use crate::vcpu::{Engine, Vcpu};

/// EFER.SVME, which the control block always has and no processor of Intel's.
pub(super) const EFER_SVME: u64 = 1 << 12;
/// The guest's interruptibility: STI or MOV SS holds interrupts off for one instruction; NMIs are masked.
pub(super) const BLOCKED_BY_STI: u64 = 1 << 0;
pub(super) const BLOCKED_BY_MOV_SS: u64 = 1 << 1;
pub(super) const NMIS_MASKED: u64 = 1 << 3;
/// Bits of CR0 whose changes exit.
pub(super) const CR0_OWNED: u64 = CR0_NE | CR0_NW | CR0_CD;
/// Bits of CR4 whose changes exit, whoever it is.
const CR4_OWNED: u64 = CR4_VMXE | CR4_SMXE;
/// How long a child runs at most, in ticks of the preemption timer: milliseconds. A physical interrupt ends its run before
/// that, but in Bochs not if the guest was entered with its interrupts off.
const LONGEST_RUN: u64 = 1 << 21;
/// After so many runs of a child, too, it is looked for interrupts: each entry sets that timer anew, so one that exits again and
/// again, with its interrupts off, would keep them from the parent for ever.
const RUNS_BETWEEN_LOOKS: u32 = 64;
/// Where the task priority is in the virtual APIC page.
pub(super) const TASK_PRIORITY: usize = 0x80;
/// Set in the code of [`Exit::Failed`] if the processor refused the instruction itself.
const REFUSED: u64 = 1 << 32;

/// What only this vendor's part knows of a virtual processor.
#[derive(Debug)]
pub struct Own {
    /// Physical address of the structure.
    vmcs: u64,
    /// Where the guest's task priority is.
    pub(super) apic_page: PageOf<[u8; 4096]>,
    pub(super) capabilities: &'static Capabilities,
    pub(super) controls: Controls,
    /// Physical address of the MSR bitmaps.
    bitmap: u64,
    /// Bits of CR4 whose changes exit.
    pub(super) cr4_owned: u64,
    /// The frame of the top table of the address space.
    pub(super) root: u64,
    /// The structure has been launched on this processor.
    pub(super) launched: bool,
    /// The processor whose host state it has; none has the last number.
    host: usize,
    pub(super) written: Written,
    /// How often it was run.
    runs: u32,
}

/// What the structure holds of what an entry may have to change.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    pub rsp: u64,
    pub rflags: u64,
    pub interruptibility: u64,
    pub primary: u32,
    pub threshold: u64,
    /// There is an event to be injected.
    pub injection: bool,
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
            cr4_owned: CR4_OWNED,
            root,
            launched: false,
            host: usize::MAX,
            written: Written::default(),
            runs: 0,
        }
    }

    /// Physical addresses of the structure and of the virtual APIC page.
    pub fn pages(&self) -> [u64; 2] {
        [self.vmcs, self.apic_page.address()]
    }

    /// Makes the structure of a virtual processor that is not loaded the current one, to look at it or to change it, and
    /// gives the one that was. Whoever has the virtual processor is the only one who can do so.
    #[cold]
    pub(super) fn borrow_structure(&self) -> u64 {
        // SAFETY: the processor is in VMX operation; no processor has the structure active, as `unload` and
        // `return_structure` see to, or it is the parent's, which only this processor ever has.
        let (before, loaded) = unsafe { (field::vmptrst(), field::vmptrld(self.vmcs)) };
        assert!(loaded, "the processor refuses a structure of ours");
        before
    }

    /// Ends [`Own::borrow_structure`].
    #[cold]
    pub(super) fn return_structure(&self, before: u64, parent: bool) {
        // SAFETY: the structures are the hypervisor's; `before` was this processor's current one, if there was one.
        let done = unsafe {
            (parent || field::vmclear(self.vmcs)) && (before == u64::MAX || field::vmptrld(before))
        };
        assert!(done, "the processor refuses a structure of ours");
    }

    /// Fills in what never changes.
    #[cold]
    fn prepare(&mut self, vmcs: Current) {
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
        if primary & primary::TPR_SHADOW != 0 {
            vmcs.write(Field::VirtualApicPage, self.apic_page.address());
            vmcs.write(Field::TprThreshold, 0);
        }
        if pin & pin::PREEMPTION_TIMER != 0 {
            vmcs.write(Field::PreemptionTimer, LONGEST_RUN);
        }
        if secondary & secondary::XSAVES != 0 {
            vmcs.write(Field::XssExitingBitmap, 0);
        }
        self.written = Written { primary, ..Written::default() };
        vmcs.write(Field::GuestRsp, 0);
        vmcs.write(Field::GuestRflags, 0);
    }
}

impl Vcpu {
    #[inline]
    pub(super) fn vmx(&mut self) -> &mut Own {
        match &mut self.engine {
            Engine::Vmx(own) => own,
            Engine::Svm => unreachable!("only VMX's processors come here"),
        }
    }

    /// Bits of CR4 whose changes exit.
    pub(super) fn cr4_owned(&self) -> u64 {
        match &self.engine {
            Engine::Vmx(own) => own.cr4_owned,
            Engine::Svm => 0,
        }
    }

    /// Does [`parterre_core::machine::Vcpu::refuse_cr4`].
    pub(crate) fn refuse_cr4_vmx(&mut self, bits: u64) {
        // What the guest has set meanwhile of what was its own is to be known first.
        self.recall();
        self.vmx().cr4_owned = CR4_OWNED | bits;
        self.touch(Clean::CONTROL);
    }

    /// Finishes [`parterre_core::machine::Vcpu::load`].
    #[inline(never)]
    pub(crate) fn load_vmx(&mut self, processor: &LogicalProcessor) {
        let (structure, prepared) = (self.vmx().vmcs, self.kept);
        // SAFETY: `enable` has entered VMX operation on this processor; the structure is this value's own, and `unload` has
        // taken it from the processor that had it before.
        let vmcs = unsafe {
            let cleared = prepared || field::vmclear(structure);
            assert!(cleared && field::vmptrld(structure), "the processor refuses a structure of ours");
            Current::new()
        };
        if !prepared {
            self.fill_structure(vmcs);
        }
        if core::mem::replace(&mut self.vmx().host, processor.index()) != processor.index() {
            host::write(vmcs);
        }
        // SAFETY: the reference ends here, and only the code on this processor makes such.
        let State { vpids: allocator, last, msrs } = unsafe { host::state(processor) };
        state::load(&mut self.vmcb.save, msrs);
        if core::mem::replace(last, structure) != structure {
            self.vmx().capabilities.speculation.separate(!self.is_parent());
        }
        if !self.space.is_current(allocator, processor.index()) {
            let assigned = self.space.assign(allocator, processor.index(), self.features.asids);
            // Another address space may have had these tables, or this identifier.
            self.flush = true;
            self.vmcb.control.asid = assigned.asid;
            if self.vmx().controls.secondary & secondary::VPID != 0 {
                vmcs.write(Field::Vpid, assigned.asid.into());
            }
        }
    }

    /// Moves the registers from the block to the structure, for good.
    #[cold]
    fn fill_structure(&mut self, vmcs: Current) {
        self.vmx().prepare(vmcs);
        state::fill(vmcs, &mut self.vmcb.save);
        self.clean = Clean::empty();
        self.kept = true;
    }

    /// Does its part of [`parterre_core::machine::Vcpu::unload`].
    #[inline(never)]
    pub(crate) fn unload_vmx(&mut self, processor: &LogicalProcessor) {
        // SAFETY: the reference ends here, and only the code on this processor makes such.
        let machine = unsafe { &mut host::state(processor).msrs };
        state::unload(&mut self.vmcb.save, machine);
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
    #[inline(never)]
    pub(crate) fn run_vmx(&mut self, processor: &mut LogicalProcessor) -> Exit {
        // SAFETY: the processor is loaded, so its structure is current.
        let vmcs = unsafe { Current::new() };
        if self.overlooks_interrupts() {
            return Exit::Interrupt;
        }
        loop {
            if let Some(exit) = processor.enter(self.mode) {
                return exit;
            }
            self.prepare_entry(vmcs);
            let launched = self.vmx().launched;
            let exposed = self.is_exposed();
            if exposed {
                self.write_spec_ctrl(0);
            }
            // SAFETY: `enable` and `load` have set up the processor and the structure; its EPT comes from a `Space`, which
            // maps only what core's tokens allow; the registers are this value's own.
            let outcome = unsafe { switch::run(&raw mut self.gprs, launched, processor.nmi_note()) };
            if exposed {
                self.write_spec_ctrl(IBRS);
            }
            processor.leave();
            let exit = match outcome {
                switch::Outcome::Left => match self.begin_exit(vmcs) {
                    Begun::Instruction(reason) => return exit::decode(&vmcs, reason, &self.gprs),
                    Begun::Done => None,
                    Begun::Other(reason) => self.finish_exit_vmx(vmcs, processor, reason),
                },
                switch::Outcome::NmiCame => processor.take_nmi(self.mode),
                switch::Outcome::Refused => Some(refused(vmcs, self.vmx().capabilities)),
            };
            if let Some(exit) = exit {
                return exit;
            }
        }
    }
}

impl Vcpu {
    /// Whether physical interrupts wait that should have ended the run of a child.
    fn overlooks_interrupts(&mut self) -> bool {
        let (child, own) = (!self.is_parent(), self.vmx());
        own.runs = own.runs.wrapping_add(1);
        child && own.runs.is_multiple_of(RUNS_BETWEEN_LOOKS) && apic::any_requested()
    }

    /// Whether this is a child that runs without the protection that the hypervisor wants for itself.
    fn is_exposed(&mut self) -> bool {
        let switched = self.features.spec_ctrl == SpecCtrl::Switched;
        switched
            && self.registers.spec_ctrl & IBRS == 0
            && !self.is_parent()
            && self.vmx().capabilities.speculation.keep_ibrs
    }

    #[cold]
    fn write_spec_ctrl(&self, more: u64) {
        // SAFETY: `is_exposed` has found that there is the register; core has checked the value.
        unsafe { msr::write(SPEC_CTRL, self.registers.spec_ctrl | more) };
    }
}

/// The processor would not even try.
#[cold]
fn refused(vmcs: Current, capabilities: &Capabilities) -> Exit {
    let error = vmcs.read(Field::InstructionError);
    check::report(&vmcs, capabilities, error as u32);
    Exit::Failed(REFUSED | error)
}
