use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::scsi::cdb::opcode::*;
use crate::testing::Probe;

struct Bytes(Vec<u8>);

impl Payload for Bytes {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read(&self, at: usize, buffer: &mut [u8]) -> Option<()> {
        buffer.copy_from_slice(self.0.get(at..at.checked_add(buffer.len())?)?);
        Some(())
    }
}

const BLOCKS: u64 = 256;

fn disk(read_only: bool) -> Lun {
    let medium = Probe::new(BLOCKS as usize * 512).medium(512, read_only);
    Lun::new(Kind::Disk, Identity::new(Uuid::from_u128(7), None), Some(medium))
}

fn dvd() -> Lun {
    let medium = Probe::new(64 * 2048).medium(2048, true);
    Lun::new(Kind::Dvd, Identity::new(Uuid::from_u128(8), None), Some(medium))
}

fn execute(lun: &Lun, cdb: &[u8], payload: Vec<u8>) -> Outcome {
    let mut whole = cdb.to_vec();
    whole.resize(16, 0);
    match Command::parse(&whole) {
        Ok(command) => lun.execute(command, &Bytes(payload)),
        Err(sense) => Outcome::Failed(sense),
    }
}

fn data(outcome: Outcome) -> Vec<u8> {
    match outcome {
        Outcome::Data(data) => data,
        other => panic!("{}", word(&other)),
    }
}

fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => "done".into(),
        Outcome::Data(data) => format!("data {data:02x?}"),
        Outcome::Failed(sense) => format!("{:x}/{:02x}/{:02x}", sense.key, sense.asc, sense.ascq),
        Outcome::Invalid => "invalid".into(),
        Outcome::Nobody => "nobody".into(),
        Outcome::Steps(_, steps) => format!("{steps:?}"),
    }
}

#[track_caller]
fn fails(outcome: Outcome, sense: Sense) {
    assert!(matches!(outcome, Outcome::Failed(found) if found == sense), "{}", word(&outcome));
}

#[track_caller]
fn steps(outcome: Outcome) -> Vec<Step> {
    match outcome {
        Outcome::Steps(_, steps) => steps.as_slice().to_vec(),
        other => panic!("{}", word(&other)),
    }
}

#[test]
fn capacity_is_that_of_the_medium() {
    let lun = disk(false);
    assert_eq!(data(execute(&lun, &[READ_CAPACITY_10], vec![])), [0, 0, 0, 255, 0, 0, 2, 0]);
    let long =
        data(execute(&lun, &[SERVICE_ACTION_IN_16, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], vec![]));
    assert_eq!((long.len(), long[7], long[10], long[13], long[14]), (32, 255, 2, 3, 0xC0));
    // A disk of more than 2 TiB says in the short form that the long one is needed.
    let huge = huge_disk();
    assert_eq!(data(execute(&huge, &[READ_CAPACITY_10], vec![]))[..4], [0xFF; 4]);
}

/// A disk of 4 TiB, of which there is one block.
fn huge_disk() -> Lun {
    let mut medium = Probe::new(512).medium(512, false);
    let Some(inner) = Arc::get_mut(&mut medium) else { panic!("nobody else has it") };
    inner.facts.size = 4 << 40;
    Lun::new(Kind::Disk, Identity::new(Uuid::from_u128(7), None), Some(medium))
}

#[test]
fn transfers_stay_within_the_disk_and_the_data() {
    let lun = disk(false);
    let read = |lba: u32, count: u8| {
        let mut cdb = vec![READ_10, 0];
        cdb.extend(lba.to_be_bytes());
        cdb.extend([0, 0, count]);
        execute(&lun, &cdb, vec![0; 8192])
    };
    let one = Step { operation: Operation::Read, offset: 254 * 512, len: 1024, data: StepData::Payload };
    assert_eq!(steps(read(254, 2)), [one]);
    fails(read(255, 2), Sense::OUT_OF_RANGE);
    fails(read(u32::MAX, 1), Sense::OUT_OF_RANGE);
    assert!(matches!(read(256, 0), Outcome::Done));
    fails(read(257, 0), Sense::OUT_OF_RANGE);
    // More blocks than the guest gave memory for.
    assert!(matches!(read(0, 17), Outcome::Invalid));
    // More than a request may move.
    let huge = huge_disk();
    fails(execute(&huge, &[READ_16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0], vec![]), Sense::INVALID_FIELD);
    fails(
        execute(&huge, &[READ_16, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255], vec![]),
        Sense::OUT_OF_RANGE,
    );
}

