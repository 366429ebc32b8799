//! The serial cables of a Bochs box. Bochs is the client of a TCP port on this machine's loopback for each of its serial ports:
//! unlike a terminal, a connection loses nothing when one side is slow.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a waiting lab looks for the connection.
const LOOK: Duration = Duration::from_millis(10);

/// One end of a cable, before Bochs has taken the other.
#[derive(Debug)]
pub struct Wire(TcpListener);

impl Wire {
    /// Lays a cable.
    ///
    /// # Errors
    /// When there is no free port on the loopback.
    pub fn new() -> Result<Wire> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        Ok(Wire(listener.context("There is no port on 127.0.0.1 for a box's serial cable.")?))
    }

    /// Where Bochs finds it.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> Result<String> {
        Ok(self.0.local_addr()?.to_string())
    }

    /// Waits until Bochs has taken the other end, but not when `ended` says that it will not any more.
    ///
    /// # Errors
    /// When it does not in `limit`.
    pub fn connect(self, limit: Duration, mut ended: impl FnMut() -> bool) -> Result<TcpStream> {
        let deadline = Instant::now() + limit;
        loop {
            match self.0.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e).context("A box's serial cable cannot be connected."),
            }
            if ended() || Instant::now() > deadline {
                bail!("Bochs did not connect the box's serial cables.");
            }
            thread::sleep(LOOK);
        }
    }
}

/// The stream of a cable behind which a program speaks as soon as it has said `hello`; what the firmware says before (it
/// takes every serial port for a console) is dropped.
///
/// # Errors
/// When the system gives no more streams or threads.
pub fn after(hello: &'static str, wire: TcpStream) -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let (mut from_wire, mut to_wire) = (wire.try_clone()?, wire);
    let (mut from_lab, mut to_lab) = (theirs.try_clone()?, theirs);
    thread::Builder::new().spawn(move || {
        if skip_past(hello.as_bytes(), &mut from_wire).is_ok() {
            let _ = io::copy(&mut from_wire, &mut to_lab);
        }
        let _ = to_lab.shutdown(Shutdown::Both);
    })?;
    thread::Builder::new().spawn(move || {
        let _ = copy_at_once(&mut from_lab, &mut to_wire);
        let _ = to_wire.shutdown(Shutdown::Both);
    })?;
    Ok(ours)
}

/// Reads to the end of the first line that ends with `hello`.
fn skip_past(hello: &[u8], from: &mut impl Read) -> io::Result<()> {
    let mut last = Vec::new();
    let mut byte = [0];
    loop {
        from.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            if last.ends_with(hello) {
                return Ok(());
            }
            last.clear();
        } else if last.len() < 4 * hello.len() {
            last.push(byte[0]);
        } else {
            // Only the end of a line matters.
            last.rotate_left(1);
            last.pop();
            last.push(byte[0]);
        }
    }
}

fn copy_at_once(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_the_hello_is_dropped() {
        let mut text = &b"\x1b[2J Boot\r\nhell\nlong long long long noise before hello\nrest"[..];
        skip_past(b"hello", &mut text).unwrap();
        assert_eq!(text, b"rest");
        assert!(skip_past(b"hello", &mut &b"nothing of the kind\n"[..]).is_err());
    }

    #[test]
    fn a_cable_carries_both_ways() {
        let wire = Wire::new().unwrap();
        let mut far = TcpStream::connect(wire.address().unwrap()).unwrap();
        let near = wire.connect(Duration::from_secs(5), || false).unwrap();
        let mut stream = after("hello", near).unwrap();
        far.write_all(b"noise\nhello\nanswer").unwrap();
        let mut read = [0; 6];
        stream.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"answer");
        stream.write_all(b"question").unwrap();
        let mut asked = [0; 8];
        far.read_exact(&mut asked).unwrap();
        assert_eq!(&asked, b"question");
        drop(far);
        assert_eq!(stream.read(&mut read).unwrap(), 0);
    }

    #[test]
    fn nobody_waits_for_a_box_that_ended() {
        assert!(Wire::new().unwrap().connect(Duration::from_secs(60), || true).is_err());
    }
}
