//! A virtual processor without a machine: entries and exits are played by writing the control block.

use parterre_core::machine::{Reg, Segment, SegmentName, Table, TableName, Vcpu as _};
use parterre_core::memory::{Frame, entry};

use super::*;
use crate::heap::BootHeap;
use crate::launch::{self, PhysicalRange};
use crate::paging::slat::{Format, Space};
use crate::physical;
use crate::processor::Shared;
use crate::svm::Svm;
use crate::svm::vmcb::{V_INTR_MASKING, V_INTR_PRIO, V_INTR_PRIO_SHIFT, V_INTR_VECTOR_SHIFT, V_TPR, Vmcb};
use crate::timer::Clock;
use crate::vendor::ParentStart;

#[repr(align(4096))]
struct Arena([u8; 64 * 4096]);

struct Bench {
    svm: Svm,
    heap: BootHeap,
    processor: LogicalProcessor,
}

impl Bench {
    fn new() -> Self {
        // SAFETY: bytes of any value are an arena.
        let arena: &'static mut Arena = Box::leak(unsafe { Box::new_zeroed().assume_init() });
        let range = PhysicalRange::new(physical::address(&raw const arena.0), 64 * 4096);
        // SAFETY: the arena is leaked, and used through the heap only.
        let mut heap = unsafe { BootHeap::new(range) };
        let clock = Clock { tsc_frequency: 1, apic_frequency: 1, deadline_mode: false };
        let processor = LogicalProcessor::new(0, clock, Box::leak(Box::new(Shared::new(0))), heap.pages(2));
        Self { svm: Svm::new(&mut heap), heap, processor }
    }

    fn frame(&mut self) -> Frame {
        entry::take(self.heap.pages(1) >> 12)
    }

    fn child(&mut self) -> Vcpu {
        let slat = Space::new(Format::Npt, self.frame());
        let frames = [Some(self.frame()), Some(self.frame()), None, None, None, None, None, None];
        let mut child = self.svm.new_child_vcpu(frames, &slat);
        child.features.next_rip = false;
        child.features.clean_bits = true;
        child.features.lower_interrupt_priority = false;
        child
    }

    /// Enters and leaves again with this exit.
    fn round(&mut self, vcpu: &mut Vcpu, exit_code: u64) -> Option<Exit> {
        self.round_with(vcpu, exit_code, |_| {})
    }

    fn round_with(
        &mut self,
        vcpu: &mut Vcpu,
        exit_code: u64,
        change: impl FnOnce(&mut Vmcb),
    ) -> Option<Exit> {
        vcpu.prepare(&self.processor);
        vcpu.vmcb.control.exit_code = exit_code;
        vcpu.vmcb.control.exit_interrupt_info = 0;
        change(&mut vcpu.vmcb);
        vcpu.finish(&mut self.processor)
    }
}

const HLT: u64 = exit_code::HLT;
const IDLE: Option<Exit> = Some(Exit::Hlt { length: None });

