//! A guest that speaks vstor with a controller, from the first packet to data on a disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parterre_vmbus_server::testing::{FakeChannel, FakeGuest};
use parterre_vmbus_server::{Memory, PacketKind};
use parterre_vsp_storage::pool::Pools;
use parterre_vsp_storage::protocol::{OLD_PACKET_SIZE, Packet, ScsiRequest, operation, srb, status};
use parterre_vsp_storage::testing::{Inline, Probe};
use parterre_vsp_storage::{Controller, Engines, Identity, Kind, Lun};
use proptest::prelude::*;
use uuid::Uuid;
use zerocopy::{FromZeros, IntoBytes};

const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2A;

struct Rig {
    guest: FakeGuest,
    controller: Controller,
    disk: Probe,
}

fn rig() -> Rig {
    rig_of(|memory| Arc::new(Pools(memory)))
}

/// With an engine that can do everything at once.
fn quick_rig() -> Rig {
    rig_of(|memory| Arc::new(Inline(memory)))
}

fn rig_of(engines: impl FnOnce(Arc<dyn Memory>) -> Arc<dyn Engines>) -> Rig {
    let guest = FakeGuest::new();
    let engines = engines(guest.memory());
    let controller = Controller::new(Uuid::from_u128(1), 0, 4, engines).unwrap();
    let disk = Probe::new(1 << 20);
    controller.add(0, Arc::new(unit(&disk, 1))).unwrap();
    Rig { guest, controller, disk }
}

fn unit(disk: &Probe, id: u128) -> Lun {
    Lun::new(Kind::Disk, Identity::new(Uuid::from_u128(id), None), Some(disk.medium(512, false)))
}

impl Rig {
    /// The first channel, after its initialization.
    fn open(&self) -> FakeChannel {
        let mut channel = self.guest.open(&self.controller, 0).unwrap();
        for (operation, word) in [
            (operation::BEGIN_INITIALIZATION, 0),
            (operation::QUERY_PROTOCOL_VERSION, 0x0602),
            (operation::QUERY_PROPERTIES, 0),
            (operation::END_INITIALIZATION, 0),
        ] {
            assert_eq!(ask(&mut channel, operation, word).status.get(), status::SUCCESS);
        }
        channel
    }
}

fn packet(operation: u32, word: u16) -> Packet {
    let mut packet = Packet::new(operation);
    packet.flags = 1.into();
    packet.payload[..2].copy_from_slice(&word.to_le_bytes());
    packet
}

/// An answer, which may take threads a while.
fn receive(channel: &mut FakeChannel) -> (u64, Packet) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        channel.run().unwrap();
        if let Some(packet) = channel.receive() {
            assert_eq!(packet.kind, PacketKind::Completion);
            return (packet.transaction_id, Packet::parse(packet.payload()).unwrap());
        }
        assert!(Instant::now() < end, "no answer came");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn ask(channel: &mut FakeChannel, operation: u32, word: u16) -> Packet {
    channel.send(7, packet(operation, word).as_bytes());
    let (id, answer) = receive(channel);
    assert_eq!((id, answer.operation.get()), (7, operation::COMPLETE_IO));
    answer
}

fn request(cdb: &[u8], lun: u8, len: u32) -> Packet {
    let mut request = ScsiRequest::new_zeroed();
    request.lun = lun;
    request.cdb_length = cdb.len() as u8;
    request.sense_info_length = 20;
    request.data_transfer_length = len.into();
    request.cdb_or_sense[..cdb.len()].copy_from_slice(cdb);
    let mut packet = packet(operation::EXECUTE_SRB, 0);
    packet.set_scsi(&request);
    packet
}

/// A command with its data in these ranges; returns what the guest sees of its end.
fn execute(channel: &mut FakeChannel, lun: u8, cdb: &[u8], ranges: &[(u64, u32)]) -> ScsiRequest {
    let len = ranges.iter().map(|range| range.1).sum();
    let packet = request(cdb, lun, len);
    if ranges.is_empty() {
        channel.send(9, packet.as_bytes());
    } else {
        channel.send_gpa(9, packet.as_bytes(), ranges);
    }
    let (id, answer) = receive(channel);
    assert_eq!((id, answer.operation.get(), answer.status.get()), (9, operation::COMPLETE_IO, 0));
    answer.scsi()
}

fn blocks(code: u8, lba: u32, count: u8) -> [u8; 10] {
    let [a, b, c, d] = lba.to_be_bytes();
    [code, 0, a, b, c, d, 0, 0, count, 0]
}

