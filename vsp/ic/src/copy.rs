//! Guest file copy: a file from the parent, in pieces of 6 KiB.
//!
//! Whoever copies gives one order after the other: [`FileCopy::start`], [`FileCopy::write`] for each piece,
//! [`FileCopy::finish`]. A few may wait, so the guest need not wait for the parent. The first failure ends the copy: what
//! waits behind it fails too.
//!
//! Source: Linux `include/uapi/linux/hyperv.h`, `struct hv_start_fcopy` and `struct hv_do_fcopy`;
//! `tools/hv/hv_fcopy_uio_daemon.c`.

use std::collections::VecDeque;
use std::time::Duration;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::reply::{Failure, Reply};
use crate::service::Service;
use crate::session::{Outgoing, Protocol};
use crate::text;
use crate::wire::{Status, Version};

/// How long the guest has for one piece.
pub const PATIENCE: Duration = Duration::from_secs(35);
/// Bytes of a piece.
pub const PIECE: usize = 6 * 1024;
/// Orders that may wait.
pub const MAX_ORDERS: usize = 8;
const NAME_SIZE: usize = 2 * 260;

const FLAG_OVERWRITE: u32 = 1;
const FLAG_CREATE_PATH: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Operation {
    Start = 0,
    Write = 1,
    Complete = 2,
    Cancel = 3,
}

#[repr(C)]
#[derive(FromZeros, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Header {
    operation: U32,
    services: [[u8; 16]; 2],
}

#[repr(C)]
#[derive(FromZeros, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct StartMessage {
    header: Header,
    file: [u8; NAME_SIZE],
    directory: [u8; NAME_SIZE],
    flags: U32,
    size: U64,
}

#[repr(C)]
#[derive(FromZeros, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct WriteMessage {
    header: Header,
    pad: U32,
    offset: U64,
    size: U32,
    data: [u8; PIECE],
}

const _: () = assert!(size_of::<StartMessage>() == 1088 && size_of::<WriteMessage>() == 6196);

fn header(operation: Operation) -> Header {
    Header { operation: (operation as u32).into(), services: [[0; 16]; 2] }
}

/// Where a file is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Absolute path in the guest.
    pub path: String,
    /// Bytes that will follow.
    pub size: u64,
    /// Replace a file that is there.
    pub overwrite: bool,
    /// Make directories that are not there.
    pub create_path: bool,
}

impl Destination {
    /// The body of the message that starts the copy.
    fn message(&self) -> Result<StartMessage, Failure> {
        let invalid = |what: &str| Failure::Invalid(format!("'{}' {what}", self.path.escape_default()));
        let Some(end) = self.path.rfind(['/', '\\']) else {
            return Err(invalid("is not an absolute path in the guest"));
        };
        // Linux's daemon makes the directories that have a slash behind them.
        let (directory, file) = self.path.split_at(end + 1);
        if file.is_empty() || self.path.contains('\0') {
            return Err(invalid("does not name a file"));
        }
        let mut message = StartMessage::new_zeroed();
        message.header = header(Operation::Start);
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(self.overwrite, FLAG_OVERWRITE) | flag(self.create_path, FLAG_CREATE_PATH);
        (message.flags, message.size) = (flags.into(), self.size.into());
        let fits = text::encode(file, &mut message.file).and(text::encode(directory, &mut message.directory));
        fits.map(|_| message).ok_or_else(|| invalid("is longer than the 259 characters that a guest takes"))
    }
}

#[derive(Debug)]
struct Order {
    operation: Operation,
    body: Vec<u8>,
    reply: Reply<()>,
}

/// The copy service of one guest.
#[derive(Debug, Default)]
pub struct FileCopy {
    waiting: VecDeque<Order>,
    current: Option<Order>,
    /// Bytes that have been ordered of the copy that is going on.
    progress: Option<u64>,
}

impl FileCopy {
    /// Whether a file is being copied.
    pub fn is_busy(&self) -> bool {
        self.progress.is_some()
    }

