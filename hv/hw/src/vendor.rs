//! The seam between what all PCs share and what a processor vendor's virtualization extension does its own way.
//!
//! The vendor is found once, at start. What core does after most exits is the same code for both vendors (see
//! [`crate::vcpu`]); which extension it is decides at the entry into a partition, and where something is made or ended.
//! Rules for an implementation:
//! * Between an exit and the return of [`Vcpu::run`] the hypervisor's TR, GDTR and IDTR are loaded again: every exception
//!   and NMI in hypervisor code switches to a stack of its task state segment.
//! * [`Vcpu::run`] asks [`LogicalProcessor::enter`] before it enters a partition, calls [`LogicalProcessor::leave`] after
//!   it, and lets [`LogicalProcessor::take_nmi`] decide whose an NMI was.
//!
//! [`Vcpu::run`]: parterre_core::machine::Vcpu::run

use parterre_core::memory::Frame;

use crate::cpu::mtrr::MemoryTypes;
use crate::cpu::{msr, registers};
use crate::heap::BootHeap;
use crate::launch;
use crate::paging::slat::{Format, Space};
use crate::processor::LogicalProcessor;
use crate::svm::{self, Svm};
use crate::vcpu::Vcpu;
use crate::vmx::{self, Vmx};

/// A processor vendor's virtualization extension.
#[derive(Debug)]
pub enum Vendor {
    /// AMD's Secure Virtual Machine.
    Svm(Svm),
    /// Intel's Virtual Machine Extensions.
    Vmx(Vmx),
}

impl Vendor {
    /// The extension of the processor that this runs on, with what all processors share (MSR and I/O permission maps)
    /// prepared. The boot program has checked that it is there.
    pub fn new(heap: &mut BootHeap) -> Self {
        if is_intel() { Self::Vmx(Vmx::new(heap)) } else { Self::Svm(Svm::new(heap)) }
    }

    /// How entries of its second-level page tables look.
    pub fn format(&self) -> Format {
        match self {
            Self::Svm(_) => Format::Npt,
            Self::Vmx(vmx) => vmx.format(),
        }
    }

    /// The memory types that leaves of the parent's address space must have, where the processor does not look them up by
    /// itself.
    pub fn memory_types(&self) -> Option<MemoryTypes> {
        const MTRR: u32 = 1 << 12;
        let there = matches!(self, Self::Vmx(_)) && registers::cpuid(1, 0)[3] & MTRR != 0;
        there.then(|| MemoryTypes::new(read_mtrr, registers::physical_address_bits()))
    }

    /// Whether its second-level page tables can have leaves of 1 GiB.
    pub fn has_gigabyte_pages(&self) -> bool {
        match self {
            Self::Svm(_) => registers::has_gigabyte_pages(),
            Self::Vmx(vmx) => vmx.has_gigabyte_pages(),
        }
    }

    /// How many frames [`Vendor::new_child_vcpu`] takes.
    pub fn vcpu_frames(&self) -> usize {
        match self {
            Self::Svm(_) => svm::VCPU_FRAMES,
            Self::Vmx(_) => vmx::VCPU_FRAMES,
        }
    }

    /// The instruction that calls the hypervisor, for the hypercall page.
    pub fn hypercall_instruction(&self) -> [u8; 3] {
        match self {
            Self::Svm(_) => svm::HYPERCALL_INSTRUCTION,
            Self::Vmx(_) => vmx::HYPERCALL_INSTRUCTION,
        }
    }

    /// Turns the extension on, on the processor this runs on. It may use [`LogicalProcessor::vendor_area`].
    pub fn enable(&self, processor: &mut LogicalProcessor) {
        match self {
            Self::Svm(svm) => svm.enable(processor),
            Self::Vmx(vmx) => vmx.enable(processor),
        }
    }

    /// Makes a virtual processor of the parent. Runs on the boot processor, for all.
    pub fn new_parent_vcpu(&self, heap: &mut BootHeap, slat: &Space, start: ParentStart) -> Vcpu {
        match self {
            Self::Svm(svm) => svm.new_parent_vcpu(heap, slat, start),
            Self::Vmx(vmx) => vmx.new_parent_vcpu(heap, slat, start),
        }
    }

    /// Makes a virtual processor of a child in its power-on state out of [`Vendor::vcpu_frames`] frames.
    pub fn new_child_vcpu(&self, frames: [Option<Frame>; 8], slat: &Space) -> Vcpu {
        match self {
            Self::Svm(svm) => svm.new_child_vcpu(frames, slat),
            Self::Vmx(vmx) => vmx.new_child_vcpu(frames, slat),
        }
    }

    /// Ends a virtual processor of a child and gives back its frames.
    pub fn end_vcpu(&self, vcpu: Vcpu) -> [Option<Frame>; 8] {
        match self {
            Self::Svm(svm) => svm.end_vcpu(vcpu),
            Self::Vmx(vmx) => vmx.end_vcpu(vcpu),
        }
    }

    /// Sets whether the parent's writes of the x2APIC ICR (MSR 0x830) exit, on all processors from their next entry on.
    pub fn intercept_icr(&self, intercept: bool) {
        match self {
            Self::Svm(svm) => svm.intercept_icr(intercept),
            Self::Vmx(vmx) => vmx.intercept_icr(intercept),
        }
    }
}

fn read_mtrr(register: u32) -> u64 {
    // SAFETY: `memory_types` has made sure that the processor has them; reading them changes nothing.
    unsafe { msr::read(register) }
}

/// Whether the processor that this runs on is Intel's (SDM volume 2A, CPUID leaf 0).
fn is_intel() -> bool {
    let [_, ebx, ecx, edx] = registers::cpuid(0, 0);
    [ebx, edx, ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

/// How a virtual processor of the parent begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentStart {
    /// In 64-bit mode at the kernel's entry.
    Kernel(launch::ParentStart),
    /// In the state after INIT (AMD APM 2 table 14-1); core sets CS and RIP when the start-up IPI comes.
    WaitForSipi,
}
