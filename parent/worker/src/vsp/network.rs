//! Network adapters of the machine: TAP queues that the management service made, below the network VSP.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use parterre_api::NetworkAdapter;
use parterre_api::worker::Port;
use parterre_partition::Partition;
use parterre_partition::tap::{Offloads, Queue};
use parterre_vmbus_server::Guid;
use parterre_vmbus_server::bus::{Bus, OfferId};
use parterre_vsp_network::wire::{FrameHeader, ReceiveOffloads};
use parterre_vsp_network::{Adapter, Guards, Settings, Wire};
use uuid::Uuid;
use vm_memory::VolatileSlice;

use super::Attachment;
use crate::processor::log_line;

/// Bits in a second that a link is said to carry; it carries what the parent's processors can.
const SPEED: u64 = 10_000_000_000;

/// A queue of a TAP device as the adapter's.
struct TapWire(Queue);

impl AsFd for TapWire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Wire for TapWire {
    fn send(&self, header: &FrameHeader, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.0.send(&header.encode(), head, rest)
    }

    fn receive(&self, header: &mut FrameHeader, to: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut bytes = [0; 10];
        let len = self.0.receive(&mut bytes, to)?;
        *header = FrameHeader::decode(&bytes);
        Ok(len)
    }

    fn set_offloads(&self, offloads: ReceiveOffloads) -> io::Result<()> {
        let ReceiveOffloads { checksum, large_v4, large_v6 } = offloads;
        self.0.set_offloads(Offloads { checksum, large_v4, large_v6 })
    }

    fn attach(&self, attached: bool) -> io::Result<()> {
        self.0.attach(attached)
    }
}

/// An adapter, and its place on the bus while there is one.
struct Plugged {
    id: Uuid,
    device: Arc<Adapter>,
    offer: Option<OfferId>,
}

#[derive(Default)]
struct State {
    bus: Option<Arc<dyn Bus>>,
    plugged: Vec<Plugged>,
}

/// The machine's adapters. They come and go while it runs.
pub struct Adapters(Mutex<State>);

impl Adapters {
    /// The adapters with their ports, whose queues are the `descriptors`, one after the other.
    ///
    /// # Errors
    /// A sentence, if descriptors are missing or are none of TAP devices.
    pub fn new(
        settings: &[NetworkAdapter],
        ports: &[Port],
        descriptors: Vec<OwnedFd>,
    ) -> Result<Adapters, String> {
        let wanted: usize = ports.iter().map(|port| usize::from(port.queues)).sum();
        if ports.len() != settings.len() || wanted != descriptors.len() {
            return Err(format!(
                "{} network adapters need {wanted} queues, and {} came from the management service",
                settings.len(),
                descriptors.len()
            ));
        }
        let adapters = Adapters(Mutex::default());
        let mut descriptors = descriptors.into_iter();
        for (adapter, port) in settings.iter().zip(ports) {
            let queues = descriptors.by_ref().take(usize::from(port.queues)).collect();
            adapters.add(adapter, port.mtu, queues)?;
        }
        Ok(adapters)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an adapter in whose port carries payloads of up to `mtu` bytes; a guest that runs gets it at once.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn add(&self, adapter: &NetworkAdapter, mtu: u32, queues: Vec<OwnedFd>) -> Result<(), String> {
        let failed = |why: String| format!("network adapter {} does not work: {why}", adapter.mac);
        let wires = queues.into_iter().map(|queue| Arc::new(TapWire(Queue::from(queue))) as Arc<dyn Wire>);
        let device =
            Adapter::new(of(adapter, mtu), wires.collect()).map_err(|error| failed(error.to_string()))?;
        if adapter.options.link_down {
            device.set_link(false).map_err(|error| failed(error.to_string()))?;
        }
        let mut state = self.state();
        let mut plugged = Plugged { id: adapter.id, device: Arc::new(device), offer: None };
        if let Some(bus) = &state.bus {
            let offer = bus.offer(plugged.device.clone()).map_err(|error| failed(error.to_string()))?;
            plugged.offer = Some(offer);
        }
        state.plugged.push(plugged);
        Ok(())
    }

    /// Takes an adapter out. Its TAP device goes when its channels have ended.
    ///
    /// # Errors
    /// A sentence: there is no such adapter.
    pub fn remove(&self, id: Uuid) -> Result<(), String> {
        let mut state = self.state();
        let place = state.place(id)?;
        let plugged = state.plugged.remove(place);
        if let (Some(bus), Some(offer)) = (&state.bus, plugged.offer) {
            bus.rescind(offer);
        }
        Ok(())
    }

    /// Puts an adapter's cable in, or takes it out.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn set_link(&self, id: Uuid, up: bool) -> Result<(), String> {
        let state = self.state();
        let device = state.plugged[state.place(id)?].device.clone();
        drop(state);
        device.set_link(up).map_err(|error| format!("the link cannot be changed: {error}"))
    }
}

impl State {
    fn place(&self, id: Uuid) -> Result<usize, String> {
        let place = self.plugged.iter().position(|plugged| plugged.id == id);
        place.ok_or_else(|| format!("the machine has no network adapter {id}"))
    }
}

impl Attachment for Adapters {
    fn attach(&self, bus: Arc<dyn Bus>, _partition: Arc<dyn Partition>) {
        let mut state = self.state();
        for plugged in &mut state.plugged {
            plugged.offer = match bus.offer(plugged.device.clone()) {
                Ok(offer) => Some(offer),
                Err(error) => {
                    log_line(format_args!("the guest has to do without a network adapter: {error}"));
                    None
                }
            };
        }
        state.bus = Some(bus);
    }

    fn detach(&self) {
        let mut state = self.state();
        state.bus = None;
        state.plugged.iter_mut().for_each(|plugged| plugged.offer = None);
    }
}

/// An adapter's settings for the VSP.
fn of(adapter: &NetworkAdapter, mtu: u32) -> Settings {
    let options = &adapter.options;
    Settings {
        instance: Guid::from_u128(adapter.id.as_u128()),
        mac: adapter.mac.0,
        guards: Guards {
            mac_spoofing: options.mac_spoofing,
            dhcp: options.dhcp_guard,
            router: options.router_guard,
        },
        speed: SPEED,
        mtu,
        name: adapter.switch.clone(),
    }
}
