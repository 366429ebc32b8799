//! What the parent can ask of a guest: the integration services, and streams with programs in it (hv_sock).
//!
//! [`Guest`] holds the services over all resets of the machine; each new bus is offered those that are switched on.
//! [`server`] takes requests from the worker's guest socket; each has a thread of its own, which waits for the guest as
//! long as it takes, and nobody else waits with it.

mod copy;
mod requests;
mod server;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use parterre_api::{IntegrationService, IntegrationSettings, VmSettings};
use parterre_partition::Partition;
use parterre_partition::memory::GuestMemory;
use parterre_vmbus_server::bus::{Bus, ConnectListener, ConnectRequest, OfferId};
use parterre_vmbus_server::{Device, Version};
use parterre_vsp_ic::Component;
use parterre_vsp_ic::copy::FileCopy;
use parterre_vsp_ic::heartbeat::Heartbeat;
use parterre_vsp_ic::kvp::{Item, KeyValue};
use parterre_vsp_ic::shutdown::Shutdown;
use parterre_vsp_ic::timesync::{Clock, TimeSync};
use parterre_vsp_ic::vss::Backup;
use parterre_vsp_input::Keyboard;
use parterre_vsp_socket::Sockets;
use uuid::Uuid;

pub use server::serve;

use crate::crash::Crashes;
use crate::processor::log_line;
use crate::vsp::Attachment;
use crate::vsp::memory::Memory;
use crate::vsp::video::Video;

/// From 1601 to 1970 in seconds.
const UNIX_EPOCH_SECONDS: u64 = 11_644_473_600;

/// The partition that runs now.
type Current = Arc<Mutex<Option<Arc<dyn Partition>>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The parent's clock and the partition's.
struct PartitionClock(Current);

impl Clock for PartitionClock {
    fn time_of_day(&mut self) -> u64 {
        // A parent whose clock stands before 1970 has no time to tell; its guests then stand there too.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (since.as_secs() + UNIX_EPOCH_SECONDS) * 10_000_000 + u64::from(since.subsec_nanos()) / 100
    }

    fn reference_time(&mut self) -> Option<u64> {
        lock(&self.0).as_ref()?.reference_time().ok()
    }
}

/// The bus that is there, and what is offered on it.
#[derive(Default)]
struct Offers {
    bus: Option<Arc<dyn Bus>>,
    enabled: BTreeSet<IntegrationService>,
    offered: BTreeMap<IntegrationService, OfferId>,
}

/// The guest as the parent's programs see it.
pub struct Guest {
    heartbeat: Component<Heartbeat>,
    time: Component<TimeSync<PartitionClock>>,
    shutdown: Component<Shutdown>,
    items: Component<KeyValue>,
    backup: Component<Backup>,
    copy: Component<FileCopy>,
    keyboard: Keyboard,
    memory: Memory,
    video: Video,
    sockets: Sockets,
    crashes: Arc<Crashes>,
    partition: Current,
    offers: Mutex<Offers>,
}

/// What a guest is told about its machine.
fn facts(id: Uuid, name: &str) -> Vec<Item> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let item = |key: &str, value: &str| Item { key: key.into(), value: value.into() };
    vec![
        item("HostName", &host),
        item("PhysicalHostName", &host),
        item("PhysicalHostNameFullyQualified", &host),
        item("VirtualMachineId", &id.to_string().to_uppercase()),
        item("VirtualMachineName", name),
    ]
}

