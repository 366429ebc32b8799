//! Conversations with a server.

use proptest::prelude::*;

use super::*;

const OWN: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn server(prefix: u8) -> Server {
    Server::new(Subnet::new(OWN, prefix).unwrap(), Extras::default(), &Leases::default())
}

fn mac(number: u16) -> MacAddress {
    let [high, low] = number.to_be_bytes();
    MacAddress([2, 0x15, 0x5d, 0, high, low])
}

/// A request: the kind, whose, the address it has, the one it wants, the server it means.
fn packet(
    kind: Type,
    mac: MacAddress,
    has: Ipv4Addr,
    wants: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
) -> Vec<u8> {
    let request = DhcpRepr {
        message_type: kind,
        transaction_id: 77,
        secs: 0,
        client_hardware_address: EthernetAddress(mac.0),
        client_ip: has,
        your_ip: NONE,
        server_ip: NONE,
        router: None,
        subnet_mask: None,
        relay_agent_ip: NONE,
        broadcast: false,
        requested_ip: wants,
        client_identifier: Some(EthernetAddress(mac.0)),
        server_identifier: server,
        parameter_request_list: Some(&[1, 3, 6]),
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).unwrap();
    bytes
}

/// What a server answers: kind, address, to whom.
fn ask(server: &mut Server, packet: &[u8], now: u64) -> Option<(Type, Ipv4Addr, Ipv4Addr)> {
    let answer = server.answer(packet, now)?;
    let packet = DhcpPacket::new_checked(&answer.packet[..]).unwrap();
    let said = DhcpRepr::parse(&packet).unwrap();
    assert_eq!((said.transaction_id, said.server_identifier), (77, Some(OWN)));
    assert!(answer.packet.len() >= 300);
    if said.message_type == Type::Ack {
        assert_eq!(said.subnet_mask.is_some(), said.your_ip == NONE || said.lease_duration.is_some());
    }
    Some((said.message_type, said.your_ip, answer.to))
}

#[test]
fn guests_are_told_of_router_name_servers_and_mtu() {
    let servers = [53, 54, 55, 56].map(|last| Ipv4Addr::new(10, 0, 0, last));
    let all = Extras { router: true, name_servers: servers.to_vec(), mtu: Some(9000) };
    for (extras, told) in [(all, true), (Extras::default(), false)] {
        let mut server = Server::new(Subnet::new(OWN, 24).unwrap(), extras, &Leases::default());
        let answer = server.answer(&packet(Type::Discover, mac(1), NONE, None, None), 0).unwrap();
        let packet = DhcpPacket::new_checked(&answer.packet[..]).unwrap();
        let said = DhcpRepr::parse(&packet).unwrap();
        assert_eq!(said.router, told.then_some(OWN));
        assert_eq!(said.dns_servers.as_ref().map(|servers| servers.len()), told.then_some(3));
        let mtu = packet.options().find(|option| option.kind == INTERFACE_MTU);
        assert_eq!(mtu.map(|option| option.data.to_vec()), told.then(|| 9000u16.to_be_bytes().to_vec()));
    }
    // A refusal tells nothing.
    let extras = Extras { router: true, name_servers: servers.to_vec(), mtu: Some(9000) };
    let mut server = Server::new(Subnet::new(OWN, 24).unwrap(), extras, &Leases::default());
    let elsewhere = Some(Ipv4Addr::new(10, 7, 0, 1));
    let refused = server.answer(&packet(Type::Request, mac(1), NONE, elsewhere, None), 0).unwrap();
    let packet = DhcpPacket::new_checked(&refused.packet[..]).unwrap();
    let said = DhcpRepr::parse(&packet).unwrap();
    assert_eq!((said.message_type, said.router, said.dns_servers), (Type::Nak, None, None));
    assert!(packet.options().all(|option| option.kind != INTERFACE_MTU));
}

/// A whole conversation; the address.
fn lease(server: &mut Server, who: MacAddress, wish: Option<Ipv4Addr>, now: u64) -> Option<Ipv4Addr> {
    let (kind, address, to) = ask(server, &packet(Type::Discover, who, NONE, wish, None), now)?;
    assert_eq!((kind, to), (Type::Offer, Ipv4Addr::BROADCAST));
    let taken = ask(server, &packet(Type::Request, who, NONE, Some(address), Some(OWN)), now);
    assert_eq!(taken, Some((Type::Ack, address, Ipv4Addr::BROADCAST)));
    Some(address)
}

#[test]
fn an_adapter_keeps_its_address() {
    let mut server = server(24);
    let first = lease(&mut server, mac(1), None, 0).unwrap();
    assert!(server.take_changed() && !server.take_changed());
    let second = lease(&mut server, mac(2), None, 0).unwrap();
    assert_ne!(first, second);
    assert_eq!(lease(&mut server, mac(1), Some(second), 10), Some(first));
    // Renewed by a guest that has it, which is told directly.
    let renew = packet(Type::Request, mac(1), first, None, None);
    assert_eq!(ask(&mut server, &renew, 3000), Some((Type::Ack, first, first)));
    assert_eq!(server.leases().of(mac(1)).unwrap().until, 6600);
    // Known to the server that comes after, also when the guest starts anew, and after the end.
    let before = Leases::from_text(&server.leases().to_text());
    let mut next = Server::new(Subnet::new(OWN, 24).unwrap(), Extras::default(), &before);
    let reboot = packet(Type::Request, mac(1), NONE, Some(first), None);
    assert_eq!(ask(&mut next, &reboot, 5000), Some((Type::Ack, first, Ipv4Addr::BROADCAST)));
    assert_eq!(lease(&mut next, mac(2), None, 100_000), Some(second));
}

