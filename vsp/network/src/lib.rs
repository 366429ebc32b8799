//! The network VSP: a synthetic network adapter for guests with the driver `hv_netvsc` or its like.
//!
//! ```text
//!   guest's netvsc    NVSP on the channel: versions, shared buffers, sub-channels      channel
//!                     RNDIS inside of it: requests about the adapter                   control
//!                                         frames from the guest                        packet, frame, offload, transmit
//!                                         frames for the guest                         receive, buffers
//!   Wire              Ethernet frames with virtio-net headers: a TAP device's queues   wire
//! ```
//! Frames are not copied here: the wire writes right from guest memory, all but the first bytes, which are checked in a
//! copy, and reads right into the guest's receive buffer.
//!
//! What it is not: it opens no device, knows no switch and no VLAN; the management service joins TAP devices to bridges.

#![forbid(unsafe_code)]

mod adapter;
mod buffers;
mod channel;
mod checksum;
pub mod control;
pub mod frame;
mod offload;
mod packet;
pub mod protocol;
mod receive;
mod route;
mod statistics;
mod transmit;
pub mod wire;

pub use adapter::{Adapter, INTERFACE, MAX_QUEUES, Settings};
pub use frame::{Guards, MacAddress};
pub use statistics::{Count, Direction, Statistics};
pub use wire::Wire;

use frame::ETHERNET_HEADER;
