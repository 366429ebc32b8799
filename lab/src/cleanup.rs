//! Nothing stays behind when the lab is interrupted: on Ctrl-C, hang-up and termination the emulators end, and
//! their directories go. A lab that is killed outright leaves no emulator either (see `boxes::qemu`), and the next
//! lab removes its directory (see [`crate::cache::RunDir`]).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{OptionalActions, Termios, tcsetattr};

#[derive(Debug)]
enum Left {
    Process(u32),
    Directory(PathBuf),
    Terminal(Box<Termios>),
}

static LEFT: Mutex<BTreeMap<u64, Left>> = Mutex::new(BTreeMap::new());

/// Something that shall not outlive the lab; forgotten when dropped.
#[derive(Debug)]
pub struct Guard(u64);

impl Guard {
    /// Guards a process, by its id.
    pub fn process(id: u32) -> Guard {
        Guard::new(Left::Process(id))
    }

    /// Guards a directory.
    pub fn directory(path: PathBuf) -> Guard {
        Guard::new(Left::Directory(path))
    }

    /// Guards the terminal's settings, which are put back.
    pub fn terminal(settings: Termios) -> Guard {
        Guard::new(Left::Terminal(Box::new(settings)))
    }

    fn new(left: Left) -> Guard {
        let Ok(mut all) = LEFT.lock() else { return Guard(0) };
        let number = all.last_key_value().map_or(1, |(last, _)| last + 1);
        all.insert(number, left);
        Guard(number)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Ok(mut all) = LEFT.lock() {
            all.remove(&self.0);
        }
    }
}

/// From now on, signals that end the lab clean up first. The exit status is then 130, as shells have it.
///
/// # Errors
/// When the signals cannot be caught.
pub fn on_signals() -> Result<()> {
    ctrlc::set_handler(|| {
        now();
        std::process::exit(130);
    })
    .context("Ctrl-C cannot be caught.")
}

/// Ends and removes everything guarded: processes first, then directories.
pub fn now() {
    let Ok(mut all) = LEFT.lock() else { return };
    let (processes, directories): (Vec<_>, Vec<_>) =
        std::mem::take(&mut *all).into_values().partition(|left| matches!(left, Left::Process(_)));
    for left in processes.into_iter().chain(directories) {
        match left {
            Left::Process(id) => {
                if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            Left::Directory(path) => {
                let _ = std::fs::remove_dir_all(path);
            }
            Left::Terminal(settings) => {
                let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &settings);
            }
        }
    }
}
