//! What is asked of guests, by way of their workers' guest sockets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parterre_api::guest::{
    FreezeRequest, GuestAnswer, GuestRequest, ItemPool, ShutdownAction, ShutdownRequest,
};
use parterre_api::{ErrorCode, IntegrationService, IntegrationStatus, Vm, VmState};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::{Error, Manager, Result};

/// How long a guest has to shut down or restart, unless the request says otherwise.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest file that a worker may send: a picture of the largest screen takes less.
const MAX_FILE: u64 = 64 << 20;
/// Longer than the worker waits for any answer of a guest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

impl From<(ErrorCode, String)> for Error {
    fn from((code, message): (ErrorCode, String)) -> Error {
        match code {
            ErrorCode::BadRequest => Error::BadRequest(message),
            ErrorCode::NotFound => Error::NotFound(message),
            ErrorCode::Conflict => Error::Conflict(message),
            ErrorCode::Failed => Error::Failed(message),
            ErrorCode::Timeout => Error::Timeout(message),
        }
    }
}

/// Asks a worker; failures that it tells are errors.
async fn ask(socket: &Path, request: &GuestRequest) -> Result<GuestAnswer> {
    ask_for_file(socket, request).await.map(|(answer, _)| answer)
}

/// Asks a worker for something that a file may follow.
async fn ask_for_file(socket: &Path, request: &GuestRequest) -> Result<(GuestAnswer, Vec<u8>)> {
    let lost = |error: std::io::Error| Error::Failed(format!("the worker cannot be asked: {error}"));
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let (mut answer, mut file) = (String::new(), Vec::new());
        let mut reader = BufReader::new(stream);
        reader.read_line(&mut answer).await?;
        let answer = serde_json::from_str(&answer).ok();
        if let Some(GuestAnswer::Screenshot { size, .. }) = answer {
            let count = reader.take(size.min(MAX_FILE)).read_to_end(&mut file).await?;
            if count as u64 != size {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok((answer, file))
    };
    let (answer, file) = timeout(ANSWER_TIMEOUT, exchange)
        .await
        .map_err(|_| Error::Timeout("the worker does not answer".into()))?
        .map_err(lost)?;
    match answer {
        Some(GuestAnswer::Failed { code, message }) => Err((code, message).into()),
        Some(answer) => Ok((answer, file)),
        None => Err(Error::Failed("the worker ended before it answered".into())),
    }
}

pub(crate) fn unexpected() -> Error {
    Error::Failed("the worker's answer makes no sense; it may be of another version than vmms".into())
}

/// A worker's error with the name that the person knows and the worker does not.
fn named(vm: &Vm, error: &Error) -> Error {
    Error::from((error.code(), format!("virtual machine '{}': {error}", vm.settings.name)))
}

impl Manager {
    /// Asks the guest of a virtual machine that runs.
    pub(crate) async fn ask_guest(&self, name: &str, request: &GuestRequest) -> Result<GuestAnswer> {
        let (vm, socket) = self.running_guest(name)?;
        ask(&socket, request).await.map_err(|error| named(&vm, &error))
    }

    /// A picture of the screen: a PNG file.
    pub async fn screenshot(&self, name: &str) -> Result<Vec<u8>> {
        let (vm, socket) = self.running_guest(name)?;
        match ask_for_file(&socket, &GuestRequest::Screenshot).await {
            Ok((GuestAnswer::Screenshot { .. }, file)) => Ok(file),
            Ok(_) => Err(unexpected()),
            Err(error) => Err(named(&vm, &error)),
        }
    }

    /// A virtual machine that runs, and where its guest can be asked.
    fn running_guest(&self, name: &str) -> Result<(Vm, PathBuf)> {
        let vm = self.show(name)?;
        let VmState::Running { .. } = vm.status else {
            let remedy = if let VmState::Paused { .. } = vm.status { "resume" } else { "start" };
            return Err(Error::Conflict(format!(
                "virtual machine '{}' is {}; it has to run for that: `parterre vm {remedy} {0}`",
                vm.settings.name,
                vm.status.word().to_lowercase()
            )));
        };
        let socket = vm.guest.clone().ok_or_else(unexpected)?;
        Ok((vm, socket))
    }

    /// State of the integration services.
    pub async fn integration(&self, name: &str) -> Result<IntegrationStatus> {
        let vm = self.show(name)?;
        let VmState::Running { .. } = vm.status else {
            return Ok(IntegrationStatus::off(&vm.settings.integration));
        };
        match self.ask_guest(name, &GuestRequest::Status).await? {
            GuestAnswer::Status(status) => Ok(status),
            _ => Err(unexpected()),
        }
    }

    /// Switches an integration service on or off, at once and for good.
    pub async fn set_service(
        &self,
        name: &str,
        service: IntegrationService,
        enabled: bool,
    ) -> Result<IntegrationStatus> {
        let change = move |settings: &mut parterre_api::VmSettings| {
            settings.integration.services.insert(service, enabled);
        };
        let vm = self.change_settings(name, change).await?;
        // A guest that stands still finds it so when it goes on.
        if let (false, Some(socket)) = (vm.status.is_off(), &vm.guest) {
            let request = GuestRequest::Enable { service, enabled };
            ask(socket, &request).await.map_err(|error| named(&vm, &error))?;
        }
        self.integration(name).await
    }

    /// Shuts a guest down by its integration service and waits until that is done.
    pub async fn shut_down(&self, name: &str, request: ShutdownRequest) -> Result<Vm> {
        let patience =
            request.timeout.map_or(SHUTDOWN_TIMEOUT, |seconds| Duration::from_secs(seconds.into()));
        let restart = request.action == ShutdownAction::Restart;
        let mut changes = self.watch(name)?;
        let before = changes.borrow_and_update().clone();
        if before.status.is_off() && !restart {
            return Ok(before);
        }
        self.ask_guest(name, &GuestRequest::Shutdown(request)).await?;
        if !restart {
            self.set_status(before.id, VmState::Stopping);
        }
        let restarted =
            |vm: &Vm| restart && matches!(vm.status, VmState::Running { .. }) && vm.status != before.status;
        let done = changes.wait_for(|vm| vm.status.is_off() || restarted(vm));
        let Ok(done) = timeout(patience, done).await else {
            self.set_status(before.id, before.status);
            return Err(Error::Timeout(format!(
                "virtual machine '{name}' has begun to shut down, and has not finished within {} seconds; \
                 look at its console: `parterre vm console {name}`",
                patience.as_secs()
            )));
        };
        let vm = done.map(|vm| vm.clone()).map_err(|_| Error::NotFound(name.into()))?;
        if restart && vm.status.is_off() {
            return Err(Error::Failed(format!("virtual machine '{name}' did not restart: {}", vm.status)));
        }
        Ok(vm)
    }

    /// Items of data exchange.
    pub async fn items(&self, name: &str, pool: ItemPool) -> Result<BTreeMap<String, String>> {
        let vm = self.show(name)?;
        if vm.status.is_off() && pool == ItemPool::External {
            return Ok(vm.settings.integration.items);
        }
        match self.ask_guest(name, &GuestRequest::ReadItems { pool }).await? {
            GuestAnswer::Items { items } => Ok(items),
            _ => Err(unexpected()),
        }
    }

    /// Gives a guest an item, now if it runs, and at each start. `None` takes it away.
    pub async fn set_item(&self, name: &str, key: String, value: Option<String>) -> Result<()> {
        if let VmState::Paused { .. } = self.show(name)?.status {
            // It could not answer.
            return self.running_guest(name).map(drop);
        }
        let (stored_key, stored) = (key.clone(), value.clone());
        let change = move |settings: &mut parterre_api::VmSettings| {
            let items = &mut settings.integration.items;
            match stored {
                Some(value) => items.insert(stored_key, value),
                None => items.remove(&stored_key),
            };
        };
        let vm = self.change_settings(name, change).await?;
        if let VmState::Running { .. } = vm.status {
            let request = match value {
                Some(value) => GuestRequest::SetItem { key, value },
                None => GuestRequest::DeleteItem { key },
            };
            self.ask_guest(name, &request).await?;
        }
        Ok(())
    }

    /// Freezes the file systems of a guest.
    pub async fn freeze(&self, name: &str, request: FreezeRequest) -> Result<GuestAnswer> {
        if request.seconds == 0 {
            return Err(Error::BadRequest("file systems cannot be frozen for 0 seconds".into()));
        }
        self.ask_guest(name, &GuestRequest::Freeze { seconds: request.seconds }).await
    }

    /// Thaws them.
    pub async fn thaw(&self, name: &str) -> Result<GuestAnswer> {
        self.ask_guest(name, &GuestRequest::Thaw).await
    }
}
