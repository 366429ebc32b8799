//! Physical memory: a map from page numbers to pages, which come into being, zeroed, when they are touched.

use std::{boxed::Box, collections::HashMap, vec::Vec};

use super::lock::Lock;

/// The bytes of a page.
pub(super) const PAGE: usize = 4096;

/// All physical memory.
#[derive(Debug, Default)]
pub struct FakeMemory(Lock<HashMap<u64, Box<[u8; PAGE]>>>);

impl FakeMemory {
    fn with<T>(&self, frame: u64, action: impl FnOnce(&mut [u8; PAGE]) -> T) -> T {
        action(self.0.get().entry(frame).or_insert_with(|| Box::new([0; PAGE])))
    }

    /// Copies bytes out of a page, whose end they must not cross.
    pub fn read(&self, frame: u64, offset: usize, bytes: &mut [u8]) {
        self.with(frame, |page| bytes.copy_from_slice(&page[offset..offset + bytes.len()]));
    }

    /// Copies bytes into a page, whose end they must not cross.
    pub fn write(&self, frame: u64, offset: usize, bytes: &[u8]) {
        self.with(frame, |page| page[offset..offset + bytes.len()].copy_from_slice(bytes));
    }

    /// Replaces `current` by `new` if it is there; says what was.
    pub fn compare_exchange(&self, frame: u64, offset: usize, current: &[u8], new: &[u8]) -> Vec<u8> {
        self.with(frame, |page| {
            let place = &mut page[offset..offset + current.len()];
            let before = place.to_vec();
            if before == current {
                place.copy_from_slice(new);
            }
            before
        })
    }

    /// Fills a page with zeros.
    pub fn zero(&self, frame: u64) {
        self.0.get().remove(&frame);
    }

    /// Whether a page is all zeros.
    pub fn is_zero(&self, frame: u64) -> bool {
        self.0.get().get(&frame).is_none_or(|page| page.iter().all(|&byte| byte == 0))
    }
}
