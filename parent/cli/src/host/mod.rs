//! Commands about the host.

mod check;
mod info;

use std::process::ExitCode;

use crate::arguments::HostCommand;
use crate::error::Error;

/// Runs a command.
pub fn run(command: HostCommand, json: bool) -> Result<ExitCode, Error> {
    match command {
        HostCommand::Info => info::run(json),
        HostCommand::Check => check::run(json),
    }
}
