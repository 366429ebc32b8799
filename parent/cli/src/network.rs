//! Commands about virtual switches, and about the network adapters of virtual machines.

use clap::{Args, Subcommand, ValueEnum};
use parterre_api::{
    AdapterOptions, AdapterRequest, DEFAULT_MTU, LinkRequest, MacAddress, NetworkAdapter, Switch, SwitchKind,
    SwitchSettings, Trunk, VlanList, Vm,
};

use crate::client::{Client, escape, vm_path};
use crate::error::Error;
use crate::table::{print_bytes, print_json, print_pairs, print_table};

/// Commands about virtual switches.
#[derive(Subcommand)]
pub enum SwitchCommand {
    /// Make a virtual switch.
    Create(CreateSwitch),
    /// List all virtual switches.
    List,
    /// Show a virtual switch.
    Show {
        /// Name or id.
        name: String,
    },
    /// Delete a virtual switch that no virtual machine uses.
    Delete {
        /// Name or id.
        name: String,
    },
}

/// Whom a switch joins.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Type {
    /// Virtual machines and a network of this host's.
    External,
    /// Virtual machines and this host.
    Internal,
    /// Virtual machines only.
    Private,
}

/// What a new switch is to be.
#[derive(Args)]
pub struct CreateSwitch {
    /// Its name: letters, digits, spaces, '-', '_' and '.'.
    pub name: String,
    /// Whom it joins.
    #[arg(long = "type", value_enum)]
    pub kind: Type,
    /// The network interface of this host's that an external switch takes.
    #[arg(long, value_name = "IF", required_if_eq("kind", "external"))]
    pub interface: Option<String>,
    /// This host goes on using the interface: its addresses and routes move to the switch.
    #[arg(long, requires = "interface")]
    pub share: bool,
    /// This host's address in an internal switch, as 192.168.100.1/24.
    #[arg(long, value_name = "ADDRESS/PREFIX", conflicts_with = "interface")]
    pub address: Option<String>,
    /// Give guests addresses of that prefix by DHCP; with NAT also this host as router, and its name servers.
    #[arg(long, requires = "address")]
    pub dhcp: bool,
    /// Let guests reach what this host reaches, by this host's address (NAT, by nftables; IPv4).
    #[arg(long, requires = "address")]
    pub nat: bool,
    /// Longest payload of a frame (MTU), 576 to 65521; 9000 is usual for jumbo frames [default: 1500, or the interface's].
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
}

/// Commands about the network adapters of a virtual machine.
#[derive(Subcommand)]
pub enum NetworkCommand {
    /// Give a virtual machine a network adapter; a guest that runs has it at once.
    Add(AddAdapter),
    /// Take a network adapter from a virtual machine, also while its guest runs.
    Remove {
        /// Name or id of the virtual machine.
        name: String,
        /// The adapter's Ethernet address.
        mac: MacAddress,
    },
    /// Put an adapter's cable in, or take it out: the guest sees the link come and go.
    Link {
        /// Name or id of the virtual machine.
        name: String,
        /// The adapter's Ethernet address.
        mac: MacAddress,
        /// In or out.
        #[arg(value_enum)]
        state: Link,
    },
    /// List the network adapters of a virtual machine.
    List {
        /// Name or id of the virtual machine.
        name: String,
    },
}

/// Whether a cable is in.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Link {
    /// In.
    Up,
    /// Out.
    Down,
}

/// What a new adapter is to be.
#[derive(Args)]
pub struct AddAdapter {
    /// Name or id of the virtual machine.
    pub name: String,
    /// The switch that it is plugged into.
    #[arg(long)]
    pub switch: String,
    /// Its Ethernet address; one that is free if absent.
    #[arg(long, value_name = "ADDRESS")]
    pub mac: Option<MacAddress>,
    /// The VLAN that it is in, 1 to 4094; its frames carry no tag.
    #[arg(long, value_name = "N", conflicts_with = "trunk")]
    pub vlan: Option<u16>,
    /// The VLANs that it sees by the tags of frames (trunk mode), as 5,7-9.
    #[arg(long, value_name = "LIST")]
    pub trunk: Option<VlanList>,
    /// The VLAN of a trunk's frames without a tag [default: where untagged frames of the switch are].
    #[arg(long, value_name = "N", requires = "trunk")]
    pub native_vlan: Option<u16>,
    /// Let the guest send from other addresses, take another one, and hear frames for others.
    #[arg(long)]
    pub mac_spoofing: bool,
    /// Drop what only a DHCP server says.
    #[arg(long)]
    pub dhcp_guard: bool,
    /// Drop router advertisements and redirects.
    #[arg(long)]
    pub router_guard: bool,
    /// Keep it apart from the other isolated adapters of its switch.
    #[arg(long)]
    pub isolated: bool,
}

