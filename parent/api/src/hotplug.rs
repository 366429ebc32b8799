//! The talk between `vmms` and a worker's device socket, by which devices come and go while the guest runs.
//!
//! Whoever connects writes one [`DeviceRequest`] as a line of JSON and reads one [`DeviceAnswer`] likewise. The descriptors that a
//! request needs come with its first byte (`SCM_RIGHTS`): the worker can open nothing itself.

use serde::{Deserialize, Serialize};

use uuid::Uuid;

use crate::{DiskSettings, NetworkAdapter};

/// Most descriptors that come with a request.
pub const MAX_DESCRIPTORS: usize = 16;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request", deny_unknown_fields)]
pub enum DeviceRequest {
    /// Put a disk in, or an empty DVD drive. With it comes its file, if it has one, opened and locked, and, if the page cache is not to be used and the file system
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
    /// Put another disc into the DVD drive that is at the place, or none. The disc's file comes with it as with a disk.
    ChangeMedium {
        /// The drive as it is to be.
        disk: DiskSettings,
        /// Even if the guest has locked the drive.
        force: bool,
    },
    /// Grow a disk, or look how large it has become.
    ResizeDisk {
        /// Controller.
        controller: u8,
        /// Place.
        lun: u8,
        /// Bytes.
        #[serde(default)]
        size: Option<u64>,
    },
    /// Put a network adapter in. The queues of its TAP device come with it.
    AddAdapter {
        /// The adapter.
        adapter: NetworkAdapter,
        /// Longest payload of its frames, in bytes.
        mtu: u32,
    },
    /// Take a network adapter out.
    RemoveAdapter {
        /// Which.
        id: Uuid,
    },
    /// Put the cable of a network adapter in, or take it out.
    SetLink {
        /// Which adapter.
        id: Uuid,
        /// In.
        up: bool,
    },
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum DeviceAnswer {
    /// Done.
    Done,
    /// Done; the disk has this size.
    Resized {
        /// Bytes.
        size: u64,
    },
    /// It failed; the sentence says why.
    Failed {
        /// For people.
        message: String,
    },
}
