//! An open connection: bytes from the channel to a unix socket and back.
//!
//! A packet is a pipe header and up to 16 KiB of data; one without data says that its sender has finished. When both
//! sides have finished, or the parent's program is gone, the connection takes itself off the bus.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parterre_vmbus_server::{ChannelError, Handler, OutPacket, Packet, Queue, Wait, Written};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::sockets::Ending;

/// Packet type of data.
const PIPE_DATA: u32 = 1;
/// Most data in one packet of a guest.
const MAX_DATA: usize = 16 * 1024;
/// Data in one packet of ours: the smallest ring holds two of them.
const SEND: usize = 8 * 1024;
/// Packets in one run, each way.
const BATCH: usize = 64;
/// How long a guest may go on after the parent's program has closed its socket.
const GRACE: Duration = Duration::from_secs(5);

/// `struct vmpipe_proto_header`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct PipeHeader {
    packet_type: U32,
    size: U32,
}

/// The data of a guest's packet.
fn data_of(payload: &[u8]) -> Result<&[u8], ChannelError> {
    let wrong = |what: String| ChannelError::protocol(format!("hv_sock: {what}"));
    let Ok((header, data)) = PipeHeader::ref_from_prefix(payload) else {
        return Err(wrong(format!("a packet of {} bytes has no header", payload.len())));
    };
    if header.packet_type.get() != PIPE_DATA {
        return Err(wrong(format!("a packet is of the unknown type {}", header.packet_type)));
    }
    let size = usize::try_from(header.size.get()).unwrap_or(usize::MAX);
    match data.get(..size) {
        Some(data) if size <= MAX_DATA => Ok(data),
        _ => Err(wrong(format!("a packet of {} bytes claims {size} bytes of data", payload.len()))),
    }
}

/// One direction, from the parent to the guest.
struct ToGuest {
    buffer: Box<[u8; SEND]>,
    /// Bytes in the buffer that are to be sent; `Some(0)` is the end.
    held: Option<usize>,
    /// The parent's program has finished.
    finished: bool,
    /// The guest has been told so.
    told: bool,
    sent: u64,
}

impl ToGuest {
    /// Moves one packet. `false`: nothing to move, or no room.
    fn step(&mut self, stream: &UnixStream, queue: &mut Queue) -> Result<bool, ChannelError> {
        if let Some(size) = self.held {
            let header = PipeHeader { packet_type: PIPE_DATA.into(), size: (size as u32).into() };
            let packet = OutPacket::Inband { transaction_id: self.sent, completion_requested: false };
            if queue.write(&packet, &[header.as_bytes(), &self.buffer[..size]])? == Written::Full {
                return Ok(false);
            }
            self.sent = self.sent.wrapping_add(1);
            (self.held, self.told) = (None, self.told || size == 0);
            return Ok(true);
        }
        if self.finished {
            return Ok(false);
        }
        let mut stream = stream;
        match stream.read(&mut self.buffer[..]) {
            Ok(size) => {
                (self.held, self.finished) = (Some(size), size == 0);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            // A socket that cannot be read has nothing more to say.
            Err(_) => {
                (self.held, self.finished) = (Some(0), true);
                Ok(true)
            }
        }
    }
}

/// The other direction.
struct ToParent {
    packet: Packet,
    /// Bytes that the socket has not taken yet, and how many of them it has.
    held: Vec<u8>,
    taken: usize,
    /// The guest has finished.
    finished: bool,
    /// The parent's program does not read any more.
    broken: bool,
}

impl ToParent {
    fn step(&mut self, stream: &UnixStream, queue: &mut Queue) -> Result<bool, ChannelError> {
        if self.taken < self.held.len() {
            let mut stream = stream;
            match stream.write(&self.held[self.taken..]) {
                Ok(count) => self.taken += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => (self.broken, self.taken) = (true, self.held.len()),
            }
            return Ok(true);
        }
        if !queue.read(&mut self.packet)? {
            return Ok(false);
        }
        let data = data_of(self.packet.payload())?;
        // After its end a guest may still finish once more, and nothing else.
        if data.is_empty() {
            self.finished = true;
            // A program that is gone need not be told.
            let _ = stream.shutdown(Shutdown::Write);
        } else if self.finished {
            return Err(ChannelError::protocol("hv_sock: data after the end"));
        }
        self.held.clear();
        self.held.extend_from_slice(data);
        self.taken = 0;
        Ok(true)
    }

