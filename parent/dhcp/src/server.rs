//! The server's side of RFC 2131, section 4.3.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use parterre_api::MacAddress;
use smoltcp::wire::{DhcpMessageType as Type, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress};

use crate::{Lease, Leases, Subnet};

/// Where the server listens.
pub const SERVER_PORT: u16 = 67;
/// Where clients listen.
pub const CLIENT_PORT: u16 = 68;
/// How long a guest has an address, if it does not ask again.
pub const LEASE_SECONDS: u32 = 3600;
/// How long an offer holds.
const OFFER_SECONDS: u64 = 30;
/// How long an address is left alone that a guest found in use.
const DECLINED_SECONDS: u64 = 600;
/// How many such addresses are remembered.
const MAX_DECLINED: usize = 16;
/// How many name servers fit into an answer.
const MAX_NAME_SERVERS: usize = smoltcp::wire::DHCP_MAX_DNS_SERVER_COUNT;
/// The option that tells of the longest payload of a frame (RFC 2132, section 5.1).
const INTERFACE_MTU: u8 = 26;
/// Length of an answer: what every client must accept (RFC 1542, section 2.1).
const ANSWER: usize = 300;

/// A packet to send, from [`SERVER_PORT`] to [`CLIENT_PORT`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whom to: a guest that has an address, or everybody.
    pub to: Ipv4Addr,
    /// The packet.
    pub packet: Vec<u8>,
}

/// What guests are told besides their address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// The parent is the way to other networks.
    pub router: bool,
    /// Name servers; three of them are told.
    pub name_servers: Vec<Ipv4Addr>,
    /// Longest payload of a frame, if it is not Ethernet's usual one.
    pub mtu: Option<u16>,
}

/// A DHCP server.
#[derive(Debug)]
pub struct Server {
    subnet: Subnet,
    extras: Extras,
    leases: Leases,
    declined: VecDeque<(Ipv4Addr, u64)>,
    changed: bool,
}

/// What a request is answered with: the kind, the address that the guest gets.
type Reply = (Type, Ipv4Addr);

impl Server {
    /// A server with the leases of one before. Those of another subnet, or of the parent's own address, do not count.
    pub fn new(subnet: Subnet, extras: Extras, before: &Leases) -> Server {
        let mut leases = Leases::default();
        for (mac, lease) in before.taken().filter(|(_, lease)| subnet.is_for_guests(lease.address)) {
            leases.set(mac, lease);
        }
        Server { subnet, extras, leases, declined: VecDeque::new(), changed: false }
    }

    /// The leases.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Whether leases have changed that are worth keeping, since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Takes a packet; `now` is in seconds since 1970. What is no request, or is for another server, is not answered.
    pub fn answer(&mut self, packet: &[u8], now: u64) -> Option<Answer> {
        let packet = DhcpPacket::new_checked(packet).ok()?;
        let request = DhcpRepr::parse(&packet).ok()?;
        let mac = MacAddress(request.client_hardware_address.0);
        if !mac.is_station() || !request.relay_agent_ip.is_unspecified() {
            return None;
        }
        let (kind, address) = match request.message_type {
            Type::Discover => self.discover(&request, mac, now)?,
            Type::Request => self.request(&request, mac, now)?,
            Type::Decline => return self.decline(&request, mac, now),
            Type::Release => return self.release(&request, mac, now),
            Type::Inform => (Type::Ack, Ipv4Addr::UNSPECIFIED),
            _ => return None,
        };
        self.write(&request, kind, address)
    }

    fn discover(&mut self, request: &DhcpRepr<'_>, mac: MacAddress, now: u64) -> Option<Reply> {
        let kept = self.leases.of(mac).filter(|lease| self.is_free(lease.address, mac, now));
        if let Some(lease) = kept {
            // It stays what it is, an offer or a lease, but no shorter than an offer.
            let until = lease.until.max(now + OFFER_SECONDS);
            self.leases.set(mac, Lease { until, ..lease });
            return Some((Type::Offer, lease.address));
        }
        let wished = request.requested_ip.filter(|wish| self.is_free(*wish, mac, now));
        let address = wished.or_else(|| self.free_address(mac, now))?;
        let offer = Lease { address, until: now + OFFER_SECONDS, offered: true };
        if !self.leases.set(mac, offer) {
            self.leases.forget_ended(now);
            self.leases.set(mac, offer).then_some(())?;
        }
        Some((Type::Offer, address))
    }

