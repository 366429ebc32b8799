//! A virtual machine: its settings and its state.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::network::{NetworkAdapter, check_adapters};
use crate::{DiskSettings, IntegrationSettings, MemoryStatus, check_disks};

/// Least memory of a virtual machine in bytes.
pub const MIN_MEMORY: u64 = 16 << 20;
/// Memory comes in units of this many bytes.
const MEMORY_UNIT: u64 = 2 << 20;
/// Most virtual processors of a virtual machine.
pub const MAX_PROCESSORS: u16 = 255;
/// Longest name.
const MAX_NAME: usize = 100;
/// Longest kernel command line that Linux takes.
const MAX_COMMAND_LINE: usize = 2047;

/// What a person decides about a virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSettings {
    /// Its name, unique on the host.
    pub name: String,
    /// Memory in bytes; a multiple of 2 MiB.
    pub memory: u64,
    /// Number of virtual processors.
    pub processors: u16,
    /// Linux kernel to boot directly (absolute path of a bzImage).
    pub kernel: PathBuf,
    /// Initial RAM disk (absolute path).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default)]
    pub command_line: String,
    /// Integration services.
    #[serde(default)]
    pub integration: IntegrationSettings,
    /// Network adapters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_adapters: Vec<NetworkAdapter>,
    /// Disks and DVD drives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSettings>,
}

impl VmSettings {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub fn check(&self) -> Result<(), String> {
        let name_ok = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.chars().all(name_ok) {
            return Err(format!(
                "'{}' cannot be a name: use 1 to {MAX_NAME} letters, digits, spaces, '-', '_' and '.'",
                self.name.escape_default()
            ));
        }
        if self.name.trim() != self.name || self.name.starts_with(['.', '-']) {
            return Err(format!("'{}' cannot be a name: begin and end it with a letter or digit", self.name));
        }
        check_memory(self.memory, MIN_MEMORY)?;
        if self.processors == 0 || self.processors > MAX_PROCESSORS {
            return Err(format!(
                "{} processors are not possible: give 1 to {MAX_PROCESSORS}",
                self.processors
            ));
        }
        for path in std::iter::once(&self.kernel).chain(&self.initrd) {
            if !path.is_absolute() {
                return Err(format!("'{}' is not an absolute path", path.display()));
            }
        }
        if self.command_line.len() > MAX_COMMAND_LINE || self.command_line.contains('\0') {
            return Err(format!(
                "the command line is longer than {MAX_COMMAND_LINE} bytes or has a zero byte"
            ));
        }
        check_adapters(&self.network_adapters)?;
        check_disks(&self.disks)?;
        self.integration.check()
    }
}

/// Checks an amount of memory.
///
/// # Errors
/// A sentence that says what is wrong and what to do.
pub fn check_memory(bytes: u64, least: u64) -> Result<(), String> {
    if bytes < least || !bytes.is_multiple_of(MEMORY_UNIT) {
        return Err(format!(
            "{bytes} bytes of memory are not possible: give a multiple of 2 MiB, at least {}M",
            least >> 20
        ));
    }
    Ok(())
}

/// Why a virtual machine is off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum OffReason {
    /// It has not run since the host started.
    NeverStarted,
    /// The guest switched itself off.
    PoweredOff,
    /// It was stopped on request.
    Stopped,
    /// It failed; the sentence says why.
    Failed {
        /// What happened.
        message: String,
    },
    /// Its worker ended without a word: `signal 9`, `exit status 1`.
    WorkerEnded {
        /// How it ended.
        how: String,
    },
}

impl std::fmt::Display for OffReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OffReason::NeverStarted => write!(f, "not started"),
            OffReason::PoweredOff => write!(f, "powered off by the guest"),
            OffReason::Stopped => write!(f, "stopped"),
            OffReason::Failed { message } => write!(f, "failed: {message}"),
            OffReason::WorkerEnded { how } => write!(f, "worker ended: {how}"),
        }
    }
}

