//! A virtual processor on SVM: its control block, its registers, and running it.

#[cfg(test)]
mod tests;

use parterre_core::machine::{Event, Exit, Reg, Segment, SegmentName, Table, TableName, Vcpu, gpr};

use super::asid::AddressSpaceId;
use super::features::Features;
use super::page::PageOf;
use super::vmcb::{
    Clean, INTERRUPT_SHADOW, Intercepts, TLB_FLUSH_ALL, TLB_FLUSH_ASID, V_INTR_PRIO, V_INTR_PRIO_SHIFT,
    V_IRQ, Vmcb, exit_code,
};
use super::{NptSpace, event, exit, extended, processor, registers, switch};
use crate::processor::{LogicalProcessor, Mode};

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

/// A virtual processor.
#[derive(Debug)]
pub struct SvmVcpu {
    gprs: [u64; 16],
    vmcb: PageOf<Vmcb>,
    pending: Option<Event>,
    /// By how much RIP was moved for a software interrupt on its way, where the processor does not store next addresses.
    advanced: u8,
    clean: Clean,
    flush: bool,
    step: Option<Step>,
    nmi_masked: bool,
    nmi_window: bool,
    mode: Mode,
    exceptions: u32,
    space: AddressSpaceId,
    pub(super) loaded: bool,
    newest: Newest,
    pub(super) features: Features,
    pub(super) registers: extended::Registers,
    area: PageOf<[u8; 4096]>,
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

/// One instruction is being executed with RFLAGS.TF set, to find out when NMIs can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// IRET, which ends the masking of NMIs and brings its own flags.
    Iret { trap_flag: u64 },
    /// The instruction in an interrupt shadow.
    Shadow { trap_flag: u64 },
}

impl SvmVcpu {
    /// A virtual processor whose block says what is intercepted and what memory it sees, and nothing else yet; `start`
    /// fills in its registers.
    pub(super) fn new(
        vmcb: PageOf<Vmcb>,
        area: PageOf<[u8; 4096]>,
        features: Features,
        mode: Mode,
        start: impl FnOnce(&mut Vmcb, &mut [u64; 16]),
    ) -> Self {
        let mut vcpu = Self {
            gprs: [0; 16],
            vmcb,
            pending: None,
            advanced: 0,
            clean: Clean::empty(),
            flush: true,
            step: None,
            nmi_masked: false,
            nmi_window: false,
            mode,
            exceptions: 0,
            space: if mode == Mode::Parent { AddressSpaceId::parent() } else { AddressSpaceId::none() },
            loaded: false,
            newest: Newest::Area,
            features,
            registers: extended::Registers { xcr0: features.xcr0 & 1, ..Default::default() },
            area,
        };
        extended::reset(&mut vcpu.area);
        start(&mut vcpu.vmcb, &mut vcpu.gprs);
        vcpu.update_intercepts();
        vcpu
    }

    /// The pages: control block and XSAVE area.
    pub(super) fn into_pages(self) -> [u64; 2] {
        [self.vmcb.address(), self.area.address()]
    }

    pub(super) fn vmcb(&self) -> &Vmcb {
        &self.vmcb
    }

    /// The block for changes; [`SvmVcpu::touch`] must name the cached ones.
    pub(super) fn vmcb_mut(&mut self) -> &mut Vmcb {
        &mut self.vmcb
    }

    /// Notes that groups of the block have changed.
    pub(super) fn touch(&mut self, groups: Clean) {
        self.clean.remove(groups);
    }

    pub(super) fn is_parent(&self) -> bool {
        self.mode == Mode::Parent
    }

