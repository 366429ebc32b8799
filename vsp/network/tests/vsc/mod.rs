//! A wire of lists, and a VSC that speaks as Linux's `hv_netvsc` does, over the fake guest of the VMBus server.
#![allow(dead_code)] // Each test file uses a part of it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use parterre_vmbus_server::testing::{FakeChannel, FakeGuest};
use parterre_vmbus_server::{ChannelError, Guid, Packet, PacketKind, Waker};
use parterre_vsp_network::protocol::nvsp::kind;
use parterre_vsp_network::wire::{FrameHeader, ReceiveOffloads};
use parterre_vsp_network::{Adapter, Guards, MacAddress, Settings, Wire};
use vm_memory::VolatileSlice;

pub const MAC: MacAddress = [2, 0x15, 0x5d, 0, 0, 1];
pub const PEER: MacAddress = [2, 0x15, 0x5d, 0, 0, 2];
pub const RECEIVE_ID: u16 = 0xcafe;
pub const RECEIVE_SIZE: u64 = 1 << 20;
pub const SEND_SIZE: u64 = 1 << 20;

#[derive(Default)]
pub struct State {
    pub sent: Vec<(FrameHeader, Vec<u8>)>,
    pub coming: VecDeque<(FrameHeader, Vec<u8>)>,
    pub offloads: ReceiveOffloads,
    pub attached: bool,
    pub broken: bool,
}

/// A wire of lists.
pub struct FakeWire {
    pub state: Mutex<State>,
    waker: Waker,
}

impl AsFd for FakeWire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

impl Wire for FakeWire {
    fn send(&self, header: &FrameHeader, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut frame = head.to_vec();
        for slice in rest {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            frame.extend(bytes);
        }
        self.state.lock().unwrap().sent.push((*header, frame));
        Ok(())
    }

    fn receive(&self, header: &mut FrameHeader, to: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        if state.broken {
            return Err(io::Error::other("the wire is cut"));
        }
        let (its, frame) = state.coming.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        *header = its;
        let mut done = 0;
        for slice in to {
            let part = slice.len().min(frame.len() - done);
            slice.copy_from(&frame[done..done + part]);
            done += part;
        }
        Ok(frame.len())
    }

    fn set_offloads(&self, offloads: ReceiveOffloads) -> io::Result<()> {
        self.state.lock().unwrap().offloads = offloads;
        Ok(())
    }

    fn attach(&self, attached: bool) -> io::Result<()> {
        self.state.lock().unwrap().attached = attached;
        Ok(())
    }
}

