//! The seam between what all PCs share and what a processor vendor's virtualization extension does its own way.
//!
//! One implementation is chosen once at start; everything is monomorphized from there on. Rules for an implementation:
//! * Between an exit and the return of [`Vcpu::run`] the hypervisor's TR, GDTR and IDTR are loaded again: every exception
//!   and NMI in hypervisor code switches to a stack of its task state segment.
//! * [`Vcpu::run`] asks [`LogicalProcessor::enter`] before it enters a partition, calls [`LogicalProcessor::leave`] after
//!   it, and lets [`LogicalProcessor::take_nmi`] decide whose an NMI was.

use parterre_core::machine::Vcpu;
use parterre_core::memory::Frame;

use crate::heap::BootHeap;
use crate::launch;
use crate::paging::slat::{Format, Space};
use crate::processor::LogicalProcessor;

/// A processor vendor's virtualization extension.
pub trait Vendor: Sized + Send + Sync + 'static {
    /// How entries of its second-level page tables look.
    type Format: Format;
    /// Its virtual processors.
    type Vcpu: Vcpu<Slat = Space<Self::Format>, Processor = LogicalProcessor>;
    /// How many frames [`Vendor::new_child_vcpu`] takes.
    const VCPU_FRAMES: usize;
    /// The instruction that calls the hypervisor, for the hypercall page.
    const HYPERCALL_INSTRUCTION: [u8; 3];

    /// Prepares what all processors share (MSR and I/O permission maps).
    fn new(heap: &mut BootHeap) -> Self;
    /// Turns the extension on, on the processor this runs on. It may use [`LogicalProcessor::vendor_area`].
    fn enable(&self, processor: &mut LogicalProcessor);
    /// Makes a virtual processor of the parent. Runs on the boot processor, for all.
    fn new_parent_vcpu(
        &self,
        heap: &mut BootHeap,
        slat: &Space<Self::Format>,
        start: ParentStart,
    ) -> Self::Vcpu;
    /// Makes a virtual processor of a child in its power-on state out of [`Vendor::VCPU_FRAMES`] frames.
    fn new_child_vcpu(&self, frames: [Option<Frame>; 8], slat: &Space<Self::Format>) -> Self::Vcpu;
    /// Ends a virtual processor of a child and gives back its frames.
    fn end_vcpu(&self, vcpu: Self::Vcpu) -> [Option<Frame>; 8];
    /// Sets whether the parent's writes of the x2APIC ICR (MSR 0x830) exit, on all processors from their next entry on.
    fn intercept_icr(&self, intercept: bool);
}

/// How a virtual processor of the parent begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentStart {
    /// In 64-bit mode at the kernel's entry.
    Kernel(launch::ParentStart),
    /// In the state after INIT (AMD APM 2 table 14-1); core sets CS and RIP when the start-up IPI comes.
    WaitForSipi,
}
