//! The main thread: waits for events of the machine, for the console and for the management service.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use parterre_api::OffReason;
use parterre_api::worker::{WorkerPhase, WorkerRequest, WorkerStatus};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use uuid::Uuid;

use crate::attach::Attachments;
use crate::console::{Client, InputQueue};
use crate::control::Connections;
use crate::event::Event;
use crate::machine::{Machine, Template};
use crate::processor::log_line;
use crate::stdio::ESCAPE;
use crate::vsp::ejected::Ejected;

/// Names of the fixed descriptors to epoll; connections are numbered from [`FIRST_CONNECTION`].
const EVENTS: u64 = 0;
const CONTROL: u64 = 1;
const CONSOLE: u64 = 2;
const FIRST_CONNECTION: u64 = 16;
/// How long to wait before an output that cannot be waited for is tried again.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// How long output is gathered before it is passed on: a guest that prints sends one byte at a time, and waking up for
/// each would cost more than the guest itself.
const GATHER: Duration = Duration::from_millis(10);
/// Most people at one console, and most control connections.
const MAX_CONNECTIONS: usize = 64;

/// The sockets on which the worker listens.
pub struct Listeners {
    /// For the management service.
    pub control: UnixListener,
    /// For people at the console.
    pub console: UnixListener,
}

/// The main thread's state.
pub struct Service {
    template: Template,
    epoll: OwnedFd,
    listeners: Option<Listeners>,
    attachments: Attachments,
    connections: Connections,
    input: InputQueue,
    status: WorkerStatus,
    ejected: Ejected,
    next_token: u64,
    /// Ctrl-] typed at the console ends the machine: on the terminal that started the worker.
    escape_ends: bool,
}

