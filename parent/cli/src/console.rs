//! The serial console of a virtual machine on this terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::error::Error;

/// Ctrl-], which leaves the console.
const ESCAPE: u8 = 0x1D;

/// The terminal in raw mode; as it was on drop.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> io::Result<RawTerminal> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(RawTerminal(None));
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        Ok(RawTerminal(Some(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that is gone needs no care.
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, before);
        }
    }
}

/// How a visit to the console ended.
enum End {
    Left,
    Closed,
}

/// Connects the terminal with a console until either side leaves.
pub fn attach(name: &str, socket: &Path) -> Result<ExitCode, Error> {
    let stream = UnixStream::connect(socket).map_err(|source| Error::File { path: socket.into(), source })?;
    let person = io::stdin().is_terminal();
    if person {
        eprintln!("Connected to {name}; Ctrl-] leaves the console.");
    }
    let terminal = RawTerminal::enter()?;
    let end = pass(&stream);
    drop(terminal);
    match end? {
        End::Left => eprintln!("\nLeft the console of {name}; it goes on running."),
        End::Closed => eprintln!("\nThe console of {name} is closed: the virtual machine is off."),
    }
    Ok(ExitCode::SUCCESS)
}

/// Passes bytes in both directions.
fn pass(mut stream: &UnixStream) -> io::Result<End> {
    let (terminal, mut stdout) = (io::stdin(), io::stdout().lock());
    let mut buffer = [0; 4096];
    let mut input_open = true;
    loop {
        let input = if input_open { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = [PollFd::new(stream, PollFlags::IN), PollFd::new(&terminal, input)];
        // Input that is closed would be reported for ever.
        let watched = if input_open { &mut fds[..] } else { &mut fds[..1] };
        match poll(watched, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let ready = fds.map(|fd| !fd.revents().is_empty());
        if ready[0] {
            match stream.read(&mut buffer)? {
                0 => return Ok(End::Closed),
                count => stdout.write_all(&buffer[..count]).and_then(|()| stdout.flush())?,
            }
        }
        if ready[1] && input_open {
            // Past the standard library's buffer: what it held back, nobody would be told of.
            let count = rustix::io::read(&terminal, &mut buffer)?;
            let typed = &buffer[..count];
            let until = typed.iter().position(|byte| *byte == ESCAPE);
            stream.write_all(&typed[..until.unwrap_or(count)])?;
            if until.is_some() {
                return Ok(End::Left);
            }
            input_open = count > 0;
        }
    }
}