fn sense(request: &ScsiRequest) -> (u8, u8, u8) {
    assert_eq!((request.scsi_status, request.srb_status), (2, srb::ERROR | srb::AUTOSENSE_VALID));
    assert_eq!(request.sense_info_length, 18);
    let sense = request.cdb_or_sense;
    (sense[2], sense[12], sense[13])
}

#[test]
fn versions_are_negotiated_and_disorder_is_refused() {
    let rig = rig();
    let mut channel = rig.guest.open(&rig.controller, 0).unwrap();
    for early in [
        operation::QUERY_PROTOCOL_VERSION,
        operation::QUERY_PROPERTIES,
        operation::END_INITIALIZATION,
        operation::CREATE_SUB_CHANNELS,
    ] {
        assert_eq!(ask(&mut channel, early, 0x0602).status.get(), status::INVALID_DEVICE_STATE);
    }
    channel.send(3, request(&[0; 6], 0, 0).as_bytes());
    assert_eq!(receive(&mut channel).1.status.get(), status::INVALID_DEVICE_STATE);
    assert_eq!(ask(&mut channel, operation::BEGIN_INITIALIZATION, 0).status.get(), 0);
    for unknown in [0, 0x0100, 0x0603, 0x0700, 0xFFFF] {
        let answer = ask(&mut channel, operation::QUERY_PROTOCOL_VERSION, unknown);
        assert_eq!(answer.status.get(), status::REVISION_MISMATCH);
    }
    for (version, subchannels) in [(0x0200, 0), (0x0402, 0), (0x0501, 3), (0x0600, 3), (0x0602, 3)] {
        assert_eq!(ask(&mut channel, operation::QUERY_PROTOCOL_VERSION, version).status.get(), 0);
        let properties = ask(&mut channel, operation::QUERY_PROPERTIES, 0);
        let word = |at: usize| u16::from_le_bytes([properties.payload[at], properties.payload[at + 1]]);
        assert_eq!((word(4), word(8)), (subchannels, u16::from(subchannels > 0)));
        assert_eq!((word(12), word(14)), (0, 16), "transfers of 1 MiB");
    }
    assert_eq!(ask(&mut channel, operation::END_INITIALIZATION, 0).status.get(), 0);
    assert_eq!(ask(&mut channel, operation::FCHBA_DATA, 0).status.get(), status::INVALID_DEVICE_REQUEST);
    assert_eq!(ask(&mut channel, operation::CREATE_SUB_CHANNELS, 4).status.get(), status::INVALID_PARAMETER);
    assert_eq!(ask(&mut channel, operation::CREATE_SUB_CHANNELS, 3).status.get(), 0);
    assert_eq!(rig.guest.subchannels(), 3);
    // A guest that starts anew on the open channel.
    assert_eq!(ask(&mut channel, operation::BEGIN_INITIALIZATION, 0).status.get(), 0);
    assert_eq!(
        ask(&mut channel, operation::END_INITIALIZATION, 0).status.get(),
        status::INVALID_DEVICE_STATE
    );
}

