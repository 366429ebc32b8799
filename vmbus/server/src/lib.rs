//! The VMBus server: offers, channels and GPADLs as a state machine, and the interface of the devices behind them.
//!
//! ```text
//!   Device   what is offered: a SCSI controller, a network adapter, a heartbeat
//!   Handler  one open channel of it: plain code that is run when there is something to do
//!   Queue    the channel as its handler sees it: packets in and out, shared buffers, sub-channels
//! ```
//! There is no thread and no system call here but the eventfd of [`Waker`]: the worker runs one thread for each open
//! channel around [`pump::turn`], and tests call the same function with [`testing::FakeGuest`] at the other end.

#![forbid(unsafe_code)]

pub mod bus;
mod device;
mod error;
pub mod pace;
pub mod pump;
mod queue;
pub mod state;
pub mod testing;
mod wait;

pub use device::{Device, Handler, Offer, Visit};
pub use error::ChannelError;
pub use parterre_vmbus_protocol as protocol;
pub use parterre_vmbus_protocol::offer::OfferFlags;
pub use parterre_vmbus_protocol::{Guid, Version};
pub use parterre_vmbus_ring as ring;
pub use parterre_vmbus_ring::{Buffer, Gpadl, Memory, OutPacket, Packet, PacketKind, Written};
pub use queue::{ChannelFacts, ChannelPort, Queue};
pub use wait::{Source, Wait, Waker};
