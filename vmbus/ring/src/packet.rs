//! A packet that came from the guest: copied out of the ring once, then taken apart.

use parterre_vmbus_protocol::packet::{
    COMPLETION_REQUESTED, Descriptor, GpaDirectHeader, PacketType, RangeHeader, TransferPageHeader,
    TransferPageRange,
};
use zerocopy::FromBytes;

use crate::{Buffer, PAGE_SIZE, RingError};

/// What a packet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PacketKind {
    /// Only a payload.
    #[default]
    Inband,
    /// A payload and guest memory: [`Packet::memory`].
    GpaDirect,
    /// A payload and ranges of a shared buffer: [`Packet::transfer_ranges`].
    TransferPages {
        /// Which buffer.
        set_id: u16,
    },
    /// The answer to a packet of ours with the same transaction id.
    Completion,
}

/// A packet; meant to be used again for the next, so that reading allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    /// What it is.
    pub kind: PacketKind,
    /// The sender's name for it, to be repeated in the completion.
    pub transaction_id: u64,
    /// The guest waits for a completion.
    pub completion_requested: bool,
    /// Of a GPA-direct packet: the memory that it names, all ranges in order.
    pub memory: Buffer,
    /// Of a transfer-page packet: the ranges.
    pub transfer_ranges: Vec<TransferPageRange>,
    bytes: Vec<u8>,
    payload_at: usize,
}

impl Packet {
    /// The payload. It is padded to 8 bytes, as the ring knows no finer length.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.payload_at..]
    }

    /// Takes in a packet: `body` is filled by `copy` with what follows the descriptor.
    pub(crate) fn fill(
        &mut self,
        descriptor: &Descriptor,
        copy: impl FnOnce(&mut [u8]) -> Result<(), RingError>,
    ) -> Result<(), RingError> {
        let head = size_of::<Descriptor>();
        self.bytes.clear();
        self.bytes.resize(usize::from(descriptor.length8) * 8 - head, 0);
        copy(&mut self.bytes)?;
        self.payload_at = usize::from(descriptor.offset8) * 8 - head;
        self.transaction_id = descriptor.transaction_id;
        self.completion_requested = descriptor.flags & COMPLETION_REQUESTED != 0;
        self.memory.clear();
        self.transfer_ranges.clear();
        self.kind = match descriptor.packet_type {
            PacketType::DATA_INBAND => PacketKind::Inband,
            PacketType::COMPLETION => PacketKind::Completion,
            PacketType::DATA_USING_GPA_DIRECT => self.take_gpa_ranges()?,
            PacketType::DATA_USING_TRANSFER_PAGES => self.take_transfer_ranges()?,
            PacketType(other) => return Err(RingError::PacketType(other)),
        };
        Ok(())
    }

    fn take_gpa_ranges(&mut self) -> Result<PacketKind, RingError> {
        let bytes = &self.bytes[..self.payload_at];
        let error = |count| RingError::Ranges { count, length: bytes.len() };
        let (header, mut rest) = GpaDirectHeader::read_from_prefix(bytes).map_err(|_| error(0))?;
        let error = || error(header.range_count);
        for _ in 0..header.range_count {
            // Each round consumes at least 8 bytes or fails.
            rest = take_range(rest, &mut self.memory).ok_or_else(error)?;
        }
        Ok(PacketKind::GpaDirect)
    }

    fn take_transfer_ranges(&mut self) -> Result<PacketKind, RingError> {
        let bytes = &self.bytes[..self.payload_at];
        let error = |count| RingError::Ranges { count, length: bytes.len() };
        let (header, mut rest) = TransferPageHeader::read_from_prefix(bytes).map_err(|_| error(0))?;
        for _ in 0..header.range_count {
            let (range, after) =
                TransferPageRange::read_from_prefix(rest).map_err(|_| error(header.range_count))?;
            self.transfer_ranges.push(range);
            rest = after;
        }
        Ok(PacketKind::TransferPages { set_id: header.set_id })
    }
}

/// Adds the range at the front of `bytes` to a buffer; returns what follows it, `None` if it is malformed.
pub(crate) fn take_range<'a>(bytes: &'a [u8], buffer: &mut Buffer) -> Option<&'a [u8]> {
    let (range, rest) = RangeHeader::read_from_prefix(bytes).ok()?;
    if range.byte_offset as usize >= PAGE_SIZE {
        return None;
    }
    let pages = (u64::from(range.byte_offset) + u64::from(range.byte_count)).div_ceil(PAGE_SIZE as u64);
    let (numbers, rest) = rest.split_at_checked(usize::try_from(pages).ok()?.checked_mul(8)?)?;
    let numbers = numbers.as_chunks::<8>().0.iter().map(|number| u64::from_le_bytes(*number));
    buffer.push_range(range.byte_offset, range.byte_count, numbers).ok()?;
    Some(rest)
}
