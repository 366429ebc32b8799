//! All virtual machines of the host: what is defined, what runs, and the operations on them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use parterre_api::worker::{WorkerPhase, WorkerRequest, WorkerSpec, WorkerStatus};
use parterre_api::{HostInfo, OffReason, Paths, StopRequest, Vm, VmSettings, VmState, WorkerPaths};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use crate::network::Switches;
use crate::process;
use crate::store::Store;
use crate::supervise::{Link, Order, state_of, supervise};
use crate::{Error, Result};

/// How long a guest has to shut down after its power button was pressed, unless the request says otherwise.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a worker has to switch off; then its process is ended.
const FORCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Orders that may wait for a supervisor.
const ORDERS: usize = 16;

struct Entry {
    /// The virtual machine as everybody sees it.
    vm: watch::Sender<Vm>,
    /// The way to the supervisor while there is a worker.
    orders: Option<mpsc::Sender<Order>>,
}

struct Inner {
    paths: Paths,
    worker_program: PathBuf,
    store: Mutex<Store>,
    entries: Mutex<BTreeMap<Uuid, Entry>>,
    network: Switches,
    /// Held while settings are changed, so that no change overwrites another.
    changing: tokio::sync::Mutex<()>,
}

/// The service's heart; clones share it.
#[derive(Clone)]
pub struct Manager(Arc<Inner>);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Manager {
    /// A manager with the definitions of the store; every virtual machine is off until [`adopt`](crate::adopt) finds
    /// its worker.
    pub fn new(paths: Paths, worker_program: PathBuf, store: Store) -> Result<Manager> {
        let definitions = store.all()?;
        let dhcp = worker_program.with_file_name("vdhcp");
        let network = Switches::new(store.switches()?, dhcp, paths.leases(), &paths.runtime);
        let entries = definitions.into_iter().map(|(id, settings)| (id, Entry::off(id, settings))).collect();
        let (store, entries) = (Mutex::new(store), Mutex::new(entries));
        let changing = tokio::sync::Mutex::default();
        Ok(Manager(Arc::new(Inner { paths, worker_program, store, entries, network, changing })))
    }

    /// The directories.
    pub fn paths(&self) -> &Paths {
        &self.0.paths
    }

    pub(crate) fn worker_program(&self) -> &std::path::Path {
        &self.0.worker_program
    }

    pub(crate) fn network(&self) -> &Switches {
        &self.0.network
    }

    pub(crate) fn store(&self) -> &Mutex<Store> {
        &self.0.store
    }

    /// Makes what is missing of the switches; a switch that does not work says why when it is shown.
    pub async fn restore_switches(&self) {
        self.network().restore().await;
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Uuid, Entry>> {
        lock(&self.0.entries)
    }

    /// What the service knows of its host.
    pub fn host(&self) -> HostInfo {
        let entries = self.entries();
        HostInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            hypervisor_device: std::path::Path::new("/dev/mshv").exists(),
            virtual_machines: entries.len(),
            running: entries.values().filter(|entry| !entry.vm.borrow().status.is_off()).count(),
        }
    }

    /// All virtual machines, by name.
    pub fn list(&self) -> Vec<Vm> {
        let mut all: Vec<Vm> = self.entries().values().map(|entry| entry.vm.borrow().clone()).collect();
        all.sort_by(|a, b| a.settings.name.cmp(&b.settings.name));
        all
    }

    /// The virtual machine with a name or an id, now and as it changes.
    pub fn watch(&self, name: &str) -> Result<watch::Receiver<Vm>> {
        let id = self.find(name)?;
        self.entries().get(&id).map(|entry| entry.vm.subscribe()).ok_or_else(|| Error::NotFound(name.into()))
    }

    /// The virtual machine with a name or an id.
    pub fn show(&self, name: &str) -> Result<Vm> {
        Ok(self.watch(name)?.borrow().clone())
    }

    fn find(&self, name: &str) -> Result<Uuid> {
        let entries = self.entries();
        let by_name = entries.iter().find(|(_, entry)| entry.vm.borrow().settings.name == name);
        if let Some((id, _)) = by_name {
            return Ok(*id);
        }
        Uuid::parse_str(name)
            .ok()
            .filter(|id| entries.contains_key(id))
            .ok_or_else(|| Error::NotFound(name.into()))
    }

    /// Defines a virtual machine. When this returns, the definition is on the disk.
    pub async fn create(&self, settings: VmSettings) -> Result<Vm> {
        settings.check().map_err(Error::BadRequest)?;
        let id = Uuid::new_v4();
        let (inner, stored) = (self.0.clone(), settings.clone());
        blocking(move || lock(&inner.store).insert(id, &stored)).await?;
        let entry = Entry::off(id, settings);
        let vm = entry.vm.borrow().clone();
        self.entries().insert(id, entry);
        Ok(vm)
    }

