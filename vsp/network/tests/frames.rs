//! Frames in both directions.

mod vsc;

use parterre_vmbus_server::PacketKind;
use parterre_vsp_network::Guards;
use parterre_vsp_network::protocol::nvsp::kind;
use parterre_vsp_network::wire::{FrameHeader, GSO_TCP_V4, NEEDS_CHECKSUM};
use vsc::*;

#[test]
fn a_frame_goes_out_of_the_send_buffer() {
    let mut vsc = Vsc::up(1, Guards::default());
    let frame = ethernet(PEER, MAC, 0x806, b"who has");
    assert_eq!(vsc.send_section(3, &packet_message(&frame, &[])), 1);
    assert_eq!(vsc.sent(), [(FrameHeader::default(), frame)]);
    assert_eq!(vsc.adapter.statistics().sent.frames(), 1);
}

#[test]
fn a_frame_goes_out_of_guest_memory() {
    let mut vsc = Vsc::up(1, Guards::default());
    let payload: Vec<u8> = (0..20_000u32).map(|byte| byte as u8).collect();
    let frame = ethernet(PEER, MAC, 0x800, &payload);
    let message = packet_message(&frame, &[]);
    let at = vsc.guest.allocate(40_000);
    vsc.guest.write(at + 100, &message[..3000]);
    vsc.guest.write(at + 8192 + 5, &message[3000..]);
    let ranges = [(at + 100, 3000), (at + 8192 + 5, message.len() as u32 - 3000)];
    assert_eq!(vsc.send_data(&[kind::SEND_RNDIS_PACKET, 0, u32::MAX, 0], &ranges), 1);
    assert_eq!(vsc.sent(), [(FrameHeader::default(), frame)]);
}

#[test]
fn what_is_longer_than_the_wire_carries_stays_behind() {
    let mut vsc = Vsc::with_mtu(1, Guards::default(), 1500);
    vsc.negotiate(0x60001, true);
    vsc.share_buffers();
    vsc.initialize();
    for (payload, goes) in [(1500, true), (1508, true), (1509, false), (5000, false)] {
        let frame = ethernet(PEER, MAC, 0x800, &vec![7; payload]);
        assert_eq!(vsc.send_section(0, &packet_message(&frame, &[])), 1, "as far as the guest knows");
        assert_eq!(vsc.sent().len(), usize::from(goes), "{payload}");
    }
    assert_eq!(vsc.adapter.statistics().sent.errors(), 2);
}

#[test]
fn several_frames_go_out_at_once_the_last_one_half_in_guest_memory() {
    let mut vsc = Vsc::up(1, Guards::default());
    let frames: Vec<_> = (0..3).map(|n| ethernet(PEER, MAC, 0x806, &[n; 61])).collect();
    let mut bytes = Vec::new();
    for frame in &frames {
        let mut message = packet_message(frame, &[(8, 0x1234)]);
        message.resize(message.len().next_multiple_of(8), 0);
        let len = message.len() as u32;
        message[4..8].copy_from_slice(&len.to_le_bytes());
        bytes.extend(message);
    }
    let last = ethernet(PEER, MAC, 0x806, &[9; 3000]);
    let message = packet_message(&last, &[(8, 0x1234)]);
    let cut = message.len() - last.len();
    bytes.extend(&message[..cut]);
    let at = vsc.guest.allocate(4096);
    vsc.guest.write(at, &last);
    vsc.guest.write(vsc.send, &bytes);
    let status =
        vsc.send_data(&[kind::SEND_RNDIS_PACKET, 0, 0, bytes.len() as u32], &[(at, last.len() as u32)]);
    assert_eq!(status, 1);
    let sent: Vec<_> = vsc.sent().into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(sent[..3], frames);
    assert_eq!(sent[3], last);
}

#[test]
fn guards_drop_what_they_shall_and_the_guest_does_not_notice() {
    let mut vsc = Vsc::up(1, Guards::default());
    assert_eq!(vsc.send_section(0, &packet_message(&ethernet(PEER, PEER, 0x806, &[]), &[])), 1);
    assert_eq!(vsc.sent(), []);
    assert_eq!(vsc.adapter.statistics().sent.dropped(), 1);
    let mut free = Vsc::up(1, Guards { mac_spoofing: true, ..Guards::default() });
    assert_eq!(free.send_section(0, &packet_message(&ethernet(PEER, PEER, 0x806, &[]), &[])), 1);
    assert_eq!(free.sent().len(), 1);
}

