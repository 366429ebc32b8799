//! By which queue of the wire frames go out: that of the processor that goes on sending them.

mod vsc;

use parterre_vmbus_server::PacketKind;
use parterre_vmbus_server::testing::FakeChannel;
use parterre_vsp_network::Guards;
use parterre_vsp_network::protocol::nvsp::kind;
use parterre_vsp_network::wire::FrameHeader;
use vsc::*;

/// A guest with two open channels, the first for VP 0, the second for VP 5.
fn two() -> (Vsc, FakeChannel) {
    let mut vsc = Vsc::up(2, Guards::default());
    vsc.ask(&[kind::SUBCHANNEL, 1, 1]);
    vsc.channel.receive_all();
    vsc.guest.set_target_vp(5);
    let sub = vsc.guest.open(&vsc.adapter, 1).unwrap();
    vsc.guest.set_target_vp(0);
    assert_eq!(vsc.set(OID_SCALING, &scaling(2)), 0);
    (vsc, sub)
}

/// Has a VP send frames, with a signal for each; gives how many went out by either queue.
fn sent_by(vsc: &mut Vsc, vp: u32, frames: usize) -> [usize; 2] {
    for _ in 0..frames {
        send(vsc, 1, 60);
        // Now and then the channel's own thread is tried.
        if !vsc.channel.visit_on(vp).unwrap() {
            vsc.run().unwrap();
        }
        vsc.channel.receive_all();
    }
    went(vsc)
}

fn went(vsc: &Vsc) -> [usize; 2] {
    let wires: Vec<usize> =
        vsc.wires.iter().map(|wire| std::mem::take(&mut wire.state.lock().unwrap().sent).len()).collect();
    [wires[0], wires[1]]
}

#[test]
fn frames_follow_the_processor_that_sends_them() {
    let (mut vsc, _sub) = two();
    assert_eq!(sent_by(&mut vsc, 0, 20), [20, 0]);
    let [first, second] = sent_by(&mut vsc, 5, 20);
    assert!(first > 1 && second > 1 && first + second == 20, "after a while: {first}, {second}");
    assert_eq!(sent_by(&mut vsc, 5, 20), [0, 20]);
    let [first, second] = sent_by(&mut vsc, 0, 60);
    assert!(first > 1 && second > 1, "and back: {first}, {second}");
    assert_eq!(sent_by(&mut vsc, 0, 20), [20, 0]);
}

#[test]
fn a_processor_without_a_queue_has_the_channels_own() {
    let (mut vsc, _sub) = two();
    assert_eq!(sent_by(&mut vsc, 3, 20), [20, 0]);
    sent_by(&mut vsc, 5, 20);
    sent_by(&mut vsc, 3, 20);
    assert_eq!(sent_by(&mut vsc, 3, 5), [5, 0]);
}

#[test]
fn processors_that_take_turns_change_nothing() {
    let (mut vsc, _sub) = two();
    for _ in 0..40 {
        assert_eq!(sent_by(&mut vsc, 5, 3), [3, 0]);
        assert_eq!(sent_by(&mut vsc, 0, 1), [1, 0]);
    }
}

#[test]
fn a_stream_goes_by_the_channels_own_queue() {
    let (mut vsc, _sub) = two();
    sent_by(&mut vsc, 5, 40);
    went(&vsc);
    for _ in 0..100 {
        send(&mut vsc, 1, 60);
        vsc.run().unwrap();
        vsc.channel.receive_all();
    }
    let [own, other] = went(&vsc);
    assert!(own > 1 && other > 1, "after a while: {own}, {other}");
    send(&mut vsc, 1, 60);
    vsc.run().unwrap();
    assert_eq!(went(&vsc), [1, 0]);
}

#[test]
fn the_receipts_of_a_stream_change_nothing() {
    let (mut vsc, _sub) = two();
    for _ in 0..100 {
        for _ in 0..4 {
            vsc.come(0, FrameHeader::default(), ethernet(MAC, PEER, 0x806, &[1; 1400]));
        }
        vsc.run().unwrap();
        for packet in vsc.channel.receive_all() {
            if packet.kind != PacketKind::Completion {
                vsc.take(&packet);
            }
        }
        assert_eq!(sent_by(&mut vsc, 5, 1), [1, 0]);
    }
    assert_eq!(vsc.adapter.statistics().received.frames(), 400);
}

#[test]
fn a_queue_that_is_closed_or_not_chosen_is_not_taken() {
    let (mut vsc, sub) = two();
    sent_by(&mut vsc, 5, 40);
    drop(sub);
    assert_eq!(sent_by(&mut vsc, 5, 20), [20, 0]);
    let (mut vsc, _sub) = two();
    sent_by(&mut vsc, 5, 40);
    assert_eq!(vsc.set(OID_SCALING, &scaling(1)), 0);
    assert_eq!(sent_by(&mut vsc, 5, 20), [20, 0]);
}
