//! A virtual processor: its registers, and what core asks of it.
//!
//! Both vendors' processors keep the registers that core looks at after most exits in one *control block*, with the layout
//! and the words of AMD's ([`crate::svm::vmcb`]). Under SVM the processor itself reads and writes it; under VMX it is the
//! hypervisor's copy of a few, and of others what they are to become: most stay in the VMCS until somebody asks
//! ([`crate::vmx::state`]). So little that core does often asks whose processor it is; what is done differently begins in
//! [`machine::Vcpu::run`], at one place.

pub mod asid;
pub mod event;
pub mod extended;
pub mod features;
pub mod msrs;
pub mod page;
pub mod registers;

use parterre_core::machine::{self, Event, Exit, Reg, Segment, SegmentName, Table, TableName};

use crate::paging::slat::Space;
use crate::processor::{LogicalProcessor, Mode};
use crate::svm::vmcb::{
    Clean, INTERRUPT_SHADOW, Intercepts, V_INTR_PRIO, V_INTR_PRIO_SHIFT, V_INTR_VECTOR, V_INTR_VECTOR_SHIFT,
    V_IRQ, Vmcb, VmcbSegment,
};
use crate::{svm, vmx};
use asid::AddressSpaceId;
use features::Features;
use page::PageOf;

/// A virtual processor.
#[derive(Debug)]
pub struct Vcpu {
    pub(crate) gprs: [u64; 16],
    pub(crate) vmcb: PageOf<Vmcb>,
    pub(crate) pending: Option<Event>,
    /// Groups of the block that the processor's own copy of them agrees with.
    pub(crate) clean: Clean,
    pub(crate) flush: bool,
    /// Under SVM, where the processor does not store next addresses: by how much RIP was moved for a software interrupt on
    /// its way.
    pub(crate) advanced: u8,
    /// Under SVM: the instruction that is being stepped.
    pub(crate) step: Option<svm::run::Step>,
    pub(crate) nmi_masked: bool,
    pub(crate) nmi_window: bool,
    /// Under SVM: the virtual interrupt is to be taken, not to exit.
    pub(crate) offered: bool,
    pub(crate) mode: Mode,
    pub(crate) exceptions: u32,
    pub(crate) space: AddressSpaceId,
    pub(crate) loaded: bool,
    /// Under VMX, from the first time it is loaded: most registers are in the structure, whether it is loaded or not.
    pub(crate) kept: bool,
    /// So are CR0, CR3, CR4, CR8, EFER, the privilege level and the attributes of CS; the block's are old.
    pub(crate) resident: bool,
    newest: Newest,
    pub(crate) features: Features,
    pub(crate) registers: extended::Registers,
    pub(crate) area: PageOf<[u8; 4096]>,
    pub(crate) engine: Engine,
}

/// What runs a virtual processor, with what only that needs to know of it.
#[derive(Debug)]
pub enum Engine {
    /// AMD's.
    Svm,
    /// Intel's.
    Vmx(vmx::run::Own),
}

/// Where the FPU state of a virtual processor is. While it is not loaded: in its area, in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Newest {
    /// In the machine only.
    Machine,
    /// In the machine, and the same in the area.
    Both,
    /// In the area only, where it was changed.
    Area,
}

impl Vcpu {
    /// A virtual processor whose block says what is intercepted and what memory it sees, and nothing else yet; `start`
    /// fills in its registers.
    pub(crate) fn new(
        vmcb: PageOf<Vmcb>,
        area: PageOf<[u8; 4096]>,
        features: Features,
        mode: Mode,
        engine: Engine,
        start: impl FnOnce(&mut Vmcb, &mut [u64; 16]),
    ) -> Self {
        let mut vcpu = Self {
            gprs: [0; 16],
            vmcb,
            pending: None,
            clean: Clean::empty(),
            flush: true,
            advanced: 0,
            step: None,
            nmi_masked: false,
            nmi_window: false,
            offered: false,
            mode,
            exceptions: 0,
            space: if mode == Mode::Parent { AddressSpaceId::parent() } else { AddressSpaceId::none() },
            loaded: false,
            kept: false,
            resident: false,
            newest: Newest::Area,
            features,
            registers: extended::Registers { xcr0: features.xcr0 & 1, ..Default::default() },
            area,
            engine,
        };
        extended::reset(&mut vcpu.area);
        start(&mut vcpu.vmcb, &mut vcpu.gprs);
        vcpu.update_intercepts();
        vcpu
    }

