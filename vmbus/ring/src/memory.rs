//! Guest memory as rings and devices see it.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollection, VolatileSlice};

/// Guest RAM. A slice is memory that the guest changes at will, hence volatile.
pub trait Memory: Send + Sync {
    /// `len` bytes at a guest physical address; `None` unless all of them are RAM and contiguous in the host.
    fn slice(&self, gpa: u64, len: usize) -> Option<VolatileSlice<'_>>;
}

impl<R: GuestMemoryRegion<B = ()> + Send + Sync> Memory for GuestRegionCollection<R> {
    fn slice(&self, gpa: u64, len: usize) -> Option<VolatileSlice<'_>> {
        self.get_slice(GuestAddress(gpa), len).ok()
    }
}
