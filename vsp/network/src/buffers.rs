//! The two buffers that a guest shares: one in which it puts small packets, one into which it receives.

use std::sync::{Arc, Mutex, PoisonError};

use parterre_vmbus_ring::{Buffer, Gpadl, Memory};
use vm_memory::VolatileSlice;

use crate::frame::{ETHERNET_HEADER, VLAN_TAG};
use crate::packet::HEADROOM;
use crate::protocol::nvsp::ReceiveSection;

/// Largest buffer that is taken; VSCs make none above 31 MiB.
const MAX_BUFFER: u64 = 32 << 20;
/// Bytes of a section of the send buffer, as Hyper-V divides it: what Linux fills with several small packets.
const SEND_SECTION: u32 = 6144;
/// Least bytes of a section of the receive buffer: a page, so that most sections lie in one piece.
const RECEIVE_SECTION: u32 = 4096;
/// Sections are multiples of this.
const RECEIVE_UNIT: u32 = 256;
/// Fewest sections that a receive buffer may have.
const MIN_SECTIONS: u32 = 4;
/// Longest frame that comes up the wire: 64 KiB of IP packet.
const LARGEST_FRAME: usize = 65535 + ETHERNET_HEADER + VLAN_TAG;

/// The only range of a buffer's GPADL.
fn range(gpadl: &Gpadl) -> Option<&Buffer> {
    gpadl.ranges.first().filter(|range| gpadl.ranges.len() == 1 && range.len() <= MAX_BUFFER)
}

/// Where the guest puts small packets.
pub(crate) struct SendBuffer {
    gpadl: Arc<Gpadl>,
}

impl SendBuffer {
    /// `None` if the guest shares something that cannot be one.
    pub(crate) fn new(gpadl: Arc<Gpadl>) -> Option<SendBuffer> {
        let enough = range(&gpadl)?.len() >= u64::from(SEND_SECTION);
        enough.then_some(SendBuffer { gpadl })
    }

    /// Bytes of a section.
    pub(crate) fn section_size(&self) -> u32 {
        SEND_SECTION
    }

    /// The first `len` bytes of a section: buffer, offset, length.
    pub(crate) fn section(&self, index: u32, len: u32) -> Option<(&Buffer, u64, u64)> {
        let range = range(&self.gpadl)?;
        let start = u64::from(index) * u64::from(SEND_SECTION);
        let fits = len <= SEND_SECTION && start + u64::from(len) <= range.len();
        fits.then_some((range, start, u64::from(len)))
    }
}

/// Where the guest receives.
pub(crate) struct ReceiveBuffer {
    gpadl: Arc<Gpadl>,
    /// The guest's name for it.
    pub(crate) id: u16,
    section_size: u32,
    sections: u32,
    free: Mutex<Vec<u32>>,
}

impl ReceiveBuffer {
    /// A buffer for frames with payloads of up to `mtu` bytes. `None` if the guest shares something that cannot be one.
    pub(crate) fn new(gpadl: Arc<Gpadl>, id: u16, mtu: u32) -> Option<ReceiveBuffer> {
        let frame = mtu.checked_add((ETHERNET_HEADER + VLAN_TAG + HEADROOM) as u32)?;
        let section_size = frame.next_multiple_of(RECEIVE_UNIT).max(RECEIVE_SECTION);
        let sections = u32::try_from(range(&gpadl)?.len() / u64::from(section_size)).ok()?;
        let free = Mutex::new((0..sections).rev().collect());
        (sections >= MIN_SECTIONS).then_some(ReceiveBuffer { gpadl, id, section_size, sections, free })
    }

    /// What the guest is told.
    pub(crate) fn layout(&self) -> ReceiveSection {
        let (size, count) = (self.section_size, self.sections);
        ReceiveSection { offset: 0, size, count, end: size * count }
    }

    /// Bytes of a frame that a section takes.
    pub(crate) fn capacity(&self) -> usize {
        self.section_size as usize - HEADROOM
    }

    /// Offset of a section.
    pub(crate) fn offset(&self, section: u32) -> u32 {
        section * self.section_size
    }

