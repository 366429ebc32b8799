//! A ring: its control words and its data, as both directions need them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parterre_vmbus_protocol::ring::{READ_INDEX, WRITE_INDEX};
use vm_memory::Bytes;

use crate::{AccessError, Buffer, Memory, PAGE_SIZE, RingError};

/// Indexes and packets are multiples of this.
pub(crate) const ALIGNMENT: u32 = 8;

pub(crate) struct Ring {
    memory: Arc<dyn Memory>,
    /// Address of the control page.
    control: u64,
    data: Buffer,
    /// Bytes of data, a multiple of the page size.
    pub(crate) size: u32,
}

impl Ring {
    /// A ring in whole pages, the first being the control page.
    pub(crate) fn new(memory: Arc<dyn Memory>, pages: &Buffer) -> Result<Ring, RingError> {
        let page = PAGE_SIZE as u64;
        let size = pages.len().checked_sub(page).and_then(|size| u32::try_from(size).ok());
        let (Some(size), Some(first)) = (size, pages.segments().first()) else {
            return Err(RingError::Size(pages.len()));
        };
        if size == 0 || !size.is_multiple_of(PAGE_SIZE as u32) || !first.gpa.is_multiple_of(page) {
            return Err(RingError::Size(pages.len()));
        }
        let ring = Ring { memory, control: first.gpa, data: pages.part(page, size.into())?, size };
        ring.word(WRITE_INDEX)?;
        Ok(ring)
    }

    /// Reads a control word.
    pub(crate) fn word(&self, offset: usize) -> Result<u32, RingError> {
        let error = AccessError::NotRam(self.control);
        let page = self.memory.slice(self.control, PAGE_SIZE).ok_or(error)?;
        page.load(offset, Ordering::Acquire).map_err(|_| error.into())
    }

    /// Writes a control word.
    pub(crate) fn set_word(&self, offset: usize, value: u32) -> Result<(), RingError> {
        let error = AccessError::NotRam(self.control);
        let page = self.memory.slice(self.control, PAGE_SIZE).ok_or(error)?;
        page.store(value, offset, Ordering::Release).map_err(|_| error.into())
    }

    fn index(&self, offset: usize) -> Result<u32, RingError> {
        let index = self.word(offset)?;
        if index >= self.size || !index.is_multiple_of(ALIGNMENT) {
            return Err(RingError::Index { index, size: self.size });
        }
        Ok(index)
    }

    /// The write index, checked.
    pub(crate) fn write_index(&self) -> Result<u32, RingError> {
        self.index(WRITE_INDEX)
    }

    /// The read index, checked.
    pub(crate) fn read_index(&self) -> Result<u32, RingError> {
        self.index(READ_INDEX)
    }

    /// Bytes between two indexes.
    pub(crate) fn used(&self, read: u32, write: u32) -> u32 {
        if write >= read { write - read } else { self.size - (read - write) }
    }

    /// The index `count` bytes on; `count` is at most the size.
    pub(crate) fn advance(&self, index: u32, count: u32) -> u32 {
        let left = self.size - index;
        if count < left { index + count } else { count - left }
    }

    /// Copies data out, around the end if need be. `to` is at most as long as the ring.
    pub(crate) fn copy_out(&self, at: u32, to: &mut [u8]) -> Result<(), RingError> {
        let (first, rest) = to.split_at_mut(to.len().min((self.size - at) as usize));
        self.data.read(&*self.memory, at.into(), first)?;
        Ok(self.data.read(&*self.memory, 0, rest)?)
    }

    /// Copies data in, around the end if need be. `from` is at most as long as the ring.
    pub(crate) fn copy_in(&self, at: u32, from: &[u8]) -> Result<(), RingError> {
        let (first, rest) = from.split_at(from.len().min((self.size - at) as usize));
        self.data.write(&*self.memory, at.into(), first)?;
        Ok(self.data.write(&*self.memory, 0, rest)?)
    }
}