#[test]
fn a_child_begins_at_the_reset_vector_and_gives_its_frames_back() {
    let mut bench = Bench::new();
    let child = bench.child();
    assert_eq!((child.get(Reg::Rip), child.get(Reg::Efer), child.get(Reg::Cr0)), (0xfff0, 0, 0x6000_0010));
    assert_eq!(child.segment(SegmentName::Cs).base, 0xffff_0000);
    assert_eq!(child.segment(SegmentName::Tr).attributes, 0x8b);
    assert_eq!(child.get(Reg::Xcr0), child.features.xcr0 & 1);
    assert_ne!(child.vmcb.control.interrupt_control & V_INTR_MASKING, 0);
    let pages = [child.vmcb.address(), child.area.address()];
    let [Some(vmcb), Some(area), None, ..] = bench.svm.end_vcpu(child) else { panic!("two frames") };
    assert_eq!([vmcb.number() << 12, area.number() << 12], pages);
    for page in pages {
        // SAFETY: the page is in the leaked arena, and nobody uses it now.
        let bytes = unsafe { core::slice::from_raw_parts(physical::pointer(page), 4096) };
        assert!(bytes.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn the_parent_begins_at_its_kernel_with_physical_interrupts_its_own() {
    let mut bench = Bench::new();
    let slat = Space::new(Format::Npt, bench.frame());
    let start =
        launch::ParentStart { entry: 0x100_0200, boot_params: 0x9_0000, page_tables: 0x8000, gdt: 0x7000 };
    let parent = bench.svm.new_parent_vcpu(&mut bench.heap, &slat, ParentStart::Kernel(start));
    assert_eq!((parent.get(Reg::Rip), parent.gprs[gpr::RSI]), (0x100_0200, 0x9_0000));
    assert_eq!((parent.get(Reg::Cr3), parent.get(Reg::Efer)), (0x8000, 0x500));
    assert_eq!(parent.table(TableName::Gdtr), Table { base: 0x7000, limit: 31 });
    assert_eq!(parent.segment(SegmentName::Cs).attributes, 0xa09b);
    let intercepts = parent.vmcb.control.intercepts();
    assert!(!intercepts.intersects(Intercepts::INTR | Intercepts::HLT | Intercepts::IOIO));
    assert!(intercepts.contains(Intercepts::NMI | Intercepts::VMRUN | Intercepts::MSR));
    assert_eq!(parent.vmcb.control.interrupt_control & V_INTR_MASKING, 0);
    assert_eq!(parent.vmcb.control.nested_cr3, slat.root() << 12);
}

#[test]
fn registers_come_back_as_they_were_written() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    let all = [
        Reg::Rip,
        Reg::Cr2,
        Reg::Cr3,
        Reg::Dr0,
        Reg::Dr3,
        Reg::Dr6,
        Reg::Dr7,
        Reg::Pat,
        Reg::KernelGsBase,
        Reg::Star,
        Reg::Lstar,
        Reg::Cstar,
        Reg::Sfmask,
        Reg::SysenterCs,
        Reg::SysenterEip,
        Reg::SysenterEsp,
        Reg::TscAux,
        Reg::Xss,
        Reg::SpecCtrl,
        Reg::DebugCtl,
        Reg::TscOffset,
    ];
    for (value, register) in (100..).zip(all) {
        child.set(register, value);
    }
    for (value, register) in (100..).zip(all) {
        assert_eq!(child.get(register), value, "{register:?}");
    }
    child.set(Reg::Efer, 0xd01);
    assert_eq!((child.get(Reg::Efer), child.vmcb.save.efer), (0xd01, 0x1d01), "SVME is set and not seen");
    child.set(Reg::Cr8, 0xf3);
    assert_eq!(child.get(Reg::Cr8), 3);
    child.set(Reg::Rflags, 0);
    assert_eq!(child.get(Reg::Rflags), 2);
    let stack = Segment { base: 0, limit: u32::MAX, selector: 0x2b, attributes: 0xc0f3 };
    child.set_segment(SegmentName::Ss, stack);
    assert_eq!((child.segment(SegmentName::Ss), child.cpl()), (stack, 3));
}

#[test]
fn only_what_was_touched_is_loaded_again() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    bench.round_with(&mut child, HLT, |vmcb| assert_eq!(vmcb.control.clean, 0));
    bench.round_with(&mut child, HLT, |vmcb| assert_eq!(vmcb.control.clean, Clean::all().bits()));
    child.set(Reg::Cr3, 0x1000);
    child.set(Reg::Rip, 5);
    let expected = Clean::all() - Clean::CONTROL;
    bench.round_with(&mut child, HLT, |vmcb| assert_eq!(vmcb.control.clean, expected.bits()));
    child.request_interrupt_window(Some(0x51));
    let expected = Clean::all() - Clean::INTERRUPT - Clean::INTERCEPTS;
    bench.round_with(&mut child, HLT, |vmcb| assert_eq!(vmcb.control.clean, expected.bits()));
    child.features.clean_bits = false;
    bench.round_with(&mut child, HLT, |vmcb| assert_eq!(vmcb.control.clean, 0));
}

#[test]
fn an_event_is_delivered_once_or_comes_back() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    let event = Event::Exception(14, Some(2));
    child.inject(Some(event));
    bench.round_with(&mut child, HLT, |vmcb| assert_eq!(vmcb.control.event_injection, event::encode(event)));
    assert_eq!(child.pending_event(), None);
    child.inject(Some(event));
    let cut = |vmcb: &mut Vmcb| vmcb.control.exit_interrupt_info = vmcb.control.event_injection;
    bench.round_with(&mut child, exit_code::NPF, cut);
    assert_eq!(child.pending_event(), Some(event));
    bench.round_with(&mut child, HLT, |vmcb| assert_eq!(vmcb.control.event_injection, event::encode(event)));
    bench.round_with(&mut child, HLT, |vmcb| assert_eq!(vmcb.control.event_injection, 0));
}

