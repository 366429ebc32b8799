//! The talk between `vmms` and a worker's device socket, by which devices come and go while the guest runs.
//!
//! Whoever connects writes one [`DeviceRequest`] as a line of JSON and reads one [`DeviceAnswer`] likewise. The descriptors that a
//! request needs come with its first byte (`SCM_RIGHTS`): the worker can open nothing itself.

use serde::{Deserialize, Serialize};

use crate::DiskSettings;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request", deny_unknown_fields)]
pub enum DeviceRequest {
    /// Put a disk in. With it comes its file, opened and locked, and, if the page cache is not to be used and the file system
    /// allows that, the same file opened with `O_DIRECT`.
    AddDisk {
        /// The disk.
        disk: DiskSettings,
    },
    /// Take a disk out.
    RemoveDisk {
        /// Controller.
        controller: u8,
        /// Place.
        lun: u8,
    },
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum DeviceAnswer {
    /// Done.
    Done,
    /// It failed; the sentence says why.
    Failed {
        /// For people.
        message: String,
    },
}
