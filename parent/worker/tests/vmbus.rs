//! VMBus in the worker, with its threads, against a guest that is played by the test: messages go in as hypercalls do, come
//! out through a message slot, and signals arrive as event flags.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parterre_partition::HvStatus;
use parterre_partition::fake::FakePartition;
use parterre_partition::hypercall::SynicCall;
use parterre_partition::memory::GuestMemory;
use parterre_vmbus_server::bus::Bus;
use parterre_vmbus_server::protocol::message::{
    ChannelMessage, GpadlHeader, GpadlTeardown, Header, InitiateContact, MessageType, OfferChannel,
    OpenChannel, OpenResult,
};
use parterre_vmbus_server::protocol::packet::PacketType;
use parterre_vmbus_server::ring::{Head, Incoming, Outgoing};
use parterre_vmbus_server::state::EVENT_CONNECTION_BASE;
use parterre_vmbus_server::{
    Buffer, ChannelError, Device, Guid, Handler, Memory, Offer, Packet, Queue, Version, Visit, Wait, Waker,
    Written,
};
use parterre_worker::vmbus::VmBus;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const RINGS: u64 = 0x10_0000;
const RING_PAGES: u64 = 4;
const GPADL: u32 = 0xE_1E10;
const PATIENCE: Duration = Duration::from_secs(30);

/// Completes what it gets; a payload that begins with 0xFF is an error. Speaks by itself when woken.
struct Echo {
    waker: Waker,
    live: Arc<AtomicUsize>,
    visits: Option<Arc<AtomicUsize>>,
}

struct EchoHandler {
    waker: Waker,
    packet: Packet,
    live: Arc<AtomicUsize>,
    /// How many packets were taken by visits, if it takes them.
    visits: Option<Arc<AtomicUsize>>,
}

impl Device for Echo {
    fn offer(&self) -> Offer {
        Offer::new(Guid::from_u128(1), Guid::from_u128(2))
    }

    fn open(&self, _: &mut Queue) -> Result<Box<dyn Handler>, ChannelError> {
        self.live.fetch_add(1, Ordering::SeqCst);
        let (waker, live, visits) = (self.waker.clone(), self.live.clone(), self.visits.clone());
        Ok(Box::new(EchoHandler { waker, packet: Packet::default(), live, visits }))
    }
}

impl EchoHandler {
    fn echo(&mut self, queue: &mut Queue) -> Result<usize, ChannelError> {
        let mut count = 0;
        while queue.read(&mut self.packet)? {
            if self.packet.payload().first() == Some(&0xFF) {
                return Err(ChannelError::protocol("the guest said 0xFF"));
            }
            assert_eq!(queue.complete(self.packet.transaction_id, self.packet.payload())?, Written::Done);
            count += 1;
        }
        Ok(count)
    }
}

impl Handler for EchoHandler {
    fn run(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        if self.waker.clear() {
            assert_eq!(queue.complete(4242, b"woken")?, Written::Done);
        }
        self.echo(queue).map(drop)
    }

    fn visit(&mut self, queue: &mut Queue) -> Result<Visit, ChannelError> {
        let Some(visits) = self.visits.clone() else { return Ok(Visit::Refused) };
        visits.fetch_add(self.echo(queue)?, Ordering::SeqCst);
        Ok(Visit::Done)
    }

    fn wait(&self, wait: &mut Wait) {
        wait.readable(self.waker.source());
    }
}

impl Drop for EchoHandler {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The guest's side.
struct Guest {
    partition: FakePartition,
    memory: Arc<dyn Memory>,
    bus: VmBus,
    waker: Waker,
    live: Arc<AtomicUsize>,
    messages: VecDeque<Vec<u8>>,
}

impl Guest {
    fn new() -> Guest {
        Guest::with_visits(None)
    }

    fn with_visits(visits: Option<Arc<AtomicUsize>>) -> Guest {
        let partition = FakePartition::default();
        let ram = GuestMemory::new(16 << 20).unwrap();
        let memory: Arc<dyn Memory> = Arc::new(ram.regions().clone());
        let bus = VmBus::new(Arc::new(partition.clone()), memory.clone(), 2, 1024, None);
        let (waker, live) = (Waker::new().unwrap(), Arc::new(AtomicUsize::new(0)));
        bus.offer(Arc::new(Echo { waker: waker.clone(), live: live.clone(), visits })).unwrap();
        Guest { partition, memory, bus, waker, live, messages: VecDeque::new() }
    }