impl Guest {
    /// The services of a virtual machine with these settings and this RAM.
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub fn new(
        id: Uuid,
        settings: &VmSettings,
        ram: Arc<GuestMemory>,
        crashes: Arc<Crashes>,
    ) -> std::io::Result<Guest> {
        let IntegrationSettings { items, .. } = &settings.integration;
        let items =
            items.iter().map(|(key, value)| Item { key: key.clone(), value: value.clone() }).collect();
        let partition = Current::default();
        let is_enabled = |service: &IntegrationService| settings.integration.is_enabled(*service);
        let enabled = IntegrationService::ALL.into_iter().filter(is_enabled).collect();
        Ok(Guest {
            heartbeat: Component::new(Heartbeat::default())?,
            time: Component::new(TimeSync::new(PartitionClock(partition.clone())))?,
            shutdown: Component::new(Shutdown::default())?,
            items: Component::new(KeyValue::new(facts(id, &settings.name), items))?,
            backup: Component::new(Backup::default())?,
            copy: Component::new(FileCopy::default())?,
            keyboard: Keyboard::new()?,
            memory: Memory::new(ram)?,
            video: Video::new()?,
            sockets: Sockets::new(),
            crashes,
            partition,
            offers: Mutex::new(Offers { enabled, ..Offers::default() }),
        })
    }

    fn device(&self, service: IntegrationService) -> Arc<dyn Device> {
        match service {
            IntegrationService::Heartbeat => Arc::new(self.heartbeat.clone()),
            IntegrationService::TimeSync => Arc::new(self.time.clone()),
            IntegrationService::Shutdown => Arc::new(self.shutdown.clone()),
            IntegrationService::DataExchange => Arc::new(self.items.clone()),
            IntegrationService::Backup => Arc::new(self.backup.clone()),
            IntegrationService::FileCopy => Arc::new(self.copy.clone()),
        }
    }

    /// Has the bus offer what is switched on, and nothing else.
    fn settle(&self, offers: &mut Offers) {
        let Some(bus) = &offers.bus else { return };
        for service in IntegrationService::ALL {
            match (offers.enabled.contains(&service), offers.offered.get(&service)) {
                (true, None) => match bus.offer(self.device(service)) {
                    Ok(id) => drop(offers.offered.insert(service, id)),
                    Err(error) => log_line(format_args!("no integration service '{service}': {error}")),
                },
                (false, Some(id)) => {
                    bus.rescind(*id);
                    offers.offered.remove(&service);
                }
                _ => {}
            }
        }
    }

    /// Switches a service on or off.
    fn enable(&self, service: IntegrationService, enabled: bool) {
        let mut offers = lock(&self.offers);
        if enabled {
            offers.enabled.insert(service);
        } else {
            offers.enabled.remove(&service);
        }
        self.settle(&mut offers);
    }

    fn bus(&self) -> Option<Arc<dyn Bus>> {
        lock(&self.offers).bus.clone()
    }

    fn is_enabled(&self, service: IntegrationService) -> bool {
        lock(&self.offers).enabled.contains(&service)
    }

    /// The version of VMBus that the guest speaks.
    fn bus_version(&self) -> Option<Version> {
        self.bus()?.version()
    }

    /// The guest's time stood still for a while: its clock shall be set.
    pub fn time_went_on(&self) {
        self.time.with(|session, _| session.protocol_mut().synchronize());
    }
}

impl Attachment for Guest {
    fn attach(&self, bus: Arc<dyn Bus>, partition: Arc<dyn Partition>) {
        *lock(&self.partition) = Some(partition.clone());
        if let Err(error) = self.video.attach(partition) {
            log_line(format_args!("{error}"));
        }
        let devices: [(&str, Arc<dyn Device>); 3] = [
            ("keyboard", Arc::new(self.keyboard.clone())),
            ("dynamic memory", self.memory.device()),
            ("screen", self.video.device()),
        ];
        for (name, device) in devices {
            if let Err(error) = bus.offer(device) {
                log_line(format_args!("no {name}: {error}"));
            }
        }
        let mut offers = lock(&self.offers);
        offers.bus = Some(bus);
        offers.offered.clear();
        self.settle(&mut offers);
    }

    fn resumed(&self) {
        self.time_went_on();
    }

    fn detach(&self) {
        *lock(&self.partition) = None;
        self.video.detach();
        let mut offers = lock(&self.offers);
        offers.bus = None;
        offers.offered.clear();
    }
}

impl ConnectListener for Guest {
    fn connect(&self, bus: &Arc<dyn Bus>, request: ConnectRequest) -> bool {
        ConnectListener::connect(&self.sockets, bus, request)
    }
}
