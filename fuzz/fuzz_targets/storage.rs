//! A guest that does anything with its SCSI controller.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use parterre_vmbus_server::PacketKind;
use parterre_vmbus_server::testing::{FakeChannel, FakeGuest};
use parterre_vsp_storage::protocol::{Packet, ScsiRequest, operation};
use parterre_vsp_storage::testing::{Inline, Probe};
use parterre_vsp_storage::{Controller, Identity, Kind, Lun};
use uuid::Uuid;
use zerocopy::{FromZeros, IntoBytes};

const DISK: usize = 64 << 10;
const MEMORY: u64 = 64 << 10;

/// What the guest does next.
#[derive(Arbitrary, Debug)]
enum Step {
    /// Any packet.
    Say { bytes: [u8; 64], short: bool },
    /// A command for a unit, with memory for its data.
    Command {
        cdb: [u8; 16],
        len: u8,
        lun: u8,
        near: bool,
        told: u32,
        ranges: Vec<(u16, u16)>,
        data: [u8; 32],
    },
    /// The usual start.
    Start,
    /// A unit comes or goes.
    Toggle { lun: u8, dvd: bool, read_only: bool },
    /// The disks fail with this error, or work again.
    Fail { errno: u8 },
}

struct Play {
    guest: FakeGuest,
    controller: Controller,
    probe: Probe,
    memory: u64,
}

impl Play {
    fn toggle(&self, lun: u8, dvd: bool, read_only: bool) {
        let lun = lun % 80;
        if self.controller.remove(lun).is_ok() {
            return;
        }
        let (kind, block) = if dvd { (Kind::Dvd, 2048) } else { (Kind::Disk, 512) };
        let identity = Identity::new(Uuid::from_u128(lun.into()), None);
        let unit = Lun::new(kind, identity, Some(self.probe.medium(block, read_only || dvd)));
        assert_eq!(self.controller.add(lun, Arc::new(unit)).is_ok(), lun < 64);
    }

    fn say(&self, channel: &mut FakeChannel, step: &Step) {
        match step {
            Step::Say { bytes, short } => channel.send(1, if *short { &bytes[..48] } else { bytes }),
            Step::Start => {
                for (code, word) in [(7u32, 0u16), (9, 0x0602), (10, 0), (8, 0)] {
                    let mut packet = Packet::new(code);
                    packet.payload[..2].copy_from_slice(&word.to_le_bytes());
                    channel.send(2, packet.as_bytes());
                }
            }
            Step::Command { cdb, len, lun, near, told, ranges, data } => {
                let mut request = ScsiRequest::new_zeroed();
                (request.cdb_length, request.lun, request.sense_info_length) = (*len, *lun, 20);
                request.data_transfer_length = (*told).into();
                request.cdb_or_sense[..16].copy_from_slice(cdb);
                if *near {
                    // An address on the disk, and a few blocks.
                    request.cdb_or_sense[2..5].fill(0);
                    request.cdb_or_sense[6..8].fill(0);
                }
                let mut packet = Packet::new(operation::EXECUTE_SRB);
                packet.set_scsi(&request);
                let ranges: Vec<(u64, u32)> = ranges
                    .iter()
                    .take(8)
                    .map(|(at, len)| (self.memory + u64::from(*at), u32::from(*len) % 8192))
                    .collect();
                if let Some((at, len)) = ranges.first() {
                    self.guest.write(*at, &data[..data.len().min(*len as usize)]);
                }
                channel.send_gpa(3, packet.as_bytes(), &ranges);
            }
            Step::Toggle { lun, dvd, read_only } => self.toggle(*lun, *dvd, *read_only),
            Step::Fail { errno } => self.probe.fail(i32::from(*errno)),
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let guest = FakeGuest::new();
    let engines = Arc::new(Inline(guest.memory()));
    let controller = Controller::new(Uuid::nil(), 0, 4, engines).unwrap();
    let memory = guest.allocate(MEMORY + 8192);
    let play = Play { guest, controller, probe: Probe::new(DISK), memory };
    play.toggle(0, false, false);
    let mut channel = play.guest.open(&play.controller, 0).unwrap();
    for step in steps.iter().take(100) {
        play.say(&mut channel, step);
        if channel.run().is_err() {
            // A bad guest costs its channel.
            return;
        }
        for answer in channel.receive_all() {
            let packet = Packet::parse(answer.payload()).expect("a whole packet");
            let expected = if answer.kind == PacketKind::Inband {
                operation::ENUMERATE_BUS
            } else {
                operation::COMPLETE_IO
            };
            assert_eq!(packet.operation.get(), expected);
        }
        assert_eq!(play.probe.with(|disk| disk.len()), DISK);
    }
});
