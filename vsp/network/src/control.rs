//! RNDIS requests about the adapter: what it is, what it shall do.
//!
//! A state machine without I/O: bytes of a request in, bytes of the answer out. What the guest has decided is read from
//! [`Control`] afterwards.

mod query;
mod set;

use std::sync::Arc;

use zerocopy::IntoBytes;

use crate::frame::MacAddress;
use crate::protocol::ndis;
use crate::protocol::read;
use crate::protocol::rndis::{
    Complete, HEADER_SIZE, Header, Indicate, Initialize, InitializeComplete, ObjectRequest, QueryComplete,
    ResetComplete, Status, kind, message,
};
use crate::statistics::Statistics;

/// Longest request that is looked at. The longest that Linux sends sets receive-side scaling, about 1.2 KiB.
pub const MAX_REQUEST: usize = 8192;
/// Packet messages that may follow one another.
const MAX_PACKETS: u32 = 8;
/// They are aligned to 8 bytes.
const ALIGNMENT: u32 = 3;
/// Longest transfer.
const MAX_TRANSFER: u32 = 0x2_0000;

/// What an adapter is, as its settings say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its own address.
    pub mac: MacAddress,
    /// The guest may take another address.
    pub may_change_mac: bool,
    /// Most queues.
    pub queues: u16,
    /// Bits in a second that the link is said to carry.
    pub speed: u64,
    /// Longest payload of a frame that can be had.
    pub mtu: u32,
    /// What the guest may show beside the interface; empty for nothing.
    pub name: String,
}

/// How packets for the guest are to be spread over its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scaling {
    /// Queues by hash; empty if scaling is off.
    pub table: Vec<u16>,
    /// Secret key of the hash.
    pub key: Vec<u8>,
    /// Kinds of packets that are hashed, as NDIS counts them.
    pub hash: u32,
}

/// What the guest wants of the offloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// TCP over IPv4, UDP over IPv4, TCP over IPv6, UDP over IPv6: the guest takes our word for checksums.
    pub receive_checksums: [bool; 4],
    /// The guest takes coalesced packets over IPv4.
    pub coalesce_v4: bool,
    /// The guest takes coalesced packets over IPv6.
    pub coalesce_v6: bool,
}

impl Default for Offloads {
    fn default() -> Offloads {
        Offloads { receive_checksums: [true; 4], coalesce_v4: false, coalesce_v6: false }
    }
}

/// Why a message cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Too short, or its length is not that of what was sent.
    #[error("an RNDIS message of {0} bytes does not hold what it says")]
    Length(usize),
    /// No request that a VSC makes.
    #[error("there is no RNDIS request of kind {0:#x}")]
    Kind(u32),
}

/// The adapter's side of RNDIS.
#[derive(Debug)]
pub struct Control {
    identity: Identity,
    statistics: Arc<Statistics>,
    /// Initialize has been answered, halt has not come.
    initialized: bool,
    /// How often the adapter has been initialized since it was plugged in.
    starts: u32,
    mac: MacAddress,
    mtu: u32,
    link: bool,
    filter: u32,
    offloads: Offloads,
    scaling: Scaling,
    /// The VSC said that it takes coalesced packets.
    can_coalesce: bool,
}

impl Control {
    /// An adapter as it is when it is plugged in.
    pub fn new(identity: Identity, statistics: Arc<Statistics>, link: bool) -> Control {
        let (mac, mtu) = (identity.mac, identity.mtu.min(DEFAULT_MTU));
        Control {
            identity,
            statistics,
            initialized: false,
            starts: 0,
            mac,
            mtu,
            link,
            filter: 0,
            offloads: Offloads::default(),
            scaling: Scaling::default(),
            can_coalesce: false,
        }
    }

    /// The channel was opened anew: all that the guest decided is forgotten.
    pub fn reset(&mut self) {
        self.initialized = false;
        self.mtu = self.identity.mtu.min(DEFAULT_MTU);
        self.can_coalesce = false;
        self.forget();
    }

    fn forget(&mut self) {
        self.filter = 0;
        self.offloads = Offloads::default();
        self.scaling = Scaling::default();
    }

    /// Takes what NVSP negotiated: the longest payload of a frame that the VSC wishes, and whether it knows coalesced packets.
    pub fn configure(&mut self, mtu: u32, can_coalesce: bool) {
        (self.mtu, self.can_coalesce) = (mtu.min(self.identity.mtu), can_coalesce);
    }

    /// The longest payload of a frame: what the VSC wishes, as far as it can be had. The VSC asks for it
    /// ([`GEN_MAXIMUM_FRAME_SIZE`](crate::protocol::rndis::oid::GEN_MAXIMUM_FRAME_SIZE)), and Linux's contents itself with less.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The address that the guest uses now.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// Which frames the guest wants, by the bits of [`filter`](crate::protocol::rndis::filter); 0 before it is up.
    pub fn filter(&self) -> u32 {
        self.filter
    }

