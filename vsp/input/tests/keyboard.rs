//! The keyboard with a guest in memory.

use parterre_vmbus_server::ChannelError;
use parterre_vmbus_server::testing::{FakeChannel, FakeGuest};
use parterre_vsp_input::{Keyboard, Lights, State, keys};

fn ask(channel: &mut FakeChannel, version: u32) -> Vec<u8> {
    channel.post(1, &[[1, 0, 0, 0], version.to_le_bytes()].concat());
    channel.run().unwrap();
    channel.receive().unwrap().payload().to_vec()
}

#[test]
fn a_guest_takes_strokes_once_it_has_a_version() {
    let keyboard = Keyboard::new().unwrap();
    let strokes = keys::chord("ctrl-alt-del").unwrap();
    assert!(!keyboard.press(&strokes));
    let guest = FakeGuest::new();
    let mut channel = guest.open(&keyboard, 0).unwrap();
    assert_eq!(ask(&mut channel, 2 << 16)[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(keyboard.state(), State::Opened);
    assert!(!keyboard.press(&strokes));
    assert_eq!(ask(&mut channel, 1 << 16)[..8], [2, 0, 0, 0, 1, 0, 0, 0]);
    assert!(keyboard.press(&strokes));
    channel.run().unwrap();
    let packets = channel.receive_all();
    assert_eq!(packets.len(), 6);
    assert_eq!(packets[2].payload()[..12], [3, 0, 0, 0, 0x53, 0, 0, 0, 4, 0, 0, 0]);
    channel.post(2, &[4, 0, 0, 0, 6, 0]);
    channel.run().unwrap();
    assert_eq!(keyboard.lights(), Lights { scroll_lock: false, num_lock: true, caps_lock: true });
    drop(channel);
    assert_eq!((keyboard.state(), keyboard.lights()), (State::Closed, Lights::default()));
}

#[test]
fn a_guest_that_does_not_read_loses_only_what_is_too_much() {
    let keyboard = Keyboard::new().unwrap();
    let mut guest = FakeGuest::new();
    guest.ring_size = 2 * 4096;
    let mut channel = guest.open(&keyboard, 0).unwrap();
    ask(&mut channel, 1 << 16);
    let text = keys::text("abc").unwrap();
    let mut typed = 0;
    while keyboard.press(&text) {
        typed += text.len();
        channel.run().unwrap();
    }
    let mut got = 0;
    loop {
        let packets = channel.receive_all().len();
        if packets == 0 {
            break;
        }
        got += packets;
        channel.run().unwrap();
    }
    assert_eq!(got, typed);
}

#[test]
fn what_is_cut_off_costs_the_channel() {
    let keyboard = Keyboard::new().unwrap();
    let guest = FakeGuest::new();
    let mut channel = guest.open(&keyboard, 0).unwrap();
    // Packets are padded to eight bytes, so every shorter cut looks like zeroes.
    channel.post(1, &[]);
    assert!(matches!(channel.run(), Err(ChannelError::Protocol(_))));
}