#[test]
fn a_software_interrupt_returns_behind_its_instruction() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    let event = Event::Software(0x80, 2);
    child.set(Reg::Rip, 0x1000);
    child.inject(Some(event));
    bench.round_with(&mut child, exit_code::NPF, |vmcb| {
        assert_eq!(vmcb.save.rip, 0x1002);
        vmcb.control.exit_interrupt_info = vmcb.control.event_injection;
    });
    assert_eq!((child.get(Reg::Rip), child.pending_event()), (0x1000, Some(event)));
    bench.round_with(&mut child, HLT, |vmcb| assert_eq!(vmcb.save.rip, 0x1002));
    // One of the guest's own is raised by its instruction again.
    let own = |vmcb: &mut Vmcb| vmcb.control.exit_interrupt_info = event::encode(event);
    bench.round_with(&mut child, exit_code::NPF, own);
    assert_eq!((child.get(Reg::Rip), child.pending_event()), (0x1002, None));
    // Where the processor stores next addresses, it takes them, too.
    child.features.next_rip = true;
    child.inject(Some(event));
    bench.round_with(&mut child, HLT, |vmcb| {
        assert_eq!((vmcb.save.rip, vmcb.control.next_rip), (0x1002, 0x1004));
    });
}

#[test]
fn the_interrupt_window_is_a_virtual_interrupt_of_the_vectors_class() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    child.set(Reg::Cr8, 4);
    child.request_interrupt_window(Some(0x51));
    let control = child.vmcb.control.interrupt_control;
    assert_eq!(control & (V_IRQ | V_INTR_PRIO | V_TPR), V_IRQ | 5 << V_INTR_PRIO_SHIFT | 4);
    assert!(child.vmcb.control.intercepts().contains(Intercepts::VINTR));
    assert_eq!(bench.round(&mut child, exit_code::VINTR), Some(Exit::InterruptWindow));
    assert_eq!(child.vmcb.control.interrupt_control & V_IRQ, 0);
    assert!(!child.vmcb.control.intercepts().contains(Intercepts::VINTR));
    child.features.lower_interrupt_priority = true;
    child.request_interrupt_window(Some(0x51));
    assert_eq!(child.vmcb.control.interrupt_control & V_INTR_PRIO, 4 << V_INTR_PRIO_SHIFT);
}

