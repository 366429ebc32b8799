//! A partition's second-level address translation, generic over the vendor's entry format.

use core::marker::PhantomData;

/// How entries of a vendor's second-level page tables look.
pub trait Format: Send + Sync + 'static {}

/// A guest-physical address space.
#[derive(Debug)]
pub struct Space<F: Format> {
    format: PhantomData<F>,
}
