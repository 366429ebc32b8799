//! The ring that the guest writes and the server reads.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use parterre_vmbus_protocol::packet::Descriptor;
use parterre_vmbus_protocol::ring::{INTERRUPT_MASK, PENDING_SEND_SIZE, READ_INDEX, TRAILER_SIZE};

use crate::control::Ring;
use crate::packet::Packet;
use crate::{Buffer, Memory, RingError};

/// Reader of the guest's ring. Its own index is kept here; what the guest makes of the shared one is its own loss.
pub struct Incoming {
    ring: Ring,
    read: u32,
    /// The write index as it was last seen.
    write: u32,
    /// Bytes read that the guest does not know of yet.
    unpublished: u32,
    signal_due: bool,
}

impl Incoming {
    /// The ring in these pages, at the indexes where the guest left it.
    pub fn new(memory: Arc<dyn Memory>, pages: &Buffer) -> Result<Incoming, RingError> {
        let ring = Ring::new(memory, pages)?;
        let (read, write) = (ring.read_index()?, ring.write_index()?);
        Ok(Incoming { ring, read, write, unpublished: 0, signal_due: false })
    }

    /// Takes the next packet; `false` when there is none.
    pub fn read(&mut self, packet: &mut Packet) -> Result<bool, RingError> {
        if self.is_empty()? {
            return Ok(false);
        }
        let available = self.ring.used(self.read, self.write);
        let descriptor = self.descriptor(available)?;
        let (head, length) = (size_of::<Descriptor>() as u32, u32::from(descriptor.length8) * 8);
        let body = self.ring.advance(self.read, head);
        packet.fill(&descriptor, |bytes| self.ring.copy_out(body, bytes))?;
        let total = length + TRAILER_SIZE as u32;
        self.read = self.ring.advance(self.read, total);
        self.unpublished += total;
        // A guest that waits for room gets it in time, and the index is not written for each packet.
        if self.unpublished >= self.ring.size / 4 {
            self.publish()?;
        }
        Ok(true)
    }

    /// The descriptor at the read index, its lengths checked against the bytes that are there.
    fn descriptor(&self, available: u32) -> Result<Descriptor, RingError> {
        let mut bytes = [0; size_of::<Descriptor>()];
        let head = bytes.len() as u32;
        let trailer = TRAILER_SIZE as u32;
        if available < head + trailer {
            return Err(RingError::PacketLength { length: head, offset: head, available });
        }
        self.ring.copy_out(self.read, &mut bytes)?;
        let descriptor: Descriptor = zerocopy::transmute!(bytes);
        let (length, offset) = (u32::from(descriptor.length8) * 8, u32::from(descriptor.offset8) * 8);
        if offset < head || length < offset || length + trailer > available {
            return Err(RingError::PacketLength { length, offset, available });
        }
        Ok(descriptor)
    }

    /// Whether there is no packet.
    pub fn is_empty(&mut self) -> Result<bool, RingError> {
        if self.read == self.write {
            self.write = self.ring.write_index()?;
        }
        Ok(self.read == self.write)
    }

    /// Tells the guest how far the ring has been read.
    pub fn publish(&mut self) -> Result<(), RingError> {
        if self.unpublished == 0 {
            return Ok(());
        }
        self.ring.set_word(READ_INDEX, self.read)?;
        // The guest first says for how much it waits, then looks at the index: one of us sees the other.
        fence(Ordering::SeqCst);
        let published = std::mem::take(&mut self.unpublished);
        let wanted = self.ring.word(PENDING_SEND_SIZE)?;
        if wanted != 0 {
            let free = self.ring.size - self.ring.used(self.read, self.ring.write_index()?);
            // Only when this made the room: else the guest has been told, or it is not enough.
            self.signal_due |= free > wanted && free.saturating_sub(published) <= wanted;
        }
        Ok(())
    }

    /// Publishes, and says whether a guest that waits for room is to be signalled.
    pub fn finish(&mut self) -> Result<bool, RingError> {
        self.publish()?;
        Ok(std::mem::take(&mut self.signal_due))
    }

    /// Asks the guest not to signal new packets, or to do so again. After asking again, look once more whether the ring
    /// [is empty](Self::is_empty): a packet that came before was not signalled.
    pub fn mask_signals(&mut self, masked: bool) -> Result<(), RingError> {
        self.ring.set_word(INTERRUPT_MASK, masked.into())?;
        fence(Ordering::SeqCst);
        Ok(())
    }
}
