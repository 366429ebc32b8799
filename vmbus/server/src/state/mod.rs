//! The server as a state machine without I/O: what the guest and the worker do goes in, [`Action`]s come out.
//!
//! ```text
//!   Disconnected --InitiateContact--> Connected --Unload/InitiateContact--> Resetting --all closed--> ...
//!
//!   channel: Closed --OpenChannel--> Opening --opened()--> Open --CloseChannel/rescind/reset--> Closing --closed()--> Closed
//! ```
//! The worker runs each channel: it is told to [open](Action::Open) and to [close](Action::Close) one, and says when that
//! has happened. Until then memory of the channel is not given back to the guest and no reset completes.
//!
//! Sources: Linux `drivers/hv/connection.c`, `channel.c`, `channel_mgmt.c`. Not offered: reserved channels, confidential
//! channels, VTLs but 0.

mod action;
mod channel;
mod connection;
mod gpadl;
mod offers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parterre_vmbus_protocol::Version;
use parterre_vmbus_protocol::message::{Header, MessageType};
use parterre_vmbus_ring::Gpadl;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use action::{Action, MessageError, Monitor, OpenRequest, Target};
use channel::Channel;
pub use channel::{EVENT_CONNECTION_BASE, MAX_CHANNELS};
use connection::Connection;
use gpadl::Gpadls;
use offers::DeviceState;

use crate::bus::{ConnectRequest, OfferId};

/// What a server has to know of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Number of virtual processors.
    pub processors: u32,
    /// Most pages in all GPADLs together.
    pub max_gpadl_pages: usize,
    /// The newest version to speak.
    pub max_version: Version,
}

/// The server of one machine.
pub struct Server {
    config: Config,
    connection: Connection,
    devices: BTreeMap<OfferId, DeviceState>,
    channels: BTreeMap<u32, Channel>,
    gpadls: Gpadls,
    actions: VecDeque<Action>,
    next_offer: u32,
}

impl Server {
    /// A server without devices and without a guest.
    pub fn new(config: Config) -> Server {
        Server {
            config,
            connection: Connection::default(),
            devices: BTreeMap::new(),
            channels: BTreeMap::new(),
            gpadls: Gpadls::new(config.max_gpadl_pages),
            actions: VecDeque::new(),
            next_offer: 0,
        }
    }

    /// What the worker has to do next.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The version spoken with the guest, if it is connected.
    pub fn version(&self) -> Option<Version> {
        self.connection.version()
    }

    /// Takes a message of the guest's.
    ///
    /// # Errors
    /// The message is not one that the guest may send now. It has changed nothing; the error is for the log.
    pub fn message(&mut self, bytes: &[u8]) -> Result<(), MessageError> {
        let (header, _): (Header, _) = take(bytes)?;
        let kind = header.message_type;
        match kind {
            MessageType::INITIATE_CONTACT => return self.initiate_contact(take(bytes)?.0),
            MessageType::UNLOAD => return self.unload(),
            _ if self.connection.version().is_none() => return Err(MessageError::NotConnected(kind)),
            _ => {}
        }
        match kind {
            MessageType::REQUEST_OFFERS => self.request_offers(),
            MessageType::RELID_RELEASED => self.release(take(bytes)?.0),
            MessageType::OPEN_CHANNEL => self.open(take(bytes)?.0),
            MessageType::CLOSE_CHANNEL => self.close(take(bytes)?.0),
            MessageType::MODIFY_CHANNEL => self.modify(take(bytes)?.0),
            MessageType::GPADL_HEADER => {
                let (header, rest) = take(bytes)?;
                self.gpadl_header(header, rest)
            }
            MessageType::GPADL_BODY => {
                let (header, rest) = take(bytes)?;
                self.gpadl_body(header, rest)
            }
            MessageType::GPADL_TEARDOWN => self.gpadl_teardown(take(bytes)?.0),
            MessageType::TL_CONNECT_REQUEST => self.connect_request(take(bytes)?.0),
            other => Err(MessageError::Type(other)),
        }
    }

    /// The memory behind a handle, if the guest made it for this device.
    pub fn gpadl(&self, device: OfferId, handle: u32) -> Option<Arc<Gpadl>> {
        let (channel, gpadl) = self.gpadls.get(handle)?;
        (self.channels.get(&channel)?.device == device).then_some(gpadl)
    }

    fn send(&mut self, message: &(impl IntoBytes + Immutable)) {
        let target = self.connection.target();
        self.actions.push_back(Action::Send { target, message: message.as_bytes().to_vec() });
    }
}

/// A message and what follows it.
fn take<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Result<(T, &[u8]), MessageError> {
    T::read_from_prefix(bytes).map_err(|_| MessageError::Short { have: bytes.len(), need: size_of::<T>() })
}

impl From<parterre_vmbus_protocol::message::TlConnectRequest> for ConnectRequest {
    fn from(message: parterre_vmbus_protocol::message::TlConnectRequest) -> ConnectRequest {
        ConnectRequest { endpoint: message.endpoint_id, service: message.service_id }
    }
}
