//! Commands that a guest carries out.

mod backup;
mod copy;
mod freeze;
mod interrupt;
mod socket;
mod stream;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use parterre_api::guest::{GuestAnswer, GuestRequest, ItemPool, ItemValue, ShutdownAction, ShutdownRequest};
use parterre_api::{GuestCrash, IntegrationStatus, ServiceChange, Vm, check_item};
use tokio::runtime::Runtime;

use backup::{Backup, Consistency, Wish};

use crate::arguments::{GuestCommand, IntegrationCommand, KvpCommand, Pool};
use crate::client::{Client, join, vm_path};
use crate::error::Error;
use crate::progress::Progress;
use crate::table::{print_bytes, print_json, print_pairs, print_table, printable};
use crate::vm::print_done;

/// Runs a command.
pub fn run(runtime: &Runtime, client: &Client, command: GuestCommand, json: bool) -> Result<ExitCode, Error> {
    let service = Asking { runtime, client, json };
    match command {
        GuestCommand::Shutdown { name, force, hibernate, message, timeout } => {
            let action = if hibernate { ShutdownAction::Hibernate } else { ShutdownAction::PowerOff };
            let request = ShutdownRequest { action, force, message, timeout: Some(timeout) };
            service.shut_down(&name, &request, "off")
        }
        GuestCommand::Restart { name, force, message, timeout } => {
            let action = ShutdownAction::Restart;
            let request = ShutdownRequest { action, force, message, timeout: Some(timeout) };
            service.shut_down(&name, &request, "restarted")
        }
        GuestCommand::Integration(command) => service.integration(command),
        GuestCommand::Kvp(command) => service.items(command),
        GuestCommand::Copy { name, file, destination, overwrite, create_path } => {
            let vm = service.running(&name)?;
            copy::copy(&vm, &file, &destination, overwrite, create_path)?;
            done(json, &format!("{name}: {} copied\n", file.display()))
        }
        GuestCommand::Freeze { name, limit, command } => {
            runtime.block_on(freeze::freeze(client, &name, limit, &command))
        }
        GuestCommand::Backup { name, directory, disks, crash_consistent, limit } => {
            let wish = Wish { name, directory, disks, limit, crash_consistent };
            print_backup(&runtime.block_on(backup::backup(client, &wish))?, json)
        }
        GuestCommand::Thaw { name } => {
            runtime.block_on(freeze::thaw(client, &name))?;
            done(json, &format!("{name}: thawed\n"))
        }
        GuestCommand::Type { name, mut text, enter } => {
            text.push_str(if enter { "\n" } else { "" });
            socket::ask(&service.running(&name)?, &GuestRequest::Type { text })?;
            done(json, &format!("{name}: typed\n"))
        }
        GuestCommand::Press { name, chords } => {
            socket::ask(&service.running(&name)?, &GuestRequest::Press { chords })?;
            done(json, &format!("{name}: pressed\n"))
        }
        GuestCommand::SyncTime { name } => {
            socket::ask(&service.running(&name)?, &GuestRequest::SyncTime)?;
            done(json, &format!("{name}: the guest's clock is being set\n"))
        }
        GuestCommand::Connect { name, port, timeout } => {
            stream::connect(&service.running(&name)?, &GuestRequest::Connect { port, seconds: timeout })
        }
        GuestCommand::Listen { name, port } => {
            stream::connect(&service.running(&name)?, &GuestRequest::Listen { port })
        }
    }
}

