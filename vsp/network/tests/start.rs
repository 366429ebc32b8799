//! From the opening of the channel to a running adapter.

mod vsc;

use parterre_vsp_network::Guards;
use parterre_vsp_network::protocol::nvsp::kind;
use parterre_vsp_network::wire::ReceiveOffloads;
use vsc::*;

const LARGE: ReceiveOffloads = ReceiveOffloads { checksum: true, large_v4: true, large_v6: true };

#[test]
fn every_version_is_spoken_and_others_are_refused() {
    for version in [2, 0x30002, 0x40000, 0x50000, 0x60000, 0x60001] {
        let mut vsc = Vsc::new(1, Guards::default());
        vsc.negotiate(version, true);
        vsc.share_buffers();
        vsc.initialize();
        assert_eq!(vsc.query(0x0101_0101, &[]).unwrap(), MAC);
    }
    let mut vsc = Vsc::new(1, Guards::default());
    for (version, status) in [(0x70000, 3), (1, 4), (0x20000, 7)] {
        let answer = vsc.ask(&[kind::INIT, version, version]);
        assert_eq!([word(&answer, 1), word(&answer, 3)], [u32::MAX, status]);
    }
    vsc.negotiate(2, false);
}

#[test]
fn an_adapter_says_what_it_is() {
    let mut vsc = Vsc::new(4, Guards::default());
    vsc.negotiate(0x60001, true);
    vsc.share_buffers();
    vsc.initialize();
    assert_eq!(vsc.query(0x0001_0106, &[]).unwrap(), words(&[1500]));
    assert_eq!(vsc.query(0x0001_0114, &[]).unwrap(), words(&[0]), "connected");
    assert_eq!(vsc.query(0x0001_0107, &[]).unwrap(), words(&[100_000_000]), "in 100 bits per second");
    assert_eq!(vsc.query(0x0002_0216, &[]).unwrap(), [b'l', 0, b'a', 0, b'n', 0]);
    assert_eq!(vsc.query(0xDEAD, &[]), Err(0xC001_0017));
    let offloads = vsc.query(0xFC01_020D, &[0xA7, 3, 156, 0]).unwrap();
    assert_eq!((offloads.len(), &offloads[..4]), (156, &[0xA7, 3, 156, 0][..]));
    assert_eq!(word(&offloads, 2) & 0x14, 0x14, "TCP over IPv4 is summed");
    assert_eq!([offloads[144], offloads[145]], [1, 1], "coalescing");
    assert_eq!(vsc.query(0xFC01_020D, &[0xA7, 1, 112, 0]).unwrap().len(), 112);
    let scaling = vsc.query(0x0001_0203, &[0x88, 2, 18, 0]).unwrap();
    assert_eq!((scaling[0], word(&scaling, 3), &scaling[16..]), (0x88, 4, &[128, 0][..]));
    let list = vsc.query(0x0001_0101, &[]).unwrap();
    for oid in list.chunks_exact(4) {
        let oid = word(oid, 0);
        let only_set = [0x0001_0204, 0x0001_021B, 0x0101_0103, 0xFC01_020C];
        assert_eq!(vsc.query(oid, &[]).is_err(), only_set.contains(&oid), "{oid:#x}");
    }
}

#[test]
fn jumbo_frames_are_had_where_the_wire_carries_them() {
    const MAXIMUM_FRAME_SIZE: u32 = 0x0001_0106;
    // What the wire carries, what the guest wishes, what it gets; and the bytes of a section.
    for (wire, wish, mtu, section) in [
        (9000, 9000, 9000, 9216),
        (9000, 1500, 1500, 4096),
        (1500, 9000, 1500, 4096),
        (1400, 1500, 1400, 4096),
    ] {
        let mut vsc = Vsc::with_mtu(1, Guards::default(), wire);
        vsc.negotiate_mtu(0x60001, true, wish);
        let answer = vsc.ask(&[kind::SEND_RECEIVE_BUFFER, vsc.receive_handle, RECEIVE_ID.into()]);
        assert_eq!(word(&answer, 4), section);
        vsc.initialize();
        assert_eq!(vsc.query(MAXIMUM_FRAME_SIZE, &[]).unwrap(), words(&[mtu]), "{wire} {wish}");
    }
    // Version 1 has no words for a wish.
    let mut vsc = Vsc::with_mtu(1, Guards::default(), 1400);
    assert_eq!(vsc.ask(&[kind::INIT, 2, 2]).len(), 40);
    vsc.share_buffers();
    vsc.initialize();
    assert_eq!(vsc.query(MAXIMUM_FRAME_SIZE, &[]).unwrap(), words(&[1400]));
}

