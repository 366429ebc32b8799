//! Intel's Virtual Machine Extensions (Intel SDM volume 3C, chapters 24 to 33).
//!
//! [`Vmx`] holds what all processors share, [`run`] runs a virtual processor ([`entry`], [`finish`]). What is decided here is only how the machine
//! does what [`parterre_core::machine`] asks for; policy is core's.
//!
//! Where things are: [`field`] and [`bitmap`] are the hardware's layouts; [`capability`] works out the control fields;
//! [`exit`] translates exits into core's words, [`control`] writes to control registers; [`state`] reaches registers where
//! they are, [`msrs`] has the system-call registers; [`host`] is the hypervisor's own state, [`switch`] the assembly; [`speculation`] keeps partitions from guessing each other's data; [`check`] says why an entry failed.

mod bitmap;
mod capability;
mod check;
mod control;
mod entry;
mod exit;
mod field;
mod finish;
mod host;
mod msrs;
pub(crate) mod run;
mod speculation;
pub(crate) mod state;
pub(crate) mod switch;

use core::arch::asm;

use parterre_core::memory::{Frame, entry as token};

use crate::cpu::{msr, registers};
use crate::heap::BootHeap;
use crate::paging::slat::{Format, Space};
use crate::physical::{self, PAGE_SIZE};
use crate::processor::{LogicalProcessor, Mode};
use crate::svm::vmcb::{INTERRUPT_SHADOW, Intercepts, Vmcb};
use crate::vcpu::features::Features;
use crate::vcpu::page::PageOf;
use crate::vcpu::{Engine, Vcpu, extended, registers as initial};
use crate::vendor::ParentStart;
use bitmap::MsrBitmap;
use capability::{CR4_VMXE, Capabilities};

const FEATURE_CONTROL: u32 = 0x3a;
const FEATURE_CONTROL_LOCKED: u64 = 1 << 0;
const FEATURE_CONTROL_VMX: u64 = 1 << 2;
const X2APIC_ICR: u32 = 0x830;

/// How many frames a virtual processor takes: control block, XSAVE area, structure and virtual APIC page.
pub const VCPU_FRAMES: usize = 4;
/// VMCALL.
pub const HYPERCALL_INSTRUCTION: [u8; 3] = [0x0f, 0x01, 0xc1];

/// VMX, for all processors.
#[derive(Debug)]
pub struct Vmx {
    features: Features,
    capabilities: &'static Capabilities,
    parent_msrs: &'static MsrBitmap,
    child_msrs: &'static MsrBitmap,
}

impl Vmx {
    /// Prepares what all processors share: what they can do, and the MSR bitmaps.
    pub fn new(heap: &mut BootHeap) -> Self {
        // SAFETY: the boot program has made sure that there is VMX; of the capability registers `Capabilities` asks only for
        // those that it knows to be there. Reading changes nothing.
        let read = Capabilities::read(|register| unsafe { msr::read(register) }, registers::cpuid(7, 0));
        let capabilities = read.unwrap_or_else(|missing| {
            panic!("this processor's VMX lacks {}; a processor that has it is needed", missing.0)
        });
        let parent_msrs = MsrBitmap::new(heap);
        parent_msrs.fill_for_parent();
        let child_msrs = MsrBitmap::new(heap);
        child_msrs.fill_for_child();
        Self { features: Features::of_vmx(), capabilities: heap.place(capabilities), parent_msrs, child_msrs }
    }

    /// How entries of its second-level page tables look.
    pub fn format(&self) -> Format {
        Format::ept(self.capabilities.accessed_dirty)
    }

    /// Whether its second-level page tables can have leaves of 1 GiB.
    pub fn has_gigabyte_pages(&self) -> bool {
        self.capabilities.gigabyte_pages
    }

    /// Turns VMX on, on the processor this runs on.
    pub fn enable(&self, processor: &mut LogicalProcessor) {
        let region = host::vmxon_region(processor);
        let (cr0, cr4) = (self.capabilities.cr0, self.capabilities.cr4);
        let cr0 = (registers::cr0() | cr0.0) & cr0.1;
        let cr4 = (registers::cr4() | cr4.0 | CR4_VMXE) & cr4.1;
        // SAFETY: the boot program has made sure that the processor has VMX and that the firmware lets it be enabled; the
        // region is a page for that alone, with the revision at its beginning. The bits of CR0 and CR4 are those that VMX
        // asks for, and paging and protection stay as they are.
        let entered = unsafe {
            let control = msr::read(FEATURE_CONTROL);
            if control & FEATURE_CONTROL_LOCKED == 0 {
                msr::write(FEATURE_CONTROL, control | FEATURE_CONTROL_VMX | FEATURE_CONTROL_LOCKED);
            }
            asm!("mov cr0, {}", "mov cr4, {}", in(reg) cr0, in(reg) cr4, options(nostack));
            extended::begin(&self.features);
            self.mark(region);
            field::vmxon(region)
        };
        assert!(
            entered,
            "the processor does not enter VMX operation (VMXON); the firmware may keep it switched off"
        );
    }

