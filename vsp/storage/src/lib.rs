//! The storage VSP: SCSI controllers over VMBus, with disks and DVD drives on files and block devices of the parent.
//!
//! ```text
//!   VMBus channel
//!      | packets                          protocol     what they are
//!   channel   (one for each queue)        negotiation  how a controller starts
//!      | commands                         scsi         commands, sense data, tables
//!   lun       (a disk, a DVD drive)       controller   the units and their places
//!      | steps
//!   disk::Engine                          pool         an engine of threads
//!      |                                  file, qcow2  what media are made of
//!   the parent's file system
//! ```
//! All that comes from a guest is copied once and checked. What a backing file refuses becomes sense data for the guest; it never ends
//! the worker. What it is not: it opens no file by itself, knows no settings, and has no unsafe code: the engine that gives guest
//! memory to the kernel is the worker's.

#![forbid(unsafe_code)]

mod channel;
pub mod controller;
pub mod disk;
pub mod file;
pub mod lun;
mod negotiation;
pub mod pool;
pub mod protocol;
pub mod qcow2;
pub mod scsi;
pub mod testing;

pub use controller::{Controller, PlaceError};
pub use disk::{Backing, Engine, Engines, Facts, Image, Medium};
pub use lun::Lun;
pub use scsi::inquiry::Identity;
pub use scsi::mode::Kind;