    fn post(&mut self, message: &(impl IntoBytes + Immutable)) {
        self.post_bytes(message.as_bytes());
    }

    fn post_bytes(&mut self, bytes: &[u8]) {
        let mut payload = [0; 240];
        payload[..bytes.len()].copy_from_slice(bytes);
        let call = SynicCall::Post { connection: 4, kind: 1, payload, len: bytes.len() };
        assert_eq!(self.bus.call(0, &call), HvStatus::SUCCESS);
    }

    /// The next message of this type; others before it are let go.
    fn message<T: FromBytes>(&mut self, kind: MessageType) -> T {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(message) = self.partition.take_message() {
                self.messages.push_back(message);
                // As the hypervisor does when the guest empties a slot for which more is waiting.
                if self.partition.take_notify() != 0 {
                    self.bus.deliverable();
                }
            }
            while let Some(message) = self.messages.pop_front() {
                if { Header::read_from_prefix(&message).unwrap().0.message_type } == kind {
                    return T::read_from_prefix(&message).unwrap().0;
                }
            }
            std::thread::yield_now();
        }
        panic!("no message of type {kind:?}");
    }

    fn connect(&mut self) -> OfferChannel {
        self.connect_as(Version::WIN10_V5_3, 2)
    }

    fn connect_as(&mut self, version: Version, interrupt_page_or_target: u64) -> OfferChannel {
        self.post(&InitiateContact {
            header: Header::new(MessageType::INITIATE_CONTACT),
            version,
            target_vp: 0,
            interrupt_page_or_target,
            monitor_page1: 0,
            monitor_page2: 0,
        });
        self.message::<Header>(MessageType::VERSION_RESPONSE);
        self.post(&Header::new(MessageType::REQUEST_OFFERS));
        let offer = self.message(MessageType::OFFER_CHANNEL);
        self.message::<Header>(MessageType::ALL_OFFERS_DELIVERED);
        offer
    }

    /// Opens a channel; returns the guest's rings.
    fn open(&mut self, channel_id: u32) -> (Outgoing, Incoming) {
        let pages = 2 * RING_PAGES;
        self.memory.slice(RINGS, pages as usize * 4096).unwrap().copy_from(&vec![0u8; pages as usize * 4096]);
        let header = GpadlHeader {
            header: Header::new(MessageType::GPADL_HEADER),
            channel_id,
            gpadl: GPADL,
            range_length: 8 + 8 * pages as u16,
            range_count: 1,
        };
        let mut message = header.as_bytes().to_vec();
        message.extend([pages as u32 * 4096, 0].map(u32::to_le_bytes).concat());
        message.extend((0..pages).flat_map(|page| (RINGS / 4096 + page).to_le_bytes()));
        self.post_bytes(&message);
        self.post(&OpenChannel {
            header: Header::new(MessageType::OPEN_CHANNEL),
            channel_id,
            open_id: 5,
            ring_gpadl: GPADL,
            target_vp: 1,
            downstream_page_offset: RING_PAGES as u32,
            user_data: [0; 120],
        });
        assert_eq!({ self.message::<OpenResult>(MessageType::OPEN_CHANNEL_RESULT).status }, 0);
        let mut rings = Buffer::default();
        rings.push(RINGS, pages * 4096).unwrap();
        let half = RING_PAGES * 4096;
        let out = Outgoing::new(self.memory.clone(), &rings.part(0, half).unwrap()).unwrap();
        (out, Incoming::new(self.memory.clone(), &rings.part(half, half).unwrap()).unwrap())
    }

    fn signal(&self, channel: u32) -> HvStatus {
        self.bus.call(0, &SynicCall::Signal { connection: EVENT_CONNECTION_BASE + channel, flag: 0 })
    }