    /// Sections that the largest frame takes.
    pub(crate) fn large_window(&self) -> usize {
        LARGEST_FRAME.div_ceil(self.capacity())
    }

    /// Whether `queues` queues can each have two of the largest frames under way.
    pub(crate) fn takes_large(&self, queues: usize) -> bool {
        self.sections as usize / queues.max(1) >= 2 * self.large_window()
    }

    /// Takes up to `count` free sections.
    pub(crate) fn take(&self, count: usize, to: &mut Vec<u32>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = free.len().saturating_sub(count);
        to.extend(free.drain(rest..));
    }

    /// Gives sections back.
    pub(crate) fn give(&self, sections: impl IntoIterator<Item = u32>) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).extend(sections);
    }

    /// The memory of `len` bytes from `offset` of a section on. `None` if the guest shared what is no RAM.
    pub(crate) fn slices<'a>(
        &'a self,
        memory: &'a dyn Memory,
        section: u32,
        offset: usize,
        len: usize,
        to: &mut Vec<VolatileSlice<'a>>,
    ) -> Option<usize> {
        let at = u64::from(self.offset(section)) + offset as u64;
        let before = to.len();
        for slice in range(&self.gpadl)?.slices(memory, at, len as u64).ok()? {
            to.push(slice.ok()?);
        }
        Some(to.len() - before)
    }

    /// Writes to the beginning of a section.
    pub(crate) fn write(&self, memory: &dyn Memory, section: u32, bytes: &[u8]) -> Option<()> {
        range(&self.gpadl)?.write(memory, self.offset(section).into(), bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(len: u64) -> Arc<Gpadl> {
        let mut buffer = Buffer::default();
        buffer.push(0x1000, len).unwrap();
        Arc::new(Gpadl { ranges: vec![buffer] })
    }

    #[test]
    fn buffers_are_divided_into_sections() {
        let buffer = ReceiveBuffer::new(shared(16 << 20), 0xcafe, 1500).unwrap();
        assert_eq!(buffer.layout(), ReceiveSection { offset: 0, size: 4096, count: 4096, end: 16 << 20 });
        assert_eq!((buffer.capacity(), buffer.large_window()), (4000, 17));
        assert!(buffer.takes_large(8) && !buffer.takes_large(128));
        let jumbo = ReceiveBuffer::new(shared(16 << 20), 1, 9000).unwrap();
        assert!(jumbo.capacity() >= 9018 && jumbo.layout().end <= 16 << 20);
        let send = SendBuffer::new(shared(1 << 20)).unwrap();
        assert!(send.section(169, 6144).is_some());
        assert!(send.section(170, 6144).is_none());
        assert!(send.section(0, 6145).is_none());
        assert!(send.section(u32::MAX, 1).is_none());
    }

    #[test]
    fn impossible_buffers_are_refused() {
        assert!(ReceiveBuffer::new(shared(8192), 1, 1500).is_none());
        assert!(ReceiveBuffer::new(shared(33 << 20), 1, 1500).is_none());
        assert!(ReceiveBuffer::new(shared(1 << 20), 1, u32::MAX).is_none());
        assert!(ReceiveBuffer::new(Arc::default(), 1, 1500).is_none());
        let twice =
            Gpadl { ranges: vec![shared(1 << 20).ranges[0].clone(), shared(1 << 20).ranges[0].clone()] };
        assert!(ReceiveBuffer::new(Arc::new(twice.clone()), 1, 1500).is_none());
        assert!(SendBuffer::new(Arc::new(twice)).is_none());
        assert!(SendBuffer::new(shared(4096)).is_none());
    }

    #[test]
    fn sections_are_taken_and_given_back() {
        let buffer = ReceiveBuffer::new(shared(10 * 4096), 1, 1500).unwrap();
        let mut sections = Vec::new();
        buffer.take(4, &mut sections);
        buffer.take(20, &mut sections);
        sections.sort_unstable();
        assert_eq!(sections, (0..10).collect::<Vec<_>>());
        buffer.give([3]);
        sections.clear();
        buffer.take(2, &mut sections);
        assert_eq!(sections, [3]);
    }
}
