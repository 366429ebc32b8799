//! SCSI: commands, sense data and the answers that come from tables (SPC-5, SBC-4, MMC-6).
//!
//! Pure: bytes in, bytes out. Which unit a command is for, and how data moves, is the business of [`crate::lun`].

pub mod cdb;
pub mod inquiry;
pub mod mmc;
pub mod mode;
pub mod sense;

pub use cdb::Command;
pub use sense::Sense;

/// SCSI status: done.
pub const GOOD: u8 = 0x00;
/// SCSI status: see the sense data.
pub const CHECK_CONDITION: u8 = 0x02;
