//! Virtual switches: Linux bridges of the parent's, and the ports by which virtual machines are joined to them.
//!
//! ```text
//!   external   adapters, a network interface of the parent's; the parent itself if it shares the interface
//!   internal   adapters, and the parent by an address on the bridge
//!   private    adapters only
//! ```
//! A bridge filters VLANs. An adapter's port is in one VLAN, without tags, or in several, with theirs; what the parent shall not see of a switch is
//! kept from it by taking the bridge itself out of the VLAN. What a guest may send at all is checked by its worker.
//!
//! A port is a TAP device. It goes when the worker that holds it ends, so there is nothing to clear away. Bridges stay
//! while the service is away, and are made again where they are missing when it starts.

mod dhcp;
mod nat;
mod netlink;
mod ports;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use parterre_api::{DEFAULT_MTU, SwitchKind, SwitchSettings, parse_prefix};
use tokio::sync::OnceCell;
use uuid::Uuid;

use netlink::{DEFAULT_VLAN, Interface, Netlink, Said, address_of};
pub(crate) use ports::{Plugged, queues};

/// A switch that is defined.
#[derive(Clone, Debug)]
pub(crate) struct Defined {
    pub(crate) id: Uuid,
    pub(crate) settings: SwitchSettings,
    /// Why it does not work now.
    pub(crate) trouble: Option<String>,
}

/// All switches of the host.
pub(crate) struct Switches {
    defined: Mutex<Vec<Defined>>,
    netlink: OnceCell<Netlink>,
    /// The DHCP servers of internal switches.
    pub(crate) dhcp: dhcp::Servers,
    nat: nat::Nat,
    /// Held while bridges are changed: one change after the other.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

/// The name of a switch's bridge.
pub(crate) fn bridge_name(id: Uuid) -> String {
    format!("vsw{:08x}", id.as_fields().0)
}

/// The bridge's own address: always the same, or it would change with each port that comes.
fn bridge_mac(id: Uuid) -> [u8; 6] {
    let [a, b, c, d, e, ..] = *id.as_bytes();
    [0x02, a, b, c, d, e]
}

/// The parent has no IPv6 address on an interface that is not for it. A kernel without IPv6 has none anyway.
fn without_v6(name: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
}

impl Switches {
    /// Switches that are defined; `program` serves DHCP, and its leases are kept in `leases`. What does not outlive the parent's
    /// kernel is kept in `runtime`.
    pub(crate) fn new(
        defined: Vec<(Uuid, SwitchSettings)>,
        program: PathBuf,
        leases: PathBuf,
        runtime: &Path,
    ) -> Switches {
        let defined =
            defined.into_iter().map(|(id, settings)| Defined { id, settings, trouble: None }).collect();
        Switches {
            defined: Mutex::new(defined),
            netlink: OnceCell::new(),
            dhcp: dhcp::Servers::new(program, leases),
            nat: nat::Nat::new(runtime.join("forwarding-before-nat")),
            changing: tokio::sync::Mutex::default(),
        }
    }

    fn defined(&self) -> MutexGuard<'_, Vec<Defined>> {
        self.defined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<Defined> {
        let mut all = self.defined().clone();
        all.sort_by(|a, b| a.settings.name.cmp(&b.settings.name));
        all
    }

    /// The switch with a name or an id.
    pub(crate) fn find(&self, name: &str) -> Option<Defined> {
        let defined = self.defined();
        let by_name = defined.iter().find(|switch| switch.settings.name == name);
        by_name.or_else(|| defined.iter().find(|switch| switch.id.to_string() == name)).cloned()
    }

    /// Adds one that is in the store.
    pub(crate) fn add(&self, id: Uuid, settings: SwitchSettings) {
        self.defined().push(Defined { id, settings, trouble: None });
    }

    /// Forgets one.
    pub(crate) fn forget(&self, id: Uuid) {
        self.dhcp.forget(id);
        self.defined().retain(|switch| switch.id != id);
    }

    fn set_trouble(&self, id: Uuid, trouble: Option<String>) {
        for switch in self.defined().iter_mut().filter(|switch| switch.id == id) {
            switch.trouble.clone_from(&trouble);
        }
    }

    async fn netlink(&self) -> Said<&Netlink> {
        self.netlink.get_or_try_init(|| async { Netlink::open() }).await
    }

    /// Makes what is missing of every switch: after the host was started anew, all.
    pub(crate) async fn restore(&self) {
        for Defined { id, settings, .. } in self.all() {
            let trouble = self.make(id, &settings).await.err();
            if let Some(trouble) = &trouble {
                eprintln!("vmms: switch '{}' does not work: {trouble}", settings.name);
            }
            self.set_trouble(id, trouble);
        }
    }

