//! The people at the console: which of them can be read from and written to, as epoll sees it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};

use crate::console::{Client, ConsoleLog, InputQueue, Progress};

/// One client with what it is waited for.
struct Attached {
    client: Client<File, File>,
    /// What is registered with epoll; absent where epoll cannot wait (a regular file as standard input).
    watched: Option<OwnedFd>,
    interest: EventFlags,
    blocked: bool,
}

/// All clients of a console.
#[derive(Default)]
pub struct Attachments {
    clients: BTreeMap<u64, Attached>,
}

impl Attachments {
    /// Adds a client; `watch` is the descriptor by which it can be waited for, `token` names it to epoll.
    pub fn add(
        &mut self,
        epoll: &OwnedFd,
        token: u64,
        client: Client<File, File>,
        watch: impl AsFd,
    ) -> io::Result<()> {
        let watch = watch.as_fd().try_clone_to_owned()?;
        let watched =
            epoll::add(epoll, &watch, EventData::new_u64(token), EventFlags::IN).is_ok().then_some(watch);
        let attached = Attached { client, watched, interest: EventFlags::IN, blocked: false };
        self.clients.insert(token, attached);
        Ok(())
    }

    /// Number of clients.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether nobody looks.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Whether some client cannot be waited for and has output left.
    pub fn needs_retry(&self) -> bool {
        self.clients.values().any(|attached| attached.blocked && attached.watched.is_none())
    }

    /// Reads from a client that has something; a client that closed its end is forgotten.
    pub fn read(&mut self, token: u64, input: &mut InputQueue) {
        let Some(attached) = self.clients.get_mut(&token) else { return };
        if attached.watched.is_some() && attached.client.pump_input(input) == Progress::Closed {
            self.clients.remove(&token);
        }
    }

    /// Writes new output to everybody, and sets what each is waited for.
    pub fn write(&mut self, epoll: &OwnedFd, log: &ConsoleLog, room: bool) {
        let mut gone = Vec::new();
        for (token, attached) in &mut self.clients {
            match attached.client.pump_output(log) {
                Progress::Closed => gone.push(*token),
                progress => attached.blocked = progress == Progress::Blocked,
            }
            attached.update_interest(epoll, *token, room);
        }
        for token in gone {
            self.clients.remove(&token);
        }
    }
}

impl Attached {
    fn update_interest(&mut self, epoll: &OwnedFd, token: u64, room: bool) {
        let mut wanted = EventFlags::empty();
        wanted.set(EventFlags::IN, room);
        wanted.set(EventFlags::OUT, self.blocked);
        if let Some(watched) = &self.watched
            && wanted != self.interest
            && epoll::modify(epoll, watched, EventData::new_u64(token), wanted).is_ok()
        {
            self.interest = wanted;
        }
    }
}
