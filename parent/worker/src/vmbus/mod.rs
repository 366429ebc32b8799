//! VMBus of one running machine: the server's state machine, driven by the processors' intercepts, and one thread for each
//! open channel.
//!
//! ```text
//!   VP thread: HvCallPostMessage -> Server -> Action: post messages, start and stop channel threads
//!   VP thread: HvCallSignalEvent -> Handler::visit, and for what that leaves: eventfd of the channel
//!   channel thread: poll -> Handler::run -> HvCallSignalEventDirect
//! ```
//! No lock but the channel's own is held around a run, so a handler may use the bus.

mod call;
mod channel;
mod messages;
mod monitor;
mod pump;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use parterre_partition::Partition;
use parterre_vmbus_server::bus::{Bus, ConnectListener, ConnectRequest, OfferError, OfferId};
use parterre_vmbus_server::state::{Action, Config, MAX_CHANNELS, OpenRequest, Server};
use parterre_vmbus_server::{Device, Memory, Version};

use crate::processor::log_line;
use channel::Channel;
use messages::Messages;

/// Most lines in the log about what one guest does.
const MAX_NOTES: u32 = 100;

/// The bus; clones share it.
#[derive(Clone)]
pub struct VmBus(Arc<Shared>);

struct Shared {
    partition: Arc<dyn Partition>,
    memory: Arc<dyn Memory>,
    listener: Option<Arc<dyn ConnectListener>>,
    state: Mutex<State>,
    /// Open channels by their number; read at each signal of the guest's.
    channels: RwLock<Vec<Option<Arc<Channel>>>>,
    /// Number of channel threads.
    running: Mutex<usize>,
    all_ended: Condvar,
}

struct State {
    server: Server,
    devices: BTreeMap<OfferId, Arc<dyn Device>>,
    messages: Messages,
    notes: u32,
    /// The machine is being taken down: nothing is opened any more.
    stopped: bool,
}

impl VmBus {
    /// A bus for a partition with so many processors.
    pub fn new(
        partition: Arc<dyn Partition>,
        memory: Arc<dyn Memory>,
        processors: u32,
        max_gpadl_pages: usize,
        listener: Option<Arc<dyn ConnectListener>>,
    ) -> VmBus {
        let max_version = Version::WIN10_V6_0;
        let server = Server::new(Config { processors, max_gpadl_pages, max_version });
        let (devices, messages) = (BTreeMap::new(), Messages::default());
        let state = State { server, devices, messages, notes: 0, stopped: false };
        VmBus(Arc::new(Shared {
            partition,
            memory,
            listener,
            state: Mutex::new(state),
            channels: RwLock::new(vec![None; MAX_CHANNELS as usize + 1]),
            running: Mutex::new(0),
            all_ended: Condvar::new(),
        }))
    }

    /// The version that the guest speaks, if it is connected.
    pub fn version(&self) -> Option<Version> {
        self.state().server.version()
    }

    /// Ends all channels and waits for their threads. The processors must have stopped.
    pub fn stop(&self) {
        self.state().stopped = true;
        for channel in self.0.channels.read().unwrap_or_else(PoisonError::into_inner).iter().flatten() {
            channel.stop();
        }
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        while *running > 0 {
            running = self.0.all_ended.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        drop(running);
        // A device may hold the bus, which would then never go, nor its partition.
        let devices = std::mem::take(&mut self.state().devices);
        drop(devices);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channel(&self, number: u32) -> Option<Arc<Channel>> {
        let channels = self.0.channels.read().unwrap_or_else(PoisonError::into_inner);
        channels.get(number as usize).cloned().flatten()
    }

    fn set_channel(&self, number: u32, channel: Option<Arc<Channel>>) {
        let mut channels = self.0.channels.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = channels.get_mut(number as usize) {
            *slot = channel;
        }
    }

    /// Does something with the server, and then what it asks for.
    fn with_server<R>(&self, operation: impl FnOnce(&mut Server) -> R) -> R {
        let mut state = self.state();
        let result = operation(&mut state.server);
        let connects = self.act(&mut state);
        drop(state);
        for request in connects {
            self.connect(request);
        }
        result
    }

    /// Does what the server asks for; returns what must be done without the lock.
    fn act(&self, state: &mut State) -> Vec<ConnectRequest> {
        let mut connects = Vec::new();
        while let Some(action) = state.server.next_action() {
            match action {
                Action::Send { target, message } => state.messages.push(target, message),
                Action::Open(request) => self.open(state, *request),
                Action::Close { channel } => {
                    if let Some(channel) = self.channel(channel) {
                        channel.stop();
                    }
                }
                Action::Modify { channel, vp } => {
                    if let Some(channel) = self.channel(channel) {
                        channel.set_target(vp);
                    }
                }
                Action::Connect(request) => connects.push(request),
                Action::Removed(id) => drop(state.devices.remove(&id)),
            }
        }
        state.messages.post(&*self.0.partition);
        connects
    }

    /// Starts the thread of a channel.
    fn open(&self, state: &mut State, request: OpenRequest) {
        let number = request.channel;
        let started = match state.devices.get(&request.device).cloned() {
            Some(device) if !state.stopped => pump::start(self, device, request),
            _ => Err("the device is gone".into()),
        };
        if let Err(why) = started {
            log_line(format_args!("VMBus channel {number} cannot be opened: {why}"));
            self.set_channel(number, None);
            state.server.closed(number);
        }
    }

    fn connect(&self, request: ConnectRequest) {
        let bus: Arc<dyn Bus> = Arc::new(self.clone());
        if !self.0.listener.as_ref().is_some_and(|listener| listener.connect(&bus, request)) {
            self.with_server(|server| server.refuse(request));
        }
    }

    /// A line about something that the guest did, unless it has had enough of them.
    fn note(&self, line: std::fmt::Arguments<'_>) {
        let count = {
            let mut state = self.state();
            state.notes = state.notes.saturating_add(1);
            state.notes
        };
        match count {
            ..MAX_NOTES => log_line(line),
            MAX_NOTES => log_line(format_args!("{line}; further lines of this kind are left out")),
            _ => {}
        }
    }
}

impl Bus for VmBus {
    fn offer(&self, device: Arc<dyn Device>) -> Result<OfferId, OfferError> {
        let offer = device.offer();
        let mut state = self.state();
        let id = state.server.offer(offer)?;
        state.devices.insert(id, device);
        // Offering asks for messages alone.
        self.act(&mut state);
        Ok(id)
    }

    fn rescind(&self, id: OfferId) {
        let mut state = self.state();
        state.devices.remove(&id);
        state.server.rescind(id);
        self.act(&mut state);
    }

    fn version(&self) -> Option<Version> {
        VmBus::version(self)
    }
}
