//! AMD's Secure Virtual Machine (AMD APM volume 2, chapter 15).
//!
//! [`Svm`] holds what all processors share, [`run`] runs a virtual processor. What is decided here is only how
//! the machine does what [`parterre_core::machine`] asks for; policy (which MSR, which CPUID leaf, what an exit means)
//! is core's.
//!
//! Where things are: [`vmcb`] and [`permission`] are the hardware's layouts; [`exit`] translates exits into core's words;
//! [`switch`] is the assembly.

mod exit;
mod permission;
mod processor;
pub(crate) mod run;
mod switch;
pub(crate) mod vmcb;

use core::arch::asm;

use parterre_core::memory::{Frame, entry};

use crate::cpu::msr;
use crate::heap::BootHeap;
use crate::paging::slat::Space;
use crate::physical::{self, PAGE_SIZE};
use crate::processor::{LogicalProcessor, Mode};
use crate::vcpu::features::Features;
use crate::vcpu::page::PageOf;
use crate::vcpu::{Engine, Vcpu, extended, registers};
use crate::vendor::ParentStart;
use permission::{IoMap, MsrMap};
use vmcb::{INTERRUPT_SHADOW, Intercepts, NP_ENABLE, V_INTR_MASKING, Vmcb};

const EFER_SVME: u64 = 1 << 12;
const VM_HSAVE_PA: u32 = 0xc001_0117;
const X2APIC_ICR: u32 = 0x830;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;

/// What exits for every partition.
const COMMON: Intercepts = Intercepts::NMI
    .union(Intercepts::CPUID)
    .union(Intercepts::MSR)
    .union(Intercepts::SHUTDOWN)
    .union(Intercepts::INVLPGA)
    .union(Intercepts::VMRUN)
    .union(Intercepts::VMMCALL)
    .union(Intercepts::VMLOAD)
    .union(Intercepts::VMSAVE)
    .union(Intercepts::STGI)
    .union(Intercepts::CLGI)
    .union(Intercepts::SKINIT)
    .union(Intercepts::XSETBV);

/// What exits for children, who have no physical devices and do not own the processor.
const CHILD: Intercepts = COMMON
    .union(Intercepts::INTR)
    .union(Intercepts::SMI)
    .union(Intercepts::INIT)
    .union(Intercepts::RDPMC)
    .union(Intercepts::RSM)
    .union(Intercepts::INVD)
    .union(Intercepts::HLT)
    .union(Intercepts::IOIO)
    .union(Intercepts::WBINVD)
    .union(Intercepts::MONITOR)
    .union(Intercepts::MWAIT)
    .union(Intercepts::MWAIT_ARMED)
    .union(Intercepts::RDPRU);

/// Intercept vector 5 for children: INVLPGB, illegal INVLPGB, MCOMMIT, TLBSYNC.
const CHILD_MORE: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4;

/// SVM, for all processors.
#[derive(Debug)]
pub struct Svm {
    features: Features,
    parent_msrs: &'static MsrMap,
    child_msrs: &'static MsrMap,
    child_ports: &'static IoMap,
}

/// How many frames a virtual processor takes: control block and XSAVE area.
pub const VCPU_FRAMES: usize = 2;
/// VMMCALL.
pub const HYPERCALL_INSTRUCTION: [u8; 3] = [0x0f, 0x01, 0xd9];

impl Svm {
    /// Prepares what all processors share (MSR and I/O permission maps).
    pub fn new(heap: &mut BootHeap) -> Self {
        let parent_msrs = MsrMap::new(heap);
        parent_msrs.fill_for_parent();
        let child_msrs = MsrMap::new(heap);
        child_msrs.fill_for_child();
        Self { features: Features::of_svm(), parent_msrs, child_msrs, child_ports: IoMap::new(heap) }
    }

