//! Requests about switches and network adapters.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use parterre_api::hotplug::DeviceRequest;
use parterre_api::worker::Port;
use parterre_api::{
    AdapterRequest, AddressLease, MAX_NETWORK_ADAPTERS, MacAddress, NetworkAdapter, Switch, SwitchSettings,
    Vm,
};
use parterre_partition::tap::Queue;
use uuid::Uuid;

use crate::devices::tell;
use crate::manager::{blocking, lock};
use crate::network::{self, Defined, Plugged, bridge_name};
use crate::{Error, Manager, Result};

/// The first bytes of addresses that are made here: locally administered.
const MAC_PREFIX: [u8; 3] = [0x02, 0x15, 0x5d];

fn no_switch(name: &str) -> Error {
    Error::NoSwitch(name.into())
}

impl Manager {
    /// All switches, by name.
    pub fn switches(&self) -> Vec<Switch> {
        self.network().all().into_iter().map(|switch| self.describe(switch)).collect()
    }

    /// The switch with a name or an id.
    pub fn switch(&self, name: &str) -> Result<Switch> {
        self.network().find(name).map(|switch| self.describe(switch)).ok_or_else(|| no_switch(name))
    }

    fn describe(&self, switch: Defined) -> Switch {
        let Defined { id, settings, trouble } = switch;
        let uses =
            |vm: &Vm| vm.settings.network_adapters.iter().any(|adapter| adapter.switch == settings.name);
        let virtual_machines = self.list().into_iter().filter(uses).map(|vm| vm.settings.name).collect();
        let leases = self.network().dhcp.leases(id).into_iter();
        let leases = leases
            .map(|(mac, address)| AddressLease { address, mac, virtual_machine: self.user_of(mac) })
            .collect();
        Switch { id, bridge: bridge_name(id), trouble, virtual_machines, leases, settings }
    }

    /// Makes a switch. When this returns, it works, and its definition is on the disk.
    pub async fn create_switch(&self, settings: SwitchSettings) -> Result<Switch> {
        settings.check().map_err(Error::BadRequest)?;
        let network = self.network();
        let _turn = network.changing.lock().await;
        if network.find(&settings.name).is_some() {
            return Err(Error::SwitchNameTaken(settings.name));
        }
        let id = Uuid::new_v4();
        let failed = |why| Error::Failed(format!("switch '{}' cannot be made: {why}", settings.name));
        network.make(id, &settings).await.map_err(failed)?;
        let (manager, stored) = (self.clone(), settings.clone());
        if let Err(error) = blocking(move || lock(manager.store()).insert_switch(id, &stored)).await {
            // The store is what counts; the bridge is of no use without it.
            let _ = network.unmake(id, &settings).await;
            return Err(error);
        }
        let name = settings.name.clone();
        network.add(id, settings);
        self.switch(&name)
    }

    /// Deletes a switch that no virtual machine uses.
    pub async fn delete_switch(&self, name: &str) -> Result<()> {
        let network = self.network();
        let _turn = network.changing.lock().await;
        let switch = self.switch(name)?;
        let name = &switch.settings.name;
        if !switch.virtual_machines.is_empty() {
            return Err(Error::Conflict(format!(
                "switch '{name}' is used by {}; remove their adapters first: `parterre vm network remove NAME ADDRESS`",
                switch.virtual_machines.join(", ")
            )));
        }
        let failed = |why| Error::Failed(format!("switch '{name}' cannot be deleted: {why}"));
        network.unmake(switch.id, &switch.settings).await.map_err(failed)?;
        let (manager, id) = (self.clone(), switch.id);
        blocking(move || lock(manager.store()).remove_switch(id)).await?;
        network.forget(id);
        Ok(())
    }

    /// Gives a virtual machine an adapter. When this returns, it is in the definition on the disk, and a guest that runs has it.
    pub async fn add_adapter(&self, name: &str, request: AdapterRequest) -> Result<Vm> {
        let vm = self.show(name)?;
        let switch = self.switch(&request.switch)?.settings.name;
        let mac = match request.mac {
            Some(mac) => self.only_if_free(mac)?,
            None => self.free_mac()?,
        };
        if vm.settings.network_adapters.len() >= MAX_NETWORK_ADAPTERS {
            return Err(Error::Conflict(format!(
                "virtual machine '{name}' has {MAX_NETWORK_ADAPTERS} network adapters already, which is the most"
            )));
        }
        let adapter = NetworkAdapter { id: Uuid::new_v4(), mac, switch, options: request.options };
        let socket = self.device_socket(&vm)?;
        if let Some(socket) = &socket {
            self.plug(socket, &adapter, vm.settings.processors).await?;
        }
        let id = adapter.id;
        let changed =
            self.change_settings(name, move |settings| settings.network_adapters.push(adapter)).await;
        if let (Err(_), Some(socket)) = (&changed, socket) {
            // What is not in the definition is not in the machine either.
            let _ = blocking(move || tell(&socket, &DeviceRequest::RemoveAdapter { id }, &[])).await;
        }
        changed
    }