/// TCP over IPv4 with a payload, as a guest leaves it for a large send.
fn tcp_v4(payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet.extend([0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0xAB, 0xCD, 0, 0]);
    packet.extend(payload);
    ethernet(PEER, MAC, 0x800, &packet)
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn a_large_send_becomes_segments_for_the_wire() {
    let mut vsc = Vsc::up(1, Guards::default());
    let frame = tcp_v4(&[7; 4000]);
    // Version 2, TCP header at 34, segments of 1448 bytes.
    let large = 1448 | 34 << 20 | 1 << 30;
    assert_eq!(vsc.send_section(0, &packet_message(&frame, &[(2, large), (6, 5 << 4 | 3)])), 1);
    let (header, sent) = vsc.sent().remove(0);
    assert_eq!(sent[12..18], [0x81, 0, 0x60, 5, 8, 0], "priority 3, VLAN 5");
    let expected = FrameHeader {
        flags: NEEDS_CHECKSUM,
        gso: GSO_TCP_V4,
        header_len: 58,
        gso_size: 1448,
        checksum_start: 38,
        checksum_offset: 16,
    };
    assert_eq!(header, expected);
    let ip = &sent[18..38];
    assert_eq!(u16::from_be_bytes([ip[2], ip[3]]), 4040, "the length is filled in");
    assert_eq!(sum(ip), 0xFFFF, "and the header's checksum");
    let pseudo = [&ip[12..20], &[0, 6], &4020u16.to_be_bytes()].concat();
    assert_eq!(sent[54..56], sum(&pseudo).to_be_bytes(), "and the sum of the pseudo header");
    assert_eq!(sent[58..], [7; 4000]);
}

#[test]
fn checksums_are_left_to_the_wire() {
    let mut vsc = Vsc::up(1, Guards::default());
    let frame = tcp_v4(&[1, 2, 3]);
    assert_eq!(vsc.send_section(0, &packet_message(&frame, &[(0, 1 | 1 << 2 | 34 << 16)])), 1);
    let (header, sent) = vsc.sent().remove(0);
    assert_eq!((header.flags, header.checksum_start, header.checksum_offset), (NEEDS_CHECKSUM, 34, 16));
    assert_eq!(sent, frame);
    // Offsets that are not in the frame, segments of nothing, version 1.
    for (kind, value) in
        [(0, 1 | 1 << 2 | 1000 << 16), (0, 1 | 1 << 3), (2, 1 << 30 | 34 << 20), (2, 1448 | 1 << 30)]
    {
        vsc.send_section(0, &packet_message(&frame, &[(kind, value)]));
        assert_eq!(vsc.sent(), [], "{kind} {value:#x}");
    }
    assert_eq!(vsc.send_section(0, &packet_message(&frame, &[(2, 1448 | 34 << 20)])), 5);
}

#[test]
fn frames_for_the_guest_arrive_in_one_packet() {
    let mut vsc = Vsc::up(1, Guards::default());
    let frames = [ethernet(MAC, PEER, 0x806, b"one"), ethernet([0xFF; 6], PEER, 0x806, &[2; 1500])];
    for frame in &frames {
        vsc.come(0, FrameHeader::default(), frame.clone());
    }
    // Not for this guest: flooded, or nonsense.
    vsc.come(0, FrameHeader::default(), ethernet([2, 9, 9, 9, 9, 9], PEER, 0x806, b"other"));
    vsc.come(0, FrameHeader::default(), vec![1, 2]);
    vsc.run().unwrap();
    let packets = vsc.channel.receive_all();
    assert_eq!(packets.len(), 1);
    let messages = vsc.take(&packets[0]);
    let opened: Vec<_> = messages.iter().map(|message| open_message(message)).collect();
    assert_eq!(opened, frames.map(|frame| (frame, vec![])));
    let received = &vsc.adapter.statistics().received;
    assert_eq!((received.directed.frames(), received.broadcast.frames(), received.dropped()), (1, 1, 2));
}

#[test]
fn a_large_frame_arrives_in_pieces() {
    let mut vsc = Vsc::up(1, Guards::default());
    let frame = ethernet(MAC, PEER, 0x800, &vec![0x5A; 65535]);
    let header =
        FrameHeader { flags: NEEDS_CHECKSUM, gso: GSO_TCP_V4, checksum_offset: 16, ..FrameHeader::default() };
    vsc.come(0, header, frame.clone());
    vsc.come(0, header, frame[..60].to_vec());
    vsc.run().unwrap();
    let packet = vsc.channel.receive().expect("frames");
    let messages = vsc.take(&packet);
    assert_eq!(messages.len(), 18);
    let mut whole = Vec::new();
    for (place, message) in messages[..17].iter().enumerate() {
        let (data, information) = open_message(message);
        whole.extend(data);
        let flags = 1 | u32::from(place == 0) << 1 | u32::from(place == 16) << 2;
        assert_eq!(information, [(0, 1 << 3 | 1 << 7), (0x8000_0001, 1 | flags << 8)]);
    }
    assert!(whole == frame);
    assert_eq!(open_message(&messages[17]), (frame[..60].to_vec(), vec![(0, 1 << 3 | 1 << 7)]));
}

#[test]
fn frames_wait_while_the_guest_has_all_sections() {
    let mut vsc = Vsc::up(1, Guards::default());
    vsc.set(0xFC01_020C, &offload_parameters(0, 0, 1));
    for n in 0..600u32 {
        vsc.come(0, FrameHeader::default(), ethernet(MAC, PEER, 0x806, &n.to_le_bytes()));
    }
    vsc.run().unwrap();
    let mut numbers = Vec::new();
    let mut kept = vsc.channel.receive_all();
    assert_eq!(
        kept.iter().map(|packet| packet.transfer_ranges.len()).sum::<usize>(),
        256,
        "all sections are out"
    );
    while let Some(packet) = kept.pop() {
        numbers.extend(vsc.take(&packet).iter().map(|message| word(&open_message(message).0[14..], 0)));
        kept.extend(vsc.channel.receive_all());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..600).collect::<Vec<_>>());
}