    /// Begins a file.
    pub fn start(&mut self, destination: &Destination, reply: Reply<()>) {
        if self.is_busy() || self.current.is_some() || !self.waiting.is_empty() {
            return reply.send(Err(Failure::Conflict("another file is being copied into this guest")));
        }
        match destination.message() {
            Ok(message) => {
                self.progress = Some(0);
                self.order(Operation::Start, message.as_bytes().to_vec(), reply);
            }
            Err(failure) => reply.send(Err(failure)),
        }
    }

    /// Writes the next piece, at most [`PIECE`] bytes.
    pub fn write(&mut self, piece: &[u8], reply: Reply<()>) {
        let Some(offset) = self.progress else {
            return reply.send(Err(Failure::Conflict("no file is being copied")));
        };
        if self.waiting.len() >= MAX_ORDERS {
            return reply.send(Err(Failure::Conflict("too many pieces wait for the guest")));
        }
        let mut message = WriteMessage::new_zeroed();
        let Some(target) = message.data.get_mut(..piece.len()) else {
            return reply.send(Err(Failure::Invalid(format!("a piece has at most {PIECE} bytes"))));
        };
        target.copy_from_slice(piece);
        message.header = header(Operation::Write);
        (message.offset, message.size) = (offset.into(), (piece.len() as u32).into());
        self.progress = Some(offset.saturating_add(piece.len() as u64));
        self.order(Operation::Write, message.as_bytes().to_vec(), reply);
    }

    /// Ends a file.
    pub fn finish(&mut self, reply: Reply<()>) {
        if !self.is_busy() {
            return reply.send(Err(Failure::Conflict("no file is being copied")));
        }
        self.order(Operation::Complete, header(Operation::Complete).as_bytes().to_vec(), reply);
    }

    /// Gives a file up. What waits fails; the guest is told.
    pub fn cancel(&mut self) {
        if self.is_busy() {
            self.abandon(&Failure::Conflict("the copy was given up"));
        }
    }

    /// How many orders wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn order(&mut self, operation: Operation, body: Vec<u8>, reply: Reply<()>) {
        self.waiting.push_back(Order { operation, body, reply });
    }

    /// Nothing of the copy is sent any more but that it is over.
    fn abandon(&mut self, failure: &Failure) {
        for order in self.waiting.drain(..) {
            order.reply.send(Err(failure.clone()));
        }
        self.progress = None;
        let body = header(Operation::Cancel).as_bytes().to_vec();
        self.waiting.push_back(Order { operation: Operation::Cancel, body, reply: Reply::nobody() });
    }

    fn settle(&mut self, outcome: Result<(), Failure>) {
        let Some(order) = self.current.take() else { return };
        match (order.operation, &outcome) {
            (Operation::Cancel, _) => {}
            // A copy that did not begin need not be cancelled.
            (Operation::Start, Err(failure)) => {
                self.abandon(failure);
                self.waiting.clear();
            }
            (_, Err(failure)) => self.abandon(failure),
            (Operation::Complete, Ok(())) => self.progress = None,
            (_, Ok(())) => {}
        }
        order.reply.send(outcome);
    }
}

impl Protocol for FileCopy {
    const SERVICE: Service = Service::FileCopy;

    fn start(&mut self, _now: Duration, _version: Version) {
        *self = FileCopy::default();
    }

    fn next(&mut self, _now: Duration) -> Option<Outgoing> {
        if self.current.is_none() {
            self.current = self.waiting.pop_front();
        }
        let body = self.current.as_ref()?.body.clone();
        Some(Outgoing { body, patience: PATIENCE })
    }

    fn deadline(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(Duration::ZERO)
    }

    fn answered(&mut self, _now: Duration, status: Status, _body: &[u8]) {
        self.settle(if status == Status::OK { Ok(()) } else { Err(Failure::Refused(status)) });
    }

    fn unanswered(&mut self, _now: Duration) {
        self.settle(Err(Failure::NoAnswer { service: Service::FileCopy, patience: PATIENCE }));
    }

    fn stop(&mut self) {
        *self = FileCopy::default();
    }
}
