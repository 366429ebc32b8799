//! Virtual switches, and the network adapters of virtual machines.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::vlan::{Trunk, check_vlan};

/// Most adapters of a virtual machine.
pub const MAX_NETWORK_ADAPTERS: usize = 8;
/// Longest name of a switch.
const MAX_SWITCH_NAME: usize = 64;
/// Longest name of a network interface (Linux `IFNAMSIZ`).
const MAX_INTERFACE: usize = 15;
/// Payload of a frame unless something else is said: Ethernet's.
pub const DEFAULT_MTU: u32 = 1500;
/// Least and greatest payload of a frame: what every IPv4 host takes (RFC 791), what a TAP device of Linux takes.
const MTU: std::ops::RangeInclusive<u32> = 576..=65521;

/// An Ethernet address; text is `02:15:5d:00:0a:01`, read with dashes too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether an adapter can have it: it stands for one station, and not for none.
    pub fn is_station(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<MacAddress, String> {
        let error = || format!("'{text}' is not an Ethernet address such as 02:15:5d:00:0a:01");
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part =
                parts.next().filter(|part| part.len() == 2 && !part.starts_with('+')).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(MacAddress(bytes)) }
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MacAddress, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What an adapter is allowed and how it is joined to its switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterOptions {
    /// The VLAN that it is in; frames carry no tag on its side. Without one it is where untagged frames are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The VLANs that it sees with their tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trunk: Option<Trunk>,
    /// The guest may send from other addresses, take another address, and listen to frames for others.
    #[serde(default)]
    pub mac_spoofing: bool,
    /// Drop what only a DHCP server says.
    #[serde(default)]
    pub dhcp_guard: bool,
    /// Drop router advertisements and redirects.
    #[serde(default)]
    pub router_guard: bool,
    /// It reaches no other isolated adapter of its switch.
    #[serde(default)]
    pub isolated: bool,
    /// Its cable is out: the guest sees the adapter without a link.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub link_down: bool,
}

/// Whether an adapter's cable is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkRequest {
    /// It is in.
    pub up: bool,
}

/// A network adapter of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAdapter {
    /// Identity, by which the guest knows it.
    pub id: Uuid,
    /// Its address.
    pub mac: MacAddress,
    /// The switch that it is plugged into.
    pub switch: String,
    /// The rest.
    #[serde(flatten)]
    pub options: AdapterOptions,
}

/// What a new adapter is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterRequest {
    /// The switch.
    pub switch: String,
    /// Its address; one that is free if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The rest.
    #[serde(flatten)]
    pub options: AdapterOptions,
}

/// Whom a switch joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum SwitchKind {
    /// Virtual machines and a network of the parent's; the parent itself if it shares the interface.
    External {
        /// The parent's interface to that network.
        interface: String,
        /// The parent's own addresses and routes move from the interface to the switch, so that both use the network.
        #[serde(default)]
        shared: bool,
    },
    /// Virtual machines and the parent.
    Internal {
        /// The parent's address in it, with the length of the prefix: `192.168.100.1/24`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
        /// Guests are given addresses of the same subnet by DHCP.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dhcp: bool,
        /// Guests reach what the parent reaches, by the parent's address (NAT).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        nat: bool,
    },
    /// Virtual machines only.
    Private,
}

impl SwitchKind {
    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            SwitchKind::External { .. } => "external",
            SwitchKind::Internal { .. } => "internal",
            SwitchKind::Private => "private",
        }
    }
}

/// What a person decides about a switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchSettings {
    /// Its name, unique on the host.
    pub name: String,
    /// Whom it joins.
    #[serde(flatten)]
    pub kind: SwitchKind,
    /// Longest payload of a frame (MTU), in bytes. If absent that of an external switch's interface, else [`DEFAULT_MTU`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// A switch as the service shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// Identity over renames.
    pub id: Uuid,
    /// Settings.
    #[serde(flatten)]
    pub settings: SwitchSettings,
    /// The parent's interface that it is (a Linux bridge).
    pub bridge: String,
    /// Why it does not work now, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Virtual machines with adapters that are plugged into it.
    #[serde(default)]
    pub virtual_machines: Vec<String>,
    /// The addresses that guests have been given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<AddressLease>,
}

