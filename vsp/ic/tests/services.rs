//! Each service with a guest that behaves, and with one that does not.

mod common;

use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use common::{Asked, Bench, reply, u32_at};
use parterre_vsp_ic::copy::{Destination, FileCopy, PIECE};
use parterre_vsp_ic::heartbeat::{Health, Heartbeat};
use parterre_vsp_ic::kvp::{self, Item, KeyValue, Pool};
use parterre_vsp_ic::shutdown::{Action, Shutdown};
use parterre_vsp_ic::timesync::{Clock, TimeSync};
use parterre_vsp_ic::vss::{self, Backup, FileSystems, Thawed};
use parterre_vsp_ic::{Failure, Link, Service, Status, Version};

const FAIL: u32 = 0x8000_4005;
const NO_MORE: u32 = 0x8007_0103;

// Heartbeat.

fn beat(bench: &mut Bench<Heartbeat>) {
    bench.wait_for_deadline();
    let asked = bench.asked().unwrap();
    let number = asked.body()[0] + 1;
    let answer = asked.answer(0, |body| body[0] = number);
    bench.receive(&answer).unwrap();
}

#[test]
fn a_heart_that_beats_is_ok_and_one_that_stops_is_lost() {
    let mut bench = Bench::running(Heartbeat::default(), None);
    let health = |bench: &Bench<Heartbeat>| bench.session.protocol().health(bench.now);
    assert_eq!(health(&bench), Health::NoContact);
    let start = bench.now;
    for _ in 0..5 {
        beat(&mut bench);
        assert_eq!(health(&bench), Health::Ok);
    }
    assert_eq!(bench.now - start, Duration::from_secs(8));
    bench.wait_for_deadline();
    bench.asked().unwrap();
    bench.wait(9);
    // Only one beat is on its way, and a while later another.
    assert!(bench.asked().is_none());
    bench.wait(1);
    assert_eq!(health(&bench), Health::Lost);
    let asked = bench.asked().unwrap();
    let number = asked.body()[0] + 1;
    let answer = asked.answer(0, |body| body[0] = number);
    bench.receive(&answer).unwrap();
    assert_eq!(health(&bench), Health::Ok);
}

#[test]
fn a_wrong_number_is_no_sign_of_life() {
    let mut bench = Bench::running(Heartbeat::default(), Some(Version::new(1, 0)));
    for _ in 0..3 {
        bench.wait_for_deadline();
        let asked = bench.asked().unwrap();
        bench.answer(asked, 0);
    }
    bench.wait_for_deadline();
    let mut short = bench.asked().unwrap().answer(0, |_| {});
    short.truncate(30);
    bench.receive(&short).unwrap();
    assert_eq!(bench.session.protocol().health(bench.now), Health::NoContact);
    assert_eq!(bench.session.protocol().wrong_numbers(), 4);
    beat(&mut bench);
    assert_eq!(bench.session.protocol().health(bench.now), Health::Ok);
}

// Time.

struct TestClock(Option<u64>);

impl Clock for TestClock {
    fn time_of_day(&mut self) -> u64 {
        0x0102_0304_0506_0708
    }
    fn reference_time(&mut self) -> Option<u64> {
        self.0
    }
}

