//! A guest that does anything with its network adapter.
#![no_main]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use parterre_vmbus_server::testing::{FakeChannel, FakeGuest};
use parterre_vmbus_server::{Guid, Waker};
use parterre_vsp_network::wire::{FrameHeader, ReceiveOffloads};
use parterre_vsp_network::{Adapter, Guards, Settings, Wire};
use vm_memory::VolatileSlice;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// What the guest does next.
#[derive(Arbitrary, Debug)]
enum Step {
    /// Says an NVSP message.
    Say { queue: u8, words: [u32; 5] },
    /// Sends RNDIS messages from the send buffer, or out of named memory.
    Rndis { queue: u8, control: bool, section: u8, head: Vec<u32>, bytes: Vec<u8>, named: bool },
    /// Completes a packet.
    Complete { queue: u8, transaction: u8 },
    /// A frame comes up.
    Come { queue: u8, flags: u8, offset: u8, len: u16, own: bool },
    /// A sub-channel is opened, or closed.
    Toggle { queue: u8 },
}

struct ListWire {
    coming: Mutex<VecDeque<(FrameHeader, Vec<u8>)>>,
    waker: Waker,
}

impl AsFd for ListWire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

impl Wire for ListWire {
    fn send(&self, header: &FrameHeader, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<()> {
        let len = head.len() + rest.iter().map(VolatileSlice::len).sum::<usize>();
        assert!((14..=65535 + 18).contains(&len));
        assert_eq!(head[6..12], OWN, "no frame from a foreign address");
        let end = usize::from(header.checksum_start) + usize::from(header.checksum_offset) + 2;
        assert!(header.flags == 0 || end <= head.len());
        Ok(())
    }

    fn receive(&self, header: &mut FrameHeader, to: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let (its, frame) = self.coming.lock().unwrap().pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        *header = its;
        let mut done = 0;
        for slice in to {
            let part = slice.len().min(frame.len() - done);
            slice.copy_from(&frame[done..done + part]);
            done += part;
        }
        Ok(frame.len())
    }

    fn set_offloads(&self, _: ReceiveOffloads) -> io::Result<()> {
        Ok(())
    }

    fn attach(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

const QUEUES: usize = 3;

struct Rig {
    guest: FakeGuest,
    adapter: Adapter,
    wires: Vec<Arc<ListWire>>,
    channels: [Option<FakeChannel>; QUEUES],
    send: u64,
    handles: [u32; 2],
}

impl Rig {
    fn new() -> Option<Rig> {
        let guest = FakeGuest::new();
        let wire = || Some(Arc::new(ListWire { coming: Mutex::default(), waker: Waker::new().ok()? }));
        let wires: Vec<_> = (0..QUEUES).map(|_| wire()).collect::<Option<_>>()?;
        let settings = Settings {
            instance: Guid::from_u128(1),
            mac: OWN,
            guards: Guards { mac_spoofing: false, dhcp: true, router: true },
            speed: 1_000_000_000,
            mtu: 9000,
            name: String::new(),
        };
        let lanes = wires.iter().map(|wire| wire.clone() as Arc<dyn Wire>).collect();
        let adapter = Adapter::new(settings, lanes).ok()?;
        let (send, receive) = (guest.allocate(64 << 10), guest.allocate(256 << 10));
        let handles = [guest.share(receive, 256 << 10), guest.share(send, 64 << 10)];
        let first = guest.open(&adapter, 0).ok()?;
        Some(Rig { guest, adapter, wires, channels: [Some(first), None, None], send, handles })
    }

    /// The usual start, so that most inputs get further than it.
    fn start(&mut self) -> Option<()> {
        let [receive, send] = self.handles;
        for message in
            [&[1, 0x60001, 0x60001][..], &[125, 1514, 0, 0x88, 0], &[101, receive, 0xcafe], &[104, send, 0]]
        {
            self.say(0, message)?;
        }
        self.rndis(0, true, 0, &[2, 24, 1, 1, 0, 0x4000], &[], false)?;
        self.rndis(0, true, 0, &[5, 32, 1, 0x1010E, 4, 20, 0, 0xF], &[], false)
    }

    fn say(&mut self, queue: u8, message: &[u32]) -> Option<()> {
        let bytes: Vec<u8> = message.iter().flat_map(|word| word.to_le_bytes()).collect();
        let channel = self.channels[usize::from(queue) % QUEUES].as_mut()?;
        channel.send(1, &bytes);
        self.run(queue)
    }

    fn rndis(
        &mut self,
        queue: u8,
        control: bool,
        section: u8,
        head: &[u32],
        bytes: &[u8],
        named: bool,
    ) -> Option<()> {
        let mut message: Vec<u8> = head.iter().flat_map(|word| word.to_le_bytes()).collect();
        message.extend(bytes);
        message.truncate(6144);
        let section = section % 10;
        let at = self.send + u64::from(section) * 6144;
        self.guest.write(at, &message);
        let len = message.len() as u32;
        let words = if named {
            [107, control.into(), u32::MAX, 0]
        } else {
            [107, control.into(), section.into(), len]
        };
        let payload: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        let channel = self.channels[usize::from(queue) % QUEUES].as_mut()?;
        if named {
            channel.send_gpa(1, &payload, &[(at, len)]);
        } else {
            channel.send(1, &payload);
        }
        self.run(queue)
    }

    /// Lets a channel run. One that broke the protocol is gone.
    fn run(&mut self, queue: u8) -> Option<()> {
        let slot = &mut self.channels[usize::from(queue) % QUEUES];
        let channel = slot.as_mut()?;
        if channel.run().is_err() {
            *slot = None;
            return None;
        }
        channel.receive_all();
        Some(())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Say { queue, words } => drop(self.say(queue, &words)),
            Step::Rndis { queue, control, section, head, bytes, named } => {
                let _ = self.rndis(queue, control, section, &head, &bytes, named);
            }
            Step::Complete { queue, transaction } => {
                if let Some(channel) = &mut self.channels[usize::from(queue) % QUEUES] {
                    channel.complete(transaction.into(), &[108, 0, 0, 0, 1, 0, 0, 0]);
                    self.run(queue);
                }
            }
            Step::Come { queue, flags, offset, len, own } => {
                let mut frame = vec![0; usize::from(len)];
                if own && frame.len() >= 6 {
                    frame[..6].copy_from_slice(&OWN);
                }
                let header = FrameHeader { flags, checksum_offset: offset.into(), ..FrameHeader::default() };
                self.wires[usize::from(queue) % QUEUES].coming.lock().unwrap().push_back((header, frame));
                self.run(queue);
            }
            Step::Toggle { queue } => {
                let index = usize::from(queue) % QUEUES;
                if self.channels[index].take().is_none() {
                    self.channels[index] = self.guest.open(&self.adapter, index as u16).ok();
                }
            }
        }
    }
}

fuzz_target!(|steps: (bool, Vec<Step>)| {
    let (started, steps) = steps;
    let Some(mut rig) = Rig::new() else { return };
    if started {
        assert!(rig.start().is_some(), "the usual start works");
    }
    // Memory for rings is limited.
    for step in steps.into_iter().take(200) {
        rig.step(step);
    }
});