    fn send(&self, channel: u32, out: &mut Outgoing, transaction_id: u64, payload: &[u8]) {
        let head = Head { packet_type: PacketType::DATA_INBAND, transaction_id, completion_requested: true };
        assert_eq!(out.write_raw(head, &[], &[payload]), Ok(Written::Done));
        if out.finish().unwrap() {
            assert_eq!(self.signal(channel), HvStatus::SUCCESS);
        }
    }

    fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < PATIENCE, "{what}");
            std::thread::yield_now();
        }
    }
}

fn receive(incoming: &mut Incoming) -> Packet {
    let (start, mut packet) = (Instant::now(), Packet::default());
    while !incoming.read(&mut packet).unwrap() {
        assert!(start.elapsed() < PATIENCE, "no packet");
        std::thread::yield_now();
    }
    packet
}

#[test]
fn a_guest_connects_talks_and_says_goodbye() {
    let mut guest = Guest::new();
    let channel = guest.connect().channel_id;
    assert_eq!(guest.bus.version(), Some(Version::WIN10_V5_3));
    let (mut out, mut incoming) = guest.open(channel);
    for id in 0..200u64 {
        guest.send(channel, &mut out, id, &id.to_le_bytes());
        let answer = receive(&mut incoming);
        assert_eq!((answer.transaction_id, answer.payload()), (id, id.to_le_bytes().as_slice()));
    }
    // Signals go to the processor, SINT and flag of the channel.
    guest.wait_until("no signal", || guest.partition.take_events().contains(&(1, 2, channel as u16)));
    guest.waker.wake();
    assert_eq!(receive(&mut incoming).transaction_id, 4242);
    guest.post(&ChannelMessage { header: Header::new(MessageType::CLOSE_CHANNEL), channel_id: channel });
    let header = Header::new(MessageType::GPADL_TEARDOWN);
    guest.post(&GpadlTeardown { header, channel_id: channel, gpadl: GPADL });
    guest.message::<Header>(MessageType::GPADL_TORNDOWN);
    assert_eq!(guest.live.load(Ordering::SeqCst), 0);
    assert_eq!(guest.signal(channel), HvStatus::INVALID_CONNECTION_ID);
    guest.open(channel);
    guest.post(&Header::new(MessageType::UNLOAD));
    guest.message::<Header>(MessageType::UNLOAD_RESPONSE);
    assert_eq!((guest.bus.version(), guest.live.load(Ordering::SeqCst)), (None, 0));
}

#[test]
fn what_is_quickly_done_is_done_by_the_thread_that_signals() {
    let visits = Arc::new(AtomicUsize::new(0));
    let mut guest = Guest::with_visits(Some(visits.clone()));
    let channel = guest.connect().channel_id;
    let (mut out, mut incoming) = guest.open(channel);
    // Whichever thread is faster: each packet is answered once, and in order.
    for id in 0..2000u64 {
        let payload = (id << 8).to_le_bytes();
        guest.send(channel, &mut out, id, &payload);
        let answer = receive(&mut incoming);
        assert_eq!((answer.transaction_id, answer.payload()), (id, payload.as_slice()));
    }
    assert_ne!(visits.load(Ordering::SeqCst), 0);
    // A device that speaks by itself still does.
    guest.waker.wake();
    assert_eq!(receive(&mut incoming).transaction_id, 4242);
    // What goes wrong in a visit ends the channel as ever.
    guest.send(channel, &mut out, 1, &[0xFF]);
    guest.message::<ChannelMessage>(MessageType::RESCIND_CHANNEL_OFFER);
    guest.wait_until("the handler lives", || guest.live.load(Ordering::SeqCst) == 0);
    guest.bus.stop();
}

