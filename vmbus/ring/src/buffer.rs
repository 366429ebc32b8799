//! Bytes scattered over guest pages.

use vm_memory::VolatileSlice;

use crate::packet::take_range;
use crate::{AccessError, Memory, PAGE_SIZE};

/// A contiguous piece of guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub gpa: u64,
    /// Length in bytes, never 0.
    pub len: u64,
}

/// A buffer of the guest: pieces of its memory in order, neighbours joined. The addresses come from the guest; whether
/// they are RAM shows at the access.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    segments: Vec<Segment>,
    // Where each segment begins in the buffer: buffers of thousands of pages are read at any place.
    starts: Vec<u64>,
    len: u64,
}

/// Memory that the guest shares under a handle: most have one range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gpadl {
    /// The ranges.
    pub ranges: Vec<Buffer>,
}

impl Gpadl {
    /// The ranges as they stand in a message; `None` if they are malformed or more than there are bytes for.
    pub fn parse(mut bytes: &[u8], range_count: u16) -> Option<Gpadl> {
        let mut ranges = Vec::new();
        for _ in 0..range_count {
            // Each round consumes at least 8 bytes or fails.
            let mut range = Buffer::default();
            bytes = take_range(bytes, &mut range)?;
            ranges.push(range);
        }
        Some(Gpadl { ranges })
    }
}

impl Buffer {
    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its pieces.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.starts.clear();
        self.len = 0;
    }

    /// Adds `len` bytes at an address. An address at which they would wrap around is refused.
    pub fn push(&mut self, gpa: u64, len: u64) -> Result<(), AccessError> {
        gpa.checked_add(len).ok_or(AccessError::NotRam(gpa))?;
        let end = self.len.checked_add(len).ok_or(AccessError::NotRam(gpa))?;
        if len == 0 {
            return Ok(());
        }
        match self.segments.last_mut() {
            Some(last) if last.gpa + last.len == gpa => last.len += len,
            _ => {
                self.segments.push(Segment { gpa, len });
                self.starts.push(self.len);
            }
        }
        self.len = end;
        Ok(())
    }

    /// Adds a range as GPADLs and packets have it: `len` bytes from `offset` of the first page on.
    ///
    /// # Errors
    /// If the number of pages is not the one that `offset` and `len` need, or a page number is too large.
    pub fn push_range(
        &mut self,
        offset: u32,
        len: u32,
        pages: impl ExactSizeIterator<Item = u64>,
    ) -> Result<(), AccessError> {
        let (mut at, mut left) = (u64::from(offset), u64::from(len));
        let needed = (at + left).div_ceil(PAGE_SIZE as u64);
        if at >= PAGE_SIZE as u64 || pages.len() as u64 != needed {
            let size = pages.len() as u64 * PAGE_SIZE as u64;
            return Err(AccessError::OutOfBounds { offset: at, len: left, size });
        }
        for page in pages {
            let gpa = page.checked_mul(PAGE_SIZE as u64).ok_or(AccessError::NotRam(u64::MAX))?;
            let piece = left.min(PAGE_SIZE as u64 - at);
            self.push(gpa + at, piece)?;
            left -= piece;
            at = 0;
        }
        Ok(())
    }

    /// `len` bytes from `offset` on as a buffer of their own.
    pub fn part(&self, offset: u64, len: u64) -> Result<Buffer, AccessError> {
        let mut part = Buffer::default();
        for segment in self.pieces(offset, len)? {
            part.push(segment.gpa, segment.len)?;
        }
        Ok(part)
    }

    /// The pieces of `len` bytes from `offset` on.
    pub fn pieces(&self, offset: u64, len: u64) -> Result<impl Iterator<Item = Segment> + '_, AccessError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(AccessError::OutOfBounds { offset, len, size: self.len });
        }
        let first = self.starts.partition_point(|start| *start <= offset).saturating_sub(1);
        let mut skip = offset - self.starts.get(first).copied().unwrap_or(0);
        let mut left = len;
        Ok(self.segments[first..].iter().map_while(move |segment| {
            let piece = left.min(segment.len - skip);
            let gpa = segment.gpa + std::mem::take(&mut skip);
            left -= piece;
            (piece > 0).then_some(Segment { gpa, len: piece })
        }))
    }

    /// The memory itself of `len` bytes from `offset` on, piece by piece, for vectored I/O without a copy.
    pub fn slices<'a>(
        &'a self,
        memory: &'a dyn Memory,
        offset: u64,
        len: u64,
    ) -> Result<impl Iterator<Item = Result<VolatileSlice<'a>, AccessError>> + 'a, AccessError> {
        Ok(self.pieces(offset, len)?.map(move |Segment { gpa, len }| {
            let len = usize::try_from(len).map_err(|_| AccessError::NotRam(gpa))?;
            memory.slice(gpa, len).ok_or(AccessError::NotRam(gpa))
        }))
    }

    /// Copies out of the guest.
    pub fn read(&self, memory: &dyn Memory, offset: u64, to: &mut [u8]) -> Result<(), AccessError> {
        let mut done = 0;
        for slice in self.slices(memory, offset, to.len() as u64)? {
            done += slice?.copy_to(&mut to[done..]);
        }
        Ok(())
    }

    /// Copies into the guest.
    pub fn write(&self, memory: &dyn Memory, offset: u64, from: &[u8]) -> Result<(), AccessError> {
        let mut done = 0;
        for slice in self.slices(memory, offset, from.len() as u64)? {
            let slice = slice?;
            slice.copy_from(&from[done..done + slice.len()]);
            done += slice.len();
        }
        Ok(())
    }
}
