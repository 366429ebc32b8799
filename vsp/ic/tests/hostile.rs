//! Guests that answer what was not asked, choose what was not offered, or send what is no message.

mod common;

use std::time::Duration;

use common::Bench;
use parterre_vsp_ic::copy::FileCopy;
use parterre_vsp_ic::heartbeat::Heartbeat;
use parterre_vsp_ic::kvp::{KeyValue, Pool};
use parterre_vsp_ic::shutdown::{Action, Shutdown};
use parterre_vsp_ic::vss::Backup;
use parterre_vsp_ic::wire::HEADERS_SIZE;
use parterre_vsp_ic::{Link, Protocol, Reply, Session, Version};
use proptest::prelude::*;

#[test]
fn the_first_request_is_the_choice_of_versions() {
    let mut bench = Bench::new(Heartbeat::default());
    assert!(bench.asked().is_none());
    bench.session.open();
    let asked = bench.asked().unwrap();
    assert_eq!((asked.message_type(), &asked.body()[..4]), (0, &[2, 0, 2, 0][..]));
    assert_eq!(bench.session.deadline(), None, "a guest may take as long as it likes");
    bench.choose(asked, Version::new(1, 0), Version::new(1, 0)).unwrap();
    assert!(matches!(bench.session.link(), Link::Running(_)));
}

#[test]
fn no_version_and_a_wrong_version_are_a_mismatch() {
    let mut bench = Bench::new(Heartbeat::default());
    bench.session.open();
    let asked = bench.asked().unwrap();
    let none = asked.answer(0, |body| body[..4].fill(0));
    bench.receive(&none).unwrap();
    assert_eq!((bench.session.link(), bench.session.complaint()), (Link::Mismatch, None));
    assert!(bench.asked().is_none());
    // A driver that is loaded again gets another chance.
    bench.session.open();
    let asked = bench.asked().unwrap();
    bench.choose(asked, Version::new(3, 0), Version::new(9, 0)).unwrap();
    assert_eq!(bench.session.link(), Link::Mismatch);
    assert!(bench.session.complaint().is_some());
    assert!(bench.session.order().is_err());
}

#[test]
fn answers_that_were_not_asked_for_change_nothing() {
    let mut bench = Bench::running(Heartbeat::default(), None);
    let before = bench.session.link();
    let asked = bench.asked().unwrap();
    let other = bench.session.protocol().wrong_numbers();
    // Another transaction, another kind, a request instead of an answer.
    let packet = asked.packet.clone();
    for (at, value) in [(24, packet[24] + 1), (12, 3), (25, 3)] {
        let mut wrong = asked.packet.clone();
        wrong[25] = 5;
        wrong[at] = value;
        bench.receive(&wrong).unwrap();
    }
    assert_eq!(bench.session.strays(), 3);
    assert_eq!((bench.session.link(), bench.session.protocol().wrong_numbers()), (before, other));
    let answer = asked.answer(0, |body| body[0] += 1);
    bench.receive(&answer).unwrap();
    bench.receive(&answer).unwrap();
    assert_eq!(bench.session.strays(), 4, "an answer counts once");
}

#[test]
fn an_answer_to_what_was_not_sent_is_not_believed() {
    let mut session = Session::new(Heartbeat::default());
    session.open();
    let mut answer = session.poll(Duration::ZERO).unwrap().to_vec();
    answer[25] = 5;
    answer[HEADERS_SIZE..HEADERS_SIZE + 4].copy_from_slice(&[1, 0, 1, 0]);
    session.receive(Duration::ZERO, &answer).unwrap();
    assert_eq!((session.link(), session.strays()), (Link::Negotiating, 1));
}

#[test]
fn a_request_that_never_got_into_the_ring_is_taken_back() {
    let mut bench = Bench::running(Shutdown::default(), None);
    let (reply, outcome) = common::reply();
    bench.session.order().unwrap().request(Action::PowerOff, false, "", reply);
    assert!(bench.session.poll(bench.now).is_some());
    bench.wait_for_deadline();
    assert!(bench.session.poll(bench.now).is_none());
    assert!(outcome.recv().unwrap().is_err());
}

#[test]
fn what_is_no_message_costs_the_channel() {
    let mut bench = Bench::running(Heartbeat::default(), None);
    for size in 0..HEADERS_SIZE {
        assert_eq!(bench.receive(&vec![0; size]).unwrap_err().size, size);
    }
    assert!(bench.receive(&[0; HEADERS_SIZE]).is_ok());
}

/// What a guest does.
#[derive(Clone, Debug)]
enum Act {
    /// The channel is opened or closed.
    Open,
    Close,
    /// The last request comes back with these changes: place, value.
    Answer(u32, Vec<(u16, u8)>, u16),
    /// Any bytes.
    Noise(Vec<u8>),
    /// Nothing for so many seconds.
    Wait(u8),
    /// The parent wants something.
    Order(u8),
}