#[test]
fn the_oldest_guests_share_one_event_and_an_interrupt_page() {
    const PAGE: u64 = 0x20_0000;
    let mut guest = Guest::new();
    let offer = guest.connect_as(Version::WS2008, PAGE);
    let (channel, dedicated) = (offer.channel_id, offer.is_dedicated);
    assert_eq!(dedicated, 0);
    let (mut out, mut incoming) = guest.open(channel);
    guest.partition.take_events();
    let head = Head { packet_type: PacketType::DATA_INBAND, transaction_id: 7, completion_requested: true };
    assert_eq!(out.write_raw(head, &[], &[b"old"]), Ok(Written::Done));
    assert!(out.finish().unwrap());
    // An event without a bit is for nobody.
    let signal = SynicCall::Signal { connection: 2, flag: 0 };
    assert_eq!(guest.bus.call(0, &signal), HvStatus::SUCCESS);
    guest.memory.slice(PAGE + 2048, 1).unwrap().copy_from(&[1u8 << channel]);
    assert_eq!(guest.bus.call(0, &signal), HvStatus::SUCCESS);
    assert_eq!(receive(&mut incoming).transaction_id, 7);
    guest.wait_until("no signal", || guest.partition.take_events().contains(&(0, 2, 0)));
    let mut bytes = [0u8; 1];
    guest.memory.slice(PAGE, 1).unwrap().copy_to(&mut bytes);
    assert_eq!(bytes, [1 << channel]);
    guest.memory.slice(PAGE + 2048, 1).unwrap().copy_to(&mut bytes);
    assert_eq!(bytes, [0]);
}

#[test]
fn a_guest_that_breaks_the_protocol_or_its_ring_loses_the_channel_alone() {
    for spoil_ring in [false, true] {
        let mut guest = Guest::new();
        let channel = guest.connect().channel_id;
        let (mut out, _incoming) = guest.open(channel);
        if spoil_ring {
            guest.memory.slice(RINGS, 4).unwrap().copy_from(&[0xFFu8; 4]);
            assert_eq!(guest.signal(channel), HvStatus::SUCCESS);
        } else {
            guest.send(channel, &mut out, 1, &[0xFF]);
        }
        guest.message::<ChannelMessage>(MessageType::RESCIND_CHANNEL_OFFER);
        guest.wait_until("the handler lives", || guest.live.load(Ordering::SeqCst) == 0);
        // A kernel of its own gets the device back.
        let channel = guest.connect().channel_id;
        guest.open(channel);
        guest.bus.stop();
    }
}

#[test]
fn a_crashed_guest_is_followed_by_another_and_stop_ends_all() {
    let mut guest = Guest::new();
    for _ in 0..3 {
        let channel = guest.connect().channel_id;
        guest.open(channel);
        assert_eq!(guest.live.load(Ordering::SeqCst), 1);
    }
    guest.bus.stop();
    assert_eq!(guest.live.load(Ordering::SeqCst), 0);
}

#[test]
fn unknown_connections_and_floods_are_refused() {
    let mut guest = Guest::new();
    let payload = [0; 240];
    for (connection, kind, status) in [
        (1, 2, HvStatus::INVALID_PARAMETER),
        (3, 1, HvStatus::INVALID_CONNECTION_ID),
        (0x1_0001, 1, HvStatus::INVALID_CONNECTION_ID),
    ] {
        assert_eq!(guest.bus.call(0, &SynicCall::Post { connection, kind, payload, len: 240 }), status);
    }
    for connection in [0, 1, 0x1_0000, 0x1_0001, 0x1_07FF, 0x1_0800, 0xFF_FFFF] {
        let status = guest.bus.call(0, &SynicCall::Signal { connection, flag: 0 });
        assert_eq!(status, HvStatus::INVALID_CONNECTION_ID, "{connection:#x}");
    }
    let channel_id = guest.connect().channel_id;
    // A guest that asks and never listens is told to wait.
    let header = Header::new(MessageType::GPADL_HEADER);
    let message = GpadlHeader { header, channel_id, gpadl: 0, range_length: 0, range_count: 0 };
    let mut payload = [0; 240];
    payload[..size_of_val(&message)].copy_from_slice(message.as_bytes());
    let call = SynicCall::Post { connection: 1, kind: 1, payload, len: size_of_val(&message) };
    let answers: Vec<HvStatus> = (0..3000).map(|_| guest.bus.call(0, &call)).collect();
    assert_eq!(answers[0], HvStatus::SUCCESS);
    assert_eq!(answers.last(), Some(&HvStatus::INSUFFICIENT_BUFFERS));
    // And goes on once it does.
    guest.message::<Header>(MessageType::GPADL_CREATED);
    for _ in 0..100 {
        guest.message::<Header>(MessageType::GPADL_CREATED);
    }
    assert_eq!(guest.bus.call(0, &call), HvStatus::SUCCESS);
}
