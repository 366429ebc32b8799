//! parterre.efi: the UEFI application that starts the hypervisor.
//!
//! It does, in this order: read the configuration file, check what the machine has, load the parent's kernel and
//! initrd, set memory aside for the hypervisor, read ACPI tables, leave boot services, hand over to the machine layer.
//! Anything that goes wrong before boot services are left is one sentence on console and serial, and an error status
//! to the firmware, which then starts the next boot entry. What is decided here is decided by the library beside
//! it (`lib.rs`), which the host tests; these modules ask the firmware and move bytes.

#![cfg_attr(target_os = "uefi", no_main, no_std)]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod firmware;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!("This is a UEFI program; build it with --target x86_64-unknown-uefi.");
    std::process::exit(2);
}