#[test]
fn data_is_written_flushed_and_read_on_every_channel() {
    let rig = rig();
    let mut first = rig.open();
    let mut second = rig.guest.open(&rig.controller, 1).unwrap();
    let at = rig.guest.allocate(16384);
    let data: Vec<u8> = (0..4096u32).map(|n| (n * 7 % 251) as u8).collect();
    rig.guest.write(at + 512, &data);
    let done = execute(&mut second, 0, &blocks(WRITE_10, 5, 8), &[(at + 512, 4096)]);
    assert_eq!((done.srb_status, done.scsi_status, done.data_transfer_length.get()), (srb::SUCCESS, 0, 4096));
    assert_eq!(rig.disk.with(|disk| disk[5 * 512..5 * 512 + 4096].to_vec()), data);
    let flushed = execute(&mut first, 0, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!((flushed.srb_status, rig.disk.flushes()), (srb::SUCCESS, 1));
    // Scattered, and more room than data.
    let ranges = [(at + 8192 + 1024, 1536), (at + 12288, 4096)];
    let done = execute(&mut first, 0, &blocks(READ_10, 5, 8), &ranges);
    assert_eq!((done.srb_status, done.data_transfer_length.get()), (srb::SUCCESS, 4096));
    assert_eq!(rig.guest.read(at + 8192 + 1024, 1536), data[..1536]);
    assert_eq!(rig.guest.read(at + 12288, 2560), data[1536..]);
    assert_eq!(rig.guest.read(at + 12288 + 2560, 100), [0; 100]);
}

#[test]
fn failures_of_the_backing_file_are_sense_data_and_pass() {
    let rig = rig();
    let mut channel = rig.open();
    let at = rig.guest.allocate(4096);
    let flush = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // EIO, ENOSPC, EROFS, ENODEV: read, write, flush.
    for (errno, expected) in [
        (5, [(3, 0x11, 0), (3, 0x0C, 0), (3, 0x0C, 0)]),
        (28, [(3, 0x11, 0), (7, 0x27, 7), (7, 0x27, 7)]),
        (30, [(3, 0x11, 0), (7, 0x27, 0), (7, 0x27, 0)]),
        (19, [(4, 0x44, 0), (4, 0x44, 0), (4, 0x44, 0)]),
    ] {
        rig.disk.fail(errno);
        let found = [
            sense(&execute(&mut channel, 0, &blocks(READ_10, 0, 1), &[(at, 512)])),
            sense(&execute(&mut channel, 0, &blocks(WRITE_10, 0, 1), &[(at, 512)])),
            sense(&execute(&mut channel, 0, &flush, &[])),
        ];
        assert_eq!(found, expected, "error {errno}");
    }
    rig.disk.fail(0);
    let done = execute(&mut channel, 0, &blocks(WRITE_10, 0, 1), &[(at, 512)]);
    assert_eq!(done.srb_status, srb::SUCCESS);
    // A guest that leaves little room for sense data.
    let mut small = request(&blocks(READ_10, 9999, 1), 0, 512);
    let mut scsi = small.scsi();
    scsi.sense_info_length = 4;
    small.set_scsi(&scsi);
    channel.send_gpa(9, small.as_bytes(), &[(at, 512)]);
    let answer = receive(&mut channel).1.scsi();
    assert_eq!((answer.sense_info_length, answer.cdb_or_sense[2], answer.cdb_or_sense[12]), (4, 5, 0));
}

#[test]
fn requests_that_cannot_be_are_answered() {
    let rig = rig();
    let mut channel = rig.open();
    let at = rig.guest.allocate(4096);
    let port = |request: ScsiRequest| (request.srb_status, request.scsi_status);
    // Less memory than the command moves; memory that is not there; a block scattered over more pieces than one.
    assert_eq!(
        port(execute(&mut channel, 0, &blocks(READ_10, 0, 2), &[(at, 512)])),
        (srb::INVALID_REQUEST, 0)
    );
    let outside = execute(&mut channel, 0, &blocks(READ_10, 0, 1), &[(1 << 40, 512)]);
    assert_eq!(port(outside), (srb::INVALID_REQUEST, 0));
    let inquiry = execute(&mut channel, 0, &[0x12, 0, 0, 0, 36, 0], &[(1 << 40, 36)]);
    assert_eq!(port(inquiry), (srb::INVALID_REQUEST, 0));
    rig.guest.write(at, &[9; 512]);
    let same = execute(&mut channel, 0, &blocks(0x41, 0, 4), &[(at, 256), (at + 1024, 256)]);
    assert_eq!(port(same), (srb::INVALID_REQUEST, 0));
    assert_eq!(sense(&execute(&mut channel, 0, &[0xFF, 0, 0, 0, 0, 0], &[])), (5, 0x20, 0));
    assert_eq!(sense(&execute(&mut channel, 0, &blocks(READ_10, 2048, 1), &[(at, 512)])), (5, 0x21, 0));
    // One block over a range.
    let same = execute(&mut channel, 0, &blocks(0x41, 10, 4), &[(at, 512)]);
    assert_eq!(port(same), (srb::SUCCESS, 0));
    assert!(rig.disk.with(|disk| disk[5120..7168].iter().all(|byte| *byte == 9) && disk[7168] == 0));
    // A packet that is none costs the channel.
    channel.send(1, &[0; 40]);
    assert!(channel.run().is_err());
}

#[test]
fn units_come_and_go() {
    let rig = rig();
    let mut channel = rig.open();
    let at = rig.guest.allocate(4096);
    let luns = |channel: &mut FakeChannel| {
        let done = execute(channel, 0, &[0xA0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0], &[(at, 4096)]);
        let bytes = rig.guest.read(at, done.data_transfer_length.get() as usize);
        bytes[8..].chunks(8).map(|entry| entry[1]).collect::<Vec<u8>>()
    };
    assert_eq!(luns(&mut channel), [0]);
    assert_eq!(execute(&mut channel, 5, &[0; 6], &[]).srb_status, srb::INVALID_LUN);
    let nobody = execute(&mut channel, 5, &[0x12, 0, 0, 0, 36, 0], &[(at, 36)]);
    assert_eq!((nobody.srb_status, rig.guest.read(at, 1)[0]), (srb::SUCCESS, 0x7F));

    let mut young = rig.open();
    let other = Probe::new(4096);
    rig.controller.add(6, Arc::new(unit(&other, 6))).unwrap();
    // A driver that has sent no command yet is not told before it has.
    young.run().unwrap();
    assert!(young.receive().is_none());
    young.send(9, request(&[0; 6], 6, 0).as_bytes());
    young.run().unwrap();
    assert_eq!(young.receive().unwrap().kind, PacketKind::Completion);
    // Its waker has brought it here.
    young.run().unwrap();
    assert_eq!(young.receive().unwrap().kind, PacketKind::Inband);
    rig.controller.remove(6).unwrap();
    young.run().unwrap();
    assert_eq!(young.receive_all().len(), 1);
    drop(young);

    rig.controller.add(5, Arc::new(unit(&other, 2))).unwrap();
    assert!(rig.controller.add(5, Arc::new(unit(&other, 3))).is_err());
    assert!(rig.controller.add(64, Arc::new(unit(&other, 3))).is_err());
    channel.run().unwrap();
    let told = channel.receive().unwrap();
    assert_eq!((told.kind, told.transaction_id, told.completion_requested), (PacketKind::Inband, 0, false));
    assert_eq!(Packet::parse(told.payload()).unwrap().operation.get(), operation::ENUMERATE_BUS);
    assert_eq!(luns(&mut channel), [0, 5]);
    assert_eq!(execute(&mut channel, 5, &[0; 6], &[]).srb_status, srb::SUCCESS);

    rig.controller.remove(5).unwrap();
    assert!(rig.controller.remove(5).is_err());
    channel.run().unwrap();
    assert_eq!(channel.receive_all().len(), 1);
    assert_eq!(execute(&mut channel, 5, &[0; 6], &[]).srb_status, srb::INVALID_LUN);
    assert_eq!(luns(&mut channel), [0]);
}

#[test]
fn many_requests_at_a_time_and_a_reset_behind_them() {
    let rig = rig();
    let mut channel = rig.open();
    let at = rig.guest.allocate(512 * 512);
    // More than the controller takes at a time, fewer than the ring holds.
    let count = 400u64;
    for number in 0..count {
        rig.guest.write(at + number * 512, &[number as u8; 512]);
        let packet = request(&blocks(WRITE_10, number as u32, 1), 0, 512);
        channel.send_gpa(number, packet.as_bytes(), &[(at + number * 512, 512)]);
    }
    channel.send(1000, packet(operation::RESET_BUS, 0).as_bytes());
    let mut seen = vec![false; count as usize];
    for _ in 0..count {
        let (id, answer) = receive(&mut channel);
        assert_eq!(answer.scsi().srb_status, srb::SUCCESS);
        assert!(!std::mem::replace(&mut seen[id as usize], true), "answered twice");
    }
    // The reset is answered when nothing is under way any more.
    let (id, answer) = receive(&mut channel);
    assert_eq!((id, answer.status.get()), (1000, status::SUCCESS));
    rig.disk.with(|disk| {
        assert!((0..count as usize).all(|n| disk[n * 512..(n + 1) * 512] == [n as u8; 512]));
    });
}

#[test]
fn what_is_quickly_done_is_done_by_a_visit() {
    let rig = quick_rig();
    let mut channel = rig.open();
    let at = rig.guest.allocate(8192);
    rig.guest.write(at, &[5; 4096]);
    let signals = rig.guest.signals();
    channel.send_gpa(1, request(&blocks(WRITE_10, 8, 8), 0, 4096).as_bytes(), &[(at, 4096)]);
    assert!(channel.visit().unwrap());
    channel.send_gpa(2, request(&blocks(READ_10, 8, 8), 0, 4096).as_bytes(), &[(at + 4096, 4096)]);
    assert!(channel.visit().unwrap());
    let answers = channel.receive_all();
    assert_eq!(answers.iter().map(|packet| packet.transaction_id).collect::<Vec<_>>(), [1, 2]);
    let done = Packet::parse(answers[1].payload()).unwrap().scsi();
    assert_eq!((done.srb_status, done.data_transfer_length.get()), (srb::SUCCESS, 4096));
    assert_eq!(rig.guest.read(at + 4096, 4096), [5; 4096]);
    // The guest sleeps until the first answer, and has not looked when the second comes.
    assert_eq!(rig.guest.signals() - signals, 1);
    assert!(channel.visit().unwrap() && channel.receive().is_none());
}

#[test]
fn many_requests_at_a_time_become_the_threads_and_are_signalled_once() {
    let rig = quick_rig();
    let mut channel = rig.open();
    let at = rig.guest.allocate(4096);
    let mut round = |depth: u64, refused: &mut u64| {
        let before = channel.signals();
        for number in 0..depth {
            let signalled = channel.signals();
            channel.send_gpa(number, request(&blocks(READ_10, 0, 8), 0, 4096).as_bytes(), &[(at, 4096)]);
            if channel.signals() > signalled {
                *refused += u64::from(!channel.visit().unwrap());
            }
        }
        channel.run().unwrap();
        assert_eq!(channel.receive_all().len(), depth as usize);
        channel.signals() - before
    };
    let (mut singly, mut together) = (0, 0);
    for _ in 0..300 {
        assert_eq!(round(1, &mut singly), 1);
    }
    assert!((1..50).contains(&singly), "{singly} of 300 left to the thread");
    let signals: Vec<u64> = (0..100).map(|_| round(32, &mut together)).collect();
    assert_eq!(signals[0], 32, "each is visited");
    assert_eq!(signals[50..], [1; 50]);
    (0..32).for_each(|_| assert_eq!(round(1, &mut singly), 1));
    let before = singly;
    round(1, &mut singly);
    assert_eq!(singly, before, "visited again");
}

#[test]
fn a_visit_leaves_what_takes_long() {
    let rig = quick_rig();
    let mut channel = rig.open();
    let at = rig.guest.allocate(1 << 20);
    let mut durable = blocks(WRITE_10, 0, 1);
    durable[1] = 1 << 3;
    for cdb in [[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], durable] {
        let flushes = rig.disk.flushes();
        channel.send_gpa(1, request(&cdb, 0, 512).as_bytes(), &[(at, 512)]);
        // Nor does it go past it.
        channel.send_gpa(2, request(&blocks(READ_10, 0, 1), 0, 512).as_bytes(), &[(at, 512)]);
        assert!(!channel.visit().unwrap() && !channel.visit().unwrap());
        assert!(channel.receive().is_none() && rig.disk.flushes() == flushes);
        channel.run().unwrap();
        let answers = channel.receive_all();
        assert_eq!(answers.iter().map(|packet| packet.transaction_id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(rig.disk.flushes(), flushes + 1);
    }
    // Neither many nor large ones in one.
    for (count, length, most) in [(20, 512, 8), (3, 255 * 512, 2)] {
        for number in 0..count {
            let cdb = blocks(READ_10, 0, (length / 512) as u8);
            channel.send_gpa(number, request(&cdb, 0, length).as_bytes(), &[(at, length)]);
        }
        assert!(!channel.visit().unwrap());
        let first = channel.receive_all().len();
        assert!((1..=most).contains(&first), "{first}");
        channel.run().unwrap();
        assert_eq!(first + channel.receive_all().len(), count as usize);
    }
}

#[test]
fn failures_in_a_visit_are_told_and_a_broken_packet_is_the_end() {
    for rig in [rig(), quick_rig()] {
        let mut channel = rig.open();
        let at = rig.guest.allocate(4096);
        rig.disk.fail(5);
        channel.send_gpa(1, request(&blocks(READ_10, 0, 1), 0, 512).as_bytes(), &[(at, 512)]);
        assert!(!channel.visit().unwrap());
        assert!(channel.receive().is_none());
        assert_eq!(sense(&receive(&mut channel).1.scsi()), (3, 0x11, 0));
        rig.disk.fail(0);
        // Memory that is not there.
        channel.send_gpa(2, request(&blocks(READ_10, 0, 1), 0, 512).as_bytes(), &[(1 << 40, 512)]);
        assert!(!channel.visit().unwrap());
        assert_eq!(receive(&mut channel).1.scsi().srb_status, srb::INVALID_REQUEST);
        // Behind the end.
        channel.send_gpa(3, request(&blocks(READ_10, 2048, 1), 0, 512).as_bytes(), &[(at, 512)]);
        assert!(channel.visit().unwrap());
        assert_eq!(sense(&receive(&mut channel).1.scsi()), (5, 0x21, 0));
        channel.send(4, &[0; 40]);
        assert!(!channel.visit().unwrap());
        assert!(channel.run().is_err());
    }
}

proptest! {
    /// Whoever takes the guest's requests, they are done in order and each is answered once.
    #[test]
    fn visits_and_runs_take_turns(
        actions in prop::collection::vec((0u8..5, 0u32..64, 1u8..20, any::<u8>()), 1..80),
        pool: bool,
    ) {
        let rig = if pool { rig() } else { quick_rig() };
        let mut channel = rig.open();
        let at = rig.guest.allocate(80 * 10240);
        let mut expected = vec![0; 1 << 20];
        let (mut sent, mut seen) = (0u64, Vec::new());
        for (action, lba, count, byte) in actions {
            let len = u32::from(count) * 512;
            match action {
                0 | 1 => {
                    // With a pool, several are under way in any order: only one writer for each block then.
                    let lba = if pool { (sent * 20) as u32 } else { lba };
                    let gpa = at + sent * 10240;
                    let data = vec![byte; len as usize];
                    rig.guest.write(gpa, &data);
                    channel.send_gpa(sent, request(&blocks(WRITE_10, lba, count), 0, len).as_bytes(), &[(gpa, len)]);
                    expected[lba as usize * 512..][..len as usize].copy_from_slice(&data);
                    sent += 1;
                }
                2 => {
                    channel.send(sent, request(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, 0).as_bytes());
                    sent += 1;
                }
                3 => drop(channel.visit().unwrap()),
                _ => channel.run().unwrap(),
            }
            seen.extend(channel.receive_all().iter().map(|packet| packet.transaction_id));
        }
        while seen.len() < sent as usize {
            seen.push(receive(&mut channel).0);
        }
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..sent).collect::<Vec<_>>());
        prop_assert!(rig.disk.with(|disk| *disk == expected));
    }
}

#[test]
fn guests_before_windows_8_have_shorter_packets() {
    let rig = rig();
    let mut channel = rig.guest.open(&rig.controller, 0).unwrap();
    for (operation, word) in [
        (operation::BEGIN_INITIALIZATION, 0),
        (operation::QUERY_PROTOCOL_VERSION, 0x0402),
        (operation::END_INITIALIZATION, 0),
    ] {
        channel.send(1, &packet(operation, word).as_bytes()[..OLD_PACKET_SIZE]);
        channel.run().unwrap();
        assert_eq!(channel.receive().unwrap().payload().len(), OLD_PACKET_SIZE);
    }
    channel.send(2, &request(&[0; 6], 0, 0).as_bytes()[..OLD_PACKET_SIZE]);
    assert_eq!(receive(&mut channel).1.scsi().srb_status, srb::SUCCESS);
}

#[test]
fn a_closed_channel_touches_memory_no_more() {
    let rig = rig();
    let mut channel = rig.open();
    let at = rig.guest.allocate(1 << 20);
    for number in 0..64 {
        let packet = request(&blocks(READ_10, 0, 255), 0, 255 * 512);
        channel.send_gpa(number, packet.as_bytes(), &[(at + number * 512, 255 * 512)]);
    }
    rig.disk.with(|disk| disk.fill(1));
    channel.run().unwrap();
    drop(channel);
    rig.guest.write(at, &vec![2; 1 << 20]);
    std::thread::sleep(Duration::from_millis(20));
    assert!(rig.guest.read(at, 1 << 20).iter().all(|byte| *byte == 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_packets_are_answered_or_cost_the_channel(
        packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 48..72), 0u32..15, any::<bool>()), 1..30)
    ) {
        let rig = rig();
        let mut channel = rig.open();
        let at = rig.guest.allocate(4096);
        for (mut bytes, code, with_memory) in packets {
            bytes[..4].copy_from_slice(&code.to_le_bytes());
            if with_memory {
                channel.send_gpa(1, &bytes, &[(at, 700)]);
            } else {
                channel.send(1, &bytes);
            }
            if channel.run().is_err() {
                return Ok(());
            }
            for answer in channel.receive_all() {
                let answer = Packet::parse(answer.payload()).unwrap();
                prop_assert!(matches!(answer.operation.get(), operation::COMPLETE_IO | operation::ENUMERATE_BUS));
            }
        }
    }
}
