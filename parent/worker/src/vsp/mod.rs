//! The synthetic devices of a machine: what stands on its VMBus.

pub mod ejected;
pub mod hotplug;
pub mod memory;
pub mod network;
pub mod storage;
pub mod video;

use std::sync::Arc;

use parterre_partition::Partition;
use parterre_vmbus_server::Device;
use parterre_vmbus_server::bus::{Bus, ConnectListener};

/// The devices of a machine. They outlive its resets.
#[derive(Clone, Default)]
pub struct Devices {
    /// Offered at each power-on.
    pub devices: Vec<Arc<dyn Device>>,
    /// Takes connections of the guest's (hv_sock).
    pub listener: Option<Arc<dyn ConnectListener>>,
    /// Told of each new bus before the guest runs: for devices that come and go while it does.
    pub attachments: Vec<Arc<dyn Attachment>>,
}

/// Something that uses the bus itself.
pub trait Attachment: Send + Sync {
    /// There is a new bus: the machine was powered on or reset. Everything that was offered on an earlier one is gone.
    fn attach(&self, bus: Arc<dyn Bus>, partition: Arc<dyn Partition>);

    /// The machine was paused and goes on.
    fn resumed(&self) {}

    /// The machine has stopped: bus and partition are to be let go.
    fn detach(&self);
}
