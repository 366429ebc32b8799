//! The console on the terminal that started the worker: `vmwp --console stdio`.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use crate::console::Client;

/// Ctrl-], which leaves the console.
pub const ESCAPE: u8 = 0x1D;

/// The terminal in raw mode; put back as it was on drop.
pub struct Terminal {
    before: Option<Termios>,
    flags: OFlags,
}

impl Terminal {
    /// Makes standard input non-blocking and, if it is a terminal, raw.
    pub fn open() -> io::Result<(Terminal, Client<File, File>)> {
        let stdin = io::stdin();
        let before = if isatty(&stdin) { Some(tcgetattr(&stdin)?) } else { None };
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        }
        let flags = fcntl_getfl(&stdin)?;
        fcntl_setfl(&stdin, flags | OFlags::NONBLOCK)?;
        let input = File::from(stdin.as_fd().try_clone_to_owned()?);
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok((Terminal { before, flags }, Client::new(input, output)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let stdin = io::stdin();
        // Nothing can be done about a terminal that went away.
        let _ = fcntl_setfl(&stdin, self.flags);
        if let Some(before) = &self.before {
            let _ = tcsetattr(&stdin, OptionalActions::Flush, before);
        }
    }
}
