//! Taking a thread out of a running guest.
//!
//! A VP runs inside an `ioctl`; a signal with an empty handler makes it return [`crate::Error::Interrupted`]. The
//! signal may arrive just before the thread enters the `ioctl` and be lost, so [`Kicker::kick`] is to be repeated
//! until the thread has said that it stopped.

use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

use crate::{Error, Result};

/// The signal used for kicks.
fn kick_signal() -> libc::c_int {
    vmm_sys_util::signal::SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The right to interrupt threads; made once per process.
#[derive(Clone, Copy, Debug)]
pub struct Kicker(());

impl Kicker {
    /// Installs the empty handler.
    pub fn install() -> Result<Kicker> {
        vmm_sys_util::signal::register_signal_handler(kick_signal(), ignore).map_err(|e| Error::System {
            what: "cannot install the handler that interrupts virtual processors",
            source: e.into(),
        })?;
        Ok(Kicker(()))
    }

    /// Interrupts the system call that a thread is in, if any. A thread that has ended is left alone.
    pub fn kick<T>(&self, thread: &JoinHandle<T>) {
        if thread.is_finished() {
            return;
        }
        // SAFETY: the handle has not been joined, so its pthread_t is valid; the handler for the signal was
        // installed when `self` was made.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
    }
}
