//! What the thread of a virtual processor does at a signal, and what it leaves to the channel's own.

mod vsc;

use parterre_vmbus_server::PacketKind;
use parterre_vsp_network::Guards;
use parterre_vsp_network::protocol::nvsp::kind;
use parterre_vsp_network::wire::FrameHeader;
use vsc::*;

/// Which frames went out, by their payload's first byte.
fn sent(vsc: &Vsc) -> Vec<u8> {
    vsc.sent().into_iter().map(|(_, frame)| frame[14]).collect()
}

fn completed(vsc: &mut Vsc) -> Vec<u64> {
    let packets = vsc.channel.receive_all();
    assert!(packets.iter().all(|packet| packet.kind == PacketKind::Completion));
    packets.iter().map(|packet| packet.transaction_id).collect()
}

/// A guest that has been talking.
fn talking() -> Vsc {
    let mut vsc = Vsc::up(1, Guards::default());
    send(&mut vsc, 1, 60);
    assert!(vsc.channel.visit().unwrap());
    assert_eq!((sent(&vsc), completed(&mut vsc)), (vec![1], vec![1]));
    vsc
}

#[test]
fn small_frames_go_out_at_once_and_are_completed_with_one_signal() {
    let mut vsc = talking();
    let signals = vsc.guest.signals();
    for transaction in 2..5 {
        send(&mut vsc, transaction, 60);
    }
    assert!(vsc.channel.visit().unwrap());
    assert_eq!(vsc.guest.signals(), signals + 1);
    assert_eq!((sent(&vsc), completed(&mut vsc)), (vec![2, 3, 4], vec![2, 3, 4]));
}

#[test]
fn receipts_are_taken_at_once() {
    let mut vsc = talking();
    let signals = vsc.guest.signals();
    vsc.come(0, FrameHeader::default(), ethernet(MAC, PEER, 0x806, b"answer"));
    vsc.run().unwrap();
    assert_eq!(vsc.guest.signals(), signals + 1);
    let packets = vsc.channel.receive_all();
    assert_eq!(packets.len(), 1);
    vsc.channel.complete(packets[0].transaction_id, &words(&[kind::SEND_RNDIS_PACKET_COMPLETE, 1]));
    assert!(vsc.channel.visit().unwrap());
    vsc.channel.complete(packets[0].transaction_id, &words(&[kind::SEND_RNDIS_PACKET_COMPLETE, 1]));
    assert!(vsc.channel.visit().is_err(), "twice");
}

#[test]
fn large_frames_streams_and_control_are_left_to_the_thread_in_order() {
    let mut vsc = talking();
    send(&mut vsc, 2, 60);
    send(&mut vsc, 3, 3000);
    send(&mut vsc, 4, 60);
    assert!(!vsc.channel.visit().unwrap());
    assert_eq!(sent(&vsc), [2]);
    // Nothing overtakes what was left.
    assert!(!vsc.channel.visit().unwrap());
    assert_eq!(sent(&vsc), Vec::<u8>::new());
    vsc.run().unwrap();
    assert_eq!((sent(&vsc), completed(&mut vsc)), (vec![3, 4], vec![2, 3, 4]));
    for transaction in 5..15 {
        send(&mut vsc, transaction, 60);
    }
    assert!(!vsc.channel.visit().unwrap());
    assert_eq!(sent(&vsc).len(), 4);
    vsc.run().unwrap();
    assert_eq!((sent(&vsc).len(), completed(&mut vsc).len()), (6, 10));
    vsc.channel.send(77, &words(&[kind::SUBCHANNEL, 1, 0]));
    assert!(!vsc.channel.visit().unwrap());
    assert_eq!(completed(&mut vsc), Vec::<u64>::new());
}

#[test]
fn what_is_malformed_costs_the_channel_in_a_visit_too() {
    let mut vsc = talking();
    vsc.channel.complete(4711, &[]);
    assert!(vsc.channel.visit().is_err());
    let mut vsc = talking();
    // Not a message at all: the thread says what it is.
    vsc.channel.send(5, &[1, 2]);
    assert!(!vsc.channel.visit().unwrap());
    assert!(vsc.run().is_err());
}
