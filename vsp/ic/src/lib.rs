//! The parent's side of the integration components: small services in a guest that the parent asks for things.
//!
//! | service | module | what the parent asks |
//! |---|---|---|
//! | Heartbeat | [`heartbeat`] | is the guest alive? |
//! | Time synchronization | [`timesync`] | tells the time |
//! | Shutdown | [`shutdown`] | switch off, restart, hibernate |
//! | Data exchange (KVP) | [`kvp`] | items of the guest, items for the guest, network addresses |
//! | Backup (VSS) | [`vss`] | freeze and thaw the file systems |
//! | Guest file copy | [`copy`] | write a file |
//!
//! They all speak alike over a VMBus channel: the parent opens with a list of versions ([`negotiate`]), the guest takes
//! one or none, then the parent sends requests and the guest answers each. [`session::Session`] is what they have in
//! common, a [`session::Protocol`] what is a service's own. Neither does I/O: packets and times go in, packets and the
//! next deadline come out. [`device`] puts a session on a VMBus channel.
//!
//! What the guest sends is data. A packet that is no message ends the channel ([`session::Violation`]); an answer that
//! was not asked for is dropped; a guest that does not answer costs the one who waits a time-out, and nobody else anything.
//!
//! Sources: Linux `include/linux/hyperv.h`, `include/uapi/linux/hyperv.h` and `drivers/hv/hv_util.c`, whose names are used.

#![forbid(unsafe_code)]

pub mod copy;
pub mod device;
pub mod heartbeat;
pub mod kvp;
pub mod negotiate;
pub mod reply;
pub mod service;
pub mod session;
pub mod shutdown;
mod text;
pub mod timesync;
pub mod vss;
pub mod wire;

pub use device::Component;
pub use reply::{Failure, Reply};
pub use service::Service;
pub use session::{Link, Protocol, Session};
pub use wire::{Status, Version};
