//! What goes out of the state machine.

use std::sync::Arc;

use parterre_vmbus_protocol::message::MessageType;
use parterre_vmbus_protocol::monitor::MonitorId;
use parterre_vmbus_ring::Gpadl;

use crate::ChannelFacts;
use crate::bus::{ConnectRequest, OfferId};

/// Where the guest wants messages and signals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// VP index.
    pub vp: u32,
    /// SINT.
    pub sint: u8,
}

/// Where the guest sets a bit instead of signalling a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// Guest-physical address of the page.
    pub page: u64,
    /// Its places in it.
    pub id: MonitorId,
}

/// A channel that the guest wants open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// The channel: also its event flag at the guest.
    pub channel: u32,
    /// Of which device.
    pub device: OfferId,
    /// For its queue.
    pub facts: ChannelFacts,
    /// Memory of the rings.
    pub rings: Arc<Gpadl>,
    /// Page of it at which the guest's in-ring begins.
    pub downstream_page: u32,
    /// Where the guest wants its signals.
    pub target: Target,
    /// Before Windows 8 channels have no event flags: their bit in this page is set and flag 0 raised.
    pub interrupt_page: Option<u64>,
    /// The guest was told to set a bit instead of signalling: somebody has to look.
    pub monitor: Option<Monitor>,
}

/// Something that the worker has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Post a message to the guest, in order.
    Send {
        /// Where to.
        target: Target,
        /// At most 240 bytes.
        message: Vec<u8>,
    },
    /// Open a channel; say [`opened`](super::Server::opened) if that went well, and [`closed`](super::Server::closed) when
    /// it has ended, in any case.
    Open(Box<OpenRequest>),
    /// End a channel; it says [`closed`](super::Server::closed) itself when it has.
    Close {
        /// Which.
        channel: u32,
    },
    /// Send a channel's signals elsewhere from now on.
    Modify {
        /// Which.
        channel: u32,
        /// VP index.
        vp: u32,
    },
    /// The guest wants to connect to a service; if nobody takes it, say [`refuse`](super::Server::refuse).
    Connect(ConnectRequest),
    /// A device has left the bus for good (an hv_sock connection that the guest ended).
    Removed(OfferId),
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Too short for its type.
    #[error("a VMBus message of {have} bytes is too short, {need} are needed")]
    Short {
        /// Bytes that came.
        have: usize,
        /// Bytes of its type.
        need: usize,
    },
    /// A type that the guest may not send, or that nobody knows.
    #[error("a VMBus message of type {0:?} is not for the server")]
    Type(MessageType),
    /// Before the guest is connected.
    #[error("a VMBus message of type {0:?} came without a connection")]
    NotConnected(MessageType),
    /// It makes no sense now.
    #[error("a VMBus message of type {0:?} came twice")]
    Repeated(MessageType),
    /// There is no such channel, or the guest has not been told of it.
    #[error("there is no VMBus channel {0}")]
    Channel(u32),
    /// The channel is not in a state for that.
    #[error("VMBus channel {channel} is {state}: a message of type {message:?} makes no sense")]
    State {
        /// Which.
        channel: u32,
        /// How it is.
        state: &'static str,
        /// What came.
        message: MessageType,
    },
    /// There is no such GPADL.
    #[error("there is no GPADL {0:#x}")]
    Gpadl(u32),
    /// The VP does not exist.
    #[error("there is no virtual processor {0}")]
    Processor(u32),
}