#[test]
fn an_offered_interrupt_is_a_virtual_one_that_does_not_exit() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    child.offer_interrupt(0x51);
    let control = child.vmcb.control.interrupt_control;
    assert_eq!(control & (V_IRQ | V_INTR_PRIO), V_IRQ | 5 << V_INTR_PRIO_SHIFT);
    assert_eq!(control >> V_INTR_VECTOR_SHIFT & 0xff, 0x51);
    assert!(!child.vmcb.control.intercepts().contains(Intercepts::VINTR));
    bench.round(&mut child, HLT);
    assert!(!child.end_offer(), "the processor has not taken it");
    assert_eq!(child.vmcb.control.interrupt_control & V_IRQ, 0, "and is not to");
    child.offer_interrupt(0x51);
    bench.round_with(&mut child, HLT, |vmcb| vmcb.control.interrupt_control &= !V_IRQ);
    assert!(child.end_offer());
    assert!(!child.end_offer(), "once");
    // Another window than the offer's exits.
    child.offer_interrupt(0x51);
    child.request_interrupt_window(Some(0x51));
    assert!(child.vmcb.control.intercepts().contains(Intercepts::VINTR));
    assert!(!child.end_offer());
}

#[test]
fn an_offered_interrupt_whose_delivery_is_cut_short_was_taken() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    child.offer_interrupt(0x51);
    let cut = |event| move |vmcb: &mut Vmcb| vmcb.control.exit_interrupt_info = event::encode(event);
    bench.round_with(&mut child, exit_code::NPF, cut(Event::Interrupt(0x51)));
    assert_eq!((child.end_offer(), child.pending_event()), (true, Some(Event::Interrupt(0x51))));
    // That of something else says nothing of it.
    child.inject(None);
    child.offer_interrupt(0x51);
    bench.round_with(&mut child, exit_code::NPF, cut(Event::Exception(14, Some(0))));
    assert!(!child.end_offer());
}

#[test]
fn an_offered_interrupt_does_not_come_into_a_step() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    child.offer_interrupt(0x51);
    child.inject(Some(Event::Nmi));
    assert_eq!(bench.round(&mut child, exit_code::IRET), None);
    let intercepted = |child: &Vcpu| child.vmcb.control.intercepts().contains(Intercepts::VINTR);
    assert!(intercepted(&child), "the guest could have interrupts on in its handler");
    assert_eq!(bench.round(&mut child, exit_code::VINTR), Some(Exit::InterruptWindow));
    assert!(!child.end_offer());
    assert_eq!(child.get(Reg::Rflags) & 1 << 8, 0);
    // A step that ends leaves the offer.
    child.offer_interrupt(0x51);
    assert_eq!(bench.round(&mut child, exit_code::IRET), None);
    assert!(intercepted(&child));
    let stepped = |vmcb: &mut Vmcb| {
        vmcb.control.exit_code = exit_code::EXCEPTION_DB;
        vmcb.save.dr6 |= 1 << 14;
    };
    assert_eq!(bench.round_with(&mut child, exit_code::EXCEPTION_DB, stepped), None);
    assert!(!intercepted(&child));
    bench.round_with(&mut child, HLT, |vmcb| vmcb.control.interrupt_control &= !V_IRQ);
    assert!(child.end_offer());
}

#[test]
fn nmis_stay_masked_until_iret_has_been_executed() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    child.inject(Some(Event::Nmi));
    assert_eq!(bench.round(&mut child, HLT), IDLE);
    assert!(child.nmi_masked());
    child.request_nmi_window(true);
    assert_eq!(child.await_nmi_window(), None);
    // IRET exits; it is stepped; a page fault in between, then again and to the end.
    for _ in 0..2 {
        assert_eq!(bench.round(&mut child, exit_code::IRET), None);
        assert_ne!(child.get(Reg::Rflags) & TRAP_FLAG, 0);
        assert!(!child.vmcb.control.intercepts().contains(Intercepts::IRET));
        let exit = bench.round(&mut child, exit_code::NPF);
        assert!(matches!(exit, Some(Exit::SlatFault { .. })));
        assert!(child.nmi_masked() && child.get(Reg::Rflags) & TRAP_FLAG == 0);
        assert!(child.vmcb.control.intercepts().contains(Intercepts::IRET));
    }
    assert_eq!(bench.round(&mut child, exit_code::IRET), None);
    let trap = bench.round_with(&mut child, exit_code::EXCEPTION_DB, |vmcb| {
        vmcb.save.rflags = 0x202;
        vmcb.save.dr6 |= DR6_SINGLE_STEP;
    });
    assert_eq!(trap, None);
    assert_eq!((child.get(Reg::Rflags), child.get(Reg::Dr6) & DR6_SINGLE_STEP), (0x202, 0));
    assert!(!child.nmi_masked());
    assert_eq!(child.await_nmi_window(), Some(Exit::NmiWindow));
    assert!(!child.nmi_window, "one request, one window");
}