/// What a virtual machine is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum VmState {
    /// It does not run.
    Off(OffReason),
    /// It is being started; `step` says what is done now.
    Starting {
        /// The step.
        step: String,
    },
    /// It runs.
    Running {
        /// How often the guest has been reset since it was started.
        resets: u32,
    },
    /// It stands still until it is resumed.
    Paused {
        /// How often the guest has been reset since it was started.
        resets: u32,
    },
    /// It was asked to shut down and has not yet.
    Stopping,
}

impl VmState {
    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            VmState::Off(_) => "Off",
            VmState::Starting { .. } => "Starting",
            VmState::Running { .. } => "Running",
            VmState::Paused { .. } => "Paused",
            VmState::Stopping => "Stopping",
        }
    }

    /// A few words for a column: as [`Display`](std::fmt::Display), without long reasons.
    pub fn short(&self) -> String {
        match self {
            VmState::Off(OffReason::Failed { .. }) => "Off (failed)".into(),
            VmState::Starting { .. } => self.word().into(),
            other => other.to_string(),
        }
    }

    /// Whether there is no worker.
    pub fn is_off(&self) -> bool {
        matches!(self, VmState::Off(_))
    }
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            VmState::Off(OffReason::NeverStarted) => write!(f, "Off"),
            VmState::Off(reason) => write!(f, "Off ({reason})"),
            VmState::Starting { step } => write!(f, "Starting ({step})"),
            VmState::Running { resets: 0 } => write!(f, "Running"),
            VmState::Running { resets: 1 } => write!(f, "Running (restarted by the guest once)"),
            VmState::Running { resets } => write!(f, "Running (restarted by the guest {resets} times)"),
            VmState::Paused { .. } => write!(f, "Paused"),
            VmState::Stopping => write!(f, "Stopping"),
        }
    }
}

/// A virtual machine as the service shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Identity over renames.
    pub id: Uuid,
    /// Settings.
    pub settings: VmSettings,
    /// State.
    pub status: VmState,
    /// Its memory while it runs; only in the answer to a question about this one virtual machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStatus>,
    /// Process id of the worker while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
    /// The socket on which COM1 speaks while there is a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<PathBuf>,
    /// The socket for requests to the guest while there is a worker ([`crate::guest`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<PathBuf>,
}

/// How to stop a virtual machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Switch it off at once instead of pressing its power button.
    #[serde(default)]
    pub force: bool,
    /// How many seconds to wait for the guest; 30 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> VmSettings {
        VmSettings {
            name: "web 1".into(),
            memory: 512 << 20,
            processors: 4,
            kernel: "/boot/vmlinuz".into(),
            initrd: None,
            command_line: "quiet".into(),
            ..VmSettings::default()
        }
    }

    #[test]
    fn good_settings_pass_and_bad_ones_say_why() {
        assert_eq!(settings().check(), Ok(()));
        type Change = fn(&mut VmSettings);
        let changes: [(Change, &str); 9] = [
            (|s| s.name.clear(), "name"),
            (|s| s.name = "a/b".into(), "name"),
            (|s| s.name = "-x".into(), "begin"),
            (|s| s.name = "x".repeat(101), "name"),
            (|s| s.memory = 1 << 20, "memory"),
            (|s| s.memory += 1, "memory"),
            (|s| s.processors = 0, "processors"),
            (|s| s.kernel = "vmlinuz".into(), "absolute"),
            (|s| s.command_line = "x".repeat(3000), "command line"),
        ];
        for (change, word) in changes {
            let mut changed = settings();
            change(&mut changed);
            assert!(changed.check().unwrap_err().contains(word));
        }
    }

    #[test]
    fn state_reads_as_json_and_as_words() {
        let state = VmState::Off(OffReason::WorkerEnded { how: "signal 9".into() });
        let json = serde_json::to_string(&state).unwrap();
        assert_eq!(json, r#"{"state":"off","reason":"worker_ended","how":"signal 9"}"#);
        assert_eq!(serde_json::from_str::<VmState>(&json).unwrap(), state);
        assert_eq!(state.to_string(), "Off (worker ended: signal 9)");
        assert_eq!(VmState::Running { resets: 0 }.to_string(), "Running");
        assert_eq!(VmState::Running { resets: 1 }.to_string(), "Running (restarted by the guest once)");
        assert_eq!(VmState::Running { resets: 2 }.to_string(), "Running (restarted by the guest 2 times)");
    }
}
