//! What a guest can do wrong in a ring is an error or harmless, never more.

use std::sync::Arc;

use parterre_vmbus_ring::{
    AccessError, Buffer, Gpadl, Head, Incoming, Memory, Outgoing, PAGE_SIZE, Packet, RingError, Written,
};
use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const PAGE: u64 = PAGE_SIZE as u64;
const RING: u64 = 0x10_000;
/// Bytes of data in the rings of these tests.
const SIZE: u32 = 4096;

fn memory() -> Arc<dyn Memory> {
    let ranges = [(GuestAddress(0), 1 << 20)];
    Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap())
}

fn pages() -> Buffer {
    let mut pages = Buffer::default();
    pages.push(RING, PAGE + u64::from(SIZE)).unwrap();
    pages
}

fn poke(memory: &dyn Memory, at: u64, bytes: &[u8]) {
    memory.slice(RING + at, bytes.len()).unwrap().copy_from(bytes);
}

fn word(memory: &dyn Memory, at: u64) -> u32 {
    let mut bytes = [0; 4];
    memory.slice(RING + at, 4).unwrap().copy_to(&mut bytes);
    u32::from_le_bytes(bytes)
}

fn descriptor(kind: u16, offset8: u16, length8: u16) -> Vec<u8> {
    let mut bytes = [kind, offset8, length8, 0].map(u16::to_le_bytes).concat();
    bytes.extend(7u64.to_le_bytes());
    bytes
}

/// Reads one packet from a ring whose data begin with `bytes` and end at `write`.
fn read(bytes: &[u8], write: u32) -> Result<(bool, Packet), RingError> {
    let memory = memory();
    poke(&*memory, PAGE, bytes);
    let mut incoming = Incoming::new(memory.clone(), &pages())?;
    poke(&*memory, 0, &write.to_le_bytes());
    let mut packet = Packet::default();
    incoming.read(&mut packet).map(|there| (there, packet))
}

#[test]
fn impossible_indexes_are_errors() {
    for index in [4096, 4, 7, u32::MAX, 0x8000_0000] {
        assert_eq!(read(&[], index).unwrap_err(), RingError::Index { index, size: SIZE });
    }
    assert!(!read(&[], 0).unwrap().0);
}

#[test]
fn lengths_that_contradict_are_errors() {
    // Fewer bytes than a packet has; offset before the end of the descriptor; length before the offset; more than there is.
    let cases = [(2, 2, 16), (1, 4, 40), (0, 4, 40), (5, 4, 48), (2, 4, 32), (2, 0xFFFF, 4088), (2, 1, 40)];
    for (offset8, length8, write) in cases {
        let result = read(&descriptor(6, offset8, length8), write);
        assert!(
            matches!(result, Err(RingError::PacketLength { .. })),
            "{offset8} {length8} {write}: {result:?}"
        );
    }
    let (there, packet) = read(&descriptor(6, 2, 4), 40).unwrap();
    assert!(there);
    assert_eq!((packet.transaction_id, packet.payload().len()), (7, 16));
}

#[test]
fn unknown_types_and_ranges_that_do_not_fit_are_errors() {
    for kind in [0, 4, 8, 12, 0xFFFF] {
        assert_eq!(read(&descriptor(kind, 2, 2), 24).unwrap_err(), RingError::PacketType(kind));
    }
    let with = |kind, parts: &[u32]| {
        let between: Vec<u8> = parts.iter().flat_map(|part| part.to_le_bytes()).collect();
        let end8 = (2 + between.len() / 8) as u16;
        let mut bytes = descriptor(kind, end8, end8);
        bytes.extend(between);
        read(&bytes, u32::from(end8) * 8 + 8)
    };
    // GPA-direct: no header, more ranges than bytes, a count without end, an offset beyond the page, too few pages, a page
    // number whose address does not exist.
    let cases: [&[u32]; 6] = [
        &[],
        &[0, 1],
        &[0, u32::MAX, 0, 0],
        &[0, 1, 1, 4096, 5, 0],
        &[0, 1, 4097, 0, 5, 0],
        &[0, 1, 1, 0, u32::MAX, u32::MAX],
    ];
    for case in cases {
        assert!(matches!(with(9, case), Err(RingError::Ranges { .. })), "{case:?}");
    }
    let (_, packet) = with(9, &[0, 2, 8, 4092, 5, 0, 6, 0, 0, 0]).unwrap();
    assert_eq!((packet.memory.len(), packet.memory.segments().len()), (8, 1));
    // Transfer pages likewise.
    for case in [[0, 1].as_slice(), &[0, u32::MAX, 0, 0]] {
        assert!(matches!(with(7, case), Err(RingError::Ranges { .. })), "{case:?}");
    }
    assert_eq!(with(7, &[3, 1, 8, 16]).unwrap().1.transfer_ranges.len(), 1);
}

