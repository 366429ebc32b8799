//! What is asked of the guest, and how far it has come.

use super::wire;
use super::{Addresses, Item, MAX_ITEMS, Pool};
use crate::reply::{Failure, Reply};
use crate::wire::Status;

/// An order, in work or waiting.
#[derive(Debug)]
pub(super) enum Order {
    /// All items of a pool.
    Read { pool: Pool, items: Vec<Item>, reply: Reply<Vec<Item>> },
    /// The same for the Auto pool, of the service's own accord.
    Refresh { items: Vec<Item> },
    /// A request whose answer is a status only.
    Write { body: Vec<u8>, reply: Reply<()> },
    /// Addresses of an adapter.
    Addresses { body: Vec<u8>, reply: Reply<Addresses> },
}

/// What follows an answer.
pub(super) enum Step {
    /// The order goes on.
    More(Order),
    /// The order is done, and these are the guest's items.
    Guest(Vec<Item>),
    /// The order is done.
    Done,
}

/// Takes one more item; `Ok(true)` if that was the last.
fn gather(items: &mut Vec<Item>, status: Status, body: &[u8]) -> Result<bool, Failure> {
    match status {
        Status::NO_MORE_ITEMS => return Ok(true),
        Status::OK => {}
        refused => return Err(Failure::Refused(refused)),
    }
    items.push(wire::read_item(body).map_err(Failure::Malformed)?);
    // A guest that goes on for ever is not listened to for ever.
    Ok(items.len() >= MAX_ITEMS)
}

impl Order {
    /// The request's body.
    pub(super) fn body(&self) -> Vec<u8> {
        let index = |items: &[Item]| u32::try_from(items.len()).unwrap_or(u32::MAX);
        match self {
            Order::Read { pool, items, .. } => wire::enumerate(*pool, index(items)),
            Order::Refresh { items } => wire::enumerate(Pool::Auto, index(items)),
            Order::Write { body, .. } | Order::Addresses { body, .. } => body.clone(),
        }
    }

    /// Takes the guest's answer.
    pub(super) fn answered(self, status: Status, body: &[u8]) -> Step {
        match self {
            Order::Read { pool, mut items, reply } => match gather(&mut items, status, body) {
                Ok(false) => return Step::More(Order::Read { pool, items, reply }),
                Ok(true) => reply.send(Ok(items)),
                Err(failure) => reply.send(Err(failure)),
            },
            Order::Refresh { mut items } => match gather(&mut items, status, body) {
                Ok(false) => return Step::More(Order::Refresh { items }),
                Ok(true) => return Step::Guest(items),
                // What the guest said before stays.
                Err(_) => {}
            },
            Order::Write { reply, .. } => reply.send(done(status)),
            Order::Addresses { reply, .. } => {
                let read = || wire::read_addresses(body).map_err(Failure::Malformed);
                reply.send(done(status).and_then(|()| read()));
            }
        }
        Step::Done
    }

    /// Tells whoever waits that it failed.
    pub(super) fn fail(self, failure: Failure) {
        match self {
            Order::Read { reply, .. } => reply.send(Err(failure)),
            Order::Refresh { .. } => {}
            Order::Write { reply, .. } => reply.send(Err(failure)),
            Order::Addresses { reply, .. } => reply.send(Err(failure)),
        }
    }
}

fn done(status: Status) -> Result<(), Failure> {
    if status == Status::OK { Ok(()) } else { Err(Failure::Refused(status)) }
}
