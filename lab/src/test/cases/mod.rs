//! The end-to-end tests, by what they are about.

mod backup;
mod balloon;
mod boot;
mod crash;
mod disk;
mod integration;
mod intel;
mod isolation;
mod kexec;
mod memory;
mod network;
mod parent;
mod screen;
mod soak;
mod switches;
mod systems;
mod tmk;
mod vm;
mod vmbus;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Case;
use crate::session::{Outcome, Session};
use crate::tool;

/// For one command.
const LIMIT: Duration = Duration::from_secs(60);

/// All of them but the long ones.
pub fn all() -> Vec<Case> {
    [
        parent::CASES,
        tmk::CASES,
        isolation::CASES,
        vm::CASES,
        vmbus::CASES,
        kexec::CASES,
        disk::CASES,
        backup::CASES,
        network::CASES,
        switches::CASES,
        integration::CASES,
        memory::CASES,
        balloon::CASES,
        screen::CASES,
        boot::CASES,
        intel::CASES,
        crash::CASES,
    ]
    .concat()
}

/// Those that take many minutes.
pub fn long() -> Vec<Case> {
    [memory::LONG, systems::LONG, soak::LONG].concat()
}

/// Makes a disk of a box, with a file system that keeps its own order when the power is cut: without a journal, the next
/// mount might give a file's blocks away again.
fn journaled_disk(disk: &Path, mebibytes: u64) -> Result<()> {
    File::create(disk)?.set_len(mebibytes << 20)?;
    tool::output(Command::new("/usr/sbin/mke2fs").args(["-q", "-t", "ext4"]).arg(disk)).map(drop)
}

/// Runs a shell command that shall succeed, and returns its output.
fn succeed(session: &mut Session, command: &str) -> Result<String> {
    succeed_in(session, command, LIMIT)
}

/// As [`succeed`], with a limit of its own.
fn succeed_in(session: &mut Session, command: &str, limit: Duration) -> Result<String> {
    let run = session.shell(command, limit)?;
    if run.outcome == Outcome::Exit(0) {
        return Ok(run.stdout);
    }
    bail!("`{command}` ended with {:?}. It said:\n{}{}", run.outcome, run.stdout, run.stderr)
}