    /// Brings intercepts in line with what is awaited.
    fn update_intercepts(&mut self) {
        self.touch(Clean::INTERCEPTS);
        let mut intercepts = self.vmcb.control.intercepts();
        intercepts.set(Intercepts::VINTR, self.vmcb.control.interrupt_control & V_IRQ != 0);
        intercepts.set(Intercepts::IRET, self.nmi_masked && self.step.is_none());
        self.vmcb.control.set_intercepts(intercepts);
        // A child that makes the processor raise #DB or #AC while it delivers #DB or #AC would hang it for ever; and
        // machine checks are the parent's.
        let always = if self.is_parent() { 0 } else { 1 << VECTOR_DB | 1 << VECTOR_AC | 1 << VECTOR_MC };
        let step = if self.step.is_some() { 1 << VECTOR_DB } else { 0 };
        self.vmcb.control.intercept_exceptions = self.exceptions | always | step;
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
        let assigned = self.space.assign(allocator, processor_index(processor), self.features.asids);
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

    /// Brings the FPU state of a loaded processor into its area.
    fn fetch_area(&mut self) {
        if self.newest != Newest::Machine {
            return;
        }
        // SAFETY: `enable` has prepared CR4, the state is this processor's, XCR0 is put back.
        unsafe {
            let xcr0 = extended::current_xcr0(&self.features);
            extended::save_states(self.area.pointer().cast(), &self.features);
            extended::put_back_xcr0(xcr0, &self.features);
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
                let xcr0 = extended::current_xcr0(&self.features);
                extended::restore_states(self.area.pointer().cast(), &self.features);
                extended::put_back_xcr0(xcr0, &self.features);
            }
        }
        self.newest = Newest::Machine;
    }
}

fn processor_index(processor: &LogicalProcessor) -> usize {
    parterre_core::machine::Processor::index(processor)
}

impl Vcpu for SvmVcpu {
    type Slat = NptSpace;
    type Processor = LogicalProcessor;

    fn load(&mut self, processor: &mut LogicalProcessor) {
        if self.newest == Newest::Area {
            extended::sanitize(&mut self.area, &self.features);
        }
        self.newest = Newest::Machine;
        // SAFETY: `enable` has run on this processor; the area has been made valid; core checked the registers.
        unsafe { self.registers.load(self.area.pointer().cast(), &self.features) };
        self.loaded = true;
        // SAFETY: the reference ends here, and only the code on this processor makes such.
        let current = unsafe { &processor::state(processor).asids };
        if !self.space.is_current(current, processor_index(processor)) {
            // Another processor's cache of the block may be newer than what this one remembers.
            self.clean = Clean::empty();
            self.assign_space(processor);
        }
    }

    fn unload(&mut self, _processor: &mut LogicalProcessor) {
        self.fetch_area();
        // SAFETY: `load` came before on this processor.
        unsafe { self.registers.unload(&self.features, self.mode == Mode::Parent) };
        self.loaded = false;
    }

    fn run(&mut self, processor: &mut LogicalProcessor) -> Exit {
        debug_assert!(self.loaded, "a virtual processor is loaded before it runs");
        if self.newest != Newest::Machine {
            self.return_area();
        }
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

    fn flush_tlb(&mut self) {
        self.flush = true;
    }

    fn gprs(&self) -> &[u64; 16] {
        &self.gprs
    }

    fn gprs_mut(&mut self) -> &mut [u64; 16] {
        &mut self.gprs
    }

    fn get(&self, register: Reg) -> u64 {
        registers::get(self, register)
    }

    fn set(&mut self, register: Reg, value: u64) {
        registers::set(self, register, value);
    }

    fn segment(&self, name: SegmentName) -> Segment {
        registers::segment(&self.vmcb.save, name)
    }

    fn set_segment(&mut self, name: SegmentName, value: Segment) {
        self.touch(Clean::SEGMENTS);
        registers::set_segment(&mut self.vmcb.save, name, value);
    }

    fn table(&self, name: TableName) -> Table {
        registers::table(&self.vmcb.save, name)
    }

    fn set_table(&mut self, name: TableName, value: Table) {
        self.touch(Clean::TABLES);
        registers::set_table(&mut self.vmcb.save, name, value);
    }

    fn cpl(&self) -> u8 {
        self.vmcb.save.cpl
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
        let control = &mut self.vmcb.control.interrupt_control;
        let before = *control;
        *control &= !(V_IRQ | V_INTR_PRIO);
        if let Some(vector) = vector {
            let class = u64::from(vector >> 4);
            let lower = u64::from(self.features.lower_interrupt_priority);
            *control |= V_IRQ | class.saturating_sub(lower) << V_INTR_PRIO_SHIFT;
        }
        if *control != before {
            self.touch(Clean::INTERRUPT);
            self.update_intercepts();
        }
    }

    fn request_nmi_window(&mut self, request: bool) {
        self.nmi_window = request;
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

    fn intercept_exceptions(&mut self, mask: u32) {
        self.exceptions = mask;
        self.update_intercepts();
    }
}
