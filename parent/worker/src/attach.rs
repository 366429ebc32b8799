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
    /// Its output goes on after its input has ended.
    stays: bool,
}

/// All clients of a console.
#[derive(Default)]
pub struct Attachments {
    clients: BTreeMap<u64, Attached>,
}

impl Attachments {
    /// Adds a client; `watch` is the descriptor by which it can be waited for, `token` names it to epoll. One that
    /// `stays` is written to also when nothing more can be read from it (standard input that ends).
    pub fn add(
        &mut self,
        epoll: &OwnedFd,
        token: u64,
        client: Client<File, File>,
        watch: impl AsFd,
        stays: bool,
    ) -> io::Result<()> {
        let watch = watch.as_fd().try_clone_to_owned()?;
        let watched =
            epoll::add(epoll, &watch, EventData::new_u64(token), EventFlags::IN).is_ok().then_some(watch);
        let attached = Attached { client, watched, interest: EventFlags::IN, blocked: false, stays };
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
    pub fn read(&mut self, epoll: &OwnedFd, token: u64, input: &mut InputQueue) {
        let Some(attached) = self.clients.get_mut(&token) else { return };
        let Some(watched) = &attached.watched else { return };
        if attached.client.pump_input(input) != Progress::Closed {
            return;
        }
        // Else epoll would report the end over and over.
        let _ = epoll::delete(epoll, watched);
        attached.watched = None;
        if !attached.stays {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Events;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::io::{Read, Write};

    /// A client whose input has ended, with the reading end of its output.
    fn ended_client() -> (Client<File, File>, OwnedFd, File) {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (input, closed) = pipe_with(flags).unwrap();
        drop(closed);
        let (reader, output) = pipe_with(flags).unwrap();
        let watch = input.try_clone().unwrap();
        (Client::new(File::from(input), File::from(output)), watch, File::from(reader))
    }

    #[test]
    fn output_goes_on_after_the_end_of_standard_input_only() {
        let mut log = ConsoleLog::new(Events::new().unwrap());
        for stays in [true, false] {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let (client, watch, mut reader) = ended_client();
            let mut attachments = Attachments::default();
            attachments.add(&epoll, 7, client, &watch, stays).unwrap();
            attachments.read(&epoll, 7, &mut InputQueue::default());
            assert_eq!(attachments.is_empty(), !stays);
            log.write_all(b"still here").unwrap();
            attachments.write(&epoll, &log, true);
            let mut text = [0; 256];
            let count = reader.read(&mut text).unwrap();
            assert_eq!(count > 0, stays);
        }
    }
}