/// An address that a guest has from a switch's DHCP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressLease {
    /// The address.
    pub address: Ipv4Addr,
    /// The adapter that has it.
    pub mac: MacAddress,
    /// The virtual machine of that adapter, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine: Option<String>,
}

/// An IP address with the length of its prefix.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse_prefix(text: &str) -> Result<(std::net::IpAddr, u8), String> {
    let error = || format!("'{text}' is not an address with a prefix such as 192.168.100.1/24");
    let (address, prefix) = text.split_once('/').ok_or_else(error)?;
    let address: std::net::IpAddr = address.parse().map_err(|_| error())?;
    let prefix: u8 = prefix.parse().map_err(|_| error())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if prefix == 0 || prefix > most || address.is_unspecified() || address.is_multicast() {
        return Err(error());
    }
    Ok((address, prefix))
}

/// Checks the parent's address, and that it is what DHCP and NAT take.
fn check_internal(address: Option<&str>, dhcp: bool, nat: bool) -> Result<(), String> {
    let Some(address) = address else {
        return match dhcp || nat {
            true => {
                Err("for DHCP and NAT the switch needs an address of this host's; give one with --address"
                    .into())
            }
            false => Ok(()),
        };
    };
    let (own, prefix) = parse_prefix(address)?;
    if (dhcp || nat) && !(own.is_ipv4() && (8..=30).contains(&prefix)) {
        return Err(format!(
            "{address} leaves no addresses for guests; DHCP and NAT take an IPv4 prefix of 8 to 30 bits"
        ));
    }
    Ok(())
}

impl SwitchSettings {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub fn check(&self) -> Result<(), String> {
        let name = &self.name;
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
        let ends = |c: char| c.is_ascii_alphanumeric();
        if name.len() > MAX_SWITCH_NAME
            || !name.chars().all(good)
            || !name.starts_with(ends)
            || !name.ends_with(ends)
        {
            return Err(format!(
                "'{}' cannot be a switch's name: use 1 to {MAX_SWITCH_NAME} letters, digits, spaces, '-', '_' and '.', and begin \
                 and end with a letter or digit",
                name.escape_default()
            ));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(format!(
                "frames cannot carry {mtu} bytes; give {} to {} (jumbo frames usually carry 9000)",
                MTU.start(),
                MTU.end()
            ));
        }
        match &self.kind {
            SwitchKind::External { interface, .. } => check_interface(interface),
            SwitchKind::Internal { address, dhcp, nat } => check_internal(address.as_deref(), *dhcp, *nat),
            SwitchKind::Private => Ok(()),
        }
    }
}

fn check_interface(name: &str) -> Result<(), String> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if name.is_empty() || name.len() > MAX_INTERFACE || name.contains(bad) {
        return Err(format!(
            "'{}' cannot be a network interface; `ip link` shows those that exist",
            name.escape_default()
        ));
    }
    Ok(())
}

impl AdapterOptions {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        match (self.vlan, &self.trunk) {
            (Some(_), Some(_)) => {
                Err("an adapter is in one VLAN or is a trunk of several, not both; give --vlan or --trunk"
                    .into())
            }
            (Some(vlan), None) => check_vlan(vlan),
            (None, Some(trunk)) => trunk.check(),
            (None, None) => Ok(()),
        }
    }
}

