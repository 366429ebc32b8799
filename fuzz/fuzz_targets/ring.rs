//! Rings whose memory holds anything and changes between any two steps of the reader and the writer.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use parterre_vmbus_server::protocol::packet::PacketType;
use parterre_vmbus_server::ring::{Head, Incoming, Outgoing};
use parterre_vmbus_server::{Buffer, Memory, Packet};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const MEMORY: u64 = 0x8000;

#[derive(Debug, Arbitrary)]
enum Step {
    Poke { at: u16, bytes: [u8; 8] },
    Descriptor { at: u16, kind: u8, offset8: u8, length8: u8 },
    Indexes { ring: bool, write8: u16, read8: u16 },
    Read,
    Write { length: u16 },
    Finish,
    Mask { masked: bool },
}

fn poke(memory: &dyn Memory, at: u64, bytes: &[u8]) {
    if let Some(slice) = memory.slice(at % MEMORY, bytes.len()) {
        slice.copy_from(bytes);
    }
}

fuzz_target!(|input: (u8, Vec<Step>)| {
    let (pages, steps) = input;
    let ranges = [(GuestAddress(0), MEMORY as usize)];
    let Ok(memory) = GuestMemoryMmap::<()>::from_ranges(&ranges) else { return };
    let memory: Arc<dyn Memory> = Arc::new(memory);
    let half = u64::from(pages % 4 + 1) * 4096;
    let (mut first, mut second) = (Buffer::default(), Buffer::default());
    if first.push(0, half).is_err() || second.push(MEMORY - half, half).is_err() {
        return;
    }
    let rings = Incoming::new(memory.clone(), &first)
        .and_then(|incoming| Outgoing::new(memory.clone(), &second).map(|outgoing| (incoming, outgoing)));
    let Ok((mut incoming, mut outgoing)) = rings else { return };
    let mut packet = Packet::default();
    for step in steps {
        // An error is the end of a channel; the rest of the steps must do no harm either.
        let _ = match step {
            Step::Poke { at, bytes } => {
                poke(&*memory, at.into(), &bytes);
                Ok(())
            }
            Step::Descriptor { at, kind, offset8, length8 } => {
                let words = [kind.into(), offset8.into(), length8.into(), 1].map(u16::to_le_bytes).concat();
                poke(&*memory, 4096 + u64::from(at / 8 * 8), &words);
                Ok(())
            }
            Step::Indexes { ring, write8, read8 } => {
                let base = if ring { 0 } else { MEMORY - half };
                let words = [write8, read8].map(|index| (u32::from(index) * 8).to_le_bytes()).concat();
                poke(&*memory, base, &words);
                Ok(())
            }
            Step::Read => incoming.read(&mut packet).map(|there| {
                assert!(!there || packet.payload().len() < half as usize);
                assert!(packet.transfer_ranges.len() <= half as usize / 8);
            }),
            Step::Write { length } => {
                let head = Head {
                    packet_type: PacketType::DATA_INBAND,
                    transaction_id: 1,
                    completion_requested: false,
                };
                outgoing.write_raw(head, &[], &[&vec![7; usize::from(length)]]).map(drop)
            }
            Step::Finish => incoming.finish().and_then(|_| outgoing.finish()).map(drop),
            Step::Mask { masked } => incoming.mask_signals(masked),
        };
    }
});