fn time_flags(bench: &mut Bench<TimeSync<TestClock>>, at: usize) -> u8 {
    bench.wait_for_deadline();
    let asked = bench.asked().unwrap();
    assert_eq!(asked.body()[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
    let flags = asked.body()[at];
    bench.answer(asked, 0);
    flags
}

#[test]
fn the_clock_is_set_at_the_start_and_after_a_pause() {
    let mut bench = Bench::running(TimeSync::new(TestClock(Some(7))), None);
    assert_eq!(time_flags(&mut bench, 16), 1);
    assert_eq!(time_flags(&mut bench, 16), 2);
    bench.session.protocol_mut().synchronize();
    let before = bench.now;
    assert_eq!(time_flags(&mut bench, 16), 1);
    assert_eq!(bench.now, before);
    assert_eq!(time_flags(&mut bench, 16), 2);
    assert_eq!(bench.session.protocol().synchronized(), 2);
}

#[test]
fn a_message_that_sets_the_clock_is_repeated_until_it_arrives() {
    let mut bench = Bench::running(TimeSync::new(TestClock(Some(7))), None);
    assert_eq!(bench.asked().unwrap().body()[8], 7);
    bench.wait(5);
    assert_eq!(time_flags(&mut bench, 16), 1);
    assert_eq!(time_flags(&mut bench, 16), 2);
    // A sample that is lost is not repeated as anything else.
    bench.wait_for_deadline();
    bench.asked().unwrap();
    bench.wait(5);
    assert_eq!(time_flags(&mut bench, 16), 2);
}

#[test]
fn without_reference_time_an_older_version_is_offered() {
    let mut bench = Bench::running(TimeSync::new(TestClock(None)), None);
    assert!(matches!(bench.session.link(), Link::Running(choice) if choice.version == Version::new(3, 0)));
    assert_eq!(time_flags(&mut bench, 24), 1);
}

// Shutdown.

#[test]
fn a_guest_is_asked_to_shut_down_and_its_answer_is_told() {
    let mut bench = Bench::running(Shutdown::default(), None);
    let (reply, outcome) = reply();
    bench.session.order().unwrap().request(Action::Restart, true, "maintenance", reply);
    let asked = bench.asked().unwrap();
    assert_eq!((asked.body().len(), u32_at(asked.body(), 8)), (2060, 3));
    assert_eq!(asked.body()[12..16], [b'm', 0, b'a', 0]);
    assert_eq!(outcome.try_recv(), Err(TryRecvError::Empty));
    bench.answer(asked, 0);
    assert_eq!(outcome.recv().unwrap(), Ok(()));
}

#[test]
fn a_guest_that_refuses_or_is_silent_or_old_is_told_apart() {
    let mut bench = Bench::running(Shutdown::default(), Some(Version::new(1, 0)));
    let request = |bench: &mut Bench<Shutdown>, action| {
        let (reply, outcome) = reply();
        bench.session.order().unwrap().request(action, false, "", reply);
        outcome
    };
    let outcome = request(&mut bench, Action::Restart);
    assert_eq!(outcome.recv().unwrap(), Err(Failure::Refused(Status::NOT_SUPPORTED)));
    let outcome = request(&mut bench, Action::PowerOff);
    let asked = bench.asked().unwrap();
    bench.answer(asked, FAIL);
    assert_eq!(outcome.recv().unwrap(), Err(Failure::Refused(Status::FAIL)));
    let outcome = request(&mut bench, Action::PowerOff);
    bench.asked().unwrap();
    bench.wait_for_deadline();
    assert!(bench.asked().is_none());
    assert!(matches!(outcome.recv().unwrap(), Err(Failure::NoAnswer { service: Service::Shutdown, .. })));
    let outcome = request(&mut bench, Action::PowerOff);
    bench.session.close();
    assert_eq!(outcome.recv().unwrap(), Err(Failure::Closed));
    assert!(bench.session.order().is_err());
}

// Data exchange.

/// Answers a request for an item from a list, as Linux's daemon would.
fn serve_item(bench: &mut Bench<KeyValue>, asked: Asked, items: &[(&str, &str)]) {
    assert_eq!(asked.body()[0], 3);
    let index = u32_at(asked.body(), 4) as usize;
    let Some((key, value)) = items.get(index) else { return bench.answer(asked, NO_MORE) };
    let write = |field: &mut [u8], text: &str| {
        let units: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        field[..units.len()].copy_from_slice(&units);
        units.len() as u32
    };
    let answer = asked.answer(0, |body| {
        let (key_size, value_size) = (write(&mut body[20..], key), write(&mut body[532..], value));
        body[8..12].copy_from_slice(&1u32.to_le_bytes());
        body[12..16].copy_from_slice(&key_size.to_le_bytes());
        body[16..20].copy_from_slice(&value_size.to_le_bytes());
    });
    bench.receive(&answer).unwrap();
}

fn item(key: &str, value: &str) -> Item {
    Item { key: key.into(), value: value.into() }
}

#[test]
fn the_guest_is_told_who_it_is_and_asked_what_it_is() {
    let facts = vec![item("VirtualMachineName", "web")];
    let mut bench = Bench::running(KeyValue::new(facts, vec![item("role", "front")]), None);
    for pool in [Pool::AutoExternal, Pool::External] {
        let asked = bench.asked().unwrap();
        assert_eq!(asked.body()[..2], [1, pool as u8]);
        bench.answer(asked, 0);
    }
    assert!(bench.asked().is_none());
    bench.wait_for_deadline();
    let guest = [("OSName", "Debian GNU/Linux"), ("OSVersion", "6.1.0")];
    while let Some(asked) = bench.asked() {
        serve_item(&mut bench, asked, &guest);
    }
    let protocol = bench.session.protocol();
    assert_eq!(protocol.guest_item("OSName"), Some("Debian GNU/Linux"));
    assert_eq!(protocol.guest_items().len(), 2);
    assert_eq!(bench.session.deadline(), Some(bench.now + kvp::REFRESH));
}

#[test]
fn pools_are_read_and_written() {
    let mut bench = Bench::running(KeyValue::default(), None);
    let (read_reply, read) = reply();
    let (set_reply, set) = reply();
    let (long_reply, long) = reply();
    let order = bench.session.order().unwrap();
    order.read(Pool::Guest, read_reply);
    order.set(Pool::External, item("k", "v"), set_reply);
    order.set(Pool::External, item("k", &"v".repeat(2000)), long_reply);
    assert!(matches!(long.recv().unwrap(), Err(Failure::Invalid(_))));
    for _ in 0..3 {
        let asked = bench.asked().unwrap();
        assert_eq!(asked.body()[1], Pool::Guest as u8);
        serve_item(&mut bench, asked, &[("a", "1"), ("b", "2")]);
    }
    assert_eq!(read.recv().unwrap(), Ok(vec![item("a", "1"), item("b", "2")]));
    let asked = bench.asked().unwrap();
    bench.answer(asked, FAIL);
    assert_eq!(set.recv().unwrap(), Err(Failure::Refused(Status::FAIL)));
}

#[test]
fn a_guest_with_endless_items_is_not_listened_to_for_ever() {
    let mut bench = Bench::running(KeyValue::default(), None);
    let (read_reply, read) = reply();
    bench.session.order().unwrap().read(Pool::Guest, read_reply);
    let endless: Vec<_> = (0..2 * kvp::MAX_ITEMS).map(|_| ("k", "v")).collect();
    let mut asked = 0;
    while let Some(request) = bench.asked() {
        serve_item(&mut bench, request, &endless);
        asked += 1;
    }
    assert_eq!((asked, read.recv().unwrap().unwrap().len()), (kvp::MAX_ITEMS, kvp::MAX_ITEMS));
}

#[test]
fn a_daemon_that_dies_costs_a_time_out() {
    let mut bench = Bench::running(KeyValue::default(), None);
    let (read_reply, read) = reply();
    bench.session.order().unwrap().read(Pool::Guest, read_reply);
    let asked = bench.asked().unwrap();
    bench.wait_for_deadline();
    assert!(bench.asked().is_some(), "the next request is the refresh that came due");
    assert!(matches!(read.recv().unwrap(), Err(Failure::NoAnswer { .. })));
    // The late answer is for a transaction that is over.
    bench.answer(asked, 0);
    assert_eq!(bench.session.strays(), 1);
}

// Backup.

fn step(bench: &mut Bench<Backup>, operation: u8, status: u32) {
    let asked = bench.asked().unwrap();
    assert_eq!((asked.body()[0], asked.body().len()), (operation, 12));
    bench.answer(asked, status);
}

#[test]
fn file_systems_are_frozen_and_thawed() {
    let mut bench = Bench::running(Backup::default(), None);
    let (freeze_reply, freeze) = reply();
    bench.session.order().unwrap().freeze(Duration::from_secs(30), freeze_reply);
    step(&mut bench, 2, 0);
    assert_eq!(freeze.try_recv(), Err(TryRecvError::Empty));
    step(&mut bench, 5, 0);
    assert_eq!(freeze.recv().unwrap(), Ok(()));
    assert_eq!(bench.session.protocol().file_systems(), FileSystems::Frozen);
    let (again_reply, again) = reply();
    bench.session.order().unwrap().freeze(Duration::from_secs(30), again_reply);
    assert!(matches!(again.recv().unwrap(), Err(Failure::Conflict(_))));
    bench.wait(29);
    assert!(bench.asked().is_none());
    let (thaw_reply, thaw) = reply();
    bench.session.order().unwrap().thaw(thaw_reply);
    step(&mut bench, 6, 0);
    assert_eq!(thaw.recv().unwrap(), Ok(Thawed::WasFrozen));
    step(&mut bench, 4, 0);
    assert!(bench.asked().is_none());
    assert_eq!(bench.session.deadline(), None);
}

#[test]
fn nobody_can_leave_a_guest_frozen() {
    let mut bench = Bench::running(Backup::default(), None);
    let (freeze_reply, freeze) = reply();
    bench.session.order().unwrap().freeze(Duration::from_secs(30), freeze_reply);
    step(&mut bench, 2, 0);
    step(&mut bench, 5, 0);
    assert_eq!(freeze.recv().unwrap(), Ok(()));
    bench.wait_for_deadline();
    step(&mut bench, 6, 0);
    step(&mut bench, 4, 0);
    let (thaw_reply, thaw) = reply();
    bench.session.order().unwrap().thaw(thaw_reply);
    assert_eq!(thaw.recv().unwrap(), Ok(Thawed::WasNot));
    assert!(bench.asked().is_none());
}

#[test]
fn a_thaw_that_is_ordered_while_the_guest_is_thawed_by_itself_is_told_how_that_ends() {
    for answer in [0, FAIL] {
        let mut bench = Bench::running(Backup::default(), None);
        let (freeze_reply, _freeze) = reply();
        bench.session.order().unwrap().freeze(Duration::from_secs(30), freeze_reply);
        step(&mut bench, 2, 0);
        step(&mut bench, 5, 0);
        bench.wait_for_deadline();
        // The guest has been asked and has not answered.
        assert_eq!(bench.asked().unwrap().body()[0], 6);
        let (thaw_reply, thaw) = reply();
        bench.session.order().unwrap().thaw(thaw_reply);
        assert_eq!(thaw.try_recv(), Err(TryRecvError::Empty));
        // Two at a time are one too many.
        let (other_reply, other) = reply();
        bench.session.order().unwrap().thaw(other_reply);
        assert!(matches!(other.recv().unwrap(), Err(Failure::Conflict(_))));
        bench.wait_for_deadline();
        step(&mut bench, 6, answer);
        if answer == FAIL {
            step(&mut bench, 6, FAIL);
            assert!(matches!(thaw.recv().unwrap(), Err(Failure::Refused(_))));
        } else {
            assert_eq!(thaw.recv().unwrap(), Ok(Thawed::WasNot));
        }
    }
}

#[test]
fn a_guest_that_does_not_say_whether_it_froze_is_thawed() {
    for silent in [false, true] {
        let mut bench = Bench::running(Backup::default(), None);
        let (freeze_reply, freeze) = reply();
        bench.session.order().unwrap().freeze(Duration::from_secs(30), freeze_reply);
        step(&mut bench, 2, 0);
        if silent {
            bench.asked().unwrap();
            bench.wait_for_deadline();
        } else {
            step(&mut bench, 5, FAIL);
        }
        step(&mut bench, 6, 0);
        assert!(freeze.recv().unwrap().is_err());
        step(&mut bench, 4, 0);
        assert_eq!(bench.session.protocol().file_systems(), FileSystems::Thawed);
    }
}

#[test]
fn a_guest_that_does_not_say_that_it_thawed_is_asked_again() {
    let mut bench = Bench::running(Backup::default(), None);
    let (freeze_reply, freeze) = reply();
    bench.session.order().unwrap().freeze(Duration::from_secs(30), freeze_reply);
    step(&mut bench, 2, 0);
    step(&mut bench, 5, 0);
    assert_eq!(freeze.recv().unwrap(), Ok(()));
    // The second answer counts.
    let (first_reply, first) = reply();
    bench.session.order().unwrap().thaw(first_reply);
    step(&mut bench, 6, FAIL);
    assert_eq!(first.try_recv(), Err(TryRecvError::Empty));
    step(&mut bench, 6, 0);
    assert_eq!(first.recv().unwrap(), Ok(Thawed::WasFrozen));
    step(&mut bench, 4, 0);
    // One that never answers is given up, and thawed by a later order.
    let (freeze_reply, _freeze) = reply();
    bench.session.order().unwrap().freeze(Duration::from_secs(30), freeze_reply);
    step(&mut bench, 2, 0);
    step(&mut bench, 5, 0);
    let (second_reply, second) = reply();
    bench.session.order().unwrap().thaw(second_reply);
    for _ in 0..vss::THAWS {
        assert_eq!(bench.asked().unwrap().body()[0], 6);
        bench.wait_for_deadline();
    }
    assert!(bench.asked().is_none());
    assert!(matches!(second.recv().unwrap(), Err(Failure::NoAnswer { .. })));
    assert_eq!(bench.session.protocol().file_systems(), FileSystems::Unknown);
    let (again_reply, again) = reply();
    bench.session.order().unwrap().freeze(Duration::from_secs(30), again_reply);
    assert!(matches!(again.recv().unwrap(), Err(Failure::Conflict(_))));
    let (third_reply, third) = reply();
    bench.session.order().unwrap().thaw(third_reply);
    step(&mut bench, 6, 0);
    assert_eq!(third.recv().unwrap(), Ok(Thawed::WasNot));
    step(&mut bench, 4, 0);
    assert_eq!(bench.session.protocol().file_systems(), FileSystems::Thawed);
}

#[test]
fn a_guest_that_cannot_freeze_is_not_asked_to() {
    let mut bench = Bench::running(Backup::default(), None);
    let (freeze_reply, freeze) = reply();
    bench.session.order().unwrap().freeze(Duration::from_secs(30), freeze_reply);
    step(&mut bench, 2, FAIL);
    assert_eq!(freeze.recv().unwrap(), Err(Failure::Refused(Status::FAIL)));
    assert!(bench.asked().is_none());
}

// File copy.

fn destination() -> Destination {
    Destination { path: "/tmp/new/file".into(), size: 7000, overwrite: false, create_path: true }
}

#[test]
fn a_file_arrives_in_pieces() {
    let mut bench = Bench::running(FileCopy::default(), None);
    let outcomes: Vec<_> = (0..4).map(|_| reply()).collect();
    let (replies, outcomes): (Vec<_>, Vec<_>) = outcomes.into_iter().unzip();
    let mut replies = replies.into_iter();
    let order = bench.session.order().unwrap();
    order.start(&destination(), replies.next().unwrap());
    order.write(&[1; PIECE], replies.next().unwrap());
    order.write(&[2; 7000 - PIECE], replies.next().unwrap());
    order.finish(replies.next().unwrap());
    let asked = bench.asked().unwrap();
    assert_eq!((asked.body().len(), asked.body()[0]), (1088, 0));
    assert_eq!(asked.body()[36..40], [b'f', 0, b'i', 0]);
    assert_eq!(asked.body()[556..560], [b'/', 0, b't', 0]);
    assert_eq!(asked.body()[556 + 16..556 + 20], [b'/', 0, 0, 0], "the directory ends with a slash");
    assert_eq!((u32_at(asked.body(), 1076), u32_at(asked.body(), 1080)), (2, 7000));
    bench.answer(asked, 0);
    for (offset, size) in [(0, PIECE), (PIECE, 7000 - PIECE)] {
        let asked = bench.asked().unwrap();
        assert_eq!((asked.body().len(), asked.body()[0]), (6196, 1));
        assert_eq!((u32_at(asked.body(), 40), u32_at(asked.body(), 48)), (offset as u32, size as u32));
        bench.answer(asked, 0);
    }
    let asked = bench.asked().unwrap();
    assert_eq!((asked.body().len(), asked.body()[0]), (36, 2));
    bench.answer(asked, 0);
    assert!(outcomes.iter().all(|outcome| outcome.recv().unwrap() == Ok(())));
    assert!(!bench.session.protocol().is_busy());
}

#[test]
fn a_failure_ends_the_copy() {
    let mut bench = Bench::running(FileCopy::default(), None);
    let (start_reply, start) = reply();
    let (write_reply, write) = reply();
    let order = bench.session.order().unwrap();
    order.start(&destination(), start_reply);
    order.write(&[0; 10], write_reply);
    let asked = bench.asked().unwrap();
    bench.answer(asked, 0x8007_0050);
    let exists = Err(Failure::Refused(Status::ALREADY_EXISTS));
    assert_eq!((start.recv().unwrap(), write.recv().unwrap()), (exists.clone(), exists));
    assert!(bench.asked().is_none());

    let (start_reply, start) = reply();
    let (write_reply, write) = reply();
    let order = bench.session.order().unwrap();
    order.start(&destination(), start_reply);
    order.write(&[0; 10], write_reply);
    for status in [0, 0x8007_0070] {
        let asked = bench.asked().unwrap();
        bench.answer(asked, status);
    }
    assert_eq!(start.recv().unwrap(), Ok(()));
    assert_eq!(write.recv().unwrap(), Err(Failure::Refused(Status::DISK_FULL)));
    let asked = bench.asked().unwrap();
    assert_eq!(asked.body()[0], 3, "the guest is told that the copy is over");
    bench.answer(asked, FAIL);
    assert!(bench.asked().is_none());
}

#[test]
fn wrong_orders_are_refused() {
    let mut bench = Bench::running(FileCopy::default(), None);
    for path in ["file", "/", "/tmp/", "/a\0b", &format!("/{}", "x".repeat(300))] {
        let (start_reply, start) = reply();
        let bad = Destination { path: path.into(), ..destination() };
        bench.session.order().unwrap().start(&bad, start_reply);
        assert!(matches!(start.recv().unwrap(), Err(Failure::Invalid(_))), "{path}");
    }
    let (write_reply, write) = reply();
    bench.session.order().unwrap().write(&[0; 10], write_reply);
    assert!(matches!(write.recv().unwrap(), Err(Failure::Conflict(_))));
    assert!(bench.asked().is_none());
}