    fn request(&mut self, request: &DhcpRepr<'_>, mac: MacAddress, now: u64) -> Option<Reply> {
        let lease = self.leases.of(mac);
        if request.server_identifier.is_some_and(|server| server != self.subnet.own()) {
            // It took another server's offer.
            if lease.is_some_and(|lease| lease.offered) {
                self.leases.remove(mac);
            }
            return None;
        }
        let wish = request.requested_ip.unwrap_or(request.client_ip);
        let refused = (Type::Nak, Ipv4Addr::UNSPECIFIED);
        match lease {
            Some(lease) if lease.address == wish && self.is_free(wish, mac, now) => {
                self.bind(mac, lease, now);
                Some((Type::Ack, wish))
            }
            Some(_) => Some(refused),
            None if request.server_identifier.is_some() || !self.subnet.is_for_guests(wish) => Some(refused),
            // One that this server does not know may be another's.
            None => None,
        }
    }

    /// Turns an offer into a lease, or begins a lease anew.
    fn bind(&mut self, mac: MacAddress, lease: Lease, now: u64) {
        let until = now + u64::from(LEASE_SECONDS);
        self.leases.set(mac, Lease { until, offered: false, ..lease });
        self.changed = true;
    }

    fn decline(&mut self, request: &DhcpRepr<'_>, mac: MacAddress, now: u64) -> Option<Answer> {
        let lease = self.leases.of(mac)?;
        if request.requested_ip == Some(lease.address) {
            self.leases.remove(mac);
            self.declined.truncate(MAX_DECLINED - 1);
            self.declined.push_front((lease.address, now + DECLINED_SECONDS));
            self.changed = true;
        }
        None
    }

    fn release(&mut self, request: &DhcpRepr<'_>, mac: MacAddress, now: u64) -> Option<Answer> {
        let lease = self.leases.of(mac)?;
        if request.client_ip == lease.address {
            // It gets the same one if it comes back before somebody else needs it.
            self.leases.set(mac, Lease { until: now, ..lease });
        }
        None
    }

    /// Whether nobody else has an address, or is to have it.
    fn is_free(&self, address: Ipv4Addr, mac: MacAddress, now: u64) -> bool {
        let others = |(holder, lease): (MacAddress, Lease)| holder != mac && lease.until > now;
        self.subnet.is_for_guests(address)
            && !self.leases.holder(address).is_some_and(others)
            && !self.declined.iter().any(|(declined, until)| *declined == address && *until > now)
    }

    /// An address that is free; always the same for an adapter while that is so.
    fn free_address(&self, mac: MacAddress, now: u64) -> Option<Ipv4Addr> {
        let seed = mac.0.iter().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        let numbers = (0..self.subnet.hosts()).map(|step| (seed % self.subnet.hosts()).wrapping_add(step));
        numbers.map(|number| self.subnet.host(number)).find(|address| self.is_free(*address, mac, now))
    }

    fn write(&self, request: &DhcpRepr<'_>, kind: Type, address: Ipv4Addr) -> Option<Answer> {
        let answers = kind != Type::Nak;
        let leased = answers && !address.is_unspecified();
        let Extras { router, name_servers, mtu } = &self.extras;
        let servers = name_servers.iter().copied().take(MAX_NAME_SERVERS);
        let mtu = mtu.filter(|_| answers).map(u16::to_be_bytes);
        let mtu = mtu.as_ref().map(|mtu| DhcpOption { kind: INTERFACE_MTU, data: mtu });
        let answer = DhcpRepr {
            message_type: kind,
            client_ip: if answers { request.client_ip } else { Ipv4Addr::UNSPECIFIED },
            your_ip: address,
            server_ip: Ipv4Addr::UNSPECIFIED,
            server_identifier: Some(self.subnet.own()),
            subnet_mask: answers.then(|| self.subnet.mask()),
            lease_duration: leased.then_some(LEASE_SECONDS),
            router: (*router && answers).then(|| self.subnet.own()),
            requested_ip: None,
            parameter_request_list: None,
            dns_servers: (answers && !name_servers.is_empty()).then(|| servers.collect()),
            max_size: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: mtu.as_slice(),
            client_hardware_address: EthernetAddress(request.client_hardware_address.0),
            ..request.clone()
        };
        let mut packet = vec![0; ANSWER.max(answer.buffer_len())];
        answer.emit(&mut DhcpPacket::new_unchecked(&mut packet)).ok()?;
        // A guest without an address hears only what everybody hears.
        let has_one = answers && self.subnet.is_for_guests(request.client_ip);
        Some(Answer { to: if has_one { request.client_ip } else { Ipv4Addr::BROADCAST }, packet })
    }
}

#[cfg(test)]
mod tests;
