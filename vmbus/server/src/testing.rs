//! A guest for tests of devices: it opens channels, sends packets and reads what comes back, all in ordinary memory and in
//! the test's own thread.
//!
//! ```no_run
//! # use parterre_vmbus_server::{testing::FakeGuest, Device};
//! # fn test(device: &dyn Device) {
//! let guest = FakeGuest::new();
//! let mut channel = guest.open(device, 0).unwrap();
//! channel.send(1, b"hello");
//! channel.run().unwrap();
//! assert_eq!(channel.receive().unwrap().transaction_id, 1);
//! # }
//! ```
//! Methods panic when the test itself is wrong (no memory left, ring full); what the device does wrong is a result.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use parterre_vmbus_protocol::Version;
use parterre_vmbus_protocol::offer::USER_DEFINED_BYTES;
use parterre_vmbus_protocol::packet::{GpaDirectHeader, PacketType, RangeHeader};
use parterre_vmbus_ring::{Buffer, Gpadl, Head, Incoming, Memory, Outgoing, PAGE_SIZE, Packet, Written};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use zerocopy::IntoBytes;

use crate::pace::Pace;
use crate::pump::{Turn, turn, visit};
use crate::{ChannelError, ChannelFacts, ChannelPort, Device, Handler, Queue};

const PAGE: u64 = PAGE_SIZE as u64;
/// RAM of the guest.
const RAM: u64 = 64 << 20;
/// Where allocation begins: address 0 stays a mistake.
const FIRST: u64 = 1 << 20;

/// The worker's part of a channel, which only counts.
#[derive(Default)]
struct FakePort {
    signals: AtomicU64,
    subchannels: AtomicU32,
    gpadls: Mutex<BTreeMap<u32, Arc<Gpadl>>>,
    target_vp: AtomicU32,
}

impl ChannelPort for FakePort {
    fn signal(&self) {
        self.signals.fetch_add(1, Ordering::Relaxed);
    }

    fn gpadl(&self, handle: u32) -> Option<Arc<Gpadl>> {
        self.gpadls.lock().unwrap_or_else(PoisonError::into_inner).get(&handle).cloned()
    }

    fn offer_subchannels(&self, count: u16) -> u16 {
        self.subchannels.fetch_max(count.into(), Ordering::Relaxed);
        self.subchannels.load(Ordering::Relaxed) as u16
    }

    fn target_vp(&self) -> u32 {
        self.target_vp.load(Ordering::Relaxed)
    }
}

/// The guest.
pub struct FakeGuest {
    memory: Arc<GuestMemoryMmap<()>>,
    next: AtomicU64,
    next_handle: AtomicU32,
    port: Arc<FakePort>,
    /// Version of VMBus that channels are told.
    pub version: Version,
    /// Bytes of each ring of the channels that it opens, with the control page.
    pub ring_size: u64,
    /// The device's own bytes in its open requests.
    pub user_data: [u8; USER_DEFINED_BYTES],
}

impl Default for FakeGuest {
    fn default() -> FakeGuest {
        FakeGuest::new()
    }
}

impl FakeGuest {
    /// A guest with 64 MiB of RAM and rings of 64 KiB.
    pub fn new() -> FakeGuest {
        let ranges = [(GuestAddress(0), RAM as usize)];
        FakeGuest {
            memory: Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory for a test")),
            next: AtomicU64::new(FIRST),
            next_handle: AtomicU32::new(0xE_1E10),
            port: Arc::default(),
            version: Version::WIN10_V5_3,
            ring_size: 16 * PAGE,
            user_data: [0; USER_DEFINED_BYTES],
        }
    }

    /// The memory as devices see it.
    pub fn memory(&self) -> Arc<dyn Memory> {
        self.memory.clone()
    }

    /// Zeroed pages for `len` bytes; returns their address.
    pub fn allocate(&self, len: u64) -> u64 {
        let at = self.next.fetch_add(len.next_multiple_of(PAGE), Ordering::Relaxed);
        assert!(at + len <= RAM, "the guest has no memory left");
        at
    }

    /// Writes RAM.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.memory.slice(gpa, bytes.len()).expect("guest RAM").copy_from(bytes);
    }

    /// Reads RAM.
    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.slice(gpa, len).expect("guest RAM").copy_to(&mut bytes);
        bytes
    }

    /// Shares memory as a GPADL; returns the handle.
    pub fn share(&self, gpa: u64, len: u64) -> u32 {
        let mut buffer = Buffer::default();
        buffer.push(gpa, len).expect("an address of RAM");
        self.share_gpadl(Gpadl { ranges: vec![buffer] })
    }

    /// Shares any ranges.
    pub fn share_gpadl(&self, gpadl: Gpadl) -> u32 {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.port.gpadls.lock().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(gpadl));
        handle
    }

    /// Takes a GPADL back.
    pub fn unshare(&self, handle: u32) {
        self.port.gpadls.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle);
    }

    /// From now on all channels signal this VP; it is 0 before.
    pub fn set_target_vp(&self, vp: u32) {
        self.port.target_vp.store(vp, Ordering::Relaxed);
    }

    /// How many sub-channels the device has asked for.
    pub fn subchannels(&self) -> u16 {
        self.port.subchannels.load(Ordering::Relaxed) as u16
    }

    /// How often the device has signalled the guest, over all channels.
    pub fn signals(&self) -> u64 {
        self.port.signals.load(Ordering::Relaxed)
    }

    /// Opens a channel of a device; index 0 is its first. The handler runs once.
    pub fn open(&self, device: &dyn Device, index: u16) -> Result<FakeChannel, ChannelError> {
        let base = self.allocate(2 * self.ring_size);
        let mut rings = Buffer::default();
        rings.push(base, 2 * self.ring_size)?;
        let facts = ChannelFacts { index, version: self.version, user_data: self.user_data };
        let split = (self.ring_size / PAGE) as u32;
        let mut queue = Queue::new(facts, self.memory(), self.port.clone(), &rings, split)?;
        let out = Outgoing::new(self.memory(), &rings.part(0, self.ring_size)?)?;
        let incoming = Incoming::new(self.memory(), &rings.part(self.ring_size, self.ring_size)?)?;
        let handler = device.open(&mut queue)?;
        let mut channel =
            FakeChannel { queue, handler, pace: Pace::default(), out, incoming, signals: 0, rings: base };
        channel.run()?;
        Ok(channel)
    }
}