    /// Writes the revision to the beginning of a region or structure.
    ///
    /// # Safety
    /// The page is the hypervisor's, for this alone.
    unsafe fn mark(&self, page: u64) {
        // SAFETY: the caller's promise.
        unsafe { physical::pointer(page).cast::<u32>().write(self.capabilities.revision) };
    }

    /// Makes a virtual processor of the parent.
    pub fn new_parent_vcpu(&self, heap: &mut BootHeap, slat: &Space, start: ParentStart) -> Vcpu {
        let pages = core::array::from_fn(|_| heap.pages(1));
        // SAFETY: the heap gives zeroed pages out once, for ever.
        unsafe {
            self.new_vcpu(pages, slat, Mode::Parent, self.parent_msrs, |vmcb, gprs| match start {
                ParentStart::Kernel(kernel) => initial::start_kernel(&mut vmcb.save, gprs, &kernel),
                ParentStart::WaitForSipi => initial::reset(&mut vmcb.save, gprs),
            })
        }
    }

    /// Makes a virtual processor of a child in its power-on state.
    pub fn new_child_vcpu(&self, frames: [Option<Frame>; 8], slat: &Space) -> Vcpu {
        let [Some(vmcb), Some(area), Some(structure), Some(apic), ..] = frames else {
            panic!("a virtual processor was made with fewer frames than it takes; core must count them");
        };
        let pages = [vmcb, area, structure, apic].map(token::store);
        // SAFETY: the frames were the hypervisor's, are given up here, and come back in `end_vcpu`.
        unsafe {
            pages.into_iter().for_each(|page| physical::zero(page));
            let pages = pages.map(|page| page * PAGE_SIZE as u64);
            self.new_vcpu(pages, slat, Mode::Child, self.child_msrs, |vmcb, gprs| {
                vmcb.control.set_intercepts(Intercepts::HLT);
                initial::reset(&mut vmcb.save, gprs);
            })
        }
    }

    /// # Safety
    /// The four pages are the hypervisor's, zeroed, and for this alone.
    unsafe fn new_vcpu(
        &self,
        [vmcb, area, structure, apic]: [u64; 4],
        slat: &Space,
        mode: Mode,
        msrs: &'static MsrBitmap,
        start: impl FnOnce(&mut Vmcb, &mut [u64; 16]),
    ) -> Vcpu {
        // SAFETY: the caller's promise; zeros are a valid block, area and virtual APIC page.
        let (vmcb, area, apic) = unsafe {
            self.mark(structure);
            (PageOf::new(vmcb), PageOf::new(area), PageOf::new(apic))
        };
        let bitmap = physical::address(msrs);
        let own = run::Own::new(structure, apic, self.capabilities, mode, bitmap, slat.root());
        Vcpu::new(vmcb, area, self.features, mode, Engine::Vmx(own), |vmcb, gprs| {
            vmcb.control.asid = 1;
            vmcb.control.interrupt_state &= !INTERRUPT_SHADOW;
            start(vmcb, gprs);
        })
    }

    /// Ends a virtual processor of a child and gives back its frames.
    pub fn end_vcpu(&self, vcpu: Vcpu) -> [Option<Frame>; 8] {
        let Engine::Vmx(own) = &vcpu.engine else { unreachable!("made by `new_child_vcpu`") };
        let [structure, apic] = own.pages();
        let [vmcb, area, structure, apic] =
            [vcpu.vmcb.address(), vcpu.area.address(), structure, apic].map(|address| {
                // SAFETY: the page was the virtual processor's alone, which has just ended; it is not loaded, so no processor
                // has the structure active.
                unsafe { physical::zero(address / PAGE_SIZE as u64) };
                Some(token::take(address / PAGE_SIZE as u64))
            });
        [vmcb, area, structure, apic, None, None, None, None]
    }

    /// Sets whether the parent's writes of the x2APIC ICR exit.
    pub fn intercept_icr(&self, intercept: bool) {
        self.parent_msrs.intercept(X2APIC_ICR, false, intercept);
    }
}
