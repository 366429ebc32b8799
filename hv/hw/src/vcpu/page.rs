//! A page of the hypervisor's that holds one value.

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use crate::physical::{self, PAGE_SIZE};

/// A value that fills a page of its own and is reached through nothing else. It does not end by itself.
#[derive(Debug)]
pub struct PageOf<T>(NonNull<T>);

impl<T> PageOf<T> {
    /// The value at physical address `address`.
    ///
    /// # Safety
    /// The address is of a page that the hypervisor owns, that nobody else uses until [`PageOf::address`] was the last
    /// use of this, and whose bytes are a valid `T`.
    pub unsafe fn new(address: u64) -> Self {
        const { assert!(size_of::<T>() == PAGE_SIZE) };
        // SAFETY: a page of the hypervisor's is not at address 0.
        Self(unsafe { NonNull::new_unchecked(physical::pointer(address).cast()) })
    }

    /// Its physical address.
    pub fn address(&self) -> u64 {
        physical::address(self.0.as_ptr())
    }

    /// The value, for instructions that read and write it.
    pub fn pointer(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Deref for PageOf<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` was promised a valid value for this alone; the processor writes it only inside instructions
        // that are reached through `pointer` or `address`, when no reference exists.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for PageOf<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        unsafe { self.0.as_mut() }
    }
}

// SAFETY: it owns the value, as a box would.
unsafe impl<T: Send> Send for PageOf<T> {}
// SAFETY: likewise.
unsafe impl<T: Sync> Sync for PageOf<T> {}
