//! Services over a VMBus channel with a guest at the other end.

mod common;

use common::reply;
use parterre_vmbus_server::testing::{FakeChannel, FakeGuest};
use parterre_vmbus_server::{ChannelError, PacketKind};
use parterre_vsp_ic::heartbeat::{Health, Heartbeat};
use parterre_vsp_ic::shutdown::{Action, Shutdown};
use parterre_vsp_ic::wire::HEADERS_SIZE;
use parterre_vsp_ic::{Component, Failure, Link, Protocol, Version};

/// Answers the negotiation as Linux does, with these versions.
fn negotiate(channel: &mut FakeChannel, version: Version) {
    let packet = channel.receive().unwrap();
    assert_eq!(packet.kind, PacketKind::Inband);
    let mut answer = packet.payload().to_vec();
    answer[25] = 5;
    let body = &mut answer[HEADERS_SIZE..];
    body[..4].copy_from_slice(&[1, 0, 1, 0]);
    body[8..12].copy_from_slice(&[3, 0, 0, 0]);
    body[12..14].copy_from_slice(&version.major.to_le_bytes());
    body[14..16].copy_from_slice(&version.minor.to_le_bytes());
    channel.post(packet.transaction_id, &answer);
    channel.run().unwrap();
}

fn link<P: Protocol>(component: &Component<P>) -> Link {
    component.with(|session, _| session.link())
}

#[test]
fn a_heart_beats_over_a_channel() {
    let component = Component::new(Heartbeat::default()).unwrap();
    let guest = FakeGuest::new();
    let health = || component.with(|session, now| session.protocol().health(now));
    for _ in 0..2 {
        let mut channel = guest.open(&component, 0).unwrap();
        assert_eq!(link(&component), Link::Negotiating);
        negotiate(&mut channel, Version::new(3, 0));
        assert!(matches!(link(&component), Link::Running(_)));
        let packet = channel.receive().unwrap();
        let mut answer = packet.payload().to_vec();
        answer[25] = 5;
        answer[HEADERS_SIZE] += 1;
        channel.post(packet.transaction_id, &answer);
        channel.run().unwrap();
        assert_eq!(health(), Health::Ok);
        // The guest unloads its driver, and loads it again.
        drop(channel);
        assert_eq!((link(&component), health()), (Link::Closed, Health::NoContact));
    }
}

#[test]
fn an_order_wakes_the_channel_and_its_end_ends_the_order() {
    let component = Component::new(Shutdown::default()).unwrap();
    let guest = FakeGuest::new();
    let request = || {
        let (reply, outcome) = reply();
        component.with(|session, _| {
            session.order().map(|protocol| protocol.request(Action::PowerOff, false, "", reply))
        })?;
        Ok::<_, Failure>(outcome)
    };
    assert!(matches!(request(), Err(Failure::Unavailable(_))));
    let mut channel = guest.open(&component, 0).unwrap();
    negotiate(&mut channel, Version::new(3, 2));
    let outcome = request().unwrap();
    channel.run().unwrap();
    let packet = channel.receive().unwrap();
    assert_eq!(packet.payload()[12], 3);
    drop(channel);
    assert_eq!(outcome.recv().unwrap(), Err(Failure::Closed));
}

#[test]
fn a_packet_that_is_no_message_costs_the_channel() {
    let component = Component::new(Heartbeat::default()).unwrap();
    let guest = FakeGuest::new();
    let mut channel = guest.open(&component, 0).unwrap();
    channel.post(0, &[0; 16]);
    assert!(matches!(channel.run(), Err(ChannelError::Protocol(_))));
}

#[test]
fn a_guest_that_does_not_read_stops_nobody() {
    let component = Component::new(Shutdown::default()).unwrap();
    let mut guest = FakeGuest::new();
    guest.ring_size = 2 * 4096;
    let mut channel = guest.open(&component, 0).unwrap();
    negotiate(&mut channel, Version::new(3, 2));
    let mut outcomes = Vec::new();
    for _ in 0..4 {
        let (reply, outcome) = reply();
        component.with(|session, _| {
            session.order().unwrap().request(Action::PowerOff, false, "", reply);
        });
        outcomes.push(outcome);
    }
    // One message is on its way, the others wait for its answer.
    channel.run().unwrap();
    assert_eq!(channel.receive_all().len(), 1);
    drop(channel);
    assert!(outcomes.iter().all(|outcome| outcome.recv().unwrap().is_err()));
}
