//! The boot program's logic: everything that is decided before the hypervisor has the machine.
//!
//! Here: the configuration file, the requirements on the host, the memory map in its three forms (the hypervisor's,
//! e820, EFI), the Linux boot protocol, ACPI tables, the program's own PE sections. All of it works on bytes and
//! plain values, without firmware and without `unsafe`, so that the host tests it with good and with bad input.
//! Not here: calls to the firmware, privileged instructions, the hand-over; those are in the program (`main.rs`
//! and its modules), which does what this library decides.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod bytes;
pub mod config;
pub mod console;
pub mod efi_map;
pub mod features;
pub mod image;
pub mod initrd;
pub mod kernel;
pub mod memory;
pub mod parent_tables;
pub mod requirements;
pub mod zero_page;
