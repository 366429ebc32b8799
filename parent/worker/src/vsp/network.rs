//! Network adapters of the machine: TAP queues that the management service made, below the network VSP.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parterre_api::NetworkAdapter;
use parterre_partition::tap::{Offloads, Queue};
use parterre_vmbus_server::{Device, Guid};
use parterre_vsp_network::wire::{FrameHeader, ReceiveOffloads};
use parterre_vsp_network::{Adapter, Guards, Settings, Wire};
use vm_memory::VolatileSlice;

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

/// The adapters with their queues: `counts` says how many of `descriptors` each has.
///
/// # Errors
/// A sentence, if descriptors are missing or are none of TAP devices.
pub fn adapters(
    settings: &[NetworkAdapter],
    counts: &[u16],
    descriptors: Vec<OwnedFd>,
) -> Result<Vec<Arc<dyn Device>>, String> {
    let wanted: usize = counts.iter().map(|count| usize::from(*count)).sum();
    if counts.len() != settings.len() || wanted != descriptors.len() {
        return Err(format!(
            "{} network adapters need {wanted} queues, and {} came from the management service",
            settings.len(),
            descriptors.len()
        ));
    }
    let mut descriptors = descriptors.into_iter();
    let mut queues = |count: &u16| -> Vec<Arc<dyn Wire>> {
        let some = descriptors.by_ref().take(usize::from(*count));
        some.map(|descriptor| Arc::new(TapWire(Queue::from(descriptor))) as Arc<dyn Wire>).collect()
    };
    settings
        .iter()
        .zip(counts)
        .map(|(adapter, count)| {
            let device = Adapter::new(of(adapter), queues(count))
                .map_err(|error| format!("network adapter {} does not work: {error}", adapter.mac))?;
            Ok(Arc::new(device) as Arc<dyn Device>)
        })
        .collect()
}

/// An adapter's settings for the VSP.
fn of(adapter: &NetworkAdapter) -> Settings {
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
        name: adapter.switch.clone(),
    }
}