    /// Makes a switch's bridge, or what is missing of it. What was made is undone if it does not become whole.
    pub(crate) async fn make(&self, id: Uuid, settings: &SwitchSettings) -> Said<()> {
        let netlink = self.netlink().await?;
        let name = bridge_name(id);
        let uplink = self.uplink(netlink, &name, settings).await?;
        let (bridge, fresh) = match netlink.find(&name).await? {
            Some(found) if found.is_bridge => (found, false),
            Some(_) => return Err(format!("the network interface {name} is not a bridge; delete it")),
            None => {
                let mac = uplink.as_ref().and_then(|uplink| <[u8; 6]>::try_from(uplink.mac.as_slice()).ok());
                let mac = mac.unwrap_or_else(|| bridge_mac(id));
                (netlink.make_bridge(&name, &format!("switch {}", settings.name), mac).await?, true)
            }
        };
        if fresh {
            // The socket of one that still runs is bound to an interface that is gone.
            self.dhcp.stop(id);
        }
        let mut done = set_up(netlink, &bridge, settings, uplink.as_ref()).await;
        if done.is_ok() {
            done = self.serve(id, &bridge.name, settings).await;
        }
        if done.is_err() && fresh {
            // What is left to say is why the whole did not work.
            let _ = netlink.delete(&name).await;
        }
        done
    }

    /// What a switch has beside its bridge: NAT and DHCP.
    async fn serve(&self, id: Uuid, bridge: &str, settings: &SwitchSettings) -> Said<()> {
        let SwitchKind::Internal { address, dhcp, nat } = &settings.kind else { return Ok(()) };
        let defined = self.all();
        let others = defined.iter().filter(|switch| switch.id != id);
        let others = others.map(|switch| (switch.id, &switch.settings));
        self.nat.follow(others.chain([(id, settings)])).await?;
        match address {
            Some(address) if *dhcp => {
                let mtu = settings.mtu.filter(|mtu| *mtu != DEFAULT_MTU);
                self.dhcp.start(id, bridge, dhcp::Told { address: address.clone(), router: *nat, mtu })
            }
            _ => Ok(()),
        }
    }

    /// The parent's interface that an external switch is to have, if it can have it.
    async fn uplink(
        &self,
        netlink: &Netlink,
        bridge: &str,
        settings: &SwitchSettings,
    ) -> Said<Option<Interface>> {
        let SwitchKind::External { interface, shared } = &settings.kind else { return Ok(None) };
        let uplink = netlink.get(interface).await?;
        let bridge = netlink.find(bridge).await?.map(|bridge| bridge.index);
        if uplink.controller.is_some() && uplink.controller != bridge {
            return Err(format!(
                "{interface} is part of another bridge or bond; take it out of that one first"
            ));
        }
        if let Some(mtu) = settings.mtu.filter(|mtu| *mtu > uplink.mtu) {
            return Err(format!(
                "frames of {interface} carry {} bytes and not {mtu}; `ip link set {interface} mtu {mtu}` first, if the card \
                 and its network can",
                uplink.mtu
            ));
        }
        if uplink.is_bridge || interface == "lo" {
            return Err(format!("{interface} cannot be a switch's interface: give one of a network card"));
        }
        let addresses = if *shared { Vec::new() } else { netlink.addresses(&uplink).await? };
        if let Some(address) = addresses.iter().find_map(address_of) {
            return Err(format!(
                "{interface} has the parent's address {address}, which would not work any more; take another interface, or \
                 `--share` it, so that its addresses move to the switch"
            ));
        }
        Ok(Some(uplink))
    }

    /// Deletes a switch's bridge. The parent's addresses go back to the interface that they came from.
    pub(crate) async fn unmake(&self, id: Uuid, settings: &SwitchSettings) -> Said<()> {
        let netlink = self.netlink().await?;
        let name = bridge_name(id);
        self.dhcp.stop(id);
        let defined = self.all();
        let others = defined.iter().filter(|switch| switch.id != id);
        self.nat.follow(others.map(|switch| (switch.id, &switch.settings))).await?;
        let Some(bridge) = netlink.find(&name).await? else { return Ok(()) };
        if let SwitchKind::External { interface, shared } = &settings.kind
            && let Some(uplink) = netlink.find(interface).await?
            && uplink.controller == Some(bridge.index)
        {
            netlink.join(&uplink, None).await?;
            if *shared {
                netlink.move_addresses(&bridge, &uplink).await?;
            }
        }
        netlink.delete(&name).await
    }
}

/// Longest payload of a frame of a switch.
fn mtu(settings: &SwitchSettings, uplink: Option<&Interface>) -> u32 {
    settings.mtu.unwrap_or(uplink.map_or(DEFAULT_MTU, |uplink| uplink.mtu))
}

/// Gives a bridge its interface and its addresses, and switches it on. Done once more, it changes nothing.
async fn set_up(
    netlink: &Netlink,
    bridge: &Interface,
    settings: &SwitchSettings,
    uplink: Option<&Interface>,
) -> Said<()> {
    let (with_parent, address) = match &settings.kind {
        SwitchKind::External { shared, .. } => (*shared, None),
        SwitchKind::Internal { address, .. } => (true, address.as_deref()),
        SwitchKind::Private => (false, None),
    };
    if !with_parent {
        without_v6(&bridge.name);
        netlink.remove_vlan(bridge, DEFAULT_VLAN).await?;
    }
    netlink.set_up(bridge, true).await?;
    if let Some(uplink) = uplink {
        netlink.join(uplink, Some(bridge)).await?;
        netlink.set_up(uplink, true).await?;
        if with_parent {
            netlink.move_addresses(uplink, bridge).await?;
        }
    }
    // A bridge whose ports differ would choose for itself.
    netlink.set_mtu(bridge, mtu(settings, uplink)).await?;
    if let Some(address) = address {
        let (address, prefix) = parse_prefix(address)?;
        netlink.add_address(bridge, address, prefix).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