    /// Joins an adapter to its switch, and hands it to a worker.
    async fn plug(&self, socket: &Path, adapter: &NetworkAdapter, processors: u16) -> Result<()> {
        let plugged = self.network().connect(adapter, network::queues(processors)).await;
        let Plugged { queues, port } = plugged.map_err(Error::Failed)?;
        let queues: Vec<OwnedFd> = queues.into_iter().map(OwnedFd::from).collect();
        let request = DeviceRequest::AddAdapter { adapter: adapter.clone(), mtu: port.mtu };
        let socket = socket.to_owned();
        blocking(move || {
            let descriptors: Vec<_> = queues.iter().map(AsFd::as_fd).collect();
            tell(&socket, &request, &descriptors).map(drop)
        })
        .await
    }

    /// Takes an adapter from a virtual machine, and from a guest that runs.
    pub async fn remove_adapter(&self, name: &str, mac: MacAddress) -> Result<Vm> {
        let (vm, id) = self.adapter(name, mac)?;
        if let Some(socket) = self.device_socket(&vm)? {
            blocking(move || tell(&socket, &DeviceRequest::RemoveAdapter { id }, &[])).await?;
        }
        self.change_settings(name, move |settings| {
            settings.network_adapters.retain(|adapter| adapter.mac != mac)
        })
        .await
    }

    /// Puts an adapter's cable in, or takes it out, for now and for later starts.
    pub async fn set_link(&self, name: &str, mac: MacAddress, up: bool) -> Result<Vm> {
        let (vm, id) = self.adapter(name, mac)?;
        if let Some(socket) = self.device_socket(&vm)? {
            blocking(move || tell(&socket, &DeviceRequest::SetLink { id, up }, &[])).await?;
        }
        self.change_settings(name, move |settings| {
            let adapters = settings.network_adapters.iter_mut();
            adapters.filter(|adapter| adapter.id == id).for_each(|adapter| adapter.options.link_down = !up);
        })
        .await
    }

    /// The virtual machine with an adapter, and the adapter's id.
    fn adapter(&self, name: &str, mac: MacAddress) -> Result<(Vm, Uuid)> {
        let vm = self.show(name)?;
        match vm.settings.network_adapters.iter().find(|adapter| adapter.mac == mac).map(|found| found.id) {
            Some(id) => Ok((vm, id)),
            None => Err(Error::NoAdapter { vm: vm.settings.name, mac }),
        }
    }

    fn only_if_free(&self, mac: MacAddress) -> Result<MacAddress> {
        match self.user_of(mac) {
            Some(vm) => {
                Err(Error::Conflict(format!("the address {mac} is that of an adapter of '{vm}' already")))
            }
            None => Ok(mac),
        }
    }

    fn user_of(&self, mac: MacAddress) -> Option<String> {
        let uses = |vm: &Vm| vm.settings.network_adapters.iter().any(|adapter| adapter.mac == mac);
        self.list().into_iter().find(uses).map(|vm| vm.settings.name)
    }

    /// An address that no adapter of this host has.
    fn free_mac(&self) -> Result<MacAddress> {
        let [a, b, c] = MAC_PREFIX;
        let made = std::iter::repeat_with(|| {
            let [d, e, f, ..] = *Uuid::new_v4().as_bytes();
            MacAddress([a, b, c, d, e, f])
        });
        let free = made.take(1000).find(|mac| self.user_of(*mac).is_none());
        free.ok_or_else(|| Error::Failed("no address for the adapter is free; give one with --mac".into()))
    }

    /// Joins all adapters of a machine to their switches: their ports, and the queues of all, one after the other.
    pub(crate) async fn connect_adapters(
        &self,
        adapters: &[NetworkAdapter],
        processors: u16,
    ) -> std::result::Result<(Vec<Port>, Vec<Queue>), String> {
        let (mut ports, mut all) = (Vec::new(), Vec::new());
        for adapter in adapters {
            let Plugged { queues, port } =
                self.network().connect(adapter, network::queues(processors)).await?;
            ports.push(port);
            all.extend(queues);
        }
        Ok((ports, all))
    }
}
