use proptest::prelude::*;

use super::*;
use crate::frame::tests::{OWN, ethernet, v6};

fn head(frame: &[u8]) -> Head {
    frame.iter().take(HEAD).copied().collect()
}

fn large(v4: bool, segment: u32, transport_offset: u16) -> GuestPacket {
    let large_send = Some(LargeSend { v4, segment, transport_offset });
    GuestPacket { large_send, frame_len: 4000, ..GuestPacket::default() }
}

fn tcp(words: u8) -> Vec<u8> {
    let mut tcp = vec![0; 60];
    tcp[12] = words << 4;
    tcp
}

#[test]
fn segments_over_v6_get_their_lengths() {
    let mut head = head(&ethernet(OWN, OWN, 0x86DD, &v6(6, &tcp(8))));
    let header = prepare(&large(false, 1440, 54), &mut head).unwrap();
    assert_eq!((header.gso, header.header_len, header.checksum_start), (GSO_TCP_V6, 86, 54));
    assert_eq!(head[18..20], 3946u16.to_be_bytes());
    assert_eq!(head[70..72], (3946u16 + 6).to_be_bytes(), "the sum of zero addresses, the length and TCP");
}

#[test]
fn what_contradicts_the_frame_is_refused() {
    let frame = ethernet(OWN, OWN, 0x86DD, &v6(6, &tcp(8)));
    for (packet, why) in [
        (large(true, 1440, 54), "not IPv4"),
        (large(false, 0, 54), "segments of nothing"),
        (large(false, 70_000, 54), "segments that are too long"),
        (large(false, 1440, 20), "TCP inside of IP"),
        (large(false, 1440, 1000), "TCP outside of the frame"),
        (GuestPacket { frame_len: 60, ..large(false, 1440, 54) }, "shorter than its headers"),
        (GuestPacket { frame_len: 70_000, ..large(false, 1440, 54) }, "longer than IP"),
    ] {
        assert_eq!(prepare(&packet, &mut head(&frame)), Err(Contradiction), "{why}");
    }
    assert!(
        prepare(&large(false, 1440, 54), &mut head(&ethernet(OWN, OWN, 0x86DD, &v6(6, &tcp(4))))).is_err()
    );
    assert!(prepare(&large(false, 1440, 54), &mut head(&frame[..40])).is_err());
    let tagged = GuestPacket { vlan: Some(1), ..GuestPacket::default() };
    assert!(prepare(&tagged, &mut head(&frame[..13])).is_err());
}

proptest! {
    #[test]
    fn any_head_is_prepared_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        first in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
        checksum in prop::option::of((any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0u16..1024)),
        send in prop::option::of((any::<bool>(), 0u32..1 << 20, 0u16..1024)),
        vlan in prop::option::of(any::<u16>()),
        more in 0u32..70_000,
    ) {
        let mut bytes = bytes;
        if let Some(byte) = bytes.get_mut(14) {
            *byte = first;
        }
        let mut head = head(&bytes);
        let frame_len = head.len() as u32 + if bytes.len() >= HEAD { more } else { 0 };
        let packet = GuestPacket {
            frame_len,
            checksum: checksum.map(|(v4, tcp, udp, header, transport_offset)| ChecksumRequest { v4, tcp, udp, header, transport_offset }),
            large_send: send.map(|(v4, segment, transport_offset)| LargeSend { v4, segment, transport_offset }),
            vlan,
            ..GuestPacket::default()
        };
        let before = head.len();
        if let Ok(header) = prepare(&packet, &mut head) {
            prop_assert_eq!(head.len(), before + if vlan.is_some() { 4 } else { 0 });
            let end = usize::from(header.checksum_start) + usize::from(header.checksum_offset) + 2;
            prop_assert!(header.flags == 0 || end <= head.len());
            prop_assert!(usize::from(header.header_len) <= head.len());
            prop_assert!(header.gso == 0 || header.gso_size > 0);
        }
    }
}
