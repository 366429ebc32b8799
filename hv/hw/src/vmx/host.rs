//! The hypervisor's own state, which exits load, and what VMX keeps for each logical processor in the two pages of
//! [`LogicalProcessor::vendor_area`]: the VMXON region, and a page with [`State`].

use super::field::{Current, Field};
use super::msrs::Msrs;
use super::switch;
use crate::cpu::{msr, registers, tables};
use crate::physical::{self, PAGE_SIZE};
use crate::processor::LogicalProcessor;
use crate::vcpu::asid::Allocator;

/// A logical processor's own. Zeroed memory is a valid one.
#[derive(Debug)]
pub struct State {
    /// Virtual processor identifiers.
    pub vpids: Allocator,
    /// The structure of the virtual processor that was here last.
    pub last: u64,
    /// What the system-call registers hold.
    pub msrs: Msrs,
}

const _: () = assert!(size_of::<State>() <= PAGE_SIZE);

/// Physical address of the VMXON region.
pub fn vmxon_region(processor: &LogicalProcessor) -> u64 {
    processor.vendor_area()
}

/// The processor's own state.
///
/// # Safety
/// Called on `processor`, and no other reference to the state exists.
#[expect(clippy::mut_from_ref, reason = "the state lies in the processor's area, not in the value")]
pub unsafe fn state(processor: &LogicalProcessor) -> &mut State {
    // SAFETY: the area is for this alone, was zeroed, and zeros are a valid state; the rest is the caller's promise.
    unsafe { &mut *physical::pointer(processor.vendor_area() + PAGE_SIZE as u64).cast() }
}

/// Writes this processor's state into the current structure (SDM volume 3C, 25.5). RSP is written at each entry.
pub fn write(vmcs: Current) {
    let (gdt, idt, task) = tables::bases();
    let data = u64::from(tables::DATA);
    // SAFETY: every processor with VMX has these registers; reading changes nothing.
    let (pat, efer) = unsafe { (msr::read(msr::PAT), msr::read(msr::EFER)) };
    for (field, value) in [
        (Field::HostCr0, registers::cr0()),
        (Field::HostCr3, registers::cr3()),
        (Field::HostCr4, registers::cr4()),
        (Field::HostCsSelector, tables::CODE.into()),
        (Field::HostSsSelector, data),
        (Field::HostDsSelector, data),
        (Field::HostEsSelector, data),
        (Field::HostFsSelector, 0),
        (Field::HostGsSelector, 0),
        (Field::HostTrSelector, tables::TASK.into()),
        (Field::HostFsBase, 0),
        (Field::HostGsBase, 0),
        (Field::HostGdtrBase, gdt),
        (Field::HostIdtrBase, idt),
        (Field::HostTrBase, task),
        (Field::HostSysenterCs, 0),
        (Field::HostSysenterEsp, 0),
        (Field::HostSysenterEip, 0),
        (Field::HostPat, pat),
        (Field::HostEfer, efer),
        (Field::HostRip, switch::exit_address()),
    ] {
        vmcs.write(field, value);
    }
}