#[test]
fn flushes_and_unit_access_reach_the_engine() {
    let lun = disk(false);
    let write = steps(execute(&lun, &[WRITE_10, 8, 0, 0, 0, 0, 0, 0, 1], vec![0; 512]));
    assert_eq!(write[0].operation, Operation::Write { durable: true });
    for code in [SYNCHRONIZE_CACHE_10, SYNCHRONIZE_CACHE_16] {
        assert_eq!(steps(execute(&lun, &[code], vec![]))[0].operation, Operation::Flush);
    }
    fails(execute(&lun, &[SYNCHRONIZE_CACHE_10, 0, 0, 0, 2], vec![]), Sense::OUT_OF_RANGE);
}

#[test]
fn read_only_disks_say_so_everywhere() {
    let lun = disk(true);
    for cdb in [
        &[WRITE_10, 0, 0, 0, 0, 0, 0, 0, 1][..],
        &[WRITE_6, 0, 0, 0, 1],
        &[WRITE_SAME_10, 0, 0, 0, 0, 0, 0, 0, 1],
        &[UNMAP, 0, 0, 0, 0, 0, 0, 0, 24],
    ] {
        fails(execute(&lun, cdb, vec![0; 512]), Sense::WRITE_PROTECTED);
    }
    assert!(matches!(execute(&lun, &[SYNCHRONIZE_CACHE_10], vec![]), Outcome::Done));
    assert_eq!(data(execute(&lun, &[MODE_SENSE_6, 0, 0x3F, 0, 255], vec![]))[2] & 0x80, 0x80);
    assert_eq!(data(execute(&disk(false), &[MODE_SENSE_6, 0, 0x3F, 0, 255], vec![]))[2] & 0x80, 0);
}

/// An UNMAP list of these ranges.
fn unmap_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let length = 16 * ranges.len() as u16;
    let mut list = vec![];
    list.extend((length + 6).to_be_bytes());
    list.extend(length.to_be_bytes());
    list.extend([0; 4]);
    for (lba, count) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap_of(lun: &Lun, list: Vec<u8>, length: u16) -> Outcome {
    let [high, low] = length.to_be_bytes();
    execute(lun, &[UNMAP, 0, 0, 0, 0, 0, 0, high, low], list)
}

#[test]
fn unmap_takes_lists() {
    let lun = disk(false);
    let list = unmap_list(&[(0, 8), (100, 0), (248, 8)]);
    let length = list.len() as u16;
    let found = steps(unmap_of(&lun, list.clone(), length));
    let discard =
        |lba: u64| Step { operation: Operation::Discard, offset: lba * 512, len: 4096, data: StepData::None };
    assert_eq!(found, [discard(0), discard(248)]);
    assert!(matches!(unmap_of(&lun, list.clone(), 0), Outcome::Done));
    fails(unmap_of(&lun, list.clone(), 7), Sense::PARAMETER_LENGTH);
    assert!(matches!(unmap_of(&lun, list.clone(), length + 1), Outcome::Invalid));
    // A list that is cut in the middle of a range loses that range.
    assert_eq!(steps(unmap_of(&lun, list, length - 1)).len(), 1);
    let wrong = unmap_list(&[(0, 8), (249, 8)]);
    fails(unmap_of(&lun, wrong, 40), Sense::OUT_OF_RANGE);
    let many = unmap_list(&vec![(0, 1); MAX_UNMAP_RANGES + 1]);
    let length = many.len() as u16;
    fails(unmap_of(&lun, many, length), Sense::INVALID_PARAMETER);
    let huge = unmap_list(&[(0, 0x0200_0000)]);
    fails(unmap_of(&huge_disk(), huge, 24), Sense::INVALID_PARAMETER);
}

#[test]
fn write_same_is_zeroes_or_one_block_many_times() {
    let lun = disk(false);
    let ten = [WRITE_SAME_10, 8, 0, 0, 0, 1, 0, 0, 4];
    let zeroes = steps(execute(&lun, &ten, vec![0; 512]));
    let operation = Operation::WriteZeroes { unmap: true };
    assert_eq!(zeroes, [Step { operation, offset: 512, len: 2048, data: StepData::None }]);
    let same = steps(execute(&lun, &ten, vec![7; 512]));
    let operation = Operation::Write { durable: false };
    assert_eq!(same, [Step { operation, offset: 512, len: 2048, data: StepData::FirstBlock }]);
    assert!(matches!(execute(&lun, &ten, vec![7; 511]), Outcome::Invalid));
    fails(execute(&lun, &[WRITE_SAME_10], vec![0; 512]), Sense::INVALID_FIELD);
    // Without data, by NDOB.
    let sixteen = [WRITE_SAME_16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255];
    let operation = Operation::WriteZeroes { unmap: false };
    assert_eq!(steps(execute(&lun, &sixteen, vec![]))[0].operation, operation);
    // More blocks than one call of the kernel takes.
    let huge = huge_disk();
    let many =
        steps(execute(&huge, &[WRITE_SAME_16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255], vec![1; 512]));
    assert_eq!(many.iter().map(|step| step.len).sum::<u64>(), 65535 * 512);
    assert!(many.windows(2).all(|pair| pair[0].offset + pair[0].len == pair[1].offset));
}

