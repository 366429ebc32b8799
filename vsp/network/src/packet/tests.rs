use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

const SIZE: usize = 64 << 10;

fn memory(bytes: &[u8]) -> Arc<GuestMemoryMmap<()>> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap();
    memory.write_slice(bytes, GuestAddress(0)).unwrap();
    Arc::new(memory)
}

fn buffer(gpa: u64, len: u64) -> Buffer {
    let mut buffer = Buffer::default();
    buffer.push(gpa, len).unwrap();
    buffer
}

#[test]
fn bytes_go_on_from_the_send_buffer_to_named_memory() {
    let bytes: Vec<u8> = (0..=255).collect();
    let memory = memory(&bytes);
    let (first, second) = (buffer(0, 100), buffer(200, 56));
    let source = Source::new(&*memory, Some((&first, 10, 20)), &second);
    assert_eq!(source.len(), 76);
    let mut read = [0; 10];
    source.read(15, &mut read).unwrap();
    assert_eq!(read, [25, 26, 27, 28, 29, 200, 201, 202, 203, 204]);
    source.read(66, &mut read).unwrap();
    assert_eq!(read[9], 255);
    assert!(source.read(67, &mut read).is_err());
    assert!(source.read(u64::MAX, &mut read).is_err());
    let mut list = arrayvec::ArrayVec::<_, 2>::new();
    assert_eq!(source.slices(15, 10, &mut list), Ok(true));
    assert_eq!(list.iter().map(VolatileSlice::len).collect::<Vec<_>>(), [5, 5]);
    assert_eq!(source.slices(15, 10, &mut list), Ok(false), "no room");
    let absent = buffer(SIZE as u64 - 4, 8);
    assert!(Source::new(&*memory, None, &absent).read(0, &mut read[..8]).is_err());
}

proptest! {
    /// What is parsed lies within the source, whatever the guest wrote.
    #[test]
    fn any_bytes_are_taken_apart(
        mut bytes in prop::collection::vec(any::<u8>(), 44..400),
        fields in prop::collection::vec(prop_oneof![0u32..400, any::<u32>()], 9),
        ppi in prop::collection::vec((prop_oneof![Just(16u32), 0u32..40], prop_oneof![0u32..10, any::<u32>()], prop_oneof![Just(12u32), 0u32..20]), 0..8),
        honest: bool,
    ) {
        let len = bytes.len() as u32;
        let mut head = vec![1, len];
        head.extend(fields);
        if honest {
            head[7] = 36;
            head[8] = ppi.len() as u32 * 16;
            (head[2], head[3]) = (36, len - 44);
        }
        for (to, word) in bytes.chunks_exact_mut(4).zip(&head) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        for (to, (size, kind, offset)) in bytes[44..].chunks_exact_mut(16).zip(ppi) {
            for (to, word) in to.chunks_exact_mut(4).zip([size, kind, offset]) {
                to.copy_from_slice(&word.to_le_bytes());
            }
        }
        let memory = memory(&bytes);
        let whole = buffer(0, bytes.len() as u64);
        let source = Source::new(&*memory, None, &whole);
        if let Ok(packet) = GuestPacket::parse(&source, 0) {
            prop_assert!(packet.len >= 44 && packet.len <= source.len());
            prop_assert!(packet.frame_at + u64::from(packet.frame_len) <= packet.len);
        }
    }
}
