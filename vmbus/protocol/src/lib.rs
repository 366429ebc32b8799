//! VMBus on the wire: identifiers, control messages, ring control words and packet descriptors.
//!
//! Everything here is plain data as the guest's drivers lay it out (Linux `include/linux/hyperv.h`). What the messages
//! mean is `parterre-vmbus-server`'s business, how packets travel `parterre-vmbus-ring`'s.

#![forbid(unsafe_code)]

pub mod guid;
pub mod message;
pub mod monitor;
pub mod offer;
pub mod packet;
pub mod ring;
pub mod version;

pub use guid::Guid;
pub use version::Version;

/// Size of a guest page in bytes; GPADLs, rings and ranges count in it.
pub const PAGE_SIZE: usize = 4096;