fn switch_path(name: &str) -> String {
    format!("/v1/switches/{}", escape(name))
}

/// Runs a command about switches.
pub fn run_switch(command: SwitchCommand, json: bool) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask_switch(&Client::new(), command, json))
}

async fn ask_switch(client: &Client, command: SwitchCommand, json: bool) -> Result<(), Error> {
    match command {
        SwitchCommand::Create(create) => {
            let switch: Switch = client.post("/v1/switches", &settings(create)).await?;
            if json {
                return print_json(&switch);
            }
            print_bytes(format!("{}: created\n", switch.settings.name).as_bytes())
        }
        SwitchCommand::List => {
            let switches: Vec<Switch> = client.get("/v1/switches").await?;
            if json { print_json(&switches) } else { print_switches(&switches) }
        }
        SwitchCommand::Show { name } => {
            let switch: Switch = client.get(&switch_path(&name)).await?;
            if json { print_json(&switch) } else { print_switch(&switch) }
        }
        SwitchCommand::Delete { name } => {
            client.delete(&switch_path(&name)).await?;
            if json {
                return print_json(&serde_json::json!({ "deleted": name }));
            }
            print_bytes(format!("{name}: deleted\n").as_bytes())
        }
    }
}

fn settings(create: CreateSwitch) -> SwitchSettings {
    let kind = match create.kind {
        Type::External => {
            SwitchKind::External { interface: create.interface.unwrap_or_default(), shared: create.share }
        }
        Type::Internal => {
            SwitchKind::Internal { address: create.address, dhcp: create.dhcp, nat: create.nat }
        }
        Type::Private => SwitchKind::Private,
    };
    SwitchSettings { name: create.name, kind, mtu: create.mtu }
}

fn joins(kind: &SwitchKind) -> String {
    match kind {
        SwitchKind::External { interface, shared: false } => interface.clone(),
        SwitchKind::External { interface, shared: true } => format!("{interface}, shared with this host"),
        SwitchKind::Internal { address: Some(address), dhcp, nat } => {
            let does = match (dhcp, nat) {
                (false, false) => "",
                (true, false) => ", which gives addresses by DHCP",
                (false, true) => ", which lets guests out by NAT",
                (true, true) => ", which gives addresses by DHCP and lets guests out by NAT",
            };
            format!("this host as {address}{does}")
        }
        SwitchKind::Internal { address: None, .. } => "this host".into(),
        SwitchKind::Private => "-".into(),
    }
}

fn mtu(settings: &SwitchSettings) -> String {
    match (settings.mtu, &settings.kind) {
        (Some(mtu), _) => mtu.to_string(),
        (None, SwitchKind::External { interface, .. }) => format!("that of {interface}"),
        (None, _) => DEFAULT_MTU.to_string(),
    }
}

fn state(switch: &Switch) -> String {
    if switch.trouble.is_some() { "not working".into() } else { "working".into() }
}

fn print_switches(switches: &[Switch]) -> Result<(), Error> {
    let rows = switches.iter().map(|switch| {
        let Switch { settings, .. } = switch;
        let kind = settings.kind.word().into();
        [
            settings.name.clone(),
            kind,
            joins(&settings.kind),
            state(switch),
            switch.virtual_machines.len().to_string(),
        ]
    });
    print_table(["name", "type", "joins", "state", "virtual machines"], rows.collect())
}

