//! What SVM keeps for each logical processor, in the two pages of [`LogicalProcessor::vendor_area`]: the host save area,
//! and a page with the hypervisor's VMSAVE state, whose unused front holds [`State`].

use crate::physical::{self, PAGE_SIZE};
use crate::processor::LogicalProcessor;
use crate::vcpu::asid::Allocator;

/// A logical processor's own. Zeroed memory is a valid one. VMSAVE writes the page from byte 0x440 on only.
#[derive(Debug)]
pub struct State {
    /// Address space identifiers.
    pub asids: Allocator,
}

const _: () = assert!(size_of::<State>() <= 0x400);

/// Physical address of the host save area.
pub fn host_save_area(processor: &LogicalProcessor) -> u64 {
    processor.vendor_area()
}

/// Physical address of the page with the hypervisor's VMSAVE state.
#[inline]
pub fn host_state(processor: &LogicalProcessor) -> u64 {
    processor.vendor_area() + PAGE_SIZE as u64
}

/// The processor's own state.
///
/// # Safety
/// Called on `processor`, and no other reference to the state exists.
#[expect(clippy::mut_from_ref, reason = "the state lies in the processor's area, not in the value")]
pub unsafe fn state(processor: &LogicalProcessor) -> &mut State {
    // SAFETY: the area is for this alone, was zeroed, and zeros are a valid state; the rest is the caller's promise.
    unsafe { &mut *physical::pointer(host_state(processor)).cast() }
}