#[test]
fn an_nmi_waits_for_the_end_of_an_interrupt_shadow() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    child.set_interrupt_shadow(true);
    child.request_nmi_window(true);
    assert_eq!(child.await_nmi_window(), None);
    let trap = bench.round_with(&mut child, exit_code::EXCEPTION_DB, |vmcb| {
        assert_ne!(vmcb.save.rflags & TRAP_FLAG, 0);
        vmcb.control.interrupt_state = 0;
        vmcb.save.dr6 |= DR6_SINGLE_STEP;
    });
    assert_eq!((trap, child.get(Reg::Rflags) & TRAP_FLAG), (None, 0));
    assert_eq!(child.await_nmi_window(), Some(Exit::NmiWindow));
}

#[test]
fn exceptions_intercepted_for_the_processors_sake_go_back_to_the_guest() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    assert_eq!(bench.round(&mut child, 0x51), None);
    assert_eq!(child.pending_event(), Some(Event::Exception(17, Some(0))));
    child.set(Reg::Dr7, DR7_GENERAL_DETECT | 0x400);
    assert_eq!(bench.round(&mut child, 0x41), None);
    assert_eq!((child.pending_event(), child.get(Reg::Dr7)), (Some(Event::Exception(1, None)), 0x400));
    child.intercept_exceptions(1 << 1);
    let exit = bench.round(&mut child, 0x41);
    assert!(matches!(exit, Some(Exit::Exception { vector: 1, error: None, .. })));
}

#[test]
fn flushing_costs_an_identifier_where_one_cannot_be_flushed() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    child.features.asids = 16;
    child.features.flush_by_asid = true;
    bench.round_with(&mut child, HLT, |vmcb| assert_eq!(vmcb.control.tlb_control, TLB_FLUSH_ASID));
    bench.round_with(&mut child, HLT, |vmcb| assert_eq!(vmcb.control.tlb_control, 0));
    child.features.flush_by_asid = false;
    child.flush_tlb();
    bench.round_with(&mut child, HLT, |vmcb| {
        assert_eq!((vmcb.control.tlb_control, vmcb.control.asid), (0, 2))
    });
    child.flush_tlb();
    bench.round_with(&mut child, HLT, |vmcb| {
        assert_eq!((vmcb.control.tlb_control, vmcb.control.asid), (0, 3))
    });
}

#[test]
fn halting_exits_for_the_parent_on_demand_and_for_children_always() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    child.intercept_halt(false);
    assert!(child.vmcb.control.intercepts().contains(Intercepts::HLT));
    let slat = Space::new(Format::Npt, bench.frame());
    let mut parent = bench.svm.new_parent_vcpu(&mut bench.heap, &slat, ParentStart::WaitForSipi);
    parent.intercept_halt(true);
    assert!(parent.vmcb.control.intercepts().contains(Intercepts::HLT));
    parent.intercept_halt(false);
    assert!(!parent.vmcb.control.intercepts().contains(Intercepts::HLT));
}

#[test]
fn vector_registers_of_an_unloaded_processor_are_in_its_area() {
    let mut bench = Bench::new();
    let mut child = bench.child();
    child.set_xmm(5, 0x1234);
    assert_eq!((child.xmm(5), child.xmm(6)), (0x1234, 0));
    assert_eq!(child.xsave()[160 + 80], 0x34);
}
