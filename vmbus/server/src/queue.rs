//! A channel as its handler sees it.

use std::sync::Arc;

use parterre_vmbus_protocol::Version;
use parterre_vmbus_protocol::offer::USER_DEFINED_BYTES;
use parterre_vmbus_ring::{
    Buffer, Gpadl, Incoming, Memory, OutPacket, Outgoing, PAGE_SIZE, Packet, RingError, Written,
};

use crate::ChannelError;

/// What lies around an open channel: the worker's bus, or a test's.
pub trait ChannelPort: Send + Sync {
    /// Signals the guest's end.
    fn signal(&self);
    /// The memory that the guest shares under a handle for this device.
    fn gpadl(&self, handle: u32) -> Option<Arc<Gpadl>>;
    /// Offers sub-channels with the indexes 1 to `count`, as far as that has not been done. Returns how many there are.
    fn offer_subchannels(&self, count: u16) -> u16;
    /// The VP that the guest wants its signals on; it may change.
    fn target_vp(&self) -> u32;
}

/// What does not change while a channel is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelFacts {
    /// 0 for the first channel of a device, else the sub-channel's index.
    pub index: u16,
    /// Version of VMBus that was negotiated.
    pub version: Version,
    /// The device's own bytes of the open request.
    pub user_data: [u8; USER_DEFINED_BYTES],
}

/// An open channel.
pub struct Queue {
    facts: ChannelFacts,
    memory: Arc<dyn Memory>,
    port: Arc<dyn ChannelPort>,
    incoming: Incoming,
    outgoing: Outgoing,
    /// In this run the handler has been told that there is no packet.
    drained: bool,
    /// Packets that were taken in this run.
    taken: u32,
    /// The VP on whose thread this run is.
    visitor: Option<u32>,
}

impl Queue {
    /// The channel whose rings lie in the first range of a GPADL: the guest's out-ring first, its in-ring from the page
    /// `downstream_page` on.
    pub fn new(
        facts: ChannelFacts,
        memory: Arc<dyn Memory>,
        port: Arc<dyn ChannelPort>,
        rings: &Buffer,
        downstream_page: u32,
    ) -> Result<Queue, RingError> {
        let split = u64::from(downstream_page) * PAGE_SIZE as u64;
        let second = rings.len().checked_sub(split).ok_or(RingError::Size(rings.len()))?;
        let incoming = Incoming::new(memory.clone(), &rings.part(0, split)?)?;
        let outgoing = Outgoing::new(memory.clone(), &rings.part(split, second)?)?;
        Ok(Queue { facts, memory, port, incoming, outgoing, drained: false, taken: 0, visitor: None })
    }

    /// 0 for the first channel of a device, else the sub-channel's index.
    pub fn index(&self) -> u16 {
        self.facts.index
    }

    /// What does not change while it is open.
    pub fn facts(&self) -> &ChannelFacts {
        &self.facts
    }

    /// The VP that the guest wants its signals on.
    pub fn target_vp(&self) -> u32 {
        self.port.target_vp()
    }

    /// The VP that signalled, if this is a visit on its thread.
    pub fn visitor(&self) -> Option<u32> {
        self.visitor
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }

    /// Takes the next packet; `false` when there is none.
    pub fn read(&mut self, packet: &mut Packet) -> Result<bool, ChannelError> {
        let there = self.incoming.read(packet)?;
        self.drained = !there;
        self.taken = self.taken.saturating_add(there.into());
        Ok(there)
    }

    /// Puts a packet in the guest's ring, its payload being the pieces one after the other. [`Written::Full`]: keep it and
    /// try again in a later run, which will come when the guest has made room.
    pub fn write(&mut self, packet: &OutPacket<'_>, payload: &[&[u8]]) -> Result<Written, ChannelError> {
        Ok(self.outgoing.write(packet, payload)?)
    }

    /// Completes a packet of the guest's; as [`write`](Self::write).
    pub fn complete(&mut self, transaction_id: u64, payload: &[u8]) -> Result<Written, ChannelError> {
        self.write(&OutPacket::Completion { transaction_id }, &[payload])
    }

    /// Shows the guest what has been read and written so far, and signals it if it sleeps. Happens by itself after each
    /// run; worth calling in a run that goes on for long.
    pub fn flush(&mut self) -> Result<(), ChannelError> {
        let room = self.incoming.finish()?;
        let packets = self.outgoing.finish()?;
        if room || packets {
            self.port.signal();
        }
        Ok(())
    }

    /// The memory that the guest shares under a handle. It stays usable while it is held; to be let go when the guest takes
    /// it back by the device's own protocol.
    pub fn gpadl(&self, handle: u32) -> Option<Arc<Gpadl>> {
        self.port.gpadl(handle)
    }

    /// Offers sub-channels with the indexes 1 to `count`, as far as that has not been done; the guest may open each. Call it
    /// on the first channel. Returns how many there are, which may be fewer.
    pub fn offer_subchannels(&mut self, count: u16) -> u16 {
        self.port.offer_subchannels(count)
    }

    /// Packets that were taken in this run.
    pub(crate) fn taken(&self) -> u32 {
        self.taken
    }

    /// Whether packets were taken in this run, and all of them.
    pub(crate) fn has_drained_some(&self) -> bool {
        self.drained && self.taken > 0
    }

    /// Before a run, or a visit on the thread of a VP: the guest need not signal packets.
    pub(crate) fn begin(&mut self, visitor: Option<u32>) -> Result<(), ChannelError> {
        self.visitor = visitor;
        self.drained = false;
        self.taken = 0;
        Ok(self.incoming.mask_signals(true)?)
    }

    /// After a run: shows the guest what was done, and lets it signal again if the ring is empty. Says whether packets came
    /// meanwhile, so that another run is due. A ring that the handler left filled stays masked.
    pub(crate) fn end(&mut self) -> Result<bool, ChannelError> {
        if !self.drained && !self.incoming.is_empty()? {
            self.flush()?;
            return Ok(false);
        }
        self.incoming.mask_signals(false)?;
        self.flush()?;
        Ok(!self.incoming.is_empty()?)
    }
}
