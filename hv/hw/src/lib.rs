//! The hypervisor's machine layer: all of its unsafe code, and nothing that decides anything.
//!
//! It implements [`parterre_core::machine`] for a PC: [`machine::Pc`] for what all vendors share, a [`vendor::Vendor`]
//! for what AMD and Intel do differently. `parterre.efi` hands the machine over by calling [`start`] with a
//! [`launch::LaunchInfo`]; from then on this crate owns every processor and never returns.
//!
//! The machine as this layer runs it: physical memory is mapped onto itself, so a physical address is a pointer
//! ([`physical`]); interrupts are off everywhere but in the few windows that [`processor`] opens; there is no
//! per-processor data behind GS or FS, the current [`processor::LogicalProcessor`] is passed down as `&mut`.
#![cfg_attr(not(test), no_std)]

mod ap;
pub mod apic;
mod calibrate;
pub mod cpu;
pub mod heap;
pub mod launch;
mod layout;
pub mod machine;
mod ownership;
pub mod paging;
pub mod panic;
mod partition;
pub mod physical;
mod power;
pub mod processor;
pub mod serial;
mod start;
pub mod svm;
pub mod symbols;
pub mod timer;
pub(crate) mod vcpu;
pub mod vendor;
pub mod vmx;

/// Takes over the machine from the boot program and runs the hypervisor on it, with the parent as its first partition.
///
/// The processor's vendor decides which virtualization extension is used; the boot program has checked that it is there.
pub fn start(info: launch::LaunchInfo) -> ! {
    start::take_over(info, partition::run)
}