    /// Changes the settings of a virtual machine, all but its name. When this returns, they are on the disk. What a worker
    /// that runs is to know of it is the caller's business.
    pub(crate) async fn change_settings(
        &self,
        name: &str,
        change: impl FnOnce(&mut VmSettings) + Send + 'static,
    ) -> Result<Vm> {
        let id = self.find(name)?;
        let _turn = self.0.changing.lock().await;
        let mut settings = self.show(name)?.settings;
        change(&mut settings);
        settings.check().map_err(Error::BadRequest)?;
        let (inner, stored) = (self.0.clone(), settings.clone());
        if !blocking(move || lock(&inner.store).update(id, &stored)).await? {
            return Err(Error::NotFound(name.into()));
        }
        if let Some(entry) = self.entries().get(&id) {
            entry.vm.send_modify(|vm| vm.settings = settings);
        }
        self.show(name)
    }

    /// Forgets a virtual machine that is off.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let id = self.find(name)?;
        let vm = self.show(name)?;
        if !vm.status.is_off() {
            let name = vm.settings.name;
            return Err(Error::Conflict(format!(
                "virtual machine '{name}' is {}; stop it first: `parterre vm stop {name}`",
                vm.status.word().to_lowercase()
            )));
        }
        let inner = self.0.clone();
        blocking(move || lock(&inner.store).remove(id)).await?;
        self.entries().remove(&id);
        // What a last worker left there is of no use to anybody.
        let _ = std::fs::remove_dir_all(self.0.paths.worker(id).directory());
        Ok(())
    }

    /// Starts a virtual machine and waits until it runs.
    pub async fn start(&self, name: &str) -> Result<Vm> {
        let id = self.find(name)?;
        let settings = self.begin_start(id, name)?;
        let mut changes = self.watch(name)?;
        if let Err(message) = self.launch(id, settings).await {
            self.publish(id, None, VmState::Off(OffReason::Failed { message }));
        }
        let decided = |vm: &Vm| matches!(vm.status, VmState::Running { .. } | VmState::Off(_));
        let vm = changes.wait_for(decided).await.map_err(|_| Error::NotFound(name.into()))?.clone();
        match &vm.status {
            VmState::Off(OffReason::Failed { message }) => {
                Err(Error::Failed(format!("virtual machine '{}' cannot start: {message}", vm.settings.name)))
            }
            VmState::Off(reason @ OffReason::WorkerEnded { .. }) => Err(Error::Failed(format!(
                "virtual machine '{}' did not start: {reason}; its log is {}",
                vm.settings.name,
                self.0.paths.worker(id).log().display()
            ))),
            _ => Ok(vm),
        }
    }

    /// Takes a virtual machine from off to starting, for one caller only.
    fn begin_start(&self, id: Uuid, name: &str) -> Result<VmSettings> {
        let entries = self.entries();
        let entry = entries.get(&id).ok_or_else(|| Error::NotFound(name.into()))?;
        let vm = entry.vm.borrow().clone();
        if !vm.status.is_off() {
            let word = vm.status.word().to_lowercase();
            return Err(Error::Conflict(format!("virtual machine '{}' is {word} already", vm.settings.name)));
        }
        entry.vm.send_modify(|vm| vm.status = VmState::Starting { step: "starting the worker".into() });
        Ok(vm.settings)
    }

    /// Starts the worker and its supervisor.
    async fn launch(&self, id: Uuid, settings: VmSettings) -> std::result::Result<(), String> {
        let paths = self.0.paths.worker(id);
        let connected = self.connect_adapters(&settings.network_adapters, settings.processors).await;
        let (ports, queues) = connected?;
        let spec = WorkerSpec { id, settings, directory: paths.directory().to_owned(), ports };
        let descriptors = queues.into_iter().map(OwnedFd::from).collect();
        let (process, first) = process::spawn(&self.0.worker_program, &spec, descriptors).await?;
        if let WorkerPhase::Ended(reason) = first.phase {
            process.ended().await;
            return Err(match reason {
                OffReason::Failed { message } => message,
                other => other.to_string(),
            });
        }
        match UnixStream::connect(paths.control()).await {
            Ok(stream) => {
                self.take_charge(id, first.pid, Link::new(process, stream));
                Ok(())
            }
            Err(error) => {
                process.kill();
                process.ended().await;
                Err(format!("the worker cannot be reached: {error}"))
            }
        }
    }

    /// Watches over a worker from now on.
    pub(crate) fn take_charge(&self, id: Uuid, pid: u32, link: Link) {
        let (orders, receiver) = mpsc::channel(ORDERS);
        if let Some(entry) = self.entries().get_mut(&id) {
            entry.orders = Some(orders);
        }
        let manager = self.clone();
        tokio::spawn(async move {
            let mut notes = JoinSet::new();
            let publish = |status: &WorkerStatus| {
                if let Some(note) = manager.emptied(id, &status.ejected) {
                    notes.spawn(note);
                }
                manager.publish(id, Some(pid), state_of(&status.phase));
            };
            let reason = supervise(link, receiver, publish).await;
            // The next start is to find what this one has left.
            notes.join_all().await;
            manager.publish(id, None, VmState::Off(reason));
        });
    }

    /// Tells everybody the state of a virtual machine.
    fn publish(&self, id: Uuid, worker: Option<u32>, state: VmState) {
        let paths = worker.map(|_| self.0.paths.worker(id));
        let (console, guest) =
            (paths.as_ref().map(WorkerPaths::console), paths.as_ref().map(WorkerPaths::guest));
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&id) else { return };
        if worker.is_none() {
            entry.orders = None;
        }
        entry.vm.send_modify(|vm| {
            // A worker that reports "running" again while it is asked to stop is still being stopped.
            let stopping = vm.status == VmState::Stopping && matches!(state, VmState::Running { .. });
            if !stopping {
                vm.status = state;
            }
            (vm.worker, vm.console, vm.guest) = (worker, console, guest);
        });
    }

    /// Has the processors of a virtual machine stand still, or go on, and waits until they do.
    pub async fn pause(&self, name: &str, pause: bool) -> Result<Vm> {
        let mut changes = self.watch(name)?;
        let vm = changes.borrow_and_update().clone();
        let request = match (&vm.status, pause) {
            (VmState::Paused { .. }, true) | (VmState::Running { .. }, false) => return Ok(vm),
            (VmState::Running { .. }, true) => WorkerRequest::Pause,
            (VmState::Paused { .. }, false) => WorkerRequest::Resume,
            _ => {
                let (name, word) = (vm.settings.name, vm.status.word().to_lowercase());
                return Err(Error::Conflict(format!(
                    "virtual machine '{name}' is {word}; only one that runs can be paused and resumed"
                )));
            }
        };
        self.order(vm.id, Order::Request(request)).await;
        let changed = changes.wait_for(|now| now.status != vm.status);
        match timeout(FORCE_TIMEOUT, changed).await {
            Ok(changed) => changed.map(|vm| vm.clone()).map_err(|_| Error::NotFound(name.into())),
            Err(_) => Err(Error::Timeout(format!("the worker of virtual machine '{name}' does not answer"))),
        }
    }

    /// Stops a virtual machine and waits until it is off. One that is off already stays off.
    pub async fn stop(&self, name: &str, request: StopRequest) -> Result<Vm> {
        let mut changes = self.watch(name)?;
        let before = changes.borrow_and_update().clone();
        if before.status.is_off() {
            return Ok(before);
        }
        if let (VmState::Paused { .. }, false) = (&before.status, request.force) {
            return Err(Error::Conflict(format!(
                "virtual machine '{name}' is paused and cannot hear its power button; use `parterre vm resume {name}` \
                 first, or `parterre vm stop --force {name}`"
            )));
        }
        let id = before.id;
        let patience = request.timeout.map_or(STOP_TIMEOUT, |seconds| Duration::from_secs(seconds.into()));
        let ask = if request.force { WorkerRequest::PowerOff } else { WorkerRequest::PowerButton };
        self.set_status(id, VmState::Stopping);
        self.order(id, Order::Request(ask)).await;
        let patience = if request.force { FORCE_TIMEOUT } else { patience };
        if let Ok(off) = timeout(patience, changes.wait_for(|vm| vm.status.is_off())).await {
            return off.map(|vm| vm.clone()).map_err(|_| Error::NotFound(name.into()));
        }
        if !request.force {
            self.set_status(id, before.status);
            return Err(Error::Timeout(format!(
                "virtual machine '{name}' has not shut down within {} seconds after its power button was pressed; \
                 it may not listen to the button: shut it down from inside, or use `parterre vm stop --force {name}`",
                patience.as_secs()
            )));
        }
        self.order(id, Order::Kill).await;
        changes
            .wait_for(|vm| vm.status.is_off())
            .await
            .map(|vm| vm.clone())
            .map_err(|_| Error::NotFound(name.into()))
    }

    pub(crate) fn set_status(&self, id: Uuid, state: VmState) {
        if let Some(entry) = self.entries().get(&id) {
            entry.vm.send_modify(|vm| {
                // The machine may have gone off meanwhile; that is final.
                if !vm.status.is_off() {
                    vm.status = state;
                }
            });
        }
    }

    async fn order(&self, id: Uuid, order: Order) {
        let orders = self.entries().get(&id).and_then(|entry| entry.orders.clone());
        if let Some(orders) = orders {
            // A supervisor that is gone has reported the end already.
            let _ = orders.send(order).await;
        }
    }

    /// Whether a virtual machine with this id is defined.
    pub(crate) fn knows(&self, id: Uuid) -> bool {
        self.entries().contains_key(&id)
    }

    /// Takes over the worker of an earlier service.
    pub(crate) fn adopt(&self, id: Uuid, pid: u32, status: &WorkerStatus, link: Link) {
        if let Some(note) = self.emptied(id, &status.ejected) {
            tokio::spawn(note);
        }
        self.publish(id, Some(pid), state_of(&status.phase));
        self.take_charge(id, pid, link);
    }
}

impl Entry {
    fn off(id: Uuid, settings: VmSettings) -> Entry {
        let status = VmState::Off(OffReason::NeverStarted);
        let vm = Vm { id, settings, status, memory: None, worker: None, console: None, guest: None };
        let vm = watch::Sender::new(vm);
        Entry { vm, orders: None }
    }
}

/// Runs a call of the store beside the event loop: it waits for the disk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::Failed(format!("the store did not answer: {e}")))?
}