/// An open channel: both its ends.
pub struct FakeChannel {
    /// The device's end.
    pub queue: Queue,
    /// The device's handler. Dropping the channel drops it: that is the close.
    pub handler: Box<dyn Handler>,
    /// Who takes the packets.
    pub pace: Pace,
    out: Outgoing,
    incoming: Incoming,
    signals: u64,
    /// Address of the rings, for tests that spoil them: the guest's out-ring first.
    pub rings: u64,
}

impl FakeChannel {
    /// Sends an in-band packet that wants a completion.
    pub fn send(&mut self, transaction_id: u64, payload: &[u8]) {
        let head = Head { packet_type: PacketType::DATA_INBAND, transaction_id, completion_requested: true };
        self.send_raw(head, &[], payload);
    }

    /// Sends an in-band packet without asking for a completion.
    pub fn post(&mut self, transaction_id: u64, payload: &[u8]) {
        let head = Head { packet_type: PacketType::DATA_INBAND, transaction_id, completion_requested: false };
        self.send_raw(head, &[], payload);
    }

    /// Completes a packet of the device's.
    pub fn complete(&mut self, transaction_id: u64, payload: &[u8]) {
        let head = Head { packet_type: PacketType::COMPLETION, transaction_id, completion_requested: false };
        self.send_raw(head, &[], payload);
    }

    /// Sends a packet with guest memory, each `(address, length)` a range of its own.
    pub fn send_gpa(&mut self, transaction_id: u64, payload: &[u8], ranges: &[(u64, u32)]) {
        let packet_type = PacketType::DATA_USING_GPA_DIRECT;
        let mut between =
            GpaDirectHeader { reserved: 0, range_count: ranges.len() as u32 }.as_bytes().to_vec();
        for (gpa, len) in ranges {
            let byte_offset = (gpa % PAGE) as u32;
            between.extend(RangeHeader { byte_count: *len, byte_offset }.as_bytes());
            for page in gpa / PAGE..(gpa + u64::from(*len)).div_ceil(PAGE) {
                between.extend(page.to_le_bytes());
            }
        }
        self.send_raw(Head { packet_type, transaction_id, completion_requested: true }, &between, payload);
    }

    /// Sends any packet; `between` goes between descriptor and payload.
    pub fn send_raw(&mut self, head: Head, between: &[u8], payload: &[u8]) {
        let written = self.out.write_raw(head, &[between], &[payload]).expect("a ring as the guest made it");
        assert_eq!(written, Written::Done, "the guest's out-ring is full: let the device run");
        self.signals += u64::from(self.out.finish().expect("a ring as the guest made it"));
    }

    /// Signals that the guest has owed the device for its packets.
    pub fn signals(&self) -> u64 {
        self.signals
    }

    /// Lets the device run until it has nothing to do.
    pub fn run(&mut self) -> Result<(), ChannelError> {
        while turn(&mut self.queue, &mut *self.handler, &mut self.pace)? != Turn::Wait {}
        Ok(())
    }

    /// Lets the device do what is quickly done, on the thread of VP 0; says whether nothing is left that a run would do.
    pub fn visit(&mut self) -> Result<bool, ChannelError> {
        self.visit_on(0)
    }

    /// The same on the thread of any VP.
    pub fn visit_on(&mut self, vp: u32) -> Result<bool, ChannelError> {
        visit(&mut self.queue, &mut *self.handler, &mut self.pace, vp)
    }

    /// The next packet of the device's.
    pub fn receive(&mut self) -> Option<Packet> {
        let mut packet = Packet::default();
        let there = self.incoming.read(&mut packet).expect("the device's ring is right");
        self.incoming.finish().expect("a ring as the guest made it");
        there.then_some(packet)
    }

    /// All packets of the device's.
    pub fn receive_all(&mut self) -> Vec<Packet> {
        std::iter::from_fn(|| self.receive()).collect()
    }

    /// The guest's ends, for tests that need more than the methods above.
    pub fn guest_ends(&mut self) -> (&mut Outgoing, &mut Incoming) {
        (&mut self.out, &mut self.incoming)
    }
}
