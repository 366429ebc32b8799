//! The bus as devices see it: offering others, and connections of the guest's to services (hv_sock).

use std::sync::Arc;

use parterre_vmbus_protocol::{Guid, Version};

use crate::Device;

/// Names an offered device until it is rescinded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OfferId(pub u32);

/// Why a device cannot be offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// The bus is full.
    #[error("the bus has no room for another channel; at most {0} are possible")]
    Full(usize),
    /// Interface and instance are on the bus already.
    #[error("device {interface} {instance} is on the bus already; give it another instance id")]
    Exists {
        /// Interface.
        interface: Guid,
        /// Instance.
        instance: Guid,
    },
}

/// Adds devices to a running bus and takes them away.
pub trait Bus: Send + Sync {
    /// Offers a device. The guest sees it at once if it is connected, else when it asks for offers.
    fn offer(&self, device: Arc<dyn Device>) -> Result<OfferId, OfferError>;
    /// Takes a device away: its channels are closed and the guest is told. An unknown id is ignored.
    fn rescind(&self, id: OfferId);
    /// The version that the guest speaks, if it is connected and the bus knows.
    fn version(&self) -> Option<Version> {
        None
    }
}

/// The guest wants to connect to a service of the parent (hv_sock).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The guest's end.
    pub endpoint: Guid,
    /// The service.
    pub service: Guid,
}

/// Answers connections of the guest's.
pub trait ConnectListener: Send + Sync {
    /// Takes or refuses a connection. To take it is to offer a device on `bus` (now or later) whose interface is the service
    /// and whose instance is the guest's end. `false` refuses it at once. Must not block.
    fn connect(&self, bus: &Arc<dyn Bus>, request: ConnectRequest) -> bool;
}
