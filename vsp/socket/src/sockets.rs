//! Making connections: from the parent, and from the guest to whoever waits.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use parterre_vmbus_server::bus::{Bus, ConnectListener, ConnectRequest, OfferError, OfferId};
use parterre_vmbus_server::protocol::offer::PIPE_TYPE_BYTE;
use parterre_vmbus_server::{ChannelError, Device, Guid, Handler, Offer, OfferFlags, Queue};

use crate::address;
use crate::stream::Stream;

/// Most that wait for connections of the guest.
pub const MAX_WAITING: usize = 64;
/// Most connections.
pub const MAX_CONNECTIONS: usize = 64;
/// How long the guest has to open a connection that it asked for itself.
const OPEN_PATIENCE: Duration = Duration::from_secs(30);
/// Where the parent's own ports begin, which guests see as the other end.
const FIRST_PORT: u32 = 0x8000_0000;
/// Byte of the offer that says who connects.
const FROM_PARENT: usize = 4;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The guest did not open the channel.
    #[error(
        "nothing in the guest took the connection to port {port} within {} seconds; \
         is a program listening there (AF_VSOCK), and is the driver hv_sock loaded?",
        .patience.as_secs()
    )]
    NoAnswer {
        /// The port.
        port: u32,
        /// How long was waited.
        patience: Duration,
    },
    /// No room.
    #[error("there are {MAX_CONNECTIONS} connections with this guest, which is the most")]
    TooMany,
    /// The bus refused.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// The socket.
    #[error("the socket cannot be used: {0}")]
    Socket(String),
}

/// How a connection takes itself off the bus, from whichever side it ends.
pub(crate) struct Ending {
    bus: Weak<dyn Bus>,
    id: OnceLock<OfferId>,
    /// Counts connections by being alive.
    _place: Arc<()>,
}

impl Ending {
    pub(crate) fn end(&self) {
        // A bus that is gone has no offers; an offer without an id is being made, and its maker looks again.
        if let (Some(bus), Some(id)) = (self.bus.upgrade(), self.id.get()) {
            bus.rescind(*id);
        }
    }
}

/// What a connection begins with.
struct Beginning {
    stream: UnixStream,
    greeting: Vec<u8>,
    opened: SyncSender<()>,
}

/// A connection as a device: one channel that is opened once.
struct Connection {
    offer: Offer,
    beginning: Mutex<Option<Beginning>>,
    ending: Arc<Ending>,
}