#[test]
fn a_guest_that_completes_nothing_gets_no_signal_for_each_frame() {
    let mut vsc = Vsc::up(1, Guards::default());
    let before = vsc.guest.signals();
    for _ in 0..64 {
        vsc.come(0, FrameHeader::default(), ethernet(MAC, PEER, 0x806, b"many"));
    }
    vsc.run().unwrap();
    assert_eq!(vsc.guest.signals() - before, 1);
    assert_eq!(vsc.channel.receive_all().len(), 1);
}

#[test]
fn revoked_buffers_are_not_used() {
    let mut vsc = Vsc::up(1, Guards::default());
    vsc.channel.post(0, &words(&[kind::REVOKE_RECEIVE_BUFFER, RECEIVE_ID.into()]));
    vsc.channel.post(0, &words(&[kind::REVOKE_SEND_BUFFER, 0]));
    vsc.run().unwrap();
    assert!(!vsc.wires[0].state.lock().unwrap().attached);
    vsc.come(0, FrameHeader::default(), ethernet(MAC, PEER, 0x806, b"late"));
    vsc.run().unwrap();
    assert_eq!(vsc.channel.receive_all().len(), 0);
    assert_eq!(vsc.send_section(0, &packet_message(&ethernet(PEER, MAC, 0x806, &[]), &[])), 5);
    let answer = vsc.ask(&[kind::SEND_RECEIVE_BUFFER, vsc.receive_handle, RECEIVE_ID.into()]);
    assert_eq!(word(&answer, 1), 1, "it may be given again");
}

#[test]
fn what_breaks_the_protocol_costs_the_channel() {
    let breakers: [fn(&mut Vsc); 5] = [
        |vsc| vsc.channel.complete(1234, &words(&[108, 1])),
        |vsc| vsc.channel.send(1, &words(&[9999, 0])),
        |vsc| vsc.channel.send(1, &words(&[kind::SUBCHANNEL, 5, 0])),
        |vsc| vsc.channel.send(1, &words(&[kind::SEND_RNDIS_PACKET_COMPLETE, 1])),
        |vsc| {
            let at = vsc.guest.allocate(8);
            vsc.guest.write(at, &words(&[4, 8]));
            vsc.channel.send_gpa(1, &words(&[kind::SEND_RNDIS_PACKET, 1, u32::MAX, 0]), &[(at, 8)]);
        },
    ];
    for (place, breaker) in breakers.iter().enumerate() {
        let mut vsc = Vsc::up(1, Guards::default());
        breaker(&mut vsc);
        assert!(vsc.run().is_err(), "{place}");
    }
}

#[test]
fn bad_packets_are_answered_with_a_status() {
    let mut vsc = Vsc::up(1, Guards::default());
    let good = packet_message(&ethernet(PEER, MAC, 0x806, b"x"), &[(0, 0)]);
    for (place, value) in
        [(0, 2), (1, 4), (1, 9999), (2, 0), (2, 70), (3, 1 << 31), (7, 2), (8, 9999), (11, 3), (13, 40)]
    {
        let mut bad = good.clone();
        bad[place * 4..place * 4 + 4].copy_from_slice(&u32::to_le_bytes(value));
        assert_eq!(vsc.send_section(0, &bad), 5, "word {place} = {value:#x}");
    }
    assert_eq!(vsc.send_section(0, &good[..40]), 5);
    for message in [[107, 0, 9999, 60], [107, 0, 0, 6145], [107, 2, 0, 60], [107, 0, u32::MAX, 0]] {
        assert_eq!(vsc.send_data(&message, &[]), 5, "{message:?}");
    }
    assert_eq!(vsc.send_data(&[107, 0, u32::MAX, 0], &[(1 << 40, 4096)]), 5, "no memory there");
    assert_eq!(vsc.sent(), []);
    assert_eq!(vsc.send_section(0, &good), 1, "and the channel lives");
    assert!(vsc.channel.receive_all().iter().all(|packet| packet.kind == PacketKind::Completion));
}