#[test]
fn frames_flow_only_while_a_filter_is_set() {
    let mut vsc = Vsc::new(1, Guards::default());
    vsc.negotiate(0x60001, true);
    vsc.share_buffers();
    vsc.initialize();
    assert!(!vsc.wires[0].state.lock().unwrap().attached);
    vsc.set(0x0001_010E, &words(&[1 | 4 | 8]));
    assert!(vsc.wires[0].state.lock().unwrap().attached);
    vsc.set(0x0001_010E, &words(&[0]));
    assert!(!vsc.wires[0].state.lock().unwrap().attached);
    assert_eq!(vsc.set(0x0001_010E, &words(&[0x8000])), 0xC000_00BB);
    assert_eq!(vsc.set(0x0001_010E, &[1]), 0xC001_0014);
    vsc.set(0x0001_010E, &words(&[1]));
    drop(vsc.channel);
    assert!(!vsc.wires[0].state.lock().unwrap().attached, "closed");
}

#[test]
fn offloads_follow_the_guest() {
    let mut vsc = Vsc::up(1, Guards::default());
    let offloads = |vsc: &Vsc| vsc.wires[0].state.lock().unwrap().offloads;
    assert_eq!(offloads(&vsc), LARGE, "Linux has its feature on, whatever it says first");
    assert_eq!(vsc.set(0xFC01_020C, &offload_parameters(0, 0, 1)), 0);
    assert_eq!(offloads(&vsc), ReceiveOffloads::default(), "it forwards packets now");
    assert_eq!(vsc.set(0xFC01_020C, &offload_parameters(0, 0, 2)), 0);
    assert_eq!(offloads(&vsc), LARGE);
    assert_eq!(vsc.set(0xFC01_020C, &offload_parameters(0, 1, 0)), 0);
    assert_eq!(offloads(&vsc), ReceiveOffloads::default(), "it wants to check by itself");
    assert_eq!(vsc.set(0xFC01_020C, &offload_parameters(0, 9, 0)), 0xC001_0015);
    assert_eq!(vsc.set(0xFC01_020C, &[0x80; 10]), 0xC001_0014);
    // The second time it means what it says: the driver was loaded anew, and the feature may be off.
    vsc.control_raw(&words(&[3, 12, 1]));
    vsc.initialize();
    vsc.set(0xFC01_020C, &offload_parameters(1, 4, 1));
    vsc.set(0x0001_010E, &words(&[1]));
    assert_eq!(offloads(&vsc), ReceiveOffloads::default());
}

#[test]
fn an_older_guest_gets_nothing_coalesced() {
    let mut vsc = Vsc::new(1, Guards::default());
    vsc.negotiate(0x60000, true);
    vsc.share_buffers();
    vsc.initialize();
    let offloads = vsc.query(0xFC01_020D, &[0xA7, 3, 156, 0]).unwrap();
    assert_eq!([offloads[144], offloads[145]], [0, 0]);
    assert_eq!(vsc.set(0xFC01_020C, &offload_parameters(1, 4, 1)), 0);
    assert_eq!(vsc.set(0xFC01_020C, &offload_parameters(0, 0, 2)), 0xC000_00BB);
    assert_eq!(vsc.wires[0].state.lock().unwrap().offloads, ReceiveOffloads::default());
}

/// The parameter by which Linux sets the address.
fn network_address(text: &str) -> Vec<u8> {
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let value = wide(text);
    [words(&[20, 28, 2, 48, value.len() as u32]), wide("NetworkAddress"), value].concat()
}

