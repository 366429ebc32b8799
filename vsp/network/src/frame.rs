//! Ethernet frames: to whom, from whom, and whether the guest may send them.
//!
//! Only the first bytes of a frame are looked at, in a copy that the guest cannot change any more.

/// An Ethernet address.
pub type MacAddress = [u8; 6];

/// Bytes of addresses and type.
pub const ETHERNET_HEADER: usize = 14;
/// Bytes of an IEEE 802.1Q tag.
pub const VLAN_TAG: usize = 4;
/// To everybody.
pub const BROADCAST: MacAddress = [0xFF; 6];

/// Ethernet types.
const TYPE_V4: u16 = 0x0800;
const TYPE_V6: u16 = 0x86DD;
/// Type of an IEEE 802.1Q tag.
pub const TYPE_VLAN: u16 = 0x8100;
const TYPE_SERVICE_VLAN: u16 = 0x88A8;
/// Most tags that are looked behind.
const MAX_TAGS: usize = 2;
/// Most IPv6 extension headers that are looked behind.
const MAX_EXTENSIONS: usize = 8;

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMP_V6: u8 = 58;
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCP_V6_CLIENT: u16 = 546;
const DHCP_V6_SERVER: u16 = 547;

/// To whom a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// One address.
    Directed,
    /// A group.
    Multicast,
    /// Everybody.
    Broadcast,
}

impl Destination {
    /// Of an address.
    pub fn of(mac: MacAddress) -> Destination {
        match mac {
            BROADCAST => Destination::Broadcast,
            _ if mac[0] & 1 != 0 => Destination::Multicast,
            _ => Destination::Directed,
        }
    }
}

/// What a guest may not send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guards {
    /// Frames from addresses that are not the adapter's pass.
    pub mac_spoofing: bool,
    /// What only a DHCP server says is dropped.
    pub dhcp: bool,
    /// Router advertisements and redirects are dropped.
    pub router: bool,
}

/// Why a frame is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It has no Ethernet header.
    Short,
    /// It comes from another address.
    Source,
    /// It is what a DHCP server says.
    Dhcp,
    /// It is what a router says.
    Router,
    /// A guard cannot see what it is.
    Hidden,
}

fn address(frame: &[u8], at: usize) -> Option<MacAddress> {
    frame.get(at..at + 6).and_then(|bytes| bytes.try_into().ok())
}