/// A guest with one adapter.
pub struct Vsc {
    pub guest: FakeGuest,
    pub adapter: Adapter,
    pub wires: Vec<Arc<FakeWire>>,
    pub channel: FakeChannel,
    pub receive: u64,
    pub receive_handle: u32,
    pub send: u64,
    request: u32,
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn word(bytes: &[u8], place: usize) -> u32 {
    u32::from_le_bytes(bytes[place * 4..place * 4 + 4].try_into().unwrap())
}

pub fn ethernet(to: MacAddress, from: MacAddress, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// An RNDIS packet message with per-packet information.
pub fn packet_message(frame: &[u8], information: &[(u32, u32)]) -> Vec<u8> {
    let ppi: Vec<u8> = information.iter().flat_map(|(kind, value)| words(&[16, *kind, 12, *value])).collect();
    let (ppi_len, frame_len) = (ppi.len() as u32, frame.len() as u32);
    let at = 36 + ppi_len;
    let mut message = words(&[
        1,
        8 + at + frame_len,
        at,
        frame_len,
        0,
        0,
        0,
        if ppi_len == 0 { 0 } else { 36 },
        ppi_len,
        0,
        0,
    ]);
    message.extend(ppi);
    message.extend(frame);
    message
}

impl Vsc {
    /// An adapter with an open channel on which nothing was said yet.
    pub fn new(queues: usize, guards: Guards) -> Vsc {
        Vsc::with_mtu(queues, guards, 65521)
    }

    /// One whose wire carries payloads of so many bytes.
    pub fn with_mtu(queues: usize, guards: Guards, mtu: u32) -> Vsc {
        let guest = FakeGuest::new();
        let waker = || Waker::new().unwrap();
        let wires: Vec<_> =
            (0..queues).map(|_| Arc::new(FakeWire { state: Mutex::default(), waker: waker() })).collect();
        let settings = Settings {
            instance: Guid::from_u128(7),
            mac: MAC,
            guards,
            speed: 10_000_000_000,
            mtu,
            name: "lan".into(),
        };
        let lanes = wires.iter().map(|wire| wire.clone() as Arc<dyn Wire>).collect();
        let adapter = Adapter::new(settings, lanes).unwrap();
        let channel = guest.open(&adapter, 0).unwrap();
        let (receive, send) = (guest.allocate(RECEIVE_SIZE), guest.allocate(SEND_SIZE));
        let receive_handle = guest.share(receive, RECEIVE_SIZE);
        Vsc { guest, adapter, wires, channel, receive, receive_handle, send, request: 1 }
    }

    /// One that is up, as Linux brings it up: the newest version, both buffers, offloads, filter.
    pub fn up(queues: usize, guards: Guards) -> Vsc {
        let mut vsc = Vsc::new(queues, guards);
        vsc.negotiate(0x60001, true);
        vsc.share_buffers();
        vsc.initialize();
        assert_eq!(vsc.set(0xFC01_020C, &offload_parameters(1, 4, 1)), 0);
        assert_eq!(vsc.set(0x0001_010E, &words(&[1 | 4 | 8])), 0);
        vsc
    }

    /// Says a message and gives the words of the completion.
    pub fn ask(&mut self, message: &[u32]) -> Vec<u8> {
        self.channel.send(77, &words(message));
        self.channel.run().unwrap();
        let packet = self.channel.receive().expect("a completion");
        assert_eq!((packet.kind, packet.transaction_id), (PacketKind::Completion, 77));
        packet.payload().to_vec()
    }

    pub fn negotiate(&mut self, version: u32, coalesce: bool) {
        self.negotiate_mtu(version, coalesce, 1500);
    }

    /// With a wish for the longest payload of a frame.
    pub fn negotiate_mtu(&mut self, version: u32, coalesce: bool, mtu: u32) {
        let answer = self.ask(&[kind::INIT, version, version]);
        assert_eq!([word(&answer, 0), word(&answer, 1), word(&answer, 3)], [kind::INIT_COMPLETE, version, 1]);
        let capabilities = 1 << 3 | u32::from(coalesce) << 7;
        self.channel.post(0, &words(&[kind::SEND_NDIS_CONFIG, mtu + 14, 0, capabilities, 0]));
        self.channel.post(0, &words(&[kind::SEND_NDIS_VERSION, 6, 30]));
        self.channel.run().unwrap();
    }

    pub fn share_buffers(&mut self) {
        let answer = self.ask(&[kind::SEND_RECEIVE_BUFFER, self.receive_handle, RECEIVE_ID.into()]);
        assert_eq!(answer[..28], words(&[102, 1, 1, 0, 4096, 256, 1 << 20]));
        let handle = self.guest.share(self.send, SEND_SIZE);
        let answer = self.ask(&[kind::SEND_SEND_BUFFER, handle, 0]);
        assert_eq!(answer[..12], words(&[105, 1, 6144]));
    }

    pub fn initialize(&mut self) {
        let answer = self.control(2, &words(&[1, 0, 0x4000]));
        assert_eq!([word(&answer, 0), word(&answer, 3)], [0x8000_0002, 0]);
    }

    /// Sends a control message with a number of its own and gives the answer.
    pub fn control(&mut self, kind: u32, body: &[u8]) -> Vec<u8> {
        self.request += 1;
        let message = [words(&[kind, 12 + body.len() as u32, self.request]), body.to_vec()].concat();
        self.control_raw(&message).expect("an answer")
    }

    /// Sends the bytes of a control message.
    pub fn control_raw(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let at = self.guest.allocate(message.len() as u64);
        self.guest.write(at, message);
        self.channel.send_gpa(
            5,
            &words(&[kind::SEND_RNDIS_PACKET, 1, u32::MAX, 0]),
            &[(at, message.len() as u32)],
        );
        self.channel.run().unwrap();
        let mut answer = None;
        for packet in self.channel.receive_all() {
            match packet.kind {
                PacketKind::Completion => assert_eq!(packet.payload()[..8], words(&[108, 1])),
                _ => {
                    assert_eq!(word(packet.payload(), 1), 1, "control");
                    answer = self.take(&packet).pop();
                }
            }
        }
        answer
    }

    pub fn query(&mut self, oid: u32, input: &[u8]) -> Result<Vec<u8>, u32> {
        let body = [words(&[oid, input.len() as u32, 20, 0]), input.to_vec()].concat();
        let answer = self.control(4, &body);
        assert_eq!(word(&answer, 0), 0x8000_0004);
        let (status, len, offset) = (word(&answer, 3), word(&answer, 4) as usize, word(&answer, 5) as usize);
        if status == 0 { Ok(answer[8 + offset..8 + offset + len].to_vec()) } else { Err(status) }
    }

    pub fn set(&mut self, oid: u32, value: &[u8]) -> u32 {
        let body = [words(&[oid, value.len() as u32, 20, 0]), value.to_vec()].concat();
        let answer = self.control(5, &body);
        assert_eq!(word(&answer, 0), 0x8000_0005);
        word(&answer, 3)
    }

    /// The RNDIS messages of a packet for the guest; completes it.
    pub fn take(&mut self, packet: &Packet) -> Vec<Vec<u8>> {
        let messages = read_ranges(&self.guest, self.receive, packet);
        self.channel.complete(packet.transaction_id, &words(&[108, 1]));
        self.channel.run().unwrap();
        messages
    }

    /// Sends bytes from the beginning of a section of the send buffer; gives the status.
    pub fn send_section(&mut self, section: u32, bytes: &[u8]) -> u32 {
        self.guest.write(self.send + u64::from(section) * 6144, bytes);
        self.send_data(&[kind::SEND_RNDIS_PACKET, 0, section, bytes.len() as u32], &[])
    }

    pub fn send_data(&mut self, message: &[u32], ranges: &[(u64, u32)]) -> u32 {
        match ranges {
            [] => self.channel.send(9, &words(message)),
            ranges => self.channel.send_gpa(9, &words(message), ranges),
        }
        self.channel.run().unwrap();
        let packet = self.channel.receive().expect("a completion");
        assert_eq!(packet.kind, PacketKind::Completion);
        assert_eq!(word(packet.payload(), 0), kind::SEND_RNDIS_PACKET_COMPLETE);
        word(packet.payload(), 1)
    }

    /// What went out on the first wire.
    pub fn sent(&self) -> Vec<(FrameHeader, Vec<u8>)> {
        std::mem::take(&mut self.wires[0].state.lock().unwrap().sent)
    }

    /// Puts a frame on a wire.
    pub fn come(&self, queue: usize, header: FrameHeader, frame: Vec<u8>) {
        self.wires[queue].state.lock().unwrap().coming.push_back((header, frame));
    }

    pub fn run(&mut self) -> Result<(), ChannelError> {
        self.channel.run()
    }
}

pub fn read_ranges(guest: &FakeGuest, base: u64, packet: &Packet) -> Vec<Vec<u8>> {
    assert_eq!(packet.kind, PacketKind::TransferPages { set_id: RECEIVE_ID });
    assert_eq!(word(packet.payload(), 0), kind::SEND_RNDIS_PACKET);
    let ranges = packet.transfer_ranges.iter();
    ranges
        .map(|range| {
            assert!(
                range.byte_count <= 4096 && u64::from(range.byte_offset + range.byte_count) <= RECEIVE_SIZE
            );
            guest.read(base + u64::from(range.byte_offset), range.byte_count as usize)
        })
        .collect()
}

/// The frame of a message, and its per-packet information.
pub fn open_message(message: &[u8]) -> (Vec<u8>, Vec<(u32, u32)>) {
    assert_eq!([word(message, 0), word(message, 1)], [1, message.len() as u32]);
    let (at, len) = (8 + word(message, 2) as usize, word(message, 3) as usize);
    let (ppi_at, ppi_len) = (8 + word(message, 7) as usize, word(message, 8) as usize);
    let ppi = message[ppi_at..ppi_at + ppi_len].chunks_exact(16);
    let ppi = ppi.map(|piece| {
        assert_eq!([word(piece, 0), word(piece, 2)], [16, 12]);
        (word(piece, 1), word(piece, 3))
    });
    (message[at..at + len].to_vec(), ppi.collect())
}

/// `NDIS_OFFLOAD_PARAMETERS`: the IPv4 header, TCP and UDP, coalescing.
pub fn offload_parameters(v4: u8, transport: u8, coalesce: u8) -> Vec<u8> {
    let mut bytes = vec![0x80, 3, 28, 0, v4];
    bytes.extend([transport; 4]);
    bytes.resize(28, 0);
    (bytes[22], bytes[23]) = (coalesce, coalesce);
    bytes
}

/// `OID_GEN_RECEIVE_SCALE_PARAMETERS`.
pub const OID_SCALING: u32 = 0x0001_0204;

/// Its value, by which frames for the guest come by so many queues, each as often as another.
pub fn scaling(queues: u32) -> Vec<u8> {
    let table: Vec<u32> = (0..128).map(|entry| entry % queues).collect();
    let mut parameters = words(&[0x0028_0289, 0, 0x1701, 512, 40, 40, 552, 0, 0, 0]);
    parameters.extend(words(&table));
    parameters.extend([7; 40]);
    parameters
}

/// Puts a frame with so much payload into the send buffer and tells of it on the first channel.
pub fn send(vsc: &mut Vsc, transaction: u64, len: usize) {
    let message = packet_message(&ethernet(PEER, MAC, 0x806, &vec![transaction as u8; len]), &[]);
    vsc.guest.write(vsc.send + transaction * 6144, &message);
    let section = [kind::SEND_RNDIS_PACKET, 0, transaction as u32, message.len() as u32];
    vsc.channel.send(transaction, &words(&section));
}
