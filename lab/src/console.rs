//! Joins the user's terminal to a console in a box.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::cleanup::Guard;

/// Ctrl-\\ leaves. (Ctrl-] is what leaves a virtual machine's console inside.)
pub const ESCAPE: u8 = 0x1c;

/// Puts the terminal back as it was when dropped, and when a signal ends the lab.
struct Raw {
    before: Termios,
    _guard: Guard,
}

impl Raw {
    fn enter() -> Result<Raw> {
        let before = tcgetattr(io::stdin()).context("Standard input is no terminal; use --check instead.")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("The terminal cannot be set up.")?;
        let guard = Guard::terminal(before.clone());
        Ok(Raw { before, _guard: guard })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Copies keys to the console and its output to the terminal until the user leaves with [`ESCAPE`] or the console
/// ends.
///
/// # Errors
/// When standard input is no terminal, or the stream fails.
pub fn attach(console: &UnixStream) -> Result<()> {
    let _raw = Raw::enter()?;
    let over = Arc::new(AtomicBool::new(false));
    let output = {
        let (mut from, over) = (console.try_clone()?, over.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                let mut out = io::stdout();
                if out.write_all(&buffer[..n]).and_then(|()| out.flush()).is_err() {
                    break;
                }
            }
            over.store(true, Ordering::Relaxed);
        })
    };
    let result = keys(&mut console.try_clone()?, &over);
    // Ends the thread's read; the box itself does not mind.
    let _ = console.shutdown(std::net::Shutdown::Both);
    let _ = output.join();
    result
}

fn keys(to: &mut UnixStream, over: &AtomicBool) -> Result<()> {
    let stdin = io::stdin();
    let mut buffer = [0; 1024];
    while !over.load(Ordering::Relaxed) {
        if !readable(&stdin, Duration::from_millis(200))? {
            continue;
        }
        // Past the standard library's buffer, which poll knows nothing of.
        let n = rustix::io::read(&stdin, &mut buffer)?;
        let leave = buffer[..n].iter().position(|&byte| byte == ESCAPE);
        to.write_all(&buffer[..leave.unwrap_or(n)])?;
        if leave.is_some() || n == 0 {
            return Ok(());
        }
    }
    Ok(())
}

fn readable(source: &impl AsFd, wait: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(source, PollFlags::IN)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
