//! hv_sock: streams of bytes between a program in the parent and a program in a guest (`AF_VSOCK` there).
//!
//! A connection is a VMBus channel of its own, offered when it is made and rescinded when it ends. Ports are GUIDs of one
//! pattern ([`address`]). In the parent a connection ends in a unix socket ([`stream`]).
//!
//! ```text
//!   parent connects: offer, interface = the guest's port, "from the parent" set; a guest that listens opens the channel
//!   guest connects:  message to the bus, which asks Sockets; if somebody in the parent waits for the port, an offer,
//!                    interface = the parent's port, instance = the guest's end
//! ```
//! A guest that does not listen says nothing, so whoever connects waits until a time-out. A guest can make no connection
//! that nobody in the parent waits for; each one that waits is good for one connection.
//!
//! Source: Linux `net/vmw_vsock/hyperv_transport.c`.

#![forbid(unsafe_code)]

pub mod address;
mod sockets;
mod stream;

pub use sockets::{ConnectError, Sockets};
