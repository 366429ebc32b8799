//! What `parterre.efi` says and does when it cannot start the parent: one clear line, and back to the firmware, which
//! goes on to its next entry.

use std::time::Duration;

use anyhow::Result;

use crate::boxes::BoxSpec;
use crate::media::{Change, Wish};
use crate::session::Session;
use crate::test::{Case, Check, PLAIN};

const LIMIT: Duration = Duration::from_secs(60);
/// The next boot entry starts the bare parent, whose kernel says this.
const NEXT_ENTRY: &str = "Linux version";

pub const CASES: &[Case] = &[
    Case { name: "boot::without-svm", setting: PLAIN, check: Check::Free(without_svm) },
    Case { name: "boot::without-nested-paging", setting: PLAIN, check: Check::Free(without_npt) },
    Case { name: "boot::without-no-execute", setting: PLAIN, check: Check::Free(without_nx) },
    Case { name: "boot::intel-without-vmx", setting: PLAIN, check: Check::Free(without_vmx) },
    Case { name: "boot::intel-vmx-locked", setting: PLAIN, check: Check::Free(vmx_locked) },
    Case { name: "boot::intel-without-ept", setting: PLAIN, check: Check::Free(without_ept) },
    Case { name: "boot::intel-without-real-mode", setting: PLAIN, check: Check::Free(without_real_mode) },
    Case { name: "boot::intel-without-no-execute", setting: PLAIN, check: Check::Free(intel_without_nx) },
    Case { name: "boot::kernel-missing", setting: PLAIN, check: Check::Free(kernel_missing) },
    Case { name: "boot::kernel-damaged", setting: PLAIN, check: Check::Free(kernel_damaged) },
    Case { name: "boot::kernel-altered", setting: PLAIN, check: Check::Free(kernel_altered) },
    Case { name: "boot::initrd-missing", setting: PLAIN, check: Check::Free(initrd_missing) },
    Case { name: "boot::configuration-missing", setting: PLAIN, check: Check::Free(configuration_missing) },
    Case { name: "boot::configuration-damaged", setting: PLAIN, check: Check::Free(configuration_damaged) },
];

/// Boots a box that lacks something and expects to hear of it, and then from the firmware.
fn refused(mut wish: Wish, flags: &[&str], change: Option<Change>, word: &str) -> Result<()> {
    let spec =
        BoxSpec { cpu_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(), ..BoxSpec::default() };
    wish.changes.extend(change);
    wish.fallback = true;
    Session::watch(&spec, &wish, &["parterre: ", word, NEXT_ENTRY], LIMIT).map(drop)
}

fn without_svm(wish: Wish) -> Result<()> {
    refused(wish, &["-svm"], None, "SVM")
}

fn without_npt(wish: Wish) -> Result<()> {
    refused(wish, &["-npt"], None, "nested paging")
}

fn without_nx(wish: Wish) -> Result<()> {
    refused(wish, &["-nx"], None, "NX")
}

/// As [`refused`], for an Intel box.
fn intel_refused(mut wish: Wish, spec: &str, word: &str) -> Result<()> {
    let spec: BoxSpec = spec.parse()?;
    wish.fallback = true;
    Session::watch(&spec, &wish, &["parterre: ", word, NEXT_ENTRY], spec.boot_limit()).map(drop)
}

fn without_vmx(wish: Wish) -> Result<()> {
    intel_refused(wish, "intel,cpu=-vmx", "shows no Intel VMX")
}

fn vmx_locked(wish: Wish) -> Result<()> {
    intel_refused(wish, "intel,vmx=locked", "switched Intel VMX off and locked it")
}

/// Penryn had VMX and no EPT yet.
fn without_ept(wish: Wish) -> Result<()> {
    intel_refused(wish, "intel,model=core2_penryn_t9600", "VMX without EPT")
}

/// Lynnfield had EPT, but a guest had to be in protected mode with paging.
fn without_real_mode(wish: Wish) -> Result<()> {
    intel_refused(wish, "intel,model=corei5_lynnfield_750", "VMX without unrestricted guests")
}

fn intel_without_nx(wish: Wish) -> Result<()> {
    intel_refused(wish, "intel,cpu=-nx", "NX")
}

fn kernel_missing(wish: Wish) -> Result<()> {
    refused(wish, &[], Some(("parterre/vmlinuz", None)), "vmlinuz")
}

fn kernel_damaged(wish: Wish) -> Result<()> {
    refused(wish, &[], Some(("parterre/vmlinuz", Some(vec![0x55; 100_000]))), "vmlinuz")
}

/// One byte of a kernel that is otherwise whole.
fn kernel_altered(wish: Wish) -> Result<()> {
    let mut kernel = std::fs::read(crate::kernel::parent()?.image)?;
    let middle = kernel.len() / 2;
    kernel[middle] ^= 1;
    refused(wish, &[], Some(("parterre/vmlinuz", Some(kernel))), "vmlinuz")
}

fn initrd_missing(wish: Wish) -> Result<()> {
    refused(wish, &[], Some(("parterre/initrd", None)), "initrd")
}

fn configuration_missing(wish: Wish) -> Result<()> {
    refused(wish, &[], Some(("parterre/parterre.conf", None)), "parterre.conf")
}

fn configuration_damaged(wish: Wish) -> Result<()> {
    let damaged = b"kernel = \\parterre\\vmlinuz\nno equals sign here\n".to_vec();
    refused(wish, &[], Some(("parterre/parterre.conf", Some(damaged))), "line 2")
}
