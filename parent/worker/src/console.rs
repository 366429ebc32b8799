//! The console: what COM1 says, kept in a ring, and the people who look at it.
//!
//! The guest's bytes go into the ring and nowhere else, so that a slow reader never stops a virtual processor. The
//! main thread copies from the ring to each client; one that falls behind by more than the ring skips what it missed.
//! A new client starts with the last output.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::event::Events;

/// How much output is remembered.
pub const RING_SIZE: usize = 64 << 10;
/// How much input may wait for the guest; more is left in the client's socket.
const INPUT_LIMIT: usize = 4 << 10;

struct Ring {
    bytes: Box<[u8]>,
    /// Number of bytes ever written; the ring holds the last `RING_SIZE` of them.
    written: u64,
}

impl Ring {
    fn push(&mut self, data: &[u8]) {
        for byte in data {
            let at = (self.written % self.bytes.len() as u64) as usize;
            self.bytes[at] = *byte;
            self.written += 1;
        }
    }

    /// The contiguous bytes from a position on, and the position of the first of them.
    fn since(&self, position: u64) -> (u64, &[u8]) {
        let len = self.bytes.len() as u64;
        let from = position.max(self.written.saturating_sub(len)).min(self.written);
        let start = (from % len) as usize;
        let count = (self.written - from).min(len - start as u64) as usize;
        (from, &self.bytes[start..start + count])
    }
}

/// The output side of COM1, shared between the serial port and the main thread.
#[derive(Clone)]
pub struct ConsoleLog {
    ring: Arc<Mutex<Ring>>,
    events: Events,
}

impl ConsoleLog {
    /// An empty log; `events` is woken when there is something new.
    pub fn new(events: Events) -> ConsoleLog {
        let ring = Ring { bytes: vec![0; RING_SIZE].into(), written: 0 };
        ConsoleLog { ring: Arc::new(Mutex::new(ring)), events }
    }

    fn ring<R>(&self, f: impl FnOnce(&mut Ring) -> R) -> R {
        f(&mut self.ring.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All output that is still remembered.
    pub fn tail(&self) -> Vec<u8> {
        self.ring(|ring| {
            let (from, first) = ring.since(0);
            let mut all = first.to_vec();
            all.extend_from_slice(ring.since(from + first.len() as u64).1);
            all
        })
    }
}

impl Write for ConsoleLog {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.ring(|ring| ring.push(data));
        self.events.wake();
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Somebody at the console: where input comes from and output goes to. Both must not block.
pub struct Client<I, O> {
    input: I,
    output: O,
    position: u64,
    waiting: Vec<u8>,
}

/// What became of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All is written.
    Idle,
    /// The output is full: wait until it can be written to.
    Blocked,
    /// The client is gone.
    Closed,
}

impl<I: Read, O: Write> Client<I, O> {
    /// A client that first sees the last output.
    pub fn new(input: I, output: O) -> Client<I, O> {
        Client { input, output, position: 0, waiting: Vec::new() }
    }

    /// The output end.
    pub fn output(&self) -> &O {
        &self.output
    }

    /// Copies new output to the client.
    pub fn pump_output(&mut self, log: &ConsoleLog) -> Progress {
        loop {
            if self.waiting.is_empty() {
                let chunk = log.ring(|ring| {
                    let (from, bytes) = ring.since(self.position);
                    (from, bytes.to_vec())
                });
                self.position = chunk.0 + chunk.1.len() as u64;
                self.waiting = chunk.1;
            }
            if self.waiting.is_empty() {
                let _ = self.output.flush();
                return Progress::Idle;
            }
            match self.output.write(&self.waiting) {
                Ok(0) => return Progress::Closed,
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Progress::Blocked,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Progress::Closed,
            }
        }
    }

    /// Takes input from the client, as much as there is room for.
    pub fn pump_input(&mut self, queue: &mut InputQueue) -> Progress {
        let mut buffer = [0; 512];
        while queue.room() > 0 {
            let room = queue.room().min(buffer.len());
            match self.input.read(&mut buffer[..room]) {
                Ok(0) => return Progress::Closed,
                Ok(count) => queue.bytes.extend(&buffer[..count]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Progress::Idle,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Progress::Closed,
            }
        }
        Progress::Blocked
    }
}

/// Input on its way to the guest.
#[derive(Default)]
pub struct InputQueue {
    bytes: VecDeque<u8>,
}

impl InputQueue {
    /// Whether a byte waits in the queue.
    pub fn contains(&self, byte: u8) -> bool {
        self.bytes.contains(&byte)
    }

    /// How many more bytes may be queued.
    pub fn room(&self) -> usize {
        INPUT_LIMIT.saturating_sub(self.bytes.len())
    }

    /// Gives the guest what it has room for; `receive` says how many bytes it took.
    pub fn feed(&mut self, mut receive: impl FnMut(&[u8]) -> usize) {
        while !self.bytes.is_empty() {
            let (front, _) = self.bytes.as_slices();
            let taken = receive(front).min(front.len());
            if taken == 0 {
                return;
            }
            self.bytes.drain(..taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An output that takes a few bytes and then is full.
    struct Narrow {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Narrow {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            let count = data.len().min(self.room);
            if count == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.taken.extend_from_slice(&data[..count]);
            self.room -= count;
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log() -> ConsoleLog {
        ConsoleLog::new(Events::new().unwrap())
    }

    #[test]
    fn late_client_sees_the_last_output() {
        let mut log = log();
        log.write_all(&vec![b'x'; RING_SIZE]).unwrap();
        log.write_all(b"login: ").unwrap();
        let mut client = Client::new(io::empty(), Narrow { taken: vec![], room: usize::MAX });
        assert_eq!(client.pump_output(&log), Progress::Idle);
        let taken = &client.output().taken;
        assert_eq!(taken.len(), RING_SIZE);
        assert!(taken.ends_with(b"xxlogin: "));
        assert_eq!(log.tail(), *taken);
    }

    #[test]
    fn slow_client_blocks_alone_and_goes_on_where_it_was() {
        let mut log = log();
        log.write_all(b"hello").unwrap();
        let mut slow = Client::new(io::empty(), Narrow { taken: vec![], room: 2 });
        assert_eq!(slow.pump_output(&log), Progress::Blocked);
        log.write_all(b" world").unwrap();
        slow.output.room = 100;
        assert_eq!(slow.pump_output(&log), Progress::Idle);
        assert_eq!(slow.output().taken, b"hello world");
    }

    #[test]
    fn input_waits_until_the_guest_has_room() {
        let mut queue = InputQueue::default();
        let mut client = Client::new(&b"abcdef"[..], io::sink());
        assert_eq!(client.pump_input(&mut queue), Progress::Closed);
        let mut got = Vec::new();
        queue.feed(|bytes| {
            let count = bytes.len().min(4 - got.len());
            got.extend_from_slice(&bytes[..count]);
            count
        });
        assert_eq!(got, b"abcd");
        queue.feed(|bytes| {
            got.extend_from_slice(bytes);
            bytes.len()
        });
        assert_eq!(got, b"abcdef");
        let mut flood = Client::new(io::repeat(1), io::sink());
        assert_eq!(flood.pump_input(&mut queue), Progress::Blocked);
        assert_eq!(queue.room(), 0);
    }
}
