//! Physical memory as the hypervisor sees it: mapped onto itself.
//!
//! In a test on the host there is no physical memory; a test allocates page-aligned memory and uses its address as the
//! physical one, so the same arithmetic holds.

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// The byte at physical address `address`. Making the pointer is safe; using it needs a reason to own the memory.
pub fn pointer(address: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(address as usize)
}

/// The first byte of physical page `number`.
pub fn page(number: u64) -> *mut u8 {
    pointer(number << 12)
}

/// The physical address of something of the hypervisor's (image, region or stack, all mapped onto themselves).
pub fn address<T: ?Sized>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}
