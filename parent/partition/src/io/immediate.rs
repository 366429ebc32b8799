//! File I/O on the caller's thread, for what is quickly done.

use std::fs::File;
use std::os::fd::AsRawFd;

use crate::memory::Regions;

use super::{IoOperation, gather};

/// What a transfer may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Nothing: what is not in the page cache, or cannot be put there, is left (`RWF_NOWAIT`).
    None,
    /// Whatever its file waits for: for files that are kept in memory.
    File,
}

/// Moves data between files and guest memory.
pub struct Immediate {
    memory: Regions,
    /// Empty between two transfers.
    vectors: Vec<libc::iovec>,
}

// SAFETY: between two transfers there are no pointers here, and guest memory has no thread affinity.
unsafe impl Send for Immediate {}

impl Immediate {
    /// Over a guest's memory.
    pub fn new(memory: Regions) -> Immediate {
        Immediate { memory, vectors: Vec::new() }
    }

    /// Reads or writes all of a request; `segments` are pieces of guest memory, `(address, length)`. `false`: not all of it was
    /// done, for whatever reason: it may be tried again by an [`IoRing`](super::IoRing), which tells reasons. Requests that
    /// are to survive a power cut are not for here.
    pub fn transfer(
        &mut self,
        file: &File,
        operation: IoOperation,
        offset: u64,
        segments: impl Iterator<Item = (u64, u64)>,
        patience: Patience,
    ) -> bool {
        let flags = match patience {
            Patience::None => libc::RWF_NOWAIT,
            Patience::File => 0,
        };
        let call = match operation {
            IoOperation::Read => libc::preadv2,
            IoOperation::Write { durable: false } => libc::pwritev2,
            IoOperation::Write { durable: true } | IoOperation::Sync => return false,
        };
        let total = gather(&self.memory, segments, &mut self.vectors);
        let place = (total, i32::try_from(self.vectors.len()), i64::try_from(offset));
        let (Some(total), Ok(count), Ok(offset)) = place else { return false };
        // SAFETY: the vectors point into guest memory, which stays mapped by `self.memory`; the kernel reads or writes there, as
        // devices do at any time.
        let done = unsafe { call(file.as_raw_fd(), self.vectors.as_ptr(), count, offset, flags) };
        self.vectors.clear();
        usize::try_from(done) == Ok(total)
    }
}