fn word(frame: &[u8], at: usize) -> Option<u16> {
    frame.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// The destination of a frame.
pub fn destination(frame: &[u8]) -> Option<MacAddress> {
    address(frame, 0)
}

/// Says whether a guest whose adapter has the address `mac` may send a frame of which `head` is the beginning.
pub fn check(head: &[u8], mac: MacAddress, guards: &Guards) -> Result<Destination, Denied> {
    let (to, from) = address(head, 0).zip(address(head, 6)).ok_or(Denied::Short)?;
    if head.len() < ETHERNET_HEADER {
        return Err(Denied::Short);
    }
    let group = from[0] & 1 != 0;
    if group || !guards.mac_spoofing && from != mac {
        return Err(Denied::Source);
    }
    if !guards.mac_spoofing && asks_for_another(head, mac) {
        return Err(Denied::Source);
    }
    if guards.dhcp || guards.router {
        check_payload(head, guards)?;
    }
    Ok(Destination::of(to))
}

/// Whether a frame asks a DHCP server for an address, and in the name of another adapter or of nobody that is to be seen.
fn asks_for_another(head: &[u8], mac: MacAddress) -> bool {
    /// Where a client's address stands (`chaddr`, RFC 2131 section 2), behind the header of the datagram.
    const CLIENT: usize = 8 + 28;
    let mut at = ETHERNET_HEADER;
    while at < ETHERNET_HEADER + MAX_TAGS * VLAN_TAG
        && matches!(word(head, at - 2), Some(TYPE_VLAN | TYPE_SERVICE_VLAN))
    {
        at += VLAN_TAG;
    }
    let (kind, first, protocol) = (word(head, at - 2), head.get(at), head.get(at + 9));
    let beginning = word(head, at + 6).is_some_and(|fragment| fragment & 0x1FFF == 0);
    let (Some(TYPE_V4), Some(first), Some(&PROTOCOL_UDP), true) = (kind, first, protocol, beginning) else {
        return false;
    };
    let datagram = at + usize::from(first & 0xF) * 4;
    word(head, datagram + 2) == Some(DHCP_SERVER) && address(head, datagram + CLIENT) != Some(mac)
}

fn check_payload(head: &[u8], guards: &Guards) -> Result<(), Denied> {
    let mut at = ETHERNET_HEADER;
    for _ in 0..=MAX_TAGS {
        match word(head, at - 2).ok_or(Denied::Hidden)? {
            TYPE_V4 => return check_v4(head, at, guards),
            TYPE_V6 => return check_v6(head, at, guards),
            TYPE_VLAN | TYPE_SERVICE_VLAN => at += VLAN_TAG,
            _ => return Ok(()),
        }
    }
    Err(Denied::Hidden)
}

fn check_v4(head: &[u8], at: usize, guards: &Guards) -> Result<(), Denied> {
    let first = *head.get(at).ok_or(Denied::Hidden)?;
    let protocol = *head.get(at + 9).ok_or(Denied::Hidden)?;
    let fragment = word(head, at + 6).ok_or(Denied::Hidden)? & 0x1FFF;
    let length = usize::from(first & 0xF) * 4;
    if first >> 4 != 4 || length < 20 {
        // No receiver takes it for IPv4.
        return Ok(());
    }
    match (protocol, fragment) {
        (PROTOCOL_UDP, 0) => check_udp(head, at + length, guards),
        (PROTOCOL_ICMP, 0) => match *head.get(at + length).ok_or(Denied::Hidden)? {
            // Redirect; router advertisement (RFC 792, RFC 1256).
            5 | 9 if guards.router => Err(Denied::Router),
            _ => Ok(()),
        },
        // A fragment that would overwrite the beginning of another, which has been looked at (RFC 1858).
        (PROTOCOL_UDP | PROTOCOL_ICMP, 1) => Err(Denied::Hidden),
        _ => Ok(()),
    }
}

/// Walks the extension headers (RFC 8200 section 4).
fn check_v6(head: &[u8], at: usize, guards: &Guards) -> Result<(), Denied> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let mut next = *head.get(at + 6).ok_or(Denied::Hidden)?;
    let mut at = at + 40;
    for _ in 0..MAX_EXTENSIONS {
        let length = |unit: usize, more: usize| {
            let units = usize::from(*head.get(at + 1).ok_or(Denied::Hidden)?);
            Ok((units + more) * unit)
        };
        let step = match next {
            PROTOCOL_UDP => return check_udp(head, at, guards),
            PROTOCOL_ICMP_V6 => {
                return match *head.get(at).ok_or(Denied::Hidden)? {
                    // Router advertisement; redirect (RFC 4861).
                    134 | 137 if guards.router => Err(Denied::Router),
                    _ => Ok(()),
                };
            }
            HOP_BY_HOP | ROUTING | DESTINATION => length(8, 1)?,
            AUTHENTICATION => length(4, 2)?,
            FRAGMENT => match word(head, at + 2).ok_or(Denied::Hidden)? >> 3 {
                0 => 8,
                // The first one shows what it is, and only whole chains pass in it (RFC 7113).
                _ => return Ok(()),
            },
            _ => return Ok(()),
        };
        next = *head.get(at).ok_or(Denied::Hidden)?;
        at += step;
    }
    Err(Denied::Hidden)
}

fn check_udp(head: &[u8], at: usize, guards: &Guards) -> Result<(), Denied> {
    if !guards.dhcp {
        return Ok(());
    }
    let (from, to) = word(head, at).zip(word(head, at + 2)).ok_or(Denied::Hidden)?;
    let server = matches!(from, DHCP_SERVER | DHCP_V6_SERVER) || matches!(to, DHCP_CLIENT | DHCP_V6_CLIENT);
    if server { Err(Denied::Dhcp) } else { Ok(()) }
}

#[cfg(test)]
pub(crate) mod tests;