    /// The offloads that the guest wants.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// How received packets shall be spread.
    pub fn scaling(&self) -> &Scaling {
        &self.scaling
    }

    /// Whether RNDIS is running.
    pub fn is_initialized(&self) -> bool {
        self.initialized
    }

    /// Whether the link is up.
    pub fn link(&self) -> bool {
        self.link
    }

    /// The link has gone up or down: the message that tells the guest, if it is there to be told.
    pub fn set_link(&mut self, up: bool) -> Option<Vec<u8>> {
        if self.link == up {
            return None;
        }
        self.link = up;
        let status = if up { Status::MediaConnect } else { Status::MediaDisconnect };
        self.initialized.then(|| indicate(status, &[]))
    }

    /// Answers a request; `None` if it is of a kind that gets no answer.
    pub fn answer(&mut self, request: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
        let short = Malformed::Length(request.len());
        let header: Header = read(request).ok_or(short)?;
        // A VSC may pad; it may not promise more than it sends.
        let body = request.get(HEADER_SIZE..header.len as usize).ok_or(short)?;
        Ok(match header.kind {
            kind::INITIALIZE => Some(self.initialize(read(body).ok_or(short)?)),
            kind::HALT => {
                self.initialized = false;
                self.forget();
                None
            }
            kind::QUERY => Some(self.query(read(body).ok_or(short)?, body)),
            kind::SET => Some(self.set(read(body).ok_or(short)?, body)),
            kind::RESET => {
                self.forget();
                let reset = ResetComplete { status: Status::Success as u32, addressing_reset: 1 };
                Some(message(kind::RESET | kind::COMPLETION, &reset, &[]))
            }
            kind::KEEPALIVE => {
                let request: u32 = read(body).ok_or(short)?;
                let complete = Complete { request, status: Status::Success as u32 };
                Some(message(kind::KEEPALIVE | kind::COMPLETION, &complete, &[]))
            }
            other => return Err(Malformed::Kind(other)),
        })
    }

    fn initialize(&mut self, request: Initialize) -> Vec<u8> {
        self.initialized = true;
        self.starts = self.starts.saturating_add(1);
        let complete = InitializeComplete {
            request: request.request,
            status: Status::Success as u32,
            major: 1,
            minor: 0,
            flags: 1,
            medium: 0,
            max_packets: MAX_PACKETS,
            max_transfer: MAX_TRANSFER,
            alignment: ALIGNMENT,
            reserved: [0; 2],
        };
        message(kind::INITIALIZE | kind::COMPLETION, &complete, &[])
    }

    fn query(&self, request: ObjectRequest, body: &[u8]) -> Vec<u8> {
        let result = information(&request, body).and_then(|input| self.query_object(request.oid, input));
        let (status, bytes) = match &result {
            Ok(bytes) => (Status::Success, bytes.as_slice()),
            Err(status) => (*status, [].as_slice()),
        };
        let complete = QueryComplete {
            request: request.request,
            status: status as u32,
            // Objects are shorter than a KiB.
            len: bytes.len() as u32,
            offset: size_of::<QueryComplete>() as u32,
        };
        message(kind::QUERY | kind::COMPLETION, &complete, bytes)
    }

    fn set(&mut self, request: ObjectRequest, body: &[u8]) -> Vec<u8> {
        let result = information(&request, body).and_then(|input| self.set_object(request.oid, input));
        let status = result.err().unwrap_or(Status::Success) as u32;
        message(kind::SET | kind::COMPLETION, &Complete { request: request.request, status }, &[])
    }
}

/// Payload of a frame unless the VSC says otherwise.
pub const DEFAULT_MTU: u32 = 1500;

/// A message about something that happened to the adapter.
fn indicate(status: Status, information: &[u8]) -> Vec<u8> {
    let body = Indicate {
        status: status as u32,
        len: information.len() as u32,
        offset: if information.is_empty() { 0 } else { size_of::<Indicate>() as u32 },
    };
    message(kind::INDICATE, &body, information)
}

/// What comes with a query or a set.
fn information<'a>(request: &ObjectRequest, body: &'a [u8]) -> Result<&'a [u8], Status> {
    if request.len == 0 {
        return Ok(&[]);
    }
    let start = request.offset as usize;
    let end = start.checked_add(request.len as usize).ok_or(Status::InvalidLength)?;
    if start < size_of::<ObjectRequest>() {
        return Err(Status::InvalidData);
    }
    body.get(start..end).ok_or(Status::InvalidLength)
}

/// An object's bytes, cut to what a revision has.
fn object_bytes(object: &ndis::Offload, size: usize) -> Vec<u8> {
    object.as_bytes()[..size].to_vec()
}

#[cfg(test)]
mod tests;
