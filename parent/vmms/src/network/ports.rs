//! Ports of switches: a TAP device for each adapter that is plugged in.

use parterre_api::worker::Port;
use parterre_api::{NetworkAdapter, Trunk};
use parterre_partition::tap::{self, Queue};

use super::netlink::{DEFAULT_VLAN, Interface, Netlink, Said};
use super::{Defined, Switches, bridge_name, mtu, without_v6};

/// Most queues of an adapter: each is a thread of the worker's while it is used.
const MAX_QUEUES: u16 = 8;

/// How many queues the adapters of a machine with so many processors have.
pub(crate) fn queues(processors: u16) -> u16 {
    processors.clamp(1, MAX_QUEUES)
}

/// The name of an adapter's TAP device.
fn port_name(adapter: &NetworkAdapter) -> String {
    format!("vnic{:08x}", adapter.id.as_fields().0)
}

/// An adapter's end of its port.
#[derive(Debug)]
pub(crate) struct Plugged {
    pub(crate) queues: Vec<Queue>,
    pub(crate) port: Port,
}

impl Switches {
    /// Joins an adapter to its switch.
    pub(crate) async fn connect(&self, adapter: &NetworkAdapter, queues: u16) -> Said<Plugged> {
        let switch = self.find(&adapter.switch).ok_or_else(|| {
            format!("there is no switch '{}' for its network adapter {}", adapter.switch, adapter.mac)
        })?;
        let _turn = self.changing.lock().await;
        // A bridge that somebody deleted, or that could not be made when the service started.
        let made = self.make(switch.id, &switch.settings).await;
        self.set_trouble(switch.id, made.clone().err());
        made.map_err(|e| format!("switch '{}' does not work: {e}", switch.settings.name))?;
        let name = port_name(adapter);
        let device = tap::create(&name, queues.into()).map_err(|e| {
            format!("cannot make the network interface {name} for adapter {}: {e}", adapter.mac)
        })?;
        let mtu = self.plug(&switch, adapter, &name).await?;
        Ok(Plugged { queues: device, port: Port { queues, mtu } })
    }

    /// Makes an interface the port that an adapter is to have; gives the longest payload of its frames.
    async fn plug(&self, switch: &Defined, adapter: &NetworkAdapter, name: &str) -> Said<u32> {
        let netlink = self.netlink().await?;
        without_v6(name);
        let bridge = netlink.get(&bridge_name(switch.id)).await?;
        let port = netlink.get(name).await?;
        let uplink = self.uplink(netlink, &bridge.name, &switch.settings).await?;
        let mtu = mtu(&switch.settings, uplink.as_ref());
        netlink.set_mtu(&port, mtu).await?;
        netlink.join(&port, Some(&bridge)).await?;
        if let Some(vlan) = adapter.options.vlan {
            put_into(netlink, &port, uplink.as_ref(), vlan).await?;
        }
        if let Some(trunk) = &adapter.options.trunk {
            make_trunk(netlink, &port, uplink.as_ref(), trunk).await?;
        }
        if adapter.options.isolated {
            netlink.isolate(&port).await?;
        }
        netlink.set_up(&port, true).await?;
        Ok(mtu)
    }
}

/// Puts the untagged frames of a port into a VLAN, which the network beyond the switch's own interface sees by its tag.
async fn put_into(netlink: &Netlink, port: &Interface, uplink: Option<&Interface>, vlan: u16) -> Said<()> {
    if vlan == DEFAULT_VLAN {
        return Ok(());
    }
    netlink.set_untagged_vlan(port, vlan).await?;
    match uplink {
        Some(uplink) => netlink.add_tagged_vlans(uplink, &(vlan..=vlan)).await,
        None => Ok(()),
    }
}

/// Gives a port several VLANs.
async fn make_trunk(
    netlink: &Netlink,
    port: &Interface,
    uplink: Option<&Interface>,
    trunk: &Trunk,
) -> Said<()> {
    let native = trunk.native.unwrap_or(DEFAULT_VLAN);
    put_into(netlink, port, uplink, native).await?;
    for vlans in trunk.allowed.ranges_without(native) {
        netlink.add_tagged_vlans(port, &vlans).await?;
    }
    // Beyond, frames of the default VLAN carry no tag.
    if let Some(uplink) = uplink {
        for vlans in trunk.allowed.ranges_without(DEFAULT_VLAN) {
            netlink.add_tagged_vlans(uplink, &vlans).await?;
        }
    }
    Ok(())
}
