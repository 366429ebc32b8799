//! Copying a file: its bytes come over the connection that asked for it, and go to the guest piece by piece.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use parterre_api::guest::{FileTarget, GuestAnswer};
use parterre_vsp_ic::copy::{Destination, FileCopy, PIECE};
use parterre_vsp_ic::{Component, Failure, Reply};

use super::requests::{ask, failed};
use super::server::send;

/// Pieces that are on their way: the guest is never without one.
const AHEAD: usize = 4;

/// Gives the copy up unless it was finished.
struct Attempt<'a> {
    copy: &'a Component<FileCopy>,
    finished: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.copy.with(|session, _| session.protocol_mut().cancel());
        }
    }
}

/// Copies a file whose bytes the stream brings.
pub(super) fn copy(copy: &Component<FileCopy>, target: FileTarget, stream: &UnixStream) -> GuestAnswer {
    let FileTarget { path, size, overwrite, create_path } = target;
    let destination = Destination { path, size, overwrite, create_path };
    if let Err(failure) = ask(copy, |copy, reply| copy.start(&destination, reply)) {
        return failed(&failure);
    }
    let mut attempt = Attempt { copy, finished: false };
    send(stream, &GuestAnswer::Ready);
    let outcome = pieces(copy, size, stream).and_then(|()| ask(copy, |copy, reply| copy.finish(reply)));
    attempt.finished = outcome.is_ok();
    match outcome {
        Ok(()) => GuestAnswer::Done,
        Err(failure) => failed(&failure),
    }
}

/// Passes all pieces on and waits until the guest has them.
fn pieces(copy: &Component<FileCopy>, size: u64, mut stream: &UnixStream) -> Result<(), Failure> {
    let (sender, outcomes) = channel();
    let mut under_way = 0;
    let mut left = size;
    let mut piece = [0; PIECE];
    while left > 0 {
        let count = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        if stream.read_exact(&mut piece[..count]).is_err() {
            return Err(Failure::Conflict("the file ended before its size was reached"));
        }
        left -= count as u64;
        if under_way == AHEAD {
            wait(&outcomes)?;
            under_way -= 1;
        }
        order(copy, &piece[..count], sender.clone())?;
        under_way += 1;
    }
    (0..under_way).try_for_each(|_| wait(&outcomes))
}

fn order(
    copy: &Component<FileCopy>,
    piece: &[u8],
    sender: Sender<Result<(), Failure>>,
) -> Result<(), Failure> {
    copy.with(|session, _| {
        let reply = Reply::new(move |outcome| drop(sender.send(outcome)));
        session.order().map(|copy| copy.write(piece, reply))
    })
}

fn wait(outcomes: &Receiver<Result<(), Failure>>) -> Result<(), Failure> {
    outcomes.recv().unwrap_or(Err(Failure::Closed))
}
