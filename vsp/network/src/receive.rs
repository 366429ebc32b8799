//! From the wire to the guest: frames are read right into the guest's receive buffer.
//!
//! Sections of the buffer are free, filled by a batch that is under way, or the guest's until it completes the packet
//! that told it of them.

use std::collections::VecDeque;
use std::sync::Arc;

use parterre_vmbus_ring::{Memory, TransferPageRange};
use parterre_vmbus_server::{ChannelError, OutPacket, Queue, Written};
use vm_memory::VolatileSlice;

use crate::adapter::View;
use crate::buffers::ReceiveBuffer;
use crate::checksum;
use crate::frame::{Destination, MacAddress, destination};
use crate::packet::{HEADROOM, Piece, found, receive_head};
use crate::protocol::nvsp::{self, CHANNEL_CONTROL, CHANNEL_DATA};
use crate::protocol::rndis::filter;
use crate::statistics::Direction;
use crate::wire::{CHECKSUM_VALID, FrameHeader, NEEDS_CHECKSUM, Wire};

/// Most ranges of one packet: what VSCs allow is 375, with coalesced packets 562.
const MAX_RANGES: usize = 256;
/// Most frames of one packet: the guest completes them together.
const MAX_FRAMES: usize = 64;
/// Most packets in one go, before the guest's own packets have their turn.
const MAX_BATCHES: usize = 4;
/// Sections that a queue takes from the common store at once.
const CHUNK: usize = 64;
/// Most messages that wait for a guest which does not take them.
const MAX_MESSAGES: usize = 256;

/// Sections that the guest has, by transaction.
#[derive(Default)]
struct Outstanding {
    slots: Vec<Option<Vec<u32>>>,
    free: Vec<usize>,
}

impl Outstanding {
    fn put(&mut self, sections: Vec<u32>) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(sections);
        slot as u64
    }

    fn take(&mut self, transaction: u64) -> Option<Vec<u32>> {
        let slot = usize::try_from(transaction).ok()?;
        let sections = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(sections)
    }
}

/// A packet that waits for room in the guest's ring.
struct Ready {
    channel: u32,
    ranges: Vec<TransferPageRange>,
    sections: Vec<u32>,
}

/// Whether there was a frame.
enum Taken {
    /// It is in the batch.
    Frame,
    /// It was for somebody else, or did not fit.
    Dropped,
    /// There is none.
    None,
    /// The wire does not work any more.
    Broken,
}

/// The receiving half of one channel.
#[derive(Default)]
pub(crate) struct Receiver {
    buffer: Option<Arc<ReceiveBuffer>>,
    sections: Vec<u32>,
    outstanding: Outstanding,
    ready: Option<Ready>,
    messages: VecDeque<Vec<u8>>,
    /// There is room for frames: it is worth waiting for them.
    pub(crate) hungry: bool,
    /// The wire does not work any more.
    pub(crate) broken: bool,
}

impl Receiver {
    /// Uses the buffer that the adapter has now.
    fn follow(&mut self, view: &View) {
        let same = match (&self.buffer, &view.receive) {
            (Some(mine), Some(theirs)) => Arc::ptr_eq(mine, theirs),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.let_go();
            self.buffer = view.receive.clone();
        }
    }