    pub(crate) fn vmcb(&self) -> &Vmcb {
        &self.vmcb
    }

    /// The block for changes; [`Vcpu::touch`] must name the cached ones.
    pub(crate) fn vmcb_mut(&mut self) -> &mut Vmcb {
        &mut self.vmcb
    }

    /// Notes that groups of the block have changed.
    pub(crate) fn touch(&mut self, groups: Clean) {
        self.clean.remove(groups);
    }

    /// Sets the virtual interrupt, which exits where it could be taken, or with `offered` is taken.
    fn set_virtual_interrupt(&mut self, vector: Option<u8>, offered: bool) {
        let control = &mut self.vmcb.control.interrupt_control;
        let before = *control;
        *control &= !(V_IRQ | V_INTR_PRIO | V_INTR_VECTOR);
        if let Some(vector) = vector {
            let class = u64::from(vector >> 4);
            let lower = u64::from(self.features.lower_interrupt_priority);
            let number = u64::from(vector) << V_INTR_VECTOR_SHIFT;
            *control |= V_IRQ | class.saturating_sub(lower) << V_INTR_PRIO_SHIFT | number;
        }
        if *control != before {
            self.touch(Clean::INTERRUPT);
        }
        let intercepted = vector.is_some() && (!offered || self.step.is_some());
        self.offered = offered;
        if self.vmcb.control.intercepts().contains(Intercepts::VINTR) != intercepted {
            self.update_intercepts();
        }
    }

    pub(crate) fn is_parent(&self) -> bool {
        self.mode == Mode::Parent
    }

    /// Brings the FPU state of a loaded processor into its area.
    fn fetch_area(&mut self) {
        if self.newest != Newest::Machine {
            return;
        }
        // SAFETY: `enable` has prepared CR4, the state is this processor's, XCR0 is put back.
        unsafe {
            extended::save_states(self.area.pointer().cast(), &self.features, self.registers.xcr0);
            extended::put_back_xcr0(self.registers.xcr0, &self.features);
        }
        self.newest = Newest::Both;
    }

    /// Brings the FPU state that was changed in the area of a loaded processor back into the machine.
    #[cold]
    fn return_area(&mut self) {
        if self.newest == Newest::Area {
            extended::sanitize(&mut self.area, &self.features);
            // SAFETY: as in `fetch_area`; the image has just been made valid.
            unsafe {
                extended::restore_states(self.area.pointer().cast(), &self.features, self.registers.xcr0);
                extended::put_back_xcr0(self.registers.xcr0, &self.features);
            }
        }
        self.newest = Newest::Machine;
    }
}

impl machine::Vcpu for Vcpu {
    type Slat = Space;
    type Processor = LogicalProcessor;

    fn load(&mut self, processor: &mut LogicalProcessor) {
        if self.newest == Newest::Area {
            extended::sanitize(&mut self.area, &self.features);
        }
        self.newest = Newest::Machine;
        // SAFETY: `enable` has run on this processor; the area has been made valid; core checked the registers.
        unsafe { self.registers.load(self.area.pointer().cast(), &self.features) };
        self.loaded = true;
        match self.engine {
            Engine::Svm => self.load_svm(processor),
            Engine::Vmx(_) => self.load_vmx(processor),
        }
    }

    fn unload(&mut self, processor: &mut LogicalProcessor) {
        self.fetch_area();
        // SAFETY: `load` came before on this processor.
        unsafe { self.registers.unload(&self.features, self.mode == Mode::Parent) };
        if matches!(self.engine, Engine::Vmx(_)) {
            self.unload_vmx(processor);
        }
        self.loaded = false;
    }

    #[inline]
    fn run(&mut self, processor: &mut LogicalProcessor) -> Exit {
        debug_assert!(self.loaded, "a virtual processor is loaded before it runs");
        if self.newest != Newest::Machine {
            self.return_area();
        }
        match self.engine {
            Engine::Svm => self.run_svm(processor),
            Engine::Vmx(_) => self.run_vmx(processor),
        }
    }

    fn flush_tlb(&mut self) {
        self.flush = true;
    }

    fn gprs(&self) -> &[u64; 16] {
        &self.gprs
    }

    fn gprs_mut(&mut self) -> &mut [u64; 16] {
        &mut self.gprs
    }

    #[inline(always)]
    fn get(&self, register: Reg) -> u64 {
        registers::get(self, register)
    }

    fn set(&mut self, register: Reg, value: u64) {
        registers::set(self, register, value);
    }

