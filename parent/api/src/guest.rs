//! The talk between the worker's guest socket and those who want something of the guest.
//!
//! Whoever connects writes one [`GuestRequest`] as a line of JSON and reads one [`GuestAnswer`] likewise. What follows
//! depends on the request: the bytes of a file ([`GuestRequest::CopyFile`]), a stream with a program in the guest
//! ([`GuestRequest::Connect`], [`GuestRequest::Listen`]), or nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ErrorCode, IntegrationService, IntegrationStatus, MemoryRequest, MemoryStatus};

/// Where items of data exchange are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ItemPool {
    /// From the parent to the guest.
    External,
    /// From the guest to the parent.
    #[default]
    Guest,
    /// What the guest's operating system says of itself.
    Auto,
    /// What the parent says of the machine.
    AutoExternal,
    /// The guest's own.
    AutoInternal,
}

/// What a guest is asked to do with its power.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownAction {
    /// Switch off.
    #[default]
    PowerOff,
    /// Restart.
    Restart,
    /// Save its memory to its disk and switch off.
    Hibernate,
}

/// How to shut a guest down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutdownRequest {
    /// What the guest shall do.
    #[serde(default)]
    pub action: ShutdownAction,
    /// Programs that do not want to end are ended.
    #[serde(default)]
    pub force: bool,
    /// What the guest may show to people.
    #[serde(default)]
    pub message: String,
    /// How many seconds to wait until it is done; 60 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

/// A file for the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileTarget {
    /// Absolute path in the guest.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// Replace a file that is there.
    #[serde(default)]
    pub overwrite: bool,
    /// Make directories that are not there.
    #[serde(default)]
    pub create_path: bool,
}

/// Addresses of a network adapter in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterAddresses {
    /// Whether they come from DHCP.
    #[serde(default)]
    pub dhcp: bool,
    /// Addresses.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Their subnets, in the same order.
    #[serde(default)]
    pub subnets: Vec<String>,
    /// Gateways.
    #[serde(default)]
    pub gateways: Vec<String>,
    /// Name servers.
    #[serde(default)]
    pub dns: Vec<String>,
}

/// What is wanted of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request", deny_unknown_fields)]
pub enum GuestRequest {
    /// The state of the integration services.
    Status,
    /// Switch a service on or off while the virtual machine runs.
    Enable {
        /// Which.
        service: IntegrationService,
        /// On or off.
        enabled: bool,
    },
    /// Shut down. The answer comes when the guest has begun.
    Shutdown(ShutdownRequest),
    /// Read the items of a pool.
    ReadItems {
        /// Which.
        pool: ItemPool,
    },
    /// Give the guest an item.
    SetItem {
        /// Key.
        key: String,
        /// Value.
        value: String,
    },
    /// Take an item from the guest.
    DeleteItem {
        /// Key.
        key: String,
    },
    /// Ask for the addresses of a network adapter.
    GetAddresses {
        /// Its MAC address: `00:15:5D:00:00:01`.
        adapter: String,
    },
    /// Set the addresses of a network adapter.
    SetAddresses {
        /// Its identity: `{f8615163-...}`.
        adapter: String,
        /// What they are to be.
        addresses: AdapterAddresses,
    },
    /// Freeze the file systems.
    Freeze {
        /// Thaw them of its own accord after so many seconds.
        seconds: u32,
    },
    /// Thaw the file systems.
    Thaw,
    /// How the guest stands with its memory.
    Memory,
    /// Have the guest give memory up, or give it some back. The answer comes when that is done, or time is up.
    SetMemory(MemoryRequest),
    /// Set the guest's clock now.
    SyncTime,
    /// Type a text on the guest's keyboard.
    Type {
        /// The text: what a keyboard with the layout of the United States writes.
        text: String,
    },
    /// Press keys, those of each chord together: `ctrl-alt-del`.
    Press {
        /// One after the other.
        chords: Vec<String>,
    },
    /// Make a picture of the screen: after [`GuestAnswer::Screenshot`] the bytes of a PNG file follow.
    Screenshot,
    /// Copy a file: after [`GuestAnswer::Ready`] its bytes follow, then comes the answer. A connection that closes before
    /// gives the copy up.
    CopyFile(FileTarget),
    /// Connect with a program that listens in the guest. After [`GuestAnswer::Connected`] the connection is the stream.
    Connect {
        /// The guest's port.
        port: u32,
        /// How many seconds to wait.
        seconds: u32,
    },
    /// Wait for one connection of a program in the guest. After [`GuestAnswer::Connected`] the connection is the stream.
    Listen {
        /// The parent's port.
        port: u32,
    },
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum GuestAnswer {
    /// Done.
    Done,
    /// The file's bytes can come.
    Ready,
    /// The connection is there.
    Connected,
    /// State of the integration services.
    Status(IntegrationStatus),
    /// Memory.
    Memory(MemoryStatus),
    /// The picture's bytes come.
    Screenshot {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// Bytes of the file.
        size: u64,
    },
    /// Items.
    Items {
        /// By key.
        items: BTreeMap<String, String>,
    },
    /// Addresses.
    Addresses(AdapterAddresses),
    /// The file systems are in use again.
    Thawed {
        /// Whether they were frozen until now.
        was_frozen: bool,
    },
    /// It failed.
    Failed {
        /// For programs.
        code: ErrorCode,
        /// For people.
        message: String,
    },
}

/// Seconds for which file systems are frozen at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeRequest {
    /// Seconds.
    pub seconds: u32,
}

/// A value for an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemValue {
    /// The value.
    pub value: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_survive_the_wire() {
        let requests = [
            GuestRequest::Status,
            GuestRequest::Shutdown(ShutdownRequest { force: true, ..ShutdownRequest::default() }),
            GuestRequest::ReadItems { pool: ItemPool::AutoExternal },
            GuestRequest::CopyFile(FileTarget {
                path: "/a".into(),
                size: 1,
                overwrite: false,
                create_path: true,
            }),
        ];
        for request in requests {
            let line = serde_json::to_string(&request).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<GuestRequest>(&line).unwrap(), request);
        }
        let answer = GuestAnswer::Thawed { was_frozen: true };
        let line = serde_json::to_string(&answer).unwrap();
        assert_eq!(line, r#"{"answer":"thawed","was_frozen":true}"#);
        assert_eq!(serde_json::from_str::<GuestAnswer>(&line).unwrap(), answer);
    }
}
