//! The parent's network interfaces, over netlink: bridges, their ports and VLANs, addresses and routes.
//!
//! It knows interfaces by name and decides nothing. Errors are sentences that name the interface.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{BridgeVlanInfoFlags, InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkBridgeVlan, LinkUnspec, RouteMessageBuilder};

/// The VLAN of untagged frames.
pub(super) const DEFAULT_VLAN: u16 = 1;

/// A result whose error is a sentence.
pub(super) type Said<T> = Result<T, String>;

/// The connection to the kernel.
pub(super) struct Netlink {
    handle: Handle,
}

/// An interface.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    /// Ethernet address.
    pub(super) mac: Vec<u8>,
    /// It is a bridge.
    pub(super) is_bridge: bool,
    /// The bridge or bond that it is a port of.
    pub(super) controller: Option<u32>,
    /// Longest payload of a frame.
    pub(super) mtu: u32,
}

/// Whether an error of the kernel has this number.
fn is_errno(error: &rtnetlink::Error, errno: rustix::io::Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno.raw_os_error())
}

fn words(error: &rtnetlink::Error) -> String {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    }
}

fn interface(message: &LinkMessage) -> Interface {
    let mut interface = Interface {
        name: String::new(),
        index: message.header.index,
        mac: Vec::new(),
        is_bridge: false,
        controller: None,
        mtu: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(mac) => interface.mac.clone_from(mac),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Controller(index) => interface.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                interface.is_bridge |= infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    interface
}

impl Netlink {
    /// Opens a connection; its task runs on this runtime.
    pub(super) fn open() -> Said<Netlink> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|e| format!("the kernel's network cannot be reached: {e}"))?;
        tokio::spawn(connection);
        Ok(Netlink { handle })
    }

    /// The interface of a name, if there is one.
    pub(super) async fn find(&self, name: &str) -> Said<Option<Interface>> {
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(message) => Ok(message.as_ref().map(interface)),
            Err(error) if is_errno(&error, rustix::io::Errno::NODEV) => Ok(None),
            Err(error) => Err(format!("network interface {name} cannot be looked up: {}", words(&error))),
        }
    }

    /// The interface of a name.
    pub(super) async fn get(&self, name: &str) -> Said<Interface> {
        let found = self.find(name).await?;
        found.ok_or_else(|| format!("there is no network interface {name}; `ip link` shows those that exist"))
    }

    /// Makes a bridge that filters VLANs and asks nobody before it forwards.
    pub(super) async fn make_bridge(&self, name: &str, alias: &str, mac: [u8; 6]) -> Said<Interface> {
        let message = LinkBridge::new(name)
            .vlan_filtering(true)
            .vlan_default_pvid(DEFAULT_VLAN)
            .forward_delay(0)
            .address(mac.to_vec())
            .alias(alias)
            .build();
        let made = self.handle.link().add(message).execute().await;
        made.map_err(|error| match is_errno(&error, rustix::io::Errno::OPNOTSUPP) {
            true => {
                "this kernel has no bridges that filter VLANs (CONFIG_BRIDGE, CONFIG_BRIDGE_VLAN_FILTERING)"
                    .into()
            }
            false => format!("cannot make the bridge {name}: {}", words(&error)),
        })?;
        self.get(name).await
    }

    /// Deletes an interface; one that is gone already is no error.
    pub(super) async fn delete(&self, name: &str) -> Said<()> {
        let Some(found) = self.find(name).await? else { return Ok(()) };
        let deleted = self.handle.link().del(found.index).execute().await;
        deleted.map_err(|e| format!("cannot delete the network interface {name}: {}", words(&e)))
    }

    /// Makes an interface a port of a bridge, or, without a bridge, takes it out of its own.
    pub(super) async fn join(&self, port: &Interface, bridge: Option<&Interface>) -> Said<()> {
        let message = LinkUnspec::new_with_index(port.index);
        let message = match bridge {
            Some(bridge) => message.controller(bridge.index),
            None => message.nocontroller(),
        };
        let joined = self.handle.link().change(message.build()).execute().await;
        joined.map_err(|e| {
            format!("{} cannot be joined to or taken out of its bridge: {}", port.name, words(&e))
        })
    }

    /// Switches an interface on or off.
    pub(super) async fn set_up(&self, interface: &Interface, up: bool) -> Said<()> {
        let message = LinkUnspec::new_with_index(interface.index);
        let message = if up { message.up() } else { message.down() };
        let done = self.handle.link().change(message.build()).execute().await;
        done.map_err(|e| format!("{} cannot be switched on or off: {}", interface.name, words(&e)))
    }

    /// Sets the longest payload of an interface's frames.
    pub(super) async fn set_mtu(&self, interface: &Interface, mtu: u32) -> Said<()> {
        let message = LinkUnspec::new_with_index(interface.index).mtu(mtu).build();
        let done = self.handle.link().change(message).execute().await;
        done.map_err(|e| format!("frames of {} cannot carry {mtu} bytes: {}", interface.name, words(&e)))
    }

    /// Lets isolated ports of a bridge reach only those that are not.
    pub(super) async fn isolate(&self, port: &Interface) -> Said<()> {
        let message = LinkBridgePort::new(port.index).isolated(true).build();
        let done = self.handle.link().set_port(message).execute().await;
        done.map_err(|e| format!("{} cannot be isolated: {}", port.name, words(&e)))
    }

    /// Puts a port into the VLAN of its untagged frames, which goes with them from the one before.
    pub(super) async fn set_untagged_vlan(&self, port: &Interface, vlan: u16) -> Said<()> {
        self.remove_vlan(port, DEFAULT_VLAN).await?;
        let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        let done = self.handle.link().set(vlan_message(port, vlan, flags)).execute().await;
        done.map_err(|e| format!("{} cannot be put into VLAN {vlan}: {}", port.name, words(&e)))
    }

    /// Puts a port into VLANs whose frames carry their tags.
    pub(super) async fn add_tagged_vlans(&self, port: &Interface, vlans: &RangeInclusive<u16>) -> Said<()> {
        let (first, last, flags) = (*vlans.start(), *vlans.end(), BridgeVlanInfoFlags::empty());
        let message = match first == last {
            true => vlan_message(port, first, flags),
            false => LinkBridgeVlan::new(port.index)
                .vlan_range_start(first, flags)
                .vlan_range_end(last, flags)
                .build(),
        };
        let done = self.handle.link().set(message).execute().await;
        done.map_err(|e| {
            format!("{} cannot be put into the VLANs {first} to {last}: {}", port.name, words(&e))
        })
    }

    /// Takes a port, or the bridge itself, out of a VLAN.
    pub(super) async fn remove_vlan(&self, port: &Interface, vlan: u16) -> Said<()> {
        let message = vlan_message(port, vlan, BridgeVlanInfoFlags::empty());
        match self.handle.link().del_with_message(message).execute().await {
            Err(error) if is_errno(&error, rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(format!("{} cannot be taken out of VLAN {vlan}: {}", port.name, words(&error))),
            Ok(()) => Ok(()),
        }
    }

    /// Gives an interface an address; one that it has already is no error.
    pub(super) async fn add_address(&self, interface: &Interface, address: IpAddr, prefix: u8) -> Said<()> {
        match self.handle.address().add(interface.index, address, prefix).execute().await {
            Err(error) if is_errno(&error, rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(format!(
                "{} cannot have the address {address}/{prefix}: {}",
                interface.name,
                words(&error)
            )),
            Ok(()) => Ok(()),
        }
    }

    /// The addresses of an interface that it was given, not those that it made itself.
    pub(super) async fn addresses(&self, interface: &Interface) -> Said<Vec<AddressMessage>> {
        let all = self.handle.address().get().set_link_index_filter(interface.index).execute();
        let all: Vec<AddressMessage> = all
            .try_collect()
            .await
            .map_err(|e| format!("the addresses of {} cannot be read: {}", interface.name, words(&e)))?;
        Ok(all.into_iter().filter(|message| message.header.scope != AddressScope::Link).collect())
    }

    /// Moves the parent's addresses, and the routes over them, from one interface to another.
    pub(super) async fn move_addresses(&self, from: &Interface, to: &Interface) -> Said<()> {
        let addresses = self.addresses(from).await?;
        let routes = self.routes(from).await?;
        for message in addresses {
            let (address, prefix) = (address_of(&message), message.header.prefix_len);
            let deleted = self.handle.address().del(message).execute().await;
            deleted
                .map_err(|e| format!("an address of {} cannot be taken away: {}", from.name, words(&e)))?;
            if let Some(address) = address {
                self.add_address(to, address, prefix).await?;
            }
        }
        for mut route in routes {
            for attribute in &mut route.attributes {
                if let RouteAttribute::Oif(index) = attribute {
                    *index = to.index;
                }
            }
            match self.handle.route().add(route).replace().execute().await {
                Err(error) if is_errno(&error, rustix::io::Errno::EXIST) => {}
                Err(error) => {
                    return Err(format!("a route over {} cannot be moved: {}", from.name, words(&error)));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Routes over an interface that somebody made; those that follow from addresses come and go with them.
    async fn routes(&self, over: &Interface) -> Said<Vec<RouteMessage>> {
        let mut routes = Vec::new();
        let families = [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ];
        for family in families {
            let all = self.handle.route().get(family).execute();
            let all: Vec<RouteMessage> = all
                .try_collect()
                .await
                .map_err(|e| format!("the routes over {} cannot be read: {}", over.name, words(&e)))?;
            routes.extend(all.into_iter().filter(|route| {
                route.attributes.contains(&RouteAttribute::Oif(over.index))
                    && route.header.protocol != RouteProtocol::Kernel
            }));
        }
        Ok(routes)
    }
}

fn vlan_message(port: &Interface, vlan: u16, flags: BridgeVlanInfoFlags) -> LinkMessage {
    let message = LinkBridgeVlan::new(port.index);
    let message = if port.is_bridge { message.bridge_self() } else { message };
    message.vlan(vlan, flags).build()
}

/// The address in a message.
pub(super) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        AddressAttribute::Address(address) if address.is_ipv6() => Some(*address),
        _ => None,
    })
}
