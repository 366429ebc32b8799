//! Two sides at once: no packet is lost, and nobody sleeps while there is something to do. Sleeping is real here: each side
//! blocks until the other has said that a signal is due.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parterre_vmbus_protocol::packet::PacketType;
use parterre_vmbus_ring::{Buffer, Head, Incoming, Memory, Outgoing, PAGE_SIZE, Packet, Written};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const PACKETS: u64 = 40_000;
/// A signal that does not come within this time is lost.
const PATIENCE: Duration = Duration::from_secs(60);

fn write_all(mut ring: Outgoing, signal: &Sender<()>, woken: &Receiver<()>) {
    for number in 0..PACKETS {
        let head = Head {
            packet_type: PacketType::DATA_INBAND,
            transaction_id: number,
            completion_requested: false,
        };
        let payload = [number as u8; 96];
        let length = 8 + (number % 11) as usize * 8;
        while ring.write_raw(head, &[], &[&payload[..length]]).unwrap() == Written::Full {
            if ring.finish().unwrap() {
                signal.send(()).unwrap();
            }
            woken.recv_timeout(PATIENCE).expect("a signal that there is room");
        }
        // In batches of changing size.
        if number % 7 != 0 && ring.finish().unwrap() {
            signal.send(()).unwrap();
        }
    }
    if ring.finish().unwrap() {
        signal.send(()).unwrap();
    }
}

fn read_all(mut ring: Incoming, signal: &Sender<()>, woken: &Receiver<()>) {
    let (mut packet, mut number) = (Packet::default(), 0);
    while number < PACKETS {
        ring.mask_signals(true).unwrap();
        while ring.read(&mut packet).unwrap() {
            assert_eq!((packet.transaction_id, packet.payload()[0]), (number, number as u8));
            number += 1;
        }
        ring.mask_signals(false).unwrap();
        if ring.finish().unwrap() {
            // The writer may have ended.
            let _ = signal.send(());
        }
        if ring.is_empty().unwrap() && number < PACKETS {
            woken.recv_timeout(PATIENCE).expect("a signal that there are packets");
        }
    }
}

#[test]
fn nothing_is_lost_between_two_threads() {
    let ranges = [(GuestAddress(0), 1 << 20)];
    let memory: Arc<dyn Memory> = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
    let mut pages = Buffer::default();
    pages.push(0x1000, 2 * PAGE_SIZE as u64).unwrap();
    let outgoing = Outgoing::new(memory.clone(), &pages).unwrap();
    let incoming = Incoming::new(memory, &pages).unwrap();
    let (packets_due, packets_woken) = channel();
    let (room_due, room_woken) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || write_all(outgoing, &packets_due, &room_woken));
        scope.spawn(move || read_all(incoming, &room_due, &packets_woken));
    });
}
