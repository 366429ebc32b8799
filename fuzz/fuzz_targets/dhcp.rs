//! Guests that send anything to the switch's DHCP server.
//!
//! What must hold: no panic; an address is given to one guest at a time, and only one of those that are for guests.
#![no_main]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use parterre_dhcp::{Extras, Leases, Server, Subnet};

/// Bytes before the options, the magic number included.
const FIXED: usize = 240;

/// A packet of a client: `head` says from whom and to what address, then come options of any bytes.
fn packet(head: [u8; 4], options: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; FIXED];
    packet[..3].copy_from_slice(&[1, 1, 6]);
    packet[12..16].copy_from_slice(if head[1] & 1 == 0 { &[0; 4] } else { &[10, 0, 0, 9] });
    packet[28..34].copy_from_slice(&[2, 0, 0, 0, 0, head[0] % 8]);
    packet[236..240].copy_from_slice(&[99, 130, 83, 99]);
    packet.extend([53, 1, head[2] % 9]);
    if head[1] & 2 != 0 {
        packet.extend([50, 4, 10, 0, 0, head[3]]);
    }
    packet.extend(options);
    packet.push(255);
    packet
}

fuzz_target!(|data: &[u8]| {
    let Ok(subnet) = Subnet::new(Ipv4Addr::new(10, 0, 0, 1), 28) else { return };
    let mut server = Server::new(subnet, Extras { router: true, ..Extras::default() }, &Leases::default());
    let mut now = 1_000_000;
    let mut rest = data;
    while let [kind, length, more @ ..] = rest {
        let (bytes, after) = more.split_at(more.len().min(usize::from(*length)));
        rest = after;
        now += u64::from(*kind >> 4) * 600;
        match (kind & 1, bytes) {
            (0, _) => drop(server.answer(bytes, now)),
            (_, [a, b, c, d, options @ ..]) => drop(server.answer(&packet([*a, *b, *c, *d], options), now)),
            _ => {}
        }
        let mut seen = BTreeSet::new();
        for (mac, lease) in server.leases().taken() {
            assert!(server_gives(&lease.address), "{mac:?} has {}", lease.address);
            assert!(seen.insert(lease.address), "{} is given twice", lease.address);
        }
    }
});

/// Addresses of 10.0.0.0/28 but the network's, the parent's and the broadcast address.
fn server_gives(address: &Ipv4Addr) -> bool {
    matches!(address.octets(), [10, 0, 0, 2..=14])
}