fn act() -> impl Strategy<Value = Act> {
    let status = prop_oneof![Just(0u32), Just(0x8000_4005), Just(0x8007_0103), any::<u32>()];
    let changes = prop::collection::vec((0u16..64, any::<u8>()), 0..6);
    prop_oneof![
        1 => Just(Act::Open),
        1 => Just(Act::Close),
        8 => (status, changes, prop_oneof![3 => Just(u16::MAX), 1 => 0u16..8000])
            .prop_map(|(status, changes, size)| Act::Answer(status, changes, size)),
        1 => prop::collection::vec(any::<u8>(), 0..80).prop_map(Act::Noise),
        2 => (0u8..200).prop_map(Act::Wait),
        3 => any::<u8>().prop_map(Act::Order),
    ]
}

/// Plays acts against a session; what must hold is that it goes on without panic, asks at most one thing at a time and
/// never has a deadline without anything to do.
fn play<P: Protocol>(protocol: P, version: Version, acts: &[Act], mut order: impl FnMut(&mut P, u8)) {
    let mut bench = Bench::running(protocol, Some(version));
    let mut last = None;
    for act in acts {
        match act {
            Act::Open => {
                bench.session.open();
                let asked = bench.asked().unwrap();
                bench.choose(asked, Version::new(3, 0), version).unwrap();
            }
            Act::Close => bench.session.close(),
            Act::Answer(status, changes, size) => {
                let Some(asked) = last.take() else { continue };
                let asked: common::Asked = asked;
                let mut answer = asked.answer(*status, |body| {
                    for (at, value) in changes {
                        if let Some(byte) = body.get_mut(usize::from(*at)) {
                            *byte = *value;
                        }
                    }
                });
                answer.truncate(usize::from(*size));
                assert_eq!(bench.receive(&answer).is_err(), answer.len() < HEADERS_SIZE);
            }
            Act::Noise(bytes) => drop(bench.receive(bytes)),
            Act::Wait(seconds) => bench.wait((*seconds).into()),
            Act::Order(what) => {
                if let Ok(protocol) = bench.session.order() {
                    order(protocol, *what);
                }
            }
        }
        while let Some(asked) = bench.asked() {
            assert!(last.is_none() || bench.asked().is_none(), "two requests at a time");
            last = Some(asked);
        }
        let deadline = bench.session.deadline();
        assert!(deadline.is_none_or(|at| at > bench.now), "a deadline that is over, and nothing to send");
    }
}

proptest! {
    #[test]
    fn any_guest_of_heartbeat(acts in prop::collection::vec(act(), 0..60)) {
        play(Heartbeat::default(), Version::new(3, 0), &acts, |_, _| {});
    }

    #[test]
    fn any_guest_of_shutdown(acts in prop::collection::vec(act(), 0..60)) {
        play(Shutdown::default(), Version::new(3, 2), &acts, |protocol, what| {
            let action = [Action::PowerOff, Action::Restart, Action::Hibernate][usize::from(what % 3)];
            protocol.request(action, what > 127, "text", Reply::nobody());
        });
    }

    #[test]
    fn any_guest_of_data_exchange(acts in prop::collection::vec(act(), 0..60)) {
        play(KeyValue::default(), Version::new(4, 0), &acts, |protocol, what| match what % 4 {
            0 => protocol.read(Pool::Guest, Reply::nobody()),
            1 => protocol.delete(Pool::External, "key", Reply::nobody()),
            2 => protocol.get_addresses("00:15:5D:00:00:01", Reply::nobody()),
            _ => protocol.set_addresses("{id}", &Default::default(), Reply::nobody()),
        });
    }

    #[test]
    fn any_guest_of_backup(acts in prop::collection::vec(act(), 0..60)) {
        play(Backup::default(), Version::new(5, 0), &acts, |protocol, what| {
            if what % 2 == 0 {
                protocol.freeze(Duration::from_secs(what.into()), Reply::nobody());
            } else {
                protocol.thaw(Reply::nobody());
            }
        });
    }

    #[test]
    fn any_guest_of_file_copy(acts in prop::collection::vec(act(), 0..60)) {
        let destination = parterre_vsp_ic::copy::Destination {
            path: "/tmp/file".into(), size: 1, overwrite: true, create_path: false,
        };
        play(FileCopy::default(), Version::new(1, 1), &acts, |protocol, what| match what % 4 {
            0 => protocol.start(&destination, Reply::nobody()),
            1 => protocol.write(&vec![0; usize::from(what) * 32], Reply::nobody()),
            2 => protocol.finish(Reply::nobody()),
            _ => protocol.cancel(),
        });
    }
}
