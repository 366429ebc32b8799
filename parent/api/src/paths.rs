//! Where the parts of the stack find each other.

use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Environment variables that move the directories; the tests use them.
const STATE_VARIABLE: &str = "PARTERRE_STATE_DIR";
const RUNTIME_VARIABLE: &str = "PARTERRE_RUNTIME_DIR";

/// The directories of the stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// What survives a reboot.
    pub state: PathBuf,
    /// What lives as long as the host runs: sockets, logs of workers.
    pub runtime: PathBuf,
}

impl Paths {
    /// `/var/lib/parterre` and `/run/parterre`, or what `PARTERRE_STATE_DIR` and `PARTERRE_RUNTIME_DIR` say.
    pub fn from_environment() -> Paths {
        let get = |name, default: &str| std::env::var_os(name).map_or_else(|| default.into(), PathBuf::from);
        Paths {
            state: get(STATE_VARIABLE, "/var/lib/parterre"),
            runtime: get(RUNTIME_VARIABLE, "/run/parterre"),
        }
    }

    /// The store of definitions.
    pub fn database(&self) -> PathBuf {
        self.state.join("vmms.db")
    }

    /// The addresses that the DHCP servers of switches have given.
    pub fn leases(&self) -> PathBuf {
        self.state.join("leases")
    }

    /// The service's socket.
    pub fn api_socket(&self) -> PathBuf {
        self.runtime.join("vmms.sock")
    }

    /// The directories of all workers.
    pub fn workers(&self) -> PathBuf {
        self.runtime.join("vms")
    }

    /// The directory of one worker.
    pub fn worker(&self, id: Uuid) -> WorkerPaths {
        WorkerPaths { directory: self.workers().join(id.to_string()) }
    }
}

/// The directory of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPaths {
    directory: PathBuf,
}

impl WorkerPaths {
    /// Paths in a worker's directory.
    pub fn new(directory: PathBuf) -> WorkerPaths {
        WorkerPaths { directory }
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the service talks to the worker.
    pub fn control(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// Where COM1 can be reached.
    pub fn console(&self) -> PathBuf {
        self.directory.join("console.sock")
    }

    /// Where the guest can be asked for things.
    pub fn guest(&self) -> PathBuf {
        self.directory.join("guest.sock")
    }

    /// Where devices are added and removed while the guest runs.
    pub fn devices(&self) -> PathBuf {
        self.directory.join("devices.sock")
    }

    /// What the worker says to standard error.
    pub fn log(&self) -> PathBuf {
        self.directory.join("worker.log")
    }
}
