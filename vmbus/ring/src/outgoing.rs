//! The ring that the server writes and the guest reads.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use parterre_vmbus_protocol::packet::{
    COMPLETION_REQUESTED, Descriptor, PacketType, TransferPageHeader, TransferPageRange,
};
use parterre_vmbus_protocol::ring::{
    FEATURE_PENDING_SEND_SIZE, FEATURES, INTERRUPT_MASK, PENDING_SEND_SIZE, TRAILER_SIZE, WRITE_INDEX,
};
use zerocopy::IntoBytes;

use crate::control::{ALIGNMENT, Ring};
use crate::{Buffer, Memory, RingError};

/// A packet to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutPacket<'a> {
    /// Only a payload.
    Inband {
        /// Our name for it.
        transaction_id: u64,
        /// The guest is to complete it.
        completion_requested: bool,
    },
    /// A payload and ranges of a buffer that the guest gave.
    TransferPages {
        /// Our name for it.
        transaction_id: u64,
        /// The guest is to complete it.
        completion_requested: bool,
        /// Which buffer.
        set_id: u16,
        /// The ranges.
        ranges: &'a [TransferPageRange],
    },
    /// The answer to a packet of the guest's.
    Completion {
        /// The guest's name for its packet.
        transaction_id: u64,
    },
}

/// Head of a packet that is written piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub packet_type: PacketType,
    /// Its name.
    pub transaction_id: u64,
    /// The receiver is to complete it.
    pub completion_requested: bool,
}

/// Whether a packet went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Written {
    /// It is in the ring.
    Done,
    /// There is no room. The guest has been asked to signal when there is.
    Full,
}

/// Writer of the guest's in-ring.
pub struct Outgoing {
    ring: Ring,
    write: u32,
    /// The write index that the guest knows.
    published: u32,
    /// The read index as it was last seen.
    read: u32,
    /// Bytes for which we wait, 0 for none.
    waiting: u32,
    signal_due: bool,
}

impl Outgoing {
    /// The ring in these pages, at the indexes where the guest left it.
    pub fn new(memory: Arc<dyn Memory>, pages: &Buffer) -> Result<Outgoing, RingError> {
        let ring = Ring::new(memory, pages)?;
        let (write, read) = (ring.write_index()?, ring.read_index()?);
        ring.set_word(FEATURES, ring.word(FEATURES)? | FEATURE_PENDING_SEND_SIZE)?;
        Ok(Outgoing { ring, write, published: write, read, waiting: 0, signal_due: false })
    }

    /// Puts a packet in the ring, its payload being the pieces one after the other. The guest sees it after
    /// [`finish`](Self::finish).
    ///
    /// # Errors
    /// [`RingError::NeverFits`] if the ring is too small even when empty.
    pub fn write(&mut self, packet: &OutPacket<'_>, payload: &[&[u8]]) -> Result<Written, RingError> {
        match *packet {
            OutPacket::Inband { transaction_id, completion_requested } => {
                let head =
                    Head { packet_type: PacketType::DATA_INBAND, transaction_id, completion_requested };
                self.write_raw(head, &[], payload)
            }
            OutPacket::Completion { transaction_id } => {
                let completion_requested = false;
                let head = Head { packet_type: PacketType::COMPLETION, transaction_id, completion_requested };
                self.write_raw(head, &[], payload)
            }
            OutPacket::TransferPages { transaction_id, completion_requested, set_id, ranges } => {
                let packet_type = PacketType::DATA_USING_TRANSFER_PAGES;
                let head = Head { packet_type, transaction_id, completion_requested };
                let range_count = ranges.len() as u32;
                let header = TransferPageHeader { set_id, sender_owns_set: 0, reserved: 0, range_count };
                self.write_raw(head, &[header.as_bytes(), ranges.as_bytes()], payload)
            }
        }
    }

    /// Puts a packet of any kind in the ring: `between` stands between descriptor and payload and must be a multiple of 8
    /// bytes long.
    pub fn write_raw(
        &mut self,
        head: Head,
        between: &[&[u8]],
        payload: &[&[u8]],
    ) -> Result<Written, RingError> {
        let sum = |pieces: &[&[u8]]| pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let offset = size_of::<Descriptor>() + sum(between);
        let unpadded = offset + sum(payload);
        let length = unpadded.next_multiple_of(ALIGNMENT as usize);
        let total = length + TRAILER_SIZE;
        let never = RingError::NeverFits { packet: total, size: self.ring.size };
        let (Ok(length8), Ok(offset8)) = (u16::try_from(length / 8), u16::try_from(offset / 8)) else {
            return Err(never);
        };
        if total >= self.ring.size as usize {
            return Err(never);
        }
        if !self.make_room(total as u32)? {
            return Ok(Written::Full);
        }
        let start = self.write;
        let Head { packet_type, transaction_id, completion_requested } = head;
        let flags = if completion_requested { COMPLETION_REQUESTED } else { 0 };
        self.put(Descriptor { packet_type, offset8, length8, flags, transaction_id }.as_bytes())?;
        for piece in between.iter().chain(payload) {
            self.put(piece)?;
        }
        self.put(&[0; ALIGNMENT as usize][..length - unpadded])?;
        self.put(&(u64::from(start) << 32).to_le_bytes())?;
        Ok(Written::Done)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), RingError> {
        self.ring.copy_in(self.write, bytes)?;
        self.write = self.ring.advance(self.write, bytes.len() as u32);
        Ok(())
    }

    /// Whether there is room for `total` bytes; if not, the guest knows that we wait for it. A full ring would look
    /// empty, so it never gets quite full.
    fn make_room(&mut self, total: u32) -> Result<bool, RingError> {
        if !self.has_room(total) {
            self.read = self.ring.read_index()?;
        }
        if !self.has_room(total) {
            self.publish()?;
            self.ring.set_word(PENDING_SEND_SIZE, total)?;
            self.waiting = total;
            // The guest first sets its index, then looks whether we wait: one of us sees the other.
            fence(Ordering::SeqCst);
            self.read = self.ring.read_index()?;
        }
        let room = self.has_room(total);
        if room && self.waiting != 0 {
            self.ring.set_word(PENDING_SEND_SIZE, 0)?;
            self.waiting = 0;
        }
        Ok(room)
    }

    fn has_room(&self, total: u32) -> bool {
        self.ring.size - self.ring.used(self.read, self.write) > total
    }

    /// Shows the guest what has been written.
    fn publish(&mut self) -> Result<(), RingError> {
        if self.write == self.published {
            return Ok(());
        }
        self.ring.set_word(WRITE_INDEX, self.write)?;
        // The guest first unmasks or sets its index, then looks at ours: one of us sees the other.
        fence(Ordering::SeqCst);
        let was = std::mem::replace(&mut self.published, self.write);
        if self.ring.word(INTERRUPT_MASK)? == 0 {
            self.read = self.ring.read_index()?;
            // The guest drains its ring before it sleeps: only an empty one has a sleeper.
            self.signal_due |= self.read == was;
        }
        Ok(())
    }

    /// Shows the guest what has been written, and says whether it is to be signalled.
    pub fn finish(&mut self) -> Result<bool, RingError> {
        self.publish()?;
        Ok(std::mem::take(&mut self.signal_due))
    }
}