/// Checks a virtual machine's adapters.
///
/// # Errors
/// A sentence that says what is wrong and what to do.
pub(crate) fn check_adapters(adapters: &[NetworkAdapter]) -> Result<(), String> {
    if adapters.len() > MAX_NETWORK_ADAPTERS {
        return Err(format!("a virtual machine has at most {MAX_NETWORK_ADAPTERS} network adapters"));
    }
    for (place, adapter) in adapters.iter().enumerate() {
        adapter.options.check()?;
        if !adapter.mac.is_station() {
            return Err(format!(
                "{} cannot be the address of an adapter: it stands for a group, or for nothing",
                adapter.mac
            ));
        }
        if adapters[..place].iter().any(|other| other.mac == adapter.mac || other.id == adapter.id) {
            return Err(format!("two network adapters have the address {}", adapter.mac));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let mac: MacAddress = "02:15:5D:00:0a-FF".parse().unwrap();
        assert_eq!(mac.to_string(), "02:15:5d:00:0a:ff");
        for bad in [
            "",
            "02:15:5d:00:0a",
            "02:15:5d:00:0a:01:02",
            "2:15:5d:00:0a:01",
            "02:15:5d:00:0a:+1",
            "x2:15:5d:00:0a:01",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
        assert!(parse_prefix("192.168.1.1/24").is_ok() && parse_prefix("fd00::1/64").is_ok());
        for bad in
            ["192.168.1.1", "192.168.1.1/33", "192.168.1.1/0", "0.0.0.0/8", "224.0.0.1/8", "x/8", "::1/129"]
        {
            assert!(parse_prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn switches_are_checked_and_read_as_flat_json() {
        let json = r#"{"name":"lan","type":"external","interface":"eth0"}"#;
        let switch: SwitchSettings = serde_json::from_str(json).unwrap();
        assert_eq!(switch.kind, SwitchKind::External { interface: "eth0".into(), shared: false });
        assert_eq!(switch.check(), Ok(()));
        let check = |name: &str, kind| SwitchSettings { name: name.into(), kind, mtu: None }.check();
        for name in ["", "-x", "a/b", "x ", "ü", &"x".repeat(65)] {
            assert!(check(name, SwitchKind::Private).is_err(), "{name}");
        }
        for interface in ["", "a b", "a/b", "sixteencharacter"] {
            assert!(check("x", SwitchKind::External { interface: interface.into(), shared: false }).is_err());
        }
        let internal = |address: Option<&str>, services| {
            let [dhcp, nat] = [services, services];
            let kind = |dhcp, nat| SwitchKind::Internal { address: address.map(String::from), dhcp, nat };
            let checked = check("x", kind(dhcp, nat));
            assert_eq!(
                (check("x", kind(dhcp, false)), check("x", kind(false, nat))),
                (checked.clone(), checked.clone())
            );
            checked
        };
        let mtu =
            |mtu| SwitchSettings { name: "x".into(), kind: SwitchKind::Private, mtu: Some(mtu) }.check();
        assert_eq!([576, 1500, 9000, 65521].map(mtu), [const { Ok(()) }; 4]);
        assert!([0, 575, 65522, u32::MAX].into_iter().all(|bytes| mtu(bytes).is_err()));
        assert!(internal(Some("10.0.0.1"), false).is_err());
        assert_eq!((internal(None, false), internal(Some("fd00::1/64"), false)), (Ok(()), Ok(())));
        assert_eq!(internal(Some("10.0.0.1/30"), true), Ok(()));
        for bad in [None, Some("10.0.0.1/31"), Some("10.0.0.1/7"), Some("fd00::1/64")] {
            assert!(internal(bad, true).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn adapters_are_checked() {
        let adapter = |mac: &str, vlan| NetworkAdapter {
            id: Uuid::new_v4(),
            mac: mac.parse().unwrap(),
            switch: "lan".into(),
            options: AdapterOptions { vlan, ..AdapterOptions::default() },
        };
        let with_trunk = |vlan, native| {
            let mut adapter = adapter("02:00:00:00:00:03", vlan);
            adapter.options.trunk = Some(Trunk { allowed: "5-9".parse().unwrap(), native });
            adapter
        };
        assert_eq!(check_adapters(&[with_trunk(None, Some(7))]), Ok(()));
        assert_eq!(
            check_adapters(&[adapter("02:00:00:00:00:01", None), adapter("02:00:00:00:00:02", Some(7))]),
            Ok(())
        );
        for bad in [
            vec![adapter("03:00:00:00:00:01", None)],
            vec![adapter("00:00:00:00:00:00", None)],
            vec![adapter("02:00:00:00:00:01", Some(0))],
            vec![adapter("02:00:00:00:00:01", Some(4095))],
            vec![adapter("02:00:00:00:00:01", None), adapter("02:00:00:00:00:01", None)],
            vec![with_trunk(Some(5), None)],
            vec![with_trunk(None, Some(4095))],
            (0..9).map(|n| adapter(&format!("02:00:00:00:00:0{n}"), None)).collect(),
        ] {
            assert!(check_adapters(&bad).is_err());
        }
        let json = serde_json::to_string(&adapter("02:00:00:00:00:01", Some(7))).unwrap();
        assert!(json.contains(r#""vlan":7,"mac_spoofing":false"#), "{json}");
    }
}