    /// Turns SVM on, on the processor this runs on.
    pub fn enable(&self, processor: &mut LogicalProcessor) {
        let save_area = processor::host_save_area(processor);
        // SAFETY: the boot program has made sure that the processor has SVM and that the firmware lets it be enabled; the
        // save area is a page for that alone. From CLGI on the global interrupt flag is 0 in hypervisor code.
        unsafe {
            let control = CR4_OSFXSR | CR4_OSXMMEXCPT | if self.features.xcr0 != 0 { CR4_OSXSAVE } else { 0 };
            asm!("mov {value}, cr4", "or {value}, {bits}", "mov cr4, {value}",
                value = out(reg) _, bits = in(reg) control, options(nostack));
            extended::begin(&self.features);
            msr::write(msr::EFER, msr::read(msr::EFER) | EFER_SVME);
            msr::write(VM_HSAVE_PA, save_area);
            switch::save_host(processor::host_state(processor));
            switch::clear_global_interrupt_flag();
        }
        processor.has_global_interrupt_flag();
    }

    /// Makes a virtual processor of the parent.
    pub fn new_parent_vcpu(&self, heap: &mut BootHeap, slat: &Space, start: ParentStart) -> Vcpu {
        // SAFETY: the heap gives zeroed pages out once, for ever; zeros are a valid block and a valid area.
        let (vmcb, area) = unsafe { (PageOf::new(heap.pages(1)), PageOf::new(heap.pages(1))) };
        Vcpu::new(vmcb, area, self.features, Mode::Parent, Engine::Svm, |vmcb, gprs| {
            self.prepare(vmcb, slat, self.parent_msrs);
            vmcb.control.set_intercepts(COMMON);
            match start {
                ParentStart::Kernel(kernel) => registers::start_kernel(&mut vmcb.save, gprs, &kernel),
                ParentStart::WaitForSipi => registers::reset(&mut vmcb.save, gprs),
            }
        })
    }

    /// Makes a virtual processor of a child in its power-on state.
    pub fn new_child_vcpu(&self, frames: [Option<Frame>; 8], slat: &Space) -> Vcpu {
        let [Some(vmcb), Some(area), ..] = frames else {
            panic!("a virtual processor was made with fewer frames than VCPU_FRAMES; core must count them");
        };
        let [vmcb, area] = [vmcb, area].map(|frame| entry::store(frame) * PAGE_SIZE as u64);
        // SAFETY: the frames were the hypervisor's, are given up here, and come back in `end_vcpu`.
        let (vmcb, area) = unsafe {
            physical::zero(vmcb / PAGE_SIZE as u64);
            physical::zero(area / PAGE_SIZE as u64);
            (PageOf::new(vmcb), PageOf::new(area))
        };
        Vcpu::new(vmcb, area, self.features, Mode::Child, Engine::Svm, |vmcb, gprs| {
            self.prepare(vmcb, slat, self.child_msrs);
            vmcb.control.set_intercepts(CHILD);
            vmcb.control.intercepts[2] = CHILD_MORE;
            vmcb.control.interrupt_control = V_INTR_MASKING;
            registers::reset(&mut vmcb.save, gprs);
        })
    }

    /// Ends a virtual processor of a child and gives back its frames.
    pub fn end_vcpu(&self, vcpu: Vcpu) -> [Option<Frame>; 8] {
        let [vmcb, area] = [vcpu.vmcb.address(), vcpu.area.address()].map(|address| {
            // SAFETY: the page was the virtual processor's alone, which has just ended.
            unsafe { physical::zero(address / PAGE_SIZE as u64) };
            Some(entry::take(address / PAGE_SIZE as u64))
        });
        [vmcb, area, None, None, None, None, None, None]
    }

    /// Sets whether the parent's writes of the x2APIC ICR exit.
    pub fn intercept_icr(&self, intercept: bool) {
        self.parent_msrs.intercept(X2APIC_ICR, false, intercept);
    }

    /// What the control blocks of all partitions have in common.
    fn prepare(&self, vmcb: &mut Vmcb, slat: &Space, msrs: &'static MsrMap) {
        let control = &mut vmcb.control;
        control.msrpm_base = physical::address(msrs);
        control.iopm_base = physical::address(self.child_ports);
        control.asid = 1;
        control.nested_control = NP_ENABLE;
        control.nested_cr3 = slat.root() * PAGE_SIZE as u64;
        control.interrupt_state &= !INTERRUPT_SHADOW;
    }
}
