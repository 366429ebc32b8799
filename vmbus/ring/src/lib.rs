//! VMBus rings over guest memory, from the server's side.
//!
//! ```text
//!   Memory     guest RAM by guest physical address
//!   Buffer     bytes scattered over guest pages (a GPADL's range, the ranges of a packet)
//!   Incoming   the ring that the guest writes: packets out of it, each copied once
//!   Outgoing   the ring that the guest reads: packets into it
//! ```
//! The guest may write anything anywhere at any time. Every index, length and count is read once, checked, and only
//! then used; what is wrong is a [`RingError`], which costs the channel and nothing else.
//! What it is not: it knows no channels and sends no signals; it says when one is due.

#![forbid(unsafe_code)]

pub mod buffer;
mod control;
mod error;
mod incoming;
mod memory;
mod outgoing;
mod packet;

pub use buffer::{Buffer, Gpadl, Segment};
pub use error::{AccessError, RingError};
pub use incoming::Incoming;
pub use memory::Memory;
pub use outgoing::{Head, OutPacket, Outgoing, Written};
pub use packet::{Packet, PacketKind};
pub use parterre_vmbus_protocol::PAGE_SIZE;
pub use parterre_vmbus_protocol::packet::TransferPageRange;
