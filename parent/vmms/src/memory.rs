//! Memory of virtual machines: that of a running guest by way of its worker, that of one that is off in its settings.

use std::time::Duration;

use parterre_api::guest::{GuestAnswer, GuestRequest};
use parterre_api::{MemoryRequest, MemoryStatus, Vm, VmState};
use tokio::time::timeout;

use crate::guest::unexpected;
use crate::{Error, Manager, Result};

/// A worker says at once how its guest stands; one that does not is not waited for when a virtual machine is shown.
const PATIENCE: Duration = Duration::from_secs(2);

impl Manager {
    /// The virtual machine with a name or an id, with what only its worker knows.
    pub async fn show_with_memory(&self, name: &str) -> Result<Vm> {
        let mut vm = self.show(name)?;
        if let VmState::Running { .. } = vm.status {
            vm.memory = timeout(PATIENCE, self.memory(name)).await.ok().and_then(Result::ok);
        }
        Ok(vm)
    }

    /// How a virtual machine stands with its memory.
    pub async fn memory(&self, name: &str) -> Result<MemoryStatus> {
        let vm = self.show(name)?;
        if vm.status.is_off() {
            return Ok(off(vm.settings.memory));
        }
        match self.ask_guest(name, &GuestRequest::Memory).await? {
            GuestAnswer::Memory(status) => Ok(status),
            _ => Err(unexpected()),
        }
    }

    /// Decides how much memory a virtual machine shall have: from now on until it is off if it runs, at its next start if it
    /// is off.
    pub async fn set_memory(&self, name: &str, request: MemoryRequest) -> Result<MemoryStatus> {
        let vm = self.show(name)?;
        if vm.status.is_off() {
            let vm = self.change_settings(name, move |settings| settings.memory = request.bytes).await?;
            return Ok(off(vm.settings.memory));
        }
        match self.ask_guest(name, &GuestRequest::SetMemory(request)).await? {
            GuestAnswer::Memory(status) if status.settled => Ok(status),
            GuestAnswer::Memory(status) => Err(Error::Timeout(format!(
                "virtual machine '{}' is not there yet: it has {} after {} seconds; it goes on, \
                 `parterre vm show` says how far it is",
                vm.settings.name,
                status.words(),
                request.seconds
            ))),
            _ => Err(unexpected()),
        }
    }
}

/// A virtual machine that is off.
fn off(startup: u64) -> MemoryStatus {
    MemoryStatus {
        assigned: 0,
        startup,
        target: startup,
        demand: None,
        available: None,
        version: None,
        settled: true,
    }
}