/// Says that something is done, in the form that was asked for.
fn done(json: bool, text: &str) -> Result<ExitCode, Error> {
    if json {
        print_json(&serde_json::json!({ "done": text.trim_end() }))?;
    } else {
        print_bytes(text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_backup(backup: &Backup, json: bool) -> Result<ExitCode, Error> {
    if json {
        print_json(backup)?;
        return Ok(ExitCode::SUCCESS);
    }
    let worth = match backup.consistency {
        Consistency::Off => "the virtual machine is off",
        Consistency::FileSystems => "file systems are whole",
        Consistency::Crash => "as after a power cut",
    };
    let mut text = format!("{} ({worth}):\n", backup.directory.display());
    for disk in &backup.disks {
        text.push_str(&format!("  {}\n", disk.file.display()));
    }
    print_bytes(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// What the commands ask with.
struct Asking<'a> {
    runtime: &'a Runtime,
    client: &'a Client,
    json: bool,
}

impl Asking<'_> {
    fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.runtime.block_on(self.client.get(path))
    }

    /// A virtual machine whose guest can be asked directly.
    fn running(&self, name: &str) -> Result<Vm, Error> {
        let vm: Vm = self.get(&vm_path(name))?;
        if vm.guest.is_none() { Err(Error::NoGuest(vm.settings.name)) } else { Ok(vm) }
    }

    fn shut_down(&self, name: &str, request: &ShutdownRequest, what: &str) -> Result<ExitCode, Error> {
        let progress = Progress::start(&format!("waiting for the guest of {name}"));
        let path = vm_path(name) + "/shutdown";
        let vm: Result<Vm, Error> = self.runtime.block_on(self.client.post(&path, request));
        drop(progress);
        print_done(self.json, &vm?, what)?;
        Ok(ExitCode::SUCCESS)
    }

    fn integration(&self, command: IntegrationCommand) -> Result<ExitCode, Error> {
        let (name, change) = match command {
            IntegrationCommand::List { name } => (name, None),
            IntegrationCommand::Enable { name, service } => (name, Some((service, true))),
            IntegrationCommand::Disable { name, service } => (name, Some((service, false))),
        };
        let path = vm_path(&name) + "/integration";
        let status: IntegrationStatus = match change {
            None => self.get(&path)?,
            Some((service, enabled)) => {
                let path = join(&path, service.name());
                self.runtime.block_on(self.client.put(&path, &ServiceChange { enabled }))?
            }
        };
        if self.json {
            print_json(&status)?;
        } else {
            let row = |status: &parterre_api::ServiceStatus| {
                [status.service.to_string(), status.service.title().to_owned(), status.state.to_string()]
            };
            print_table(["service", "name in Hyper-V", "state"], status.services.iter().map(row).collect())?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn items(&self, command: KvpCommand) -> Result<ExitCode, Error> {
        match command {
            KvpCommand::Get { name, key, pool } => self.get_items(&name, key.as_deref(), pool),
            KvpCommand::Set { name, key, value } => {
                check_item(&key, &value).map_err(Error::wrong)?;
                let path = join(&(vm_path(&name) + "/items/external"), &key);
                self.runtime.block_on(self.client.store(&path, &ItemValue { value }))?;
                done(self.json, &format!("{name}: {key} set\n"))
            }
            KvpCommand::Delete { name, key } => {
                check_item(&key, "").map_err(Error::wrong)?;
                let path = join(&(vm_path(&name) + "/items/external"), &key);
                self.runtime.block_on(self.client.delete(&path))?;
                done(self.json, &format!("{name}: {key} deleted\n"))
            }
            KvpCommand::Addresses { name, mac } => {
                let request = GuestRequest::GetAddresses { adapter: mac };
                let GuestAnswer::Addresses(found) = socket::ask(&self.running(&name)?, &request)? else {
                    return Err(socket::unexpected());
                };
                if self.json {
                    print_json(&found)?;
                } else {
                    print_pairs(vec![
                        ("DHCP", if found.dhcp { "yes".into() } else { "no".into() }),
                        ("Addresses", found.addresses.join(", ")),
                        ("Subnets", found.subnets.join(", ")),
                        ("Gateways", found.gateways.join(", ")),
                        ("Name servers", found.dns.join(", ")),
                    ])?;
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    fn get_items(&self, name: &str, key: Option<&str>, pool: Pool) -> Result<ExitCode, Error> {
        let pool = match pool {
            Pool::External => ItemPool::External,
            Pool::Guest => ItemPool::Guest,
            Pool::Auto => ItemPool::Auto,
            Pool::AutoExternal => ItemPool::AutoExternal,
            Pool::AutoInternal => ItemPool::AutoInternal,
        };
        let segment = serde_json::to_value(pool).map_err(|e| Error::Protocol(e.to_string()))?;
        let path = join(&(vm_path(name) + "/items"), segment.as_str().unwrap_or_default());
        let items: BTreeMap<String, String> = self.get(&path)?;
        if let Some(key) = key {
            let value = items.get(key).ok_or_else(|| Error::NoItem(key.into()))?;
            match (self.json, std::io::stdout().is_terminal()) {
                (true, _) => print_json(value)?,
                // A program gets the value as it is.
                (false, false) => print_bytes(format!("{value}\n").as_bytes())?,
                (false, true) => print_bytes(format!("{}\n", printable(value)).as_bytes())?,
            }
        } else if self.json {
            print_json(&items)?;
        } else {
            print_table(["key", "value"], items.into_iter().map(|(key, value)| [key, value]).collect())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What `parterre vm show` says of the guest.
pub fn pairs(status: &IntegrationStatus) -> Vec<(&str, String)> {
    let mut pairs = Vec::new();
    if let Some(version) = &status.vmbus {
        pairs.push(("VMBus", version.clone()));
    }
    pairs.extend(status.services.iter().map(|status| (status.service.title(), status.state.to_string())));
    let crash = |crash: &GuestCrash| ("Guest crashed", format!("{}: {}", ago(crash.time), crash.summary()));
    pairs.extend(status.crash.as_ref().map(crash));
    let guest = [
        ("Guest's name", "FullyQualifiedDomainName"),
        ("Guest's system", "OSName"),
        ("Guest's version", "OSMajorVersion"),
        ("Guest's kernel", "OSVersion"),
        ("IPv4 addresses", "NetworkAddressIPv4"),
        ("IPv6 addresses", "NetworkAddressIPv6"),
    ];
    let said = guest.into_iter().filter_map(|(title, key)| Some((title, status.guest.get(key)?.clone())));
    pairs.extend(said.filter(|(_, value)| !value.is_empty()));
    pairs
}

/// How long ago something was that happened so many seconds after the beginning of 1970.
fn ago(time: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match now.saturating_sub(time) {
        seconds @ ..120 => format!("{seconds} seconds ago"),
        seconds @ ..7200 => format!("{} minutes ago", seconds / 60),
        seconds => format!("{} hours ago", seconds / 3600),
    }
}