#[test]
fn rings_of_no_size_or_without_memory_are_errors() {
    let ring = |gpa, len| {
        let mut pages = Buffer::default();
        pages.push(gpa, len).unwrap();
        Incoming::new(memory(), &pages).err()
    };
    for (gpa, len) in [(RING, 0), (RING, PAGE), (RING, PAGE + 8), (RING + 8, 2 * PAGE), (RING, 1 << 33)] {
        assert!(matches!(ring(gpa, len), Some(RingError::Size(_))), "{gpa:#x} {len:#x}");
    }
    assert_eq!(ring(1 << 30, 2 * PAGE), Some(RingError::Access(AccessError::NotRam(1 << 30))));
    assert_eq!(ring(RING, 2 * PAGE), None);
}

#[test]
fn a_packet_that_never_fits_is_said_to() {
    let mut outgoing = Outgoing::new(memory(), &pages()).unwrap();
    let head = Head {
        packet_type: parterre_vmbus_protocol::packet::PacketType::DATA_INBAND,
        transaction_id: 0,
        completion_requested: false,
    };
    let payload = vec![0; 4096 - 24];
    let never = RingError::NeverFits { packet: 4096, size: SIZE };
    assert_eq!(outgoing.write_raw(head, &[], &[&payload]), Err(never));
    assert_eq!(outgoing.write_raw(head, &[], &[&payload[8..]]), Ok(Written::Done));
    // Full: the guest is told for how much we wait, and no longer when there is room.
    assert_eq!(outgoing.write_raw(head, &[], &[&[0; 8]]), Ok(Written::Full));
    let memory = memory();
    let mut outgoing = Outgoing::new(memory.clone(), &pages()).unwrap();
    assert_eq!(outgoing.write_raw(head, &[], &[&payload[8..]]), Ok(Written::Done));
    assert_eq!(outgoing.write_raw(head, &[], &[&[0; 8]]), Ok(Written::Full));
    assert_eq!((word(&*memory, 0), word(&*memory, 12)), (4088, 32));
    poke(&*memory, 4, &4088u32.to_le_bytes());
    assert_eq!(outgoing.write_raw(head, &[], &[&[0; 8]]), Ok(Written::Done));
    assert_eq!(word(&*memory, 12), 0);
    // An index that the guest spoils is found out when it is needed.
    poke(&*memory, 4, &4097u32.to_le_bytes());
    let result = outgoing.finish();
    assert_eq!(result, Err(RingError::Index { index: 4097, size: SIZE }));
}

#[test]
fn signals_are_due_only_when_somebody_waits() {
    let memory = memory();
    let mut outgoing = Outgoing::new(memory.clone(), &pages()).unwrap();
    let head = Head {
        packet_type: parterre_vmbus_protocol::packet::PacketType::COMPLETION,
        transaction_id: 0,
        completion_requested: false,
    };
    let mut write = |masked: u32| {
        poke(&*memory, 8, &masked.to_le_bytes());
        assert_eq!(outgoing.write_raw(head, &[], &[&[1; 16]]), Ok(Written::Done));
        outgoing.finish().unwrap()
    };
    assert!(write(0));
    // The guest has not taken the first yet: it is awake.
    assert!(!write(0));
    let index = word(&*memory, 0);
    poke(&*memory, 4, &index.to_le_bytes());
    assert!(!write(1));
    poke(&*memory, 4, &word(&*memory, 0).to_le_bytes());
    assert!(write(0));
}

#[test]
fn a_guest_that_waits_for_room_hears_of_it_once() {
    let memory = memory();
    let mut guest = Outgoing::new(memory.clone(), &pages()).unwrap();
    let mut incoming = Incoming::new(memory.clone(), &pages()).unwrap();
    let head = Head {
        packet_type: parterre_vmbus_protocol::packet::PacketType::DATA_INBAND,
        transaction_id: 0,
        completion_requested: false,
    };
    while guest.write_raw(head, &[], &[&[0; 488]]).unwrap() == Written::Done {}
    let mut packet = Packet::default();
    let mut signals = 0;
    while incoming.read(&mut packet).unwrap() {
        signals += u32::from(incoming.finish().unwrap());
    }
    assert_eq!(signals, 1);
    assert_eq!(guest.write_raw(head, &[], &[&[0; 488]]), Ok(Written::Done));
}

