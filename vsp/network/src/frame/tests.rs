use proptest::prelude::*;

use super::*;

pub(crate) const OWN: MacAddress = [2, 0x15, 0x5d, 1, 2, 3];
const OTHER: MacAddress = [2, 0, 0, 0, 0, 9];
const ALL: Guards = Guards { mac_spoofing: false, dhcp: true, router: true };

pub(crate) fn ethernet(to: MacAddress, from: MacAddress, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

pub(crate) fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend(payload);
    packet
}

pub(crate) fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend([0; 32]);
    packet.extend(payload);
    packet
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    let header = [from.to_be_bytes(), to.to_be_bytes(), 50u16.to_be_bytes(), [0; 2]];
    [header.as_flattened(), &[0; 28], &OWN, b"more"].concat()
}

fn send(kind: u16, payload: &[u8], guards: &Guards) -> Result<Destination, Denied> {
    check(&ethernet(BROADCAST, OWN, kind, payload), OWN, guards)
}

#[test]
fn only_the_own_address_may_send_unless_spoofing_is_allowed() {
    let none = Guards::default();
    assert_eq!(check(&ethernet(OTHER, OWN, 0x806, &[]), OWN, &none), Ok(Destination::Directed));
    assert_eq!(
        check(&ethernet([1, 0, 0x5e, 0, 0, 1], OWN, 0x806, &[]), OWN, &none),
        Ok(Destination::Multicast)
    );
    assert_eq!(check(&ethernet(OWN, OTHER, 0x806, &[]), OWN, &none), Err(Denied::Source));
    let spoof = Guards { mac_spoofing: true, ..none };
    assert_eq!(check(&ethernet(OWN, OTHER, 0x806, &[]), OWN, &spoof), Ok(Destination::Directed));
    assert_eq!(check(&ethernet(OWN, BROADCAST, 0x806, &[]), OWN, &spoof), Err(Denied::Source));
    for len in 0..ETHERNET_HEADER {
        assert_eq!(check(&ethernet(OTHER, OWN, 0x806, &[])[..len], OWN, &none), Err(Denied::Short));
    }
}

#[test]
fn a_guest_asks_for_an_address_of_its_own() {
    let ask = |mac: MacAddress, cut: usize, to: u16| {
        let bootp = [&[1, 1, 6, 0][..], &[0; 24], &mac, &[0; 10]].concat();
        let datagram = [&[0, 68][..], &to.to_be_bytes(), &[0, 52, 0, 0], &bootp].concat();
        v4(17, 0, &datagram[..cut])
    };
    let (none, spoof) = (Guards::default(), Guards { mac_spoofing: true, ..Guards::default() });
    assert_eq!(send(TYPE_V4, &ask(OWN, 52, 67), &none), Ok(Destination::Broadcast));
    assert_eq!(send(TYPE_V4, &ask(OTHER, 52, 67), &none), Err(Denied::Source));
    assert_eq!(send(TYPE_V4, &ask(OWN, 41, 67), &none), Err(Denied::Source), "it is in the next fragment");
    assert_eq!(send(TYPE_V4, &ask(OTHER, 52, 67), &spoof), Ok(Destination::Broadcast));
    assert_eq!(send(TYPE_V4, &ask(OTHER, 52, 69), &none), Ok(Destination::Broadcast));
    for (mac, expected) in [(OWN, Ok(Destination::Broadcast)), (OTHER, Err(Denied::Source))] {
        let tagged = [&[0, 5, 8, 0][..], &ask(mac, 52, 67)].concat();
        let twice = [&[0, 6, 0x81, 0][..], &tagged].concat();
        assert_eq!(send(TYPE_VLAN, &tagged, &none), expected, "behind a tag");
        assert_eq!(send(TYPE_SERVICE_VLAN, &twice, &none), expected, "behind two");
    }
}

#[test]
fn a_guest_is_no_dhcp_server_behind_the_guard() {
    for (from, to, denied) in [
        (67, 68, true),
        (67, 67, true),
        (4000, 68, true),
        (68, 67, false),
        (53, 53, false),
        (547, 546, true),
        (1, 546, true),
        (546, 547, false),
    ] {
        let expected = if denied { Err(Denied::Dhcp) } else { Ok(Destination::Broadcast) };
        assert_eq!(send(TYPE_V4, &v4(17, 0, &udp(from, to)), &ALL), expected, "{from} {to}");
        assert_eq!(send(TYPE_V6, &v6(17, &udp(from, to)), &ALL), expected, "{from} {to}");
        let open = Guards { dhcp: false, ..ALL };
        assert_eq!(send(TYPE_V4, &v4(17, 0, &udp(from, to)), &open), Ok(Destination::Broadcast));
    }
}

