//! Running a command while the guest's file systems are frozen.

use std::process::{ExitCode, ExitStatus};

use parterre_api::guest::{FreezeRequest, GuestAnswer};
use tokio::process::Command;

use super::interrupt::{Interrupt, Interrupts};
use super::socket;
use crate::client::{Client, vm_path};
use crate::error::Error;
use crate::progress::Progress;

/// Freezes, runs, thaws.
pub(super) async fn freeze(
    client: &Client,
    name: &str,
    seconds: u32,
    command: &[String],
) -> Result<ExitCode, Error> {
    let [program, arguments @ ..] = command else { return Ok(ExitCode::SUCCESS) };
    // From here on nothing ends this process before the guest goes on.
    let interrupts = Interrupts::catch()?;
    begin(client, name, seconds).await?;
    let status = run(Command::new(program).args(arguments), interrupts).await;
    // Whatever became of the command, the guest goes on.
    let was_frozen = thaw(client, name).await?;
    let status = status.map_err(|source| Error::File { path: program.into(), source })?;
    if !was_frozen {
        return Err(Error::NotFrozen { name: name.into(), seconds });
    }
    // A command that a signal ended has no code.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// Runs a command to its end; who wants this process to end, ends the command.
async fn run(command: &mut Command, mut interrupts: Interrupts) -> std::io::Result<ExitStatus> {
    let mut child = command.spawn()?;
    loop {
        tokio::select! {
            status = child.wait() => return status,
            interrupt = interrupts.next() => if interrupt == Interrupt::End {
                child.start_kill()?;
            },
        }
    }
}

/// Freezes the file systems for at most so many seconds.
pub(super) async fn begin(client: &Client, name: &str, seconds: u32) -> Result<(), Error> {
    let _progress = Progress::start(&format!("freezing the file systems of {name}"));
    let path = vm_path(name) + "/freeze";
    client.post::<GuestAnswer>(&path, &FreezeRequest { seconds }).await.map(drop)
}

/// Thaws; says whether the file systems were frozen until now.
pub(super) async fn thaw(client: &Client, name: &str) -> Result<bool, Error> {
    let path = vm_path(name) + "/thaw";
    match client.post(&path, &()).await? {
        GuestAnswer::Thawed { was_frozen } => Ok(was_frozen),
        _ => Err(socket::unexpected()),
    }
}