#[test]
fn a_dvd_comes_and_goes() {
    let lun = dvd();
    let ejects = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counter = ejects.clone();
    lun.tell_ejects(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    assert!(matches!(execute(&lun, &[TEST_UNIT_READY], vec![]), Outcome::Done));
    assert_eq!(data(execute(&lun, &[READ_CAPACITY_10], vec![])), [0, 0, 0, 63, 0, 0, 8, 0]);
    assert_eq!(steps(execute(&lun, &[READ_12, 0, 0, 0, 0, 1, 0, 0, 0, 2], vec![0; 4096]))[0].offset, 2048);
    fails(execute(&lun, &[WRITE_10, 0, 0, 0, 0, 0, 0, 0, 1], vec![0; 2048]), Sense::INVALID_OPCODE);
    // Locked, then ejected by the guest.
    assert!(matches!(execute(&lun, &[PREVENT_ALLOW_REMOVAL, 0, 0, 0, 1], vec![]), Outcome::Done));
    fails(execute(&lun, &[START_STOP_UNIT, 0, 0, 0, 2], vec![]), Sense::REMOVAL_PREVENTED);
    assert!(matches!(execute(&lun, &[PREVENT_ALLOW_REMOVAL], vec![]), Outcome::Done));
    assert_eq!(ejects.load(Ordering::Relaxed), 0);
    for _ in 0..2 {
        assert!(matches!(execute(&lun, &[START_STOP_UNIT, 0, 0, 0, 2], vec![]), Outcome::Done));
    }
    assert_eq!(ejects.load(Ordering::Relaxed), 1, "there was one disc");
    fails(execute(&lun, &[TEST_UNIT_READY], vec![]), Sense::NO_MEDIUM);
    fails(execute(&lun, &[READ_TOC, 0, 0, 0, 0, 0, 0, 0, 99], vec![]), Sense::NO_MEDIUM);
    // Another one from outside: told once, and as an event.
    lun.change_medium(Some(Probe::new(2048).medium(2048, true)));
    fails(execute(&lun, &[TEST_UNIT_READY], vec![]), Sense::MEDIUM_CHANGED);
    assert!(matches!(execute(&lun, &[TEST_UNIT_READY], vec![]), Outcome::Done));
    let event = [GET_EVENT_STATUS, 1, 0, 0, 0x10, 0, 0, 0, 8];
    assert_eq!(data(execute(&lun, &event, vec![]))[4..6], [2, 2]);
    assert_eq!(data(execute(&lun, &event, vec![]))[4..6], [0, 2]);
}

#[test]
fn the_button_of_a_locked_drive_is_told_as_an_event() {
    let lun = dvd();
    assert!(!lun.is_locked());
    execute(&lun, &[PREVENT_ALLOW_REMOVAL, 0, 0, 0, 1], vec![]);
    assert!(lun.is_locked());
    lun.request_eject();
    let event = [GET_EVENT_STATUS, 1, 0, 0, 0x10, 0, 0, 0, 8];
    assert_eq!(data(execute(&lun, &event, vec![]))[4..6], [1, 2]);
    assert_eq!(data(execute(&lun, &event, vec![]))[4..6], [0, 2]);
    // Nothing else has happened to the medium.
    assert!(matches!(execute(&lun, &[TEST_UNIT_READY], vec![]), Outcome::Done));
    // The next guest has locked nothing, and nothing is locked in an empty drive.
    lun.restart();
    assert!(!lun.is_locked());
    execute(&lun, &[PREVENT_ALLOW_REMOVAL, 0, 0, 0, 1], vec![]);
    lun.change_medium(None);
    assert!(!lun.is_locked());
}

#[test]
fn a_grown_disk_has_its_new_capacity() {
    let probe = Probe::new(1 << 20);
    let medium = probe.medium(512, false);
    probe.with(|data| data[..4].copy_from_slice(b"kept"));
    for (size, words) in [((1 << 20) - 512, "only be grown"), ((1 << 20) + 100, "multiple of 512")] {
        let error = medium.resized(Some(size)).err().unwrap();
        assert!(error.contains(words), "{error}");
    }
    let lun = Lun::new(Kind::Disk, Identity::new(Uuid::from_u128(7), None), Some(medium.clone()));
    lun.change_medium(Some(Arc::new(medium.resized(Some(2 << 20)).unwrap())));
    fails(execute(&lun, &[READ_CAPACITY_10], vec![]), Sense::CAPACITY_CHANGED);
    assert_eq!(data(execute(&lun, &[READ_CAPACITY_10], vec![])), [0, 0, 15, 255, 0, 0, 2, 0]);
    probe.with(|data| assert_eq!((&data[..4], data.len()), (&b"kept"[..], 2 << 20)));
    // Somebody else made it larger, then smaller than the guest knows it.
    probe.with(|data| data.resize(3 << 20, 0));
    assert_eq!(medium.resized(None).unwrap().facts.size, 3 << 20);
    probe.with(|data| data.truncate(1000));
    assert!(medium.resized(None).err().unwrap().contains("smaller"));
    let fixed = Probe::new(4096).medium(512, true);
    assert!(fixed.resized(Some(8192)).err().unwrap().contains("read-only"));
    probe.fail(28);
    assert!(medium.resized(Some(4 << 20)).err().unwrap().contains("cannot be grown"));
}

#[test]
fn a_changed_size_is_told_once() {
    let lun = disk(false);
    lun.change_medium(Some(Probe::new(1 << 20).medium(512, false)));
    assert_eq!(data(execute(&lun, &[INQUIRY, 0, 0, 0, 36], vec![])).len(), 36);
    fails(execute(&lun, &[TEST_UNIT_READY], vec![]), Sense::CAPACITY_CHANGED);
    assert!(matches!(execute(&lun, &[TEST_UNIT_READY], vec![]), Outcome::Done));
    lun.change_medium(Some(Probe::new(1 << 20).medium(512, false)));
    let sense = data(execute(&lun, &[REQUEST_SENSE, 0, 0, 0, 18], vec![]));
    assert_eq!((sense[2], sense[12], sense[13]), (6, 0x2A, 9));
    assert!(matches!(execute(&lun, &[TEST_UNIT_READY], vec![]), Outcome::Done));
}

#[test]
fn units_are_reported() {
    let outcome = report_luns(0, 4096, &[0, 5, 63]);
    let bytes = data(outcome.into());
    assert_eq!((bytes.len(), bytes[3], bytes[9], bytes[17], bytes[25]), (32, 24, 0, 5, 63));
    assert_eq!(data(report_luns(1, 4096, &[0]).into()).len(), 8);
    assert_eq!(data(report_luns(0, 10, &[0]).into()).len(), 10);
    assert!(report_luns(9, 4096, &[]).is_err());
}

proptest! {
    #[test]
    fn whatever_is_asked_no_step_leaves_the_medium(
        cdb in prop::collection::vec(any::<u8>(), 16),
        code in prop::sample::select(vec![
            0x08u8, 0x0A, 0x28, 0x2A, 0x2F, 0x35, 0x41, 0x42, 0x88, 0x8A, 0x8F, 0x91, 0x93, 0x9E, 0xA8, 0xAA,
        ]),
        small in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 0..2048),
        is_dvd in any::<bool>(),
    ) {
        let mut cdb = cdb;
        cdb[0] = code;
        if small {
            // Addresses near the disk's end, else nearly all are far out.
            cdb[2..5].fill(0);
            cdb[6..9].fill(0);
        }
        let lun = if is_dvd { dvd() } else { disk(false) };
        if let Outcome::Steps(medium, steps) = execute(&lun, &cdb, payload.clone()) {
            prop_assert!(!steps.as_slice().is_empty());
            for step in steps.as_slice() {
                let end = step.offset.checked_add(step.len);
                prop_assert!(end.is_some_and(|end| end <= medium.facts.size), "{:?}", step);
                let block = u64::from(medium.facts.block);
                prop_assert_eq!((step.offset % block, step.len % block), (0, 0));
                match step.data {
                    StepData::Payload => prop_assert!(step.len <= payload.len() as u64),
                    StepData::FirstBlock => prop_assert!(payload.len() as u64 >= block),
                    StepData::None => {}
                }
            }
        }
    }

    #[test]
    fn answers_are_never_longer_than_wanted(
        cdb in prop::collection::vec(any::<u8>(), 16), is_dvd in any::<bool>(), allocation in 0u8..64
    ) {
        let mut cdb = cdb;
        for code in [0x03, 0x12, 0x1A] {
            cdb[0] = code;
            (cdb[3], cdb[4]) = (0, allocation);
            let lun = if is_dvd { dvd() } else { disk(false) };
            if let Outcome::Data(data) = execute(&lun, &cdb, vec![]) {
                prop_assert!(data.len() <= usize::from(allocation));
            }
        }
        for code in [0x43, 0x46, 0x4A, 0x51, 0x52, 0x5A] {
            cdb[0] = code;
            (cdb[7], cdb[8]) = (0, allocation);
            let lun = if is_dvd { dvd() } else { disk(false) };
            if let Outcome::Data(data) = execute(&lun, &cdb, vec![]) {
                prop_assert!(data.len() <= usize::from(allocation));
            }
        }
    }
}