fn print_switch(switch: &Switch) -> Result<(), Error> {
    let Switch { settings, .. } = switch;
    let mut pairs = vec![
        ("Name", settings.name.clone()),
        ("Id", switch.id.to_string()),
        ("Type", settings.kind.word().into()),
        ("Joins", joins(&settings.kind)),
        ("Interface", switch.bridge.clone()),
        ("MTU", mtu(settings)),
        (
            "State",
            switch
                .trouble
                .as_ref()
                .map_or_else(|| state(switch), |trouble| format!("not working: {trouble}")),
        ),
    ];
    if !switch.virtual_machines.is_empty() {
        pairs.push(("Virtual machines", switch.virtual_machines.join(", ")));
    }
    for lease in &switch.leases {
        let name = lease.virtual_machine.as_deref().unwrap_or("no virtual machine");
        pairs.push(("Address given", format!("{} to {} of {name}", lease.address, lease.mac)));
    }
    print_pairs(pairs)
}

/// Runs a command about adapters.
pub async fn run_network(client: &Client, command: NetworkCommand, json: bool) -> Result<(), Error> {
    match command {
        NetworkCommand::Add(add) => {
            let path = vm_path(&add.name) + "/network";
            let vm: Vm = client.post(&path, &request(add)).await?;
            if json {
                return print_json(&vm);
            }
            let mac = vm
                .settings
                .network_adapters
                .last()
                .map_or_else(String::new, |adapter| adapter.mac.to_string());
            print_bytes(format!("{}: network adapter {mac} added\n", vm.settings.name).as_bytes())
        }
        NetworkCommand::Remove { name, mac } => {
            client.delete(&format!("{}/network/{mac}", vm_path(&name))).await?;
            if json {
                return print_json(&serde_json::json!({ "removed": mac }));
            }
            print_bytes(format!("{name}: network adapter {mac} removed\n").as_bytes())
        }
        NetworkCommand::Link { name, mac, state } => {
            let path = format!("{}/network/{mac}/link", vm_path(&name));
            let vm: Vm = client.put(&path, &LinkRequest { up: state == Link::Up }).await?;
            if json {
                return print_json(&vm);
            }
            let word = if state == Link::Up { "up" } else { "down" };
            print_bytes(format!("{name}: the link of network adapter {mac} is {word}\n").as_bytes())
        }
        NetworkCommand::List { name } => {
            let vm: Vm = client.get(&vm_path(&name)).await?;
            let adapters = vm.settings.network_adapters;
            if json { print_json(&adapters) } else { print_adapters(&adapters) }
        }
    }
}

fn request(add: AddAdapter) -> AdapterRequest {
    let AddAdapter { switch, mac, vlan, mac_spoofing, dhcp_guard, router_guard, isolated, .. } = add;
    let trunk = add.trunk.map(|allowed| Trunk { allowed, native: add.native_vlan });
    let link_down = false;
    let options = AdapterOptions { vlan, trunk, mac_spoofing, dhcp_guard, router_guard, isolated, link_down };
    AdapterRequest { switch, mac, options }
}

/// What is set of an adapter, in a few words.
pub fn words(options: &AdapterOptions) -> String {
    let named = [
        (options.mac_spoofing, "mac spoofing"),
        (options.dhcp_guard, "dhcp guard"),
        (options.router_guard, "router guard"),
        (options.isolated, "isolated"),
        (options.link_down, "link down"),
    ];
    let words: Vec<&str> = named.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
    if words.is_empty() { "-".into() } else { words.join(", ") }
}

fn print_adapters(adapters: &[NetworkAdapter]) -> Result<(), Error> {
    let rows = adapters.iter().map(|adapter| {
        let AdapterOptions { vlan, trunk, .. } = &adapter.options;
        let vlan = match (vlan, trunk) {
            (Some(vlan), _) => vlan.to_string(),
            (None, Some(trunk)) => format!("trunk {trunk}"),
            (None, None) => "-".into(),
        };
        [adapter.mac.to_string(), adapter.switch.clone(), vlan, words(&adapter.options)]
    });
    print_table(["address", "switch", "vlan", "settings"], rows.collect())
}