    /// Gives the sections back that the guest does not have.
    pub(crate) fn let_go(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            let ready = self.ready.take().map(|ready| ready.sections).unwrap_or_default();
            buffer.give(self.sections.drain(..).chain(ready));
        }
        self.outstanding = Outstanding::default();
        self.ready = None;
        self.hungry = false;
    }

    /// The guest has taken a packet.
    pub(crate) fn complete(&mut self, transaction: u64) -> Result<(), ChannelError> {
        let sections = self.outstanding.take(transaction).ok_or_else(|| {
            ChannelError::protocol(format!("the guest completes packet {transaction}, which it was not sent"))
        })?;
        self.sections.extend(sections);
        if let Some(buffer) = self.buffer.as_ref().filter(|_| self.sections.len() > 2 * CHUNK) {
            let rest = self.sections.len() - CHUNK;
            buffer.give(self.sections.drain(rest..));
        }
        Ok(())
    }

    /// Keeps a control message until the guest can be told.
    pub(crate) fn tell(&mut self, message: Vec<u8>) -> Result<(), ChannelError> {
        if self.messages.len() >= MAX_MESSAGES {
            return Err(ChannelError::protocol("the guest asks on and on, and takes no answers"));
        }
        self.messages.push_back(message);
        Ok(())
    }

    /// Sends what waits: control messages, then frames of the wire as long as there are any.
    pub(crate) fn run(
        &mut self,
        queue: &mut Queue,
        view: &View,
        wire: Option<&dyn Wire>,
        received: &Direction,
    ) -> Result<(), ChannelError> {
        self.follow(view);
        self.hungry = false;
        let Some(buffer) = self.buffer.clone() else { return Ok(()) };
        if !self.send_ready(queue, &buffer)? || !self.send_messages(queue, &buffer)? {
            return Ok(());
        }
        let Some(wire) = wire else { return Ok(()) };
        let memory = queue.memory().clone();
        for _ in 0..MAX_BATCHES {
            let more = self.fill(&buffer, &*memory, view, wire, received);
            if !self.send_ready(queue, &buffer)? || !more {
                break;
            }
        }
        Ok(())
    }

    /// Says whether nothing waits any more.
    fn send_ready(&mut self, queue: &mut Queue, buffer: &ReceiveBuffer) -> Result<bool, ChannelError> {
        let Some(ready) = self.ready.take() else { return Ok(true) };
        let transaction_id = self.outstanding.put(ready.sections);
        let packet = OutPacket::TransferPages {
            transaction_id,
            completion_requested: true,
            set_id: buffer.id,
            ranges: &ready.ranges,
        };
        let payload = nvsp::Reply::Rndis(ready.channel).encode();
        if queue.write(&packet, &[&payload])? == Written::Done {
            return Ok(true);
        }
        let sections = self.outstanding.take(transaction_id).unwrap_or_default();
        self.ready = Some(Ready { sections, ..ready });
        Ok(false)
    }

    fn send_messages(&mut self, queue: &mut Queue, buffer: &ReceiveBuffer) -> Result<bool, ChannelError> {
        while !self.messages.is_empty() {
            self.refill(buffer, 1);
            let Some(section) = self.sections.pop() else { return Ok(false) };
            let Some(message) = self.messages.pop_front() else { return Ok(true) };
            if buffer.write(&**queue.memory(), section, &message).is_none() {
                return Err(ChannelError::protocol("the guest's receive buffer is not its memory"));
            }
            let byte_count = message.len() as u32;
            let ranges = vec![TransferPageRange { byte_count, byte_offset: buffer.offset(section) }];
            self.ready = Some(Ready { channel: CHANNEL_CONTROL, ranges, sections: vec![section] });
            if !self.send_ready(queue, buffer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether there are `count` sections now.
    fn refill(&mut self, buffer: &ReceiveBuffer, count: usize) -> bool {
        if self.sections.len() < count {
            buffer.take(count.max(CHUNK), &mut self.sections);
        }
        self.sections.len() >= count
    }

    /// Takes frames off the wire into a packet that is ready to go. Says whether there may be more.
    fn fill(
        &mut self,
        buffer: &ReceiveBuffer,
        memory: &dyn Memory,
        view: &View,
        wire: &dyn Wire,
        received: &Direction,
    ) -> bool {
        let large = view.offloads.large_v4 || view.offloads.large_v6;
        let window = if large { buffer.large_window() } else { 1 };
        let mut batch = Batch::new(buffer, memory, view, received);
        let mut more = true;
        while batch.frames < MAX_FRAMES && batch.ranges.len() + window <= MAX_RANGES {
            if !self.refill(buffer, window) {
                more = false;
                break;
            }
            match batch.take(&mut self.sections, window, wire) {
                Taken::Frame | Taken::Dropped => {}
                Taken::None => {
                    (more, self.hungry) = (false, true);
                    break;
                }
                Taken::Broken => {
                    (more, self.broken) = (false, true);
                    break;
                }
            }
        }
        self.hungry |= more;
        let Batch { ranges, used, .. } = batch.finish(&mut self.sections);
        if !ranges.is_empty() {
            self.ready = Some(Ready { channel: CHANNEL_DATA, ranges, sections: used });
        }
        more
    }
}

/// Frames that go to the guest in one packet.
struct Batch<'a> {
    buffer: &'a ReceiveBuffer,
    memory: &'a dyn Memory,
    view: &'a View,
    received: &'a Direction,
    ranges: Vec<TransferPageRange>,
    used: Vec<u32>,
    frames: usize,
    // The sections that the next frame may take, with their memory: made once, used by the first frame that needs them.
    next: Vec<(u32, usize)>,
    slices: Vec<VolatileSlice<'a>>,
}

impl<'a> Batch<'a> {
    fn new(
        buffer: &'a ReceiveBuffer,
        memory: &'a dyn Memory,
        view: &'a View,
        received: &'a Direction,
    ) -> Batch<'a> {
        let (ranges, used, next, slices) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Batch { buffer, memory, view, received, ranges, used, frames: 0, next, slices }
    }

    /// Puts the next frame into the first sections of a window.
    fn take(&mut self, sections: &mut Vec<u32>, window: usize, wire: &dyn Wire) -> Taken {
        let capacity = self.buffer.capacity();
        while self.next.len() < window {
            let Some(section) = sections.pop() else { return Taken::None };
            let Some(count) = self.buffer.slices(self.memory, section, HEADROOM, capacity, &mut self.slices)
            else {
                return Taken::Broken;
            };
            self.next.push((section, count));
        }
        let mut header = FrameHeader::default();
        let len = match wire.receive(&mut header, &self.slices) {
            Ok(len) => len,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Taken::None,
            Err(_) => return Taken::Broken,
        };
        let mut address = [0; 6];
        let there = self.slices.first().map_or(0, |slice| slice.copy_to(&mut address));
        let to = destination(&address[..there.min(len)]);
        match to {
            Some(to) if len <= window * capacity && wanted(to, self.view) => {
                self.accept(len, &header);
                self.received.pass(Destination::of(to), len);
                Taken::Frame
            }
            _ => {
                self.received.drop_one();
                Taken::Dropped
            }
        }
    }

    fn accept(&mut self, len: usize, header: &FrameHeader) {
        let capacity = self.buffer.capacity();
        let count = len.div_ceil(capacity);
        let checksum = self.checksum(header, len);
        let slices: usize = self.next[..count].iter().map(|(_, slices)| slices).sum();
        for (place, (section, _)) in self.next.drain(..count).enumerate() {
            let data = capacity.min(len - place * capacity);
            let (first, last) = (place == 0, place + 1 == count);
            let piece = if count == 1 { Piece::Whole } else { Piece::Part { first, last } };
            let head = receive_head(data, checksum, piece);
            // Its memory was there a moment ago: the slices of the same section were made from it.
            let _ = self.buffer.write(self.memory, section, &head);
            let byte_offset = self.buffer.offset(section);
            self.ranges.push(TransferPageRange { byte_count: (HEADROOM + data) as u32, byte_offset });
            self.used.push(section);
        }
        self.slices.drain(..slices);
        self.frames += 1;
    }

    /// What the guest is told of the checksum, which is computed where the guest might look at it itself.
    fn checksum(&self, header: &FrameHeader, len: usize) -> u32 {
        const TCP: u16 = 16;
        const UDP: u16 = 6;
        if header.flags & NEEDS_CHECKSUM != 0 {
            return match header.checksum_offset {
                TCP => found::TCP_GOOD | found::NOT_COMPUTED,
                UDP => {
                    match checksum::complete(&self.slices, len, header.checksum_start.into(), UDP.into()) {
                        Some(()) => found::UDP_GOOD,
                        None => 0,
                    }
                }
                _ => 0,
            };
        }
        if header.flags & CHECKSUM_VALID == 0 {
            return 0;
        }
        let mut head = [0; 64];
        let there = self.slices.first().map_or(0, |slice| slice.copy_to(&mut head)).min(len);
        match transport(&head[..there]) {
            Some(6) => found::TCP_GOOD,
            Some(17) => found::UDP_GOOD,
            _ => 0,
        }
    }

    /// Gives back what was not used.
    fn finish(mut self, sections: &mut Vec<u32>) -> Batch<'a> {
        sections.extend(self.next.drain(..).map(|(section, _)| section));
        self
    }
}

/// The protocol in an IP packet without further headers.
fn transport(head: &[u8]) -> Option<u8> {
    match head.get(12..14)? {
        [0x08, 0x00] => head.get(23).copied(),
        [0x86, 0xDD] => head.get(20).copied(),
        _ => None,
    }
}

/// Whether the guest wants frames to an address. What goes to another's is flooded only because the switch does not know
/// where that one is: it is none of the guest's business unless it stands for other addresses too.
fn wanted(to: MacAddress, view: &View) -> bool {
    let on = |bit| view.filter & bit != 0;
    let promiscuous = on(filter::PROMISCUOUS);
    match Destination::of(to) {
        Destination::Broadcast => promiscuous || on(filter::BROADCAST),
        Destination::Multicast => promiscuous || on(filter::ALL_MULTICAST) || on(filter::MULTICAST),
        Destination::Directed if to == view.mac => promiscuous || on(filter::DIRECTED),
        Destination::Directed => promiscuous && view.takes_foreign,
    }
}

#[cfg(test)]
mod tests;