    fn is_waiting(&self) -> bool {
        self.taken < self.held.len()
    }
}

/// The handler of a connection's channel.
pub(crate) struct Stream {
    stream: Arc<UnixStream>,
    to_guest: ToGuest,
    to_parent: ToParent,
    ending: Arc<Ending>,
    /// Set when the parent's program is seen to be gone.
    gone: Option<Instant>,
    again: bool,
}

impl Stream {
    /// Connects a socket (non-blocking) with a channel. The greeting is what the socket gets first.
    pub(crate) fn new(stream: UnixStream, greeting: Vec<u8>, ending: Arc<Ending>) -> Stream {
        let buffer = Box::new([0; SEND]);
        let to_guest = ToGuest { buffer, held: None, finished: false, told: false, sent: 0 };
        let to_parent =
            ToParent { packet: Packet::default(), held: greeting, taken: 0, finished: false, broken: false };
        Stream { stream: Arc::new(stream), to_guest, to_parent, ending, gone: None, again: false }
    }

    /// Whether the parent's program has closed its socket altogether. Only asked once it has finished sending.
    fn is_abandoned(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn is_over(&mut self) -> bool {
        if self.to_parent.broken {
            return true;
        }
        if !self.to_guest.told {
            return false;
        }
        if self.to_parent.finished && !self.to_parent.is_waiting() {
            return true;
        }
        if self.gone.is_none() && self.is_abandoned() {
            self.gone = Some(Instant::now());
        }
        self.gone.is_some_and(|since| since.elapsed() >= GRACE)
    }
}

impl Handler for Stream {
    fn run(&mut self, queue: &mut Queue) -> Result<(), ChannelError> {
        self.again = true;
        for _ in 0..BATCH {
            let out = self.to_parent.step(&self.stream, queue)?;
            let back = self.to_guest.step(&self.stream, queue)?;
            if !out && !back {
                self.again = false;
                break;
            }
        }
        if self.is_over() {
            self.again = false;
            self.ending.end();
        }
        Ok(())
    }

    fn wait(&self, wait: &mut Wait) {
        if self.again {
            wait.until(Instant::now());
        }
        if self.to_parent.is_waiting() {
            wait.writable(self.stream.clone());
        }
        if self.to_guest.held.is_none() && !self.to_guest.finished {
            wait.readable(self.stream.clone());
        }
        if self.to_guest.told {
            wait.until(self.gone.unwrap_or_else(Instant::now) + GRACE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn packets_say_how_much_they_hold() {
        assert_eq!(data_of(&[1, 0, 0, 0, 2, 0, 0, 0, 7, 8, 0, 0]).unwrap(), [7, 8]);
        assert_eq!(data_of(&[1, 0, 0, 0, 0, 0, 0, 0]).unwrap(), []);
        assert!(data_of(&[1, 0, 0, 0, 9, 0, 0, 0, 7, 8, 0, 0]).is_err());
        assert!(data_of(&[2, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(data_of(&[1, 0, 0, 0]).is_err());
        let mut large = vec![0; 40_000];
        large[0] = 1;
        large[4..8].copy_from_slice(&16_385u32.to_le_bytes());
        assert!(data_of(&large).is_err());
    }

    proptest! {
        #[test]
        fn any_packet_is_data_or_an_error(payload in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(data) = data_of(&payload) {
                prop_assert!(data.len() + 8 <= payload.len());
            }
        }
    }
}
