//! A device that echoes, and a guest that speaks with it: the interface of devices from end to end.

use parterre_vmbus_server::testing::FakeGuest;
use parterre_vmbus_server::{
    ChannelError, Device, Guid, Handler, Offer, OutPacket, Packet, PacketKind, Queue, Written,
};

struct Echo;

#[derive(Default)]
struct EchoHandler {
    packet: Packet,
    /// Completions that did not fit.
    held: Option<(u64, Vec<u8>)>,
}

impl Device for Echo {
    fn offer(&self) -> Offer {
        Offer::new(Guid::from_u128(1), Guid::from_u128(2))
    }

    fn open(&self, queue: &mut Queue) -> Result<Box<dyn Handler>, ChannelError> {
        if queue.index() == 0 {
            queue.offer_subchannels(3);
        }
        Ok(Box::<EchoHandler>::default())
    }
}

impl Handler for EchoHandler {
    fn run(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        loop {
            if let Some((id, payload)) = &self.held {
                if queue.complete(*id, payload)? == Written::Full {
                    return Ok(());
                }
                self.held = None;
            }
            if !queue.read(&mut self.packet)? {
                return Ok(());
            }
            let mut answer = self.packet.payload().to_vec();
            let memory = &self.packet.memory;
            if self.packet.kind == PacketKind::GpaDirect {
                answer.resize(memory.len() as usize, 0);
                memory.read(&**queue.memory(), 0, &mut answer)?;
            }
            self.held = Some((self.packet.transaction_id, answer));
        }
    }
}

#[test]
fn packets_are_echoed_with_one_signal_for_a_batch() {
    let guest = FakeGuest::new();
    let mut channel = guest.open(&Echo, 0).unwrap();
    assert_eq!(guest.subchannels(), 3);
    for id in 0..10 {
        channel.send(id, &id.to_le_bytes());
    }
    assert_eq!(guest.signals(), 0);
    channel.run().unwrap();
    assert_eq!(guest.signals(), 1);
    let answers = channel.receive_all();
    assert_eq!(answers.len(), 10);
    for (id, answer) in (0..).zip(&answers) {
        assert_eq!((answer.kind, answer.transaction_id), (PacketKind::Completion, id));
        assert_eq!(answer.payload(), id.to_le_bytes());
    }
}

#[test]
fn guest_memory_is_reached_through_ranges() {
    let guest = FakeGuest::new();
    let mut channel = guest.open(&Echo, 0).unwrap();
    let at = guest.allocate(3 * 4096);
    guest.write(
        at + 4000,
        b"across a page border, across a page border, across a page border, across the end of it",
    );
    guest.write(at + 2 * 4096, b"!");
    channel.send_gpa(5, b"", &[(at + 4000, 84), (at + 8192, 1)]);
    channel.run().unwrap();
    let answer = channel.receive().unwrap();
    assert_eq!(&answer.payload()[..44], b"across a page border, across a page border, ");
    assert_eq!(answer.payload()[84], b'!');
    // Memory that the guest does not have costs the channel.
    channel.send_gpa(6, b"", &[(1 << 40, 8)]);
    assert!(matches!(channel.run(), Err(ChannelError::Access(_))));
}

#[test]
fn a_full_ring_holds_the_device_back_and_loses_nothing() {
    let guest = FakeGuest::new();
    let mut channel = guest.open(&Echo, 0).unwrap();
    let (mut sent, mut received) = (0u64, 0);
    while received < 500 {
        // As much as goes in while the device is not heard.
        for _ in 0..7 {
            channel.send(sent, &[sent as u8; 4000]);
            sent += 1;
        }
        channel.run().unwrap();
        for _ in 0..sent - received {
            let Some(answer) = channel.receive() else { break };
            assert_eq!((answer.transaction_id, answer.payload()[3999]), (received, received as u8));
            received += 1;
            if received % 5 == 0 {
                channel.run().unwrap();
            }
        }
    }
}

#[test]
fn the_device_can_speak_first() {
    struct Hello;
    impl Device for Hello {
        fn offer(&self) -> Offer {
            Offer::new(Guid::from_u128(3), Guid::from_u128(4))
        }
        fn open(&self, queue: &mut Queue) -> Result<Box<dyn Handler>, ChannelError> {
            let packet = OutPacket::Inband { transaction_id: 9, completion_requested: true };
            assert_eq!(queue.write(&packet, &[b"hel", b"lo"])?, Written::Done);
            Ok(Box::<EchoHandler>::default())
        }
    }
    let guest = FakeGuest::new();
    let mut channel = guest.open(&Hello, 0).unwrap();
    let packet = channel.receive().unwrap();
    assert_eq!((packet.kind, packet.completion_requested), (PacketKind::Inband, true));
    assert_eq!(packet.payload(), b"hello\0\0\0");
    assert_eq!(guest.signals(), 1);
}