#[test]
fn buffers_are_read_and_written_across_their_pieces() {
    let memory = memory();
    let mut buffer = Buffer::default();
    buffer.push_range(4090, 10, [3, 9].into_iter()).unwrap();
    buffer.push(0x5000, 4).unwrap();
    assert_eq!((buffer.len(), buffer.segments().len()), (14, 3));
    buffer.write(&*memory, 0, b"0123456789abcd").unwrap();
    let mut bytes = [0; 6];
    buffer.read(&*memory, 5, &mut bytes).unwrap();
    assert_eq!(&bytes, b"56789a");
    assert_eq!(buffer.part(4, 7).unwrap().len(), 7);
    for (offset, len) in [(0, 15), (14, 1), (15, 0), (u64::MAX, 2)] {
        assert!(matches!(buffer.pieces(offset, len).err(), Some(AccessError::OutOfBounds { .. })));
    }
    assert_eq!(buffer.pieces(14, 0).unwrap().count(), 0);
    let mut nowhere = Buffer::default();
    nowhere.push(1 << 40, 8).unwrap();
    assert_eq!(nowhere.read(&*memory, 0, &mut bytes), Err(AccessError::NotRam(1 << 40)));
    assert!(nowhere.push(u64::MAX, 2).is_err());
}

proptest! {
    /// Whatever lies in the ring and at its indexes: reading ends, with packets or an error.
    #[test]
    fn reading_anything_ends(
        data in prop::collection::vec(any::<u8>(), SIZE as usize),
        lengths in prop::collection::vec((0..4096u16, 0..80u16, 0..80u16, 5..12u16), 1..20),
        read_index in (0..SIZE / 8).prop_map(|index| index * 8),
        write_index in (0..SIZE / 8).prop_map(|index| index * 8),
    ) {
        let memory = memory();
        poke(&*memory, PAGE, &data);
        for (at, offset8, length8, kind) in lengths {
            let at = u64::from(at / 8 * 8).min(u64::from(SIZE) - 16);
            poke(&*memory, PAGE + at, &descriptor(kind, offset8, length8));
        }
        poke(&*memory, 0, &[write_index, read_index].map(u32::to_le_bytes).concat());
        let mut incoming = Incoming::new(memory.clone(), &pages()).unwrap();
        let mut packet = Packet::default();
        let mut count = 0;
        while let Ok(true) = incoming.read(&mut packet) {
            count += 1;
            prop_assert!(count <= SIZE / 24);
            prop_assert!(packet.payload().len() < SIZE as usize);
        }
        let _ = incoming.finish();
    }

    /// Packets of all sizes come out as they went in, whatever the turns of the two sides.
    #[test]
    fn packets_survive_the_ring(turns in prop::collection::vec((any::<bool>(), 0..600usize), 1..200)) {
        let memory = memory();
        let mut outgoing = Outgoing::new(memory.clone(), &pages()).unwrap();
        let mut incoming = Incoming::new(memory.clone(), &pages()).unwrap();
        let (mut sent, mut received) = (std::collections::VecDeque::new(), Packet::default());
        for (number, (write, length)) in turns.into_iter().enumerate() {
            if write {
                let payload: Vec<u8> = (0..length).map(|at| (at ^ number) as u8).collect();
                let head = Head {
                    packet_type: parterre_vmbus_protocol::packet::PacketType::DATA_INBAND,
                    transaction_id: number as u64,
                    completion_requested: length % 2 == 0,
                };
                if outgoing.write_raw(head, &[], &[&payload[..length / 3], &payload[length / 3..]]).unwrap() == Written::Done {
                    sent.push_back((number as u64, payload));
                }
                outgoing.finish().unwrap();
            } else if incoming.read(&mut received).unwrap() {
                let (number, payload) = sent.pop_front().unwrap();
                prop_assert_eq!(received.transaction_id, number);
                prop_assert_eq!(&received.payload()[..payload.len()], &payload[..]);
                prop_assert_eq!(received.completion_requested, payload.len() % 2 == 0);
                incoming.publish().unwrap();
            } else {
                prop_assert!(sent.is_empty());
            }
        }
    }

    /// A GPADL is what its bytes say, or nothing.
    #[test]
    fn gpadls_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), count in 0..5u16) {
        if let Some(gpadl) = Gpadl::parse(&bytes, count) {
            prop_assert_eq!(gpadl.ranges.len(), usize::from(count));
        }
    }
}