impl Connection {
    fn take(&self) -> Option<Beginning> {
        self.beginning.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Device for Connection {
    fn offer(&self) -> Offer {
        self.offer.clone()
    }

    fn open(&self, _queue: &mut Queue) -> Result<Box<dyn Handler>, ChannelError> {
        let Some(Beginning { stream, greeting, opened }) = self.take() else {
            return Err(ChannelError::protocol("hv_sock: a connection cannot be opened twice"));
        };
        // Whoever waited may have given up in this moment; then the socket is closed, which ends the stream.
        let _ = opened.send(());
        Ok(Box::new(Stream::new(stream, greeting, self.ending.clone())))
    }
}

struct Waiting {
    stream: UnixStream,
    greeting: Vec<u8>,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<u32, VecDeque<Waiting>>,
    /// Connections that the guest asked for and has perhaps not opened.
    asked: Vec<(Instant, Weak<Connection>)>,
    next_port: u32,
}

impl State {
    /// Forgets those that wait and have gone, and connections that the guest asked for and did not open.
    fn tidy(&mut self) {
        for queue in self.waiting.values_mut() {
            queue.retain(|waiting| !is_gone(&waiting.stream));
        }
        self.waiting.retain(|_, queue| !queue.is_empty());
        self.asked.retain(|(since, connection)| {
            let Some(connection) = connection.upgrade() else { return false };
            let late = since.elapsed() >= OPEN_PATIENCE;
            if late && connection.take().is_some() {
                connection.ending.end();
            }
            !late
        });
    }
}

/// All connections of one guest.
#[derive(Default)]
pub struct Sockets {
    state: Mutex<State>,
    /// One reference of each connection.
    places: Arc<()>,
}

/// A program of the parent that went away while it waited.
fn is_gone(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok() && !fds[0].revents().is_empty()
}

impl Sockets {
    /// No connections.
    pub fn new() -> Sockets {
        Sockets::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections there are or are being made.
    pub fn connections(&self) -> usize {
        Arc::strong_count(&self.places) - 1
    }

    /// Offers a connection. The receiver hears when the guest has opened it.
    fn offer(
        &self,
        bus: &Arc<dyn Bus>,
        offer: Offer,
        stream: UnixStream,
        greeting: Vec<u8>,
    ) -> Result<(Arc<Connection>, Receiver<()>), ConnectError> {
        if self.connections() >= MAX_CONNECTIONS {
            return Err(ConnectError::TooMany);
        }
        stream.set_nonblocking(true).map_err(|error| ConnectError::Socket(error.to_string()))?;
        let (opened, hear) = sync_channel(1);
        let beginning = Mutex::new(Some(Beginning { stream, greeting, opened }));
        let ending =
            Arc::new(Ending { bus: Arc::downgrade(bus), id: OnceLock::new(), _place: self.places.clone() });
        let connection = Arc::new(Connection { offer, beginning, ending });
        let id = bus.offer(connection.clone())?;
        // Set once, here.
        let _ = connection.ending.id.set(id);
        Ok((connection, hear))
    }

    /// Connects a socket with a port of the guest; the socket gets the greeting first. Waits until the guest has taken the
    /// connection, at most `patience`. On failure the socket comes back.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(
        &self,
        bus: Arc<dyn Bus>,
        port: u32,
        stream: &UnixStream,
        greeting: Vec<u8>,
        patience: Duration,
    ) -> Result<(), ConnectError> {
        let socket = stream.try_clone().map_err(|error| ConnectError::Socket(error.to_string()))?;
        let mut offer = Offer::pipe(address::of_port(port), self.own_address(), PIPE_TYPE_BYTE);
        offer.flags = OfferFlags::NAMED_PIPE_MODE | OfferFlags::TLNPI_PROVIDER_OFFER;
        offer.user_defined[FROM_PARENT] = 1;
        let (connection, hear) = self.offer(&bus, offer, socket, greeting)?;
        // Whoever waits does not keep the bus of a machine that is reset meanwhile.
        drop(bus);
        let opened = hear.recv_timeout(patience).is_ok();
        // Who takes the beginning decides: the guest that opens, or this one that gives up.
        if !opened && connection.take().is_some() {
            connection.ending.end();
            return Err(ConnectError::NoAnswer { port, patience });
        }
        Ok(())
    }

    /// An address of the parent's that no other connection has.
    fn own_address(&self) -> Guid {
        let mut state = self.state();
        let port = FIRST_PORT | state.next_port;
        state.next_port = state.next_port.wrapping_add(1);
        address::of_port(port)
    }

    /// Lets a socket wait for a connection of the guest's to a port of the parent. It gets the greeting when it comes.
    ///
    /// # Errors
    /// Too many wait.
    pub fn listen(&self, port: u32, stream: UnixStream, greeting: Vec<u8>) -> Result<(), ConnectError> {
        let mut state = self.state();
        state.tidy();
        if state.waiting.values().map(VecDeque::len).sum::<usize>() >= MAX_WAITING {
            return Err(ConnectError::TooMany);
        }
        state.waiting.entry(port).or_default().push_back(Waiting { stream, greeting });
        Ok(())
    }

    /// The next that waits for a port and is still there.
    fn waiting(&self, port: u32) -> Option<Waiting> {
        let mut state = self.state();
        let queue = state.waiting.get_mut(&port)?;
        while let Some(waiting) = queue.pop_front() {
            if !is_gone(&waiting.stream) {
                return Some(waiting);
            }
        }
        state.waiting.remove(&port);
        None
    }
}

impl ConnectListener for Sockets {
    fn connect(&self, bus: &Arc<dyn Bus>, request: ConnectRequest) -> bool {
        let Some(port) = address::port_of(request.service) else { return false };
        let Some(Waiting { stream, greeting }) = self.waiting(port) else { return false };
        let mut offer = Offer::pipe(request.service, request.endpoint, PIPE_TYPE_BYTE);
        offer.flags = OfferFlags::NAMED_PIPE_MODE | OfferFlags::TLNPI_PROVIDER_OFFER;
        let Ok((connection, _)) = self.offer(bus, offer, stream, greeting) else { return false };
        self.state().asked.push((Instant::now(), Arc::downgrade(&connection)));
        true
    }
}
