//! What the management service hands over when it starts a worker: the description, and descriptors beside it.
//!
//! It comes on standard input, which is a socket if there are descriptors: they ride on blanks before the description. A
//! pipe or a file does for a description alone.

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

/// Most descriptors in one message.
const MAX_DESCRIPTORS: usize = 128;
/// Longest description.
const MAX_DESCRIPTION: usize = 16 << 20;

/// Reads standard input to its end.
pub fn receive() -> io::Result<(String, Vec<OwnedFd>)> {
    receive_from(rustix::stdio::stdin(), || {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    })
}

/// Reads a socket to its end, or, if it is none, what `otherwise` reads.
fn receive_from(
    socket: impl rustix::fd::AsFd,
    otherwise: impl FnOnce() -> io::Result<String>,
) -> io::Result<(String, Vec<OwnedFd>)> {
    let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 64 << 10];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut buffer)];
        let received = match recvmsg(&socket, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::NOTSOCK) => return Ok((otherwise()?, Vec::new())),
            Err(Errno::INTR) => continue,
            other => other?,
        };
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::other("some descriptors of the network adapters were lost"));
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..received.bytes]);
        if bytes.len() > MAX_DESCRIPTION {
            return Err(io::Error::other("the description is too long"));
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("the description is no text"))?;
    Ok((text, descriptors))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    #[test]
    fn descriptors_come_with_the_description() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (left, right) = UnixStream::pair().unwrap();
        for end in [&left, &right] {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let rights = [end.as_fd()];
            assert!(control.push(SendAncillaryMessage::ScmRights(&rights)));
            sendmsg(&ours, &[io::IoSlice::new(b" ")], &mut control, SendFlags::empty()).unwrap();
        }
        ours.write_all(b"{}").unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        drop((left, right));
        let (text, descriptors) = receive_from(&theirs, || panic!("it is a socket")).unwrap();
        assert_eq!((text.as_str(), descriptors.len()), ("  {}", 2));
        let mut ends = descriptors.into_iter().map(UnixStream::from);
        let (mut left, mut right) = (ends.next().unwrap(), ends.next().unwrap());
        left.write_all(b"through").unwrap();
        drop(left);
        let mut through = String::new();
        right.read_to_string(&mut through).unwrap();
        assert_eq!(through, "through");
    }

    #[test]
    fn what_is_no_socket_is_read() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(receive_from(reader, || Ok("{}".into())).unwrap().0, "{}");
    }
}
