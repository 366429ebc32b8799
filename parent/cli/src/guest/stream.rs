//! Standard input and output as one end of a stream with a program in the guest.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::process::ExitCode;

use parterre_api::Vm;
use parterre_api::guest::{GuestAnswer, GuestRequest};

use super::socket;
use crate::error::Error;

/// Connects and passes bytes until the guest's program has finished.
pub(super) fn connect(vm: &Vm, request: &GuestRequest) -> Result<ExitCode, Error> {
    let (stream, answer) = socket::open(vm, request)?;
    if answer != GuestAnswer::Connected {
        return Err(socket::unexpected());
    }
    let mut to_guest = stream.try_clone()?;
    // Ends with the process if nothing is typed any more.
    std::thread::spawn(move || {
        // A guest that has gone ends the other direction too.
        let _ = io::copy(&mut io::stdin().lock(), &mut to_guest);
        let _ = to_guest.shutdown(Shutdown::Write);
    });
    pass(stream)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what comes, as it comes.
fn pass(mut stream: impl Read) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => stdout.write_all(&buffer[..count]).and_then(|()| stdout.flush())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
