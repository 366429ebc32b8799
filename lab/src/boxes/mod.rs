//! Boxes: emulated machines. What they are made of is a [`BoxSpec`]; what emulates them hides behind [`Emulator`].

mod bochs;
mod mend;
pub mod qemu;
pub mod serial;
pub mod spec;

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::RunDir;
use crate::{cleanup, tool};
use serial::Serial;
pub use spec::{BoxSpec, Vendor};

/// What a box boots.
#[derive(Debug, Clone)]
pub enum Boot {
    /// Disk images that firmware looks for a boot program on, one after the other.
    Disks(Vec<PathBuf>),
    /// A kernel with nothing below it, started by the same firmware as a UEFI program.
    Kernel {
        /// The bzImage.
        kernel: PathBuf,
        /// Its initramfs.
        initrd: PathBuf,
        /// Its command line.
        cmdline: String,
    },
}

/// How a box ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The machine was switched off by its software.
    PoweredOff,
    /// The machine reset: a reboot, or a triple fault.
    Reset,
    /// The emulator gave up; the text is what it said.
    Broken(String),
}

/// Something that emulates machines.
pub trait Emulator {
    /// Switches a new box on. Its sockets and logs lie in `dir`.
    ///
    /// # Errors
    /// When the emulator cannot be started or does not offer what the box needs.
    fn power_on(&self, spec: &BoxSpec, boot: &Boot, dir: &RunDir) -> Result<Box<dyn Machine>>;
}

/// A box that was switched on. It ends when dropped.
pub trait Machine: Send {
    /// What it wrote to its first serial port.
    fn serial(&self) -> &Serial;
    /// The stream to the lab's agent in it; can be taken once.
    ///
    /// # Errors
    /// When it was taken, or the emulator does not answer.
    fn agent(&mut self) -> Result<UnixStream>;
    /// The stream of the parent's console; can be taken once.
    ///
    /// # Errors
    /// When it was taken, or the emulator does not answer.
    fn console(&mut self) -> Result<UnixStream>;
    /// What its processors and their local APICs hold now, as the emulator shows it to people.
    fn processors(&mut self, count: u32) -> String;
    /// Whether and how it ended; waits for it at most so long.
    fn ended(&mut self, wait: Duration) -> Option<End>;
    /// Ends it now.
    fn kill(&mut self);
}

/// The emulator for boxes of that vendor.
///
/// # Errors
/// When there is none.
pub fn emulator(vendor: Vendor) -> Result<Box<dyn Emulator>> {
    match vendor {
        Vendor::Amd => Ok(Box::new(qemu::Qemu::new()?)),
        Vendor::Intel => Ok(Box::new(bochs::Bochs::new()?)),
    }
}

/// Starts an emulator in a directory that keeps its command line and what it says of errors. Its output is a pipe.
fn spawn(command: Command, dir: &Path, name: &str, errors: &str) -> Result<(Child, cleanup::Guard)> {
    let mut command = dies_with_us(command);
    fs::write(dir.join("command"), format!("{command:?}\n"))?;
    let child = command
        .current_dir(dir)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(dir.join(errors))?)
        .spawn()
        .with_context(|| format!("{name} cannot be started."))?;
    let guard = cleanup::Guard::process(child.id());
    Ok((child, guard))
}

/// The command, run so that the kernel ends it when the lab's process ends, however that happens.
fn dies_with_us(command: Command) -> Command {
    if !tool::found("setpriv") {
        return command;
    }
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped
}
