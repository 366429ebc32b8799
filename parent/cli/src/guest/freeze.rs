//! Running a command while the guest's file systems are frozen.

use std::process::{Command, ExitCode};

use parterre_api::guest::{FreezeRequest, GuestAnswer};

use super::{Asking, socket};
use crate::client::vm_path;
use crate::error::Error;
use crate::progress::Progress;

/// Freezes, runs, thaws.
pub(super) fn freeze(
    service: &Asking<'_>,
    name: &str,
    seconds: u32,
    command: &[String],
) -> Result<ExitCode, Error> {
    let [program, arguments @ ..] = command else { return Ok(ExitCode::SUCCESS) };
    let progress = Progress::start(&format!("freezing the file systems of {name}"));
    let path = vm_path(name) + "/freeze";
    let frozen: Result<GuestAnswer, Error> =
        service.runtime.block_on(service.client.post(&path, &FreezeRequest { seconds }));
    drop(progress);
    frozen?;
    let status = Command::new(program).args(arguments).status();
    // Whatever became of the command, the guest goes on.
    let was_frozen = thaw(service, name)?;
    let status = status.map_err(|source| Error::File { path: program.into(), source })?;
    if !was_frozen {
        return Err(Error::NotFrozen { name: name.into(), seconds });
    }
    // A command that a signal ended has no code.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// Thaws; says whether the file systems were frozen until now.
pub(super) fn thaw(service: &Asking<'_>, name: &str) -> Result<bool, Error> {
    let path = vm_path(name) + "/thaw";
    match service.runtime.block_on(service.client.post(&path, &()))? {
        GuestAnswer::Thawed { was_frozen } => Ok(was_frozen),
        _ => Err(socket::unexpected()),
    }
}
