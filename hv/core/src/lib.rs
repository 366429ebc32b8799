//! Hypervisor logic without machine access: partitions, virtual processors, memory ownership, intercepts, local APIC,
//! SynIC, timers and hypercalls.
//!
//! Everything here is safe Rust that builds for the bare machine and for the host alike. What it needs of a machine it
//! asks of the traits in [`machine`]; `hv/hw` implements them for real processors and the tests of this crate for a
//! fake one. Nothing here names a processor vendor, and no raw physical address turns into memory here: pages are
//! [`memory::Frame`] and [`memory::Lent`] tokens, which only the ownership table hands out.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "fake"))]
extern crate std;

pub mod apic;
mod child;
mod events;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod features;
mod hypercall;
mod hypervisor;
pub mod instruction;
pub mod machine;
pub mod memory;
mod parent;
mod power_on;
#[cfg(test)]
mod tests;
mod version;
mod xstate;

pub use hypercall::{DeviceInterrupt, Port};
pub use hypervisor::{Config, Hypervisor, MAX_CHILDREN, ProcessorConfig, Slot};
pub use parent::{LogicalProcessor, StatsPlace, SynicPages};
pub use version::PARTERRE as VERSION;
pub mod synic;
pub mod time;
pub mod walk;
