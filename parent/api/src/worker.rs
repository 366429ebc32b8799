//! The talk between `vmms` and a worker.
//!
//! The worker gets its [`WorkerSpec`] as JSON on standard input when it is started. Afterwards the two talk over the
//! worker's control socket, one JSON value per line: the worker sends a [`WorkerStatus`] when a connection opens and at
//! each change, the service sends [`WorkerRequest`]s. So a service that was restarted finds out all there is to know.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

use crate::{OffReason, VmSettings};

/// A disc that the guest has taken out of its drive itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EjectedDisc {
    /// The drive, by its [id](crate::DiskSettings::id).
    pub drive: Uuid,
    /// What was in it.
    pub file: PathBuf,
}

/// What a worker is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSpec {
    /// The virtual machine.
    pub id: Uuid,
    /// Its settings.
    pub settings: VmSettings,
    /// The directory for the worker's sockets.
    pub directory: PathBuf,
    /// The ports of the network adapters. The descriptors of their queues come beside this, one after the other, if standard
    /// input is a socket.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// The port of a switch that a network adapter is plugged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// How many queues it has.
    pub queues: u16,
    /// Longest payload of its frames, in bytes.
    pub mtu: u32,
}

/// What the service asks of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum WorkerRequest {
    /// Press the power button.
    PowerButton,
    /// Switch off at once.
    PowerOff,
    /// Reset at once.
    Reset,
    /// Have all processors stand still.
    Pause,
    /// Have them go on.
    Resume,
}

/// What a worker is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum WorkerPhase {
    /// Starting; `step` says what is done now.
    Starting {
        /// The step.
        step: String,
    },
    /// The guest runs.
    Running {
        /// Resets since the start.
        resets: u32,
    },
    /// The guest stands still.
    Paused {
        /// Resets since the start.
        resets: u32,
    },
    /// The guest is off; the worker ends.
    Ended(OffReason),
}

/// A worker's report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The virtual machine.
    pub id: Uuid,
    /// The worker's process id.
    pub pid: u32,
    /// What it is doing.
    #[serde(flatten)]
    pub phase: WorkerPhase,
    /// Drives that are empty because the guest has taken the disc out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ejected: Vec<EjectedDisc>,
}

impl WorkerStatus {
    /// A report in which no disc has been taken out.
    pub fn new(id: Uuid, pid: u32, phase: WorkerPhase) -> WorkerStatus {
        WorkerStatus { id, pid, phase, ejected: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_wire() {
        for phase in [
            WorkerPhase::Starting { step: "loading the kernel".into() },
            WorkerPhase::Running { resets: 2 },
            WorkerPhase::Ended(OffReason::Failed { message: "no".into() }),
        ] {
            let mut status = WorkerStatus::new(Uuid::nil(), 7, phase);
            status.ejected.push(EjectedDisc { drive: Uuid::nil(), file: "/d.iso".into() });
            let line = serde_json::to_string(&status).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<WorkerStatus>(&line).unwrap(), status);
        }
        let request = serde_json::to_string(&WorkerRequest::PowerButton).unwrap();
        assert_eq!(request, r#"{"request":"power_button"}"#);
    }
}