#[test]
fn wishes_are_granted_if_they_can_be() {
    let mut server = server(24);
    let wish = |last| Some(Ipv4Addr::new(10, 9, 0, last));
    assert_eq!(lease(&mut server, mac(1), wish(77), 0), wish(77));
    for (number, taken) in [(2, 77), (3, 1), (4, 0), (5, 255)] {
        assert_ne!(lease(&mut server, mac(number), wish(taken), 0), wish(taken));
    }
    let foreign = Some(Ipv4Addr::new(192, 168, 0, 5));
    assert_ne!(lease(&mut server, mac(6), foreign, 0), foreign);
}

#[test]
fn wrong_requests_are_refused_or_not_answered() {
    let mut server = server(24);
    let (own, wrong) = (lease(&mut server, mac(1), None, 0).unwrap(), Ipv4Addr::new(10, 9, 0, 200));
    let refused = Some((Type::Nak, NONE, Ipv4Addr::BROADCAST));
    let mut asked =
        |who, has, wants, to| ask(&mut server, &packet(Type::Request, mac(who), has, wants, to), 1);
    assert_eq!(asked(1, NONE, Some(wrong), None), refused);
    assert_eq!(asked(1, wrong, None, None), refused);
    assert_eq!(asked(2, NONE, Some(own), Some(OWN)), refused);
    // From another network: it has to ask for a new one.
    assert_eq!(asked(2, NONE, Some(Ipv4Addr::new(192, 168, 0, 5)), None), refused);
    // Nobody this server knows, in its network: perhaps another server's.
    assert_eq!(asked(2, wrong, None, None), None);
    assert_eq!(asked(1, NONE, Some(own), Some(wrong)), None);
    assert_eq!(asked(1, own, None, None), Some((Type::Ack, own, own)));
    let group = packet(Type::Discover, MacAddress([3, 0, 0, 0, 0, 1]), NONE, None, None);
    assert_eq!(server.answer(&group, 1), None);
}

#[test]
fn an_offer_holds_for_a_while_only() {
    let mut server = server(30);
    let discover = |who| packet(Type::Discover, mac(who), NONE, None, None);
    let only = Ipv4Addr::new(10, 9, 0, 2);
    assert_eq!(ask(&mut server, &discover(1), 0), Some((Type::Offer, only, Ipv4Addr::BROADCAST)));
    assert_eq!(server.answer(&discover(2), 29), None);
    assert_eq!(lease(&mut server, mac(2), None, 30), Some(only));
    assert_eq!(server.leases().of(mac(1)), None);
    // Given back, it is another's at once.
    assert_eq!(server.answer(&packet(Type::Release, mac(2), only, None, Some(OWN)), 40), None);
    assert_eq!(lease(&mut server, mac(1), None, 40), Some(only));
    // Declined, it is nobody's for some time.
    assert_eq!(server.answer(&packet(Type::Decline, mac(1), NONE, Some(only), Some(OWN)), 50), None);
    assert_eq!(server.answer(&discover(2), 60), None);
    assert_eq!(lease(&mut server, mac(2), None, 700), Some(only));
}

#[test]
fn who_has_an_address_is_told_the_rest() {
    let mut server = server(24);
    let inform = packet(Type::Inform, mac(1), Ipv4Addr::new(10, 9, 0, 9), None, None);
    assert_eq!(ask(&mut server, &inform, 0), Some((Type::Ack, NONE, Ipv4Addr::new(10, 9, 0, 9))));
    assert_eq!(server.leases().taken().count(), 0);
}

fn kinds() -> impl Strategy<Value = Type> {
    (1u8..=8).prop_map(Type::from)
}

fn addresses() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        (0u8..16).prop_map(|last| Ipv4Addr::new(10, 9, 0, last)),
        any::<u32>().prop_map(Ipv4Addr::from_bits)
    ]
}

proptest! {
    #[test]
    fn whatever_comes_no_two_have_an_address(
        requests in prop::collection::vec(
            (kinds(), 0u16..24, addresses(), prop::option::of(addresses()), any::<Option<bool>>(), 0u64..2000),
            0..120,
        )
    ) {
        let (mut server, mut now) = (server(28), 0);
        for (kind, who, has, wants, to, passed) in requests {
            now += passed;
            let to = to.map(|own| if own { OWN } else { Ipv4Addr::new(10, 9, 0, 2) });
            if let Some((Type::Ack | Type::Offer, address, _)) = ask(&mut server, &packet(kind, mac(who), has, wants, to), now)
                && address != NONE
            {
                prop_assert!(Subnet::new(OWN, 28).unwrap().is_for_guests(address));
                prop_assert_eq!(server.leases().of(mac(who)).map(|lease| lease.address), Some(address));
            }
            let mut all: Vec<_> = server.leases().taken().map(|(_, lease)| lease.address).collect();
            let count = all.len();
            all.sort();
            all.dedup();
            prop_assert_eq!(all.len(), count);
        }
    }

    #[test]
    fn any_bytes_are_borne(mut bytes in prop::collection::vec(any::<u8>(), 0..600), cut in 0usize..600, real in any::<bool>()) {
        if real {
            let mut begun = packet(Type::Discover, mac(1), NONE, None, None);
            begun.truncate(cut);
            let length = begun.len().min(bytes.len());
            bytes.splice(..length, begun);
        }
        let _ = server(24).answer(&bytes, 1);
    }
}