    #[inline(always)]
    fn segment(&self, name: SegmentName) -> Segment {
        if self.kept { self.kept_segment(name) } else { registers::segment(&self.vmcb.save, name) }
    }

    // In its caller both vendors' ways would be one, and every value be put aside first.
    #[inline(never)]
    fn segments(&self, to: &mut [Segment; 6]) {
        if self.kept { self.kept_segments(to) } else { registers::segments(&self.vmcb.save, to) }
    }

    #[inline(always)]
    fn code_attributes(&self) -> u16 {
        if self.resident {
            self.resident_code_attributes()
        } else {
            self.vmcb.save.cs.to_segment().attributes
        }
    }

    fn set_segment(&mut self, name: SegmentName, value: Segment) {
        self.recall();
        self.touch(Clean::SEGMENTS);
        registers::set_segment(&mut self.vmcb.save, name, value);
        let new = VmcbSegment::from_segment(value);
        self.in_structure(|vmcs| vmx::state::write_segment(vmcs, name as usize, new));
    }

    fn table(&self, name: TableName) -> Table {
        let kept = self.in_structure(|vmcs| vmx::state::read_table(&vmcs, name));
        kept.map_or_else(|| registers::table(&self.vmcb.save, name), VmcbSegment::to_table)
    }

    fn set_table(&mut self, name: TableName, value: Table) {
        self.touch(Clean::TABLES);
        registers::set_table(&mut self.vmcb.save, name, value);
        self.in_structure(|vmcs| vmx::state::write_table(vmcs, name, VmcbSegment::from_table(value)));
    }

    #[inline(always)]
    fn cpl(&self) -> u8 {
        if self.resident { self.resident_cpl() } else { self.vmcb.save.cpl }
    }

    fn xsave(&self) -> &[u8; 4096] {
        &self.area
    }

    fn xsave_mut(&mut self) -> &mut [u8; 4096] {
        self.newest = Newest::Area;
        &mut self.area
    }

    fn xmm(&mut self, index: usize) -> u128 {
        self.fetch_area();
        extended::xmm(&self.area, index)
    }

    fn first_xmm(&mut self) -> &[u8; 6 * 16] {
        self.fetch_area();
        extended::first_xmm(&self.area)
    }

    fn set_xmm(&mut self, index: usize, value: u128) {
        self.fetch_area();
        self.newest = Newest::Area;
        extended::set_xmm(&mut self.area, index, value);
    }

    fn pending_event(&self) -> Option<Event> {
        self.pending
    }

    fn inject(&mut self, event: Option<Event>) {
        self.pending = event;
    }

    fn interrupt_shadow(&self) -> bool {
        self.vmcb.control.interrupt_state & INTERRUPT_SHADOW != 0
    }

    fn set_interrupt_shadow(&mut self, shadow: bool) {
        let state = &mut self.vmcb.control.interrupt_state;
        *state = *state & !INTERRUPT_SHADOW | u64::from(shadow);
    }

    fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    fn set_nmi_masked(&mut self, masked: bool) {
        self.nmi_masked = masked;
        self.update_intercepts();
    }

    fn request_interrupt_window(&mut self, vector: Option<u8>) {
        self.set_virtual_interrupt(vector, false);
    }

    fn offer_interrupt(&mut self, vector: u8) {
        self.set_virtual_interrupt(Some(vector), matches!(self.engine, Engine::Svm));
    }

    fn end_offer(&mut self) -> bool {
        let delivered = self.offered && self.vmcb.control.interrupt_control & V_IRQ == 0;
        self.set_virtual_interrupt(None, false);
        delivered
    }

    fn request_nmi_window(&mut self, request: bool) {
        if self.nmi_window != request {
            self.nmi_window = request;
            self.touch(Clean::INTERRUPT);
        }
    }

    fn intercept_halt(&mut self, intercept: bool) {
        let mut intercepts = self.vmcb.control.intercepts();
        let wanted = intercept || !self.is_parent();
        if intercepts.contains(Intercepts::HLT) != wanted {
            intercepts.set(Intercepts::HLT, wanted);
            self.vmcb.control.set_intercepts(intercepts);
            self.touch(Clean::INTERCEPTS);
        }
    }

    fn refuse_cr4(&mut self, bits: u64) {
        match self.engine {
            Engine::Svm => self.refuse_cr4_svm(bits),
            Engine::Vmx(_) => self.refuse_cr4_vmx(bits),
        }
    }

    fn intercept_exceptions(&mut self, mask: u32) {
        self.exceptions = mask;
        self.update_intercepts();
    }
}