#[test]
fn a_guest_is_no_router_behind_the_guard() {
    for (kind, denied) in [(133, false), (134, true), (135, false), (136, false), (137, true)] {
        let expected = if denied { Err(Denied::Router) } else { Ok(Destination::Broadcast) };
        assert_eq!(send(TYPE_V6, &v6(58, &[kind, 0, 0, 0]), &ALL), expected, "{kind}");
        let open = Guards { router: false, ..ALL };
        assert_eq!(send(TYPE_V6, &v6(58, &[kind, 0, 0, 0]), &open), Ok(Destination::Broadcast));
    }
    assert_eq!(send(TYPE_V4, &v4(1, 0, &[9, 0, 0, 0]), &ALL), Err(Denied::Router));
    assert_eq!(send(TYPE_V4, &v4(1, 0, &[5, 0, 0, 0]), &ALL), Err(Denied::Router));
    assert_eq!(send(TYPE_V4, &v4(1, 0, &[8, 0, 0, 0]), &ALL), Ok(Destination::Broadcast));
}

#[test]
fn what_hides_behind_other_headers_is_found() {
    let advertisement = [134, 0, 0, 0];
    let hop = [&[58, 0, 0, 0, 0, 0, 0, 0][..], &advertisement].concat();
    assert_eq!(send(TYPE_V6, &v6(0, &hop), &ALL), Err(Denied::Router));
    let fragment = [&[58, 0, 0, 1, 0, 0, 0, 0][..], &advertisement].concat();
    assert_eq!(send(TYPE_V6, &v6(44, &fragment), &ALL), Err(Denied::Router));
    let later = [&[58, 0, 0x01, 0, 0, 0, 0, 0][..], &advertisement].concat();
    assert_eq!(send(TYPE_V6, &v6(44, &later), &ALL), Ok(Destination::Broadcast));
    // The chain goes on behind what is looked at, or begins a loop of extensions.
    assert_eq!(send(TYPE_V6, &v6(0, &[58, 255, 0, 0, 0, 0, 0, 0]), &ALL), Err(Denied::Hidden));
    assert_eq!(send(TYPE_V6, &v6(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(20)), &ALL), Err(Denied::Hidden));
    // Behind tags.
    let tagged = [&[0, 5, 0x86, 0xDD][..], &v6(58, &advertisement)].concat();
    assert_eq!(send(TYPE_VLAN, &tagged, &ALL), Err(Denied::Router));
    let tags = [0, 5, 0x81, 0].repeat(4);
    assert_eq!(send(TYPE_VLAN, &tags, &ALL), Err(Denied::Hidden));
    // Overlapping fragments of IPv4.
    assert_eq!(send(TYPE_V4, &v4(17, 1, &udp(67, 68)), &ALL), Err(Denied::Hidden));
    assert_eq!(send(TYPE_V4, &v4(17, 2, &udp(67, 68)), &ALL), Ok(Destination::Broadcast));
}

proptest! {
    #[test]
    fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..300), dhcp: bool, router: bool, mac_spoofing: bool) {
        let guards = Guards { mac_spoofing, dhcp, router };
        if check(&bytes, OWN, &guards).is_ok() {
            prop_assert!(bytes.len() >= ETHERNET_HEADER);
            prop_assert!(mac_spoofing || bytes[6..12] == OWN);
        }
    }

    #[test]
    fn extension_headers_cannot_hide_an_advertisement(sizes in prop::collection::vec(0u8..6, 0..6)) {
        let mut payload = Vec::new();
        for (place, size) in sizes.iter().enumerate() {
            let next = if place + 1 == sizes.len() { 58 } else { 60 };
            payload.extend([next, *size]);
            payload.resize(payload.len() + 6 + usize::from(*size) * 8, 0);
        }
        payload.extend([134, 0, 0, 0]);
        let first = if sizes.is_empty() { 58 } else { 60 };
        let mut frame = ethernet(BROADCAST, OWN, TYPE_V6, &v6(first, &payload));
        frame.truncate(256);
        prop_assert!(matches!(check(&frame, OWN, &ALL), Err(Denied::Router | Denied::Hidden)));
    }
}