#[test]
fn the_address_changes_only_where_that_is_allowed() {
    let mut fixed = Vsc::up(1, Guards::default());
    assert_eq!(fixed.set(0x0001_021B, &network_address("02155d00aabb")), 0xC000_0001);
    assert_eq!(fixed.set(0x0001_021B, &network_address("02155d000001")), 0, "its own");
    let mut free = Vsc::up(1, Guards { mac_spoofing: true, ..Guards::default() });
    assert_eq!(free.set(0x0001_021B, &network_address("02155d00aabb")), 0);
    assert_eq!(free.query(0x0101_0102, &[]).unwrap(), [2, 0x15, 0x5d, 0, 0xaa, 0xbb]);
    assert_eq!(free.query(0x0101_0101, &[]).unwrap(), MAC);
    for bad in ["03155d00aabb", "02155d00aab", "02155d00aaxx", "+2155d00aabb", "000000000000", "ü2155d00aab"]
    {
        assert_eq!(free.set(0x0001_021B, &network_address(bad)), 0xC001_0015, "{bad}");
    }
}

#[test]
fn sub_channels_carry_queues() {
    let mut vsc = Vsc::up(4, Guards::default());
    let answer = vsc.ask(&[kind::SUBCHANNEL, 1, 7]);
    assert_eq!(answer[..12], words(&[kind::SUBCHANNEL, 1, 3]));
    assert_eq!(vsc.guest.subchannels(), 3);
    let table = vsc.channel.receive().expect("the send indirection table");
    assert_eq!(table.payload()[..12], words(&[kind::SEND_INDIRECTION_TABLE, 16, 40]));
    let mut sub = vsc.guest.open(&vsc.adapter, 2).unwrap();
    let attached =
        |vsc: &Vsc| vsc.wires.iter().map(|wire| wire.state.lock().unwrap().attached).collect::<Vec<_>>();
    assert_eq!(attached(&vsc), [true, false, false, false], "no table yet");
    let mut parameters = scaling(4);
    assert_eq!(vsc.set(OID_SCALING, &parameters), 0);
    assert_eq!(attached(&vsc), [true, false, true, false], "those that are open");
    vsc.come(2, Default::default(), ethernet(MAC, PEER, 0x806, b"hello"));
    sub.run().unwrap();
    let packet = sub.receive().expect("a frame");
    let messages = read_ranges(&vsc.guest, vsc.receive, &packet);
    assert_eq!(open_message(&messages[0]).0, ethernet(MAC, PEER, 0x806, b"hello"));
    parameters[40] = 4;
    assert_eq!(vsc.set(OID_SCALING, &parameters), 0xC001_0015, "there is no queue 4");
    drop(sub);
    assert_eq!(attached(&vsc), [true, false, false, false]);
    assert!(vsc.guest.open(&vsc.adapter, 4).is_err());
}

#[test]
fn the_link_goes_down_and_up() {
    let mut vsc = Vsc::up(1, Guards::default());
    vsc.adapter.set_link(false).unwrap();
    assert!(!vsc.wires[0].state.lock().unwrap().attached);
    vsc.run().unwrap();
    let packet = vsc.channel.receive().expect("an indication");
    let message = vsc.take(&packet).remove(0);
    assert_eq!(message[..16], words(&[7, 20, 0x4001_000C, 0]));
    assert_eq!(vsc.query(0x0001_0114, &[]).unwrap(), words(&[1]));
    vsc.adapter.set_link(true).unwrap();
    vsc.run().unwrap();
    let packet = vsc.channel.receive().expect("an indication");
    assert_eq!(word(&vsc.take(&packet)[0], 2), 0x4001_000B);
    assert!(vsc.wires[0].state.lock().unwrap().attached);
    vsc.wires[0].state.lock().unwrap().broken = true;
    vsc.run().unwrap();
    vsc.run().unwrap();
    let packet = vsc.channel.receive().expect("an indication");
    assert_eq!(word(&vsc.take(&packet)[0], 2), 0x4001_000C);
    assert_eq!(
        vsc.query(0x0001_0114, &[]).unwrap(),
        words(&[1]),
        "a wire that is cut is a cable that is out"
    );
}

#[test]
fn opened_anew_all_is_as_at_first() {
    let mut vsc = Vsc::up(1, Guards::default());
    let Vsc { guest, adapter, channel, .. } = vsc;
    drop(channel);
    vsc.channel = guest.open(&adapter, 0).unwrap();
    (vsc.guest, vsc.adapter) = (guest, adapter);
    vsc.negotiate(0x50000, false);
    vsc.share_buffers();
    vsc.initialize();
    assert_eq!(vsc.query(0x0001_010E, &[]).unwrap(), words(&[0]));
}