impl Service {
    /// A service for a machine that does not run yet.
    pub fn new(
        template: Template,
        id: Uuid,
        listeners: Option<Listeners>,
        ejected: Ejected,
    ) -> io::Result<Service> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &template.events, EventData::new_u64(EVENTS), EventFlags::IN)?;
        if let Some(listeners) = &listeners {
            for (listener, token) in [(&listeners.control, CONTROL), (&listeners.console, CONSOLE)] {
                listener.set_nonblocking(true)?;
                epoll::add(&epoll, listener, EventData::new_u64(token), EventFlags::IN)?;
            }
        }
        let phase = WorkerPhase::Starting { step: "preparing".into() };
        let status = WorkerStatus::new(id, std::process::id(), phase);
        Ok(Service {
            template,
            epoll,
            listeners,
            attachments: Attachments::default(),
            connections: Connections::default(),
            input: InputQueue::default(),
            status,
            ejected,
            next_token: FIRST_CONNECTION,
            escape_ends: false,
        })
    }

    /// The state as it is reported.
    pub fn status(&self) -> &WorkerStatus {
        &self.status
    }

    /// Puts somebody at the console from the start: the terminal that started the worker.
    pub fn attach_terminal(&mut self, client: Client<File, File>, watch: impl AsFd) -> io::Result<()> {
        self.escape_ends = true;
        self.attach(client, watch, true)
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn attach(&mut self, client: Client<File, File>, watch: impl AsFd, stays: bool) -> io::Result<()> {
        let token = self.token();
        self.attachments.add(&self.epoll, token, client, watch, stays)
    }

    /// Runs the machine over all its resets until it is off. Returns why it is off.
    pub fn run(mut self) -> OffReason {
        let reason = self.run_machine();
        self.attachments.write(&self.epoll, &self.template.console, true);
        self.report(WorkerPhase::Ended(reason.clone()));
        reason
    }

    fn run_machine(&mut self) -> OffReason {
        let mut resets = 0;
        loop {
            let machine = match self.power_on() {
                Ok(machine) => machine,
                Err(message) => return OffReason::Failed { message },
            };
            self.report(WorkerPhase::Running { resets });
            let end = self.attend(&machine);
            machine.stop();
            // What other switches were flipped while it stopped belongs to the machine that is gone.
            self.template.events.take();
            match end {
                Ok(Event::Reset) => resets += 1,
                Ok(Event::PowerOff) => return OffReason::PoweredOff,
                Ok(Event::Failed(message)) => return OffReason::Failed { message },
                Ok(Event::Stop) => return OffReason::Stopped,
                Err(error) => {
                    return OffReason::Failed { message: format!("the worker cannot wait: {error}") };
                }
            }
        }
    }

    fn power_on(&mut self) -> Result<Machine, String> {
        // The steps are reported as they happen, to whoever has connected by then.
        let Service { template, connections, listeners, status, next_token, epoll, .. } = self;
        let mut step = |step: &str| {
            status.phase = WorkerPhase::Starting { step: step.into() };
            connections.broadcast(status);
            accept_controls(listeners, connections, epoll, next_token, status);
        };
        template.power_on(&mut step).map_err(|error| error.to_string())
    }

    fn report(&mut self, phase: WorkerPhase) {
        self.status.phase = phase;
        self.status.ejected = self.ejected.list();
        self.connections.broadcast(&self.status);
    }

    /// Serves everybody until the machine stops; returns what stopped it.
    fn attend(&mut self, machine: &Machine) -> io::Result<Event> {
        loop {
            let mut ready = Vec::with_capacity(16);
            let retry = self.attachments.needs_retry().then_some(RETRY);
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), retry.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                other => drop(other?),
            }
            if ready.iter().any(|event| event.data.u64() == EVENTS) {
                std::thread::sleep(GATHER);
            }
            let events = self.template.events.take();
            if self.ejected.list() != self.status.ejected {
                self.report(self.status.phase.clone());
            }
            for event in &ready {
                if let Some(end) = self.serve(event.data.u64(), machine) {
                    return Ok(end);
                }
            }
            self.input.feed(|bytes| machine.pc().com1.receive(bytes));
            self.attachments.write(&self.epoll, &self.template.console, self.input.room() > 0);
            if let Some(event) = events.into_iter().next() {
                return Ok(event);
            }
        }
    }

    /// Serves one descriptor; returns what ends the machine, if anything does.
    fn serve(&mut self, token: u64, machine: &Machine) -> Option<Event> {
        match token {
            EVENTS => {}
            CONTROL => {
                let Service { listeners, connections, epoll, next_token, status, .. } = self;
                accept_controls(listeners, connections, epoll, next_token, status);
            }
            CONSOLE => self.accept_consoles(),
            token => {
                self.attachments.read(&self.epoll, token, &mut self.input);
                if self.escape_ends && self.input.contains(ESCAPE) {
                    return Some(Event::Stop);
                }
                for request in self.connections.read(token) {
                    match request {
                        WorkerRequest::PowerButton => machine.pc().power.press_power_button(),
                        WorkerRequest::PowerOff => return Some(Event::Stop),
                        WorkerRequest::Reset => return Some(Event::Reset),
                        WorkerRequest::Pause => self.pause(machine),
                        WorkerRequest::Resume => self.resume(machine),
                    }
                }
            }
        }
        None
    }

    fn pause(&mut self, machine: &Machine) {
        if let WorkerPhase::Running { resets } = self.status.phase {
            machine.pause();
            self.report(WorkerPhase::Paused { resets });
        }
    }

    fn resume(&mut self, machine: &Machine) {
        if let WorkerPhase::Paused { resets } = self.status.phase {
            machine.resume();
            self.report(WorkerPhase::Running { resets });
        }
    }

    fn accept_consoles(&mut self) {
        while let Some(stream) = self.listeners.as_ref().and_then(|l| accept(&l.console)) {
            if self.attachments.len() >= MAX_CONNECTIONS {
                continue;
            }
            let attached = stream.try_clone().and_then(|clone| {
                let input = File::from(OwnedFd::from(clone));
                let output = File::from(OwnedFd::from(stream));
                let watch = output.try_clone()?;
                self.attach(Client::new(input, output), watch, false)
            });
            if let Err(error) = attached {
                log_line(format_args!("cannot serve a console connection: {error}"));
            }
        }
    }
}

/// The next connection, ready to be used without blocking.
fn accept(listener: &UnixListener) -> Option<UnixStream> {
    let (stream, _) = listener.accept().ok()?;
    stream.set_nonblocking(true).ok()?;
    Some(stream)
}

fn accept_controls(
    listeners: &Option<Listeners>,
    connections: &mut Connections,
    epoll: &OwnedFd,
    next_token: &mut u64,
    status: &WorkerStatus,
) {
    while let Some(stream) = listeners.as_ref().and_then(|l| accept(&l.control)) {
        *next_token += 1;
        let added = epoll::add(epoll, &stream, EventData::new_u64(*next_token), EventFlags::IN);
        if added.is_ok() && connections.len() < MAX_CONNECTIONS {
            connections.add(*next_token, stream, status);
        }
    }
}
