//! The start of a controller's first channel: versions, properties, sub-channels.
//!
//! ```text
//!   Closed --BEGIN--> Begun --QUERY VERSION (known)--> Agreed --QUERY PROPERTIES*, END--> Ready --CREATE SUB CHANNELS--> Ready
//! ```
//! A packet out of order is answered with "invalid device state" and changes nothing. BEGIN starts again from anywhere, as a guest
//! does that was started by kexec and found the channel open.

use crate::lun::MAX_TRANSFER;
use crate::protocol::{ChannelProperties, MULTI_CHANNEL, Packet, VERSION_WIN8, VERSIONS, operation, status};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Begun,
    Agreed,
    Ready,
}

/// What is to be done about a packet.
pub(crate) enum Reaction {
    /// Answer it.
    Answer(Packet),
    /// Offer this many sub-channels, then answer it.
    Subchannels(u16),
}

/// The state.
#[derive(Debug)]
pub(crate) struct Negotiation {
    phase: Phase,
    version: u16,
    subchannels: u16,
}

impl Negotiation {
    /// At the start of a channel that can have this many sub-channels.
    pub(crate) fn new(subchannels: u16) -> Negotiation {
        Negotiation { phase: Phase::Closed, version: 0, subchannels }
    }

    /// SCSI requests are taken.
    pub(crate) fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    fn offered(&self) -> u16 {
        if self.version >= VERSION_WIN8 { self.subchannels } else { 0 }
    }

    /// Takes a packet of initialization.
    pub(crate) fn take(&mut self, packet: &Packet) -> Reaction {
        let answer = |status| Reaction::Answer(Packet::answer(status));
        match (packet.operation.get(), self.phase) {
            (operation::BEGIN_INITIALIZATION, _) => {
                self.phase = Phase::Begun;
                answer(status::SUCCESS)
            }
            (operation::QUERY_PROTOCOL_VERSION, Phase::Begun | Phase::Agreed) => {
                let version = packet.word();
                if !VERSIONS.contains(&version) {
                    return answer(status::REVISION_MISMATCH);
                }
                (self.version, self.phase) = (version, Phase::Agreed);
                answer(status::SUCCESS)
            }
            (operation::QUERY_PROPERTIES, Phase::Agreed) => Reaction::Answer(self.properties()),
            (operation::END_INITIALIZATION, Phase::Agreed) => {
                self.phase = Phase::Ready;
                answer(status::SUCCESS)
            }
            (operation::CREATE_SUB_CHANNELS, Phase::Ready) => match packet.word() {
                count if count <= self.offered() => Reaction::Subchannels(count),
                _ => answer(status::INVALID_PARAMETER),
            },
            (
                operation::QUERY_PROTOCOL_VERSION
                | operation::QUERY_PROPERTIES
                | operation::END_INITIALIZATION
                | operation::CREATE_SUB_CHANNELS,
                _,
            ) => answer(status::INVALID_DEVICE_STATE),
            _ => answer(status::INVALID_DEVICE_REQUEST),
        }
    }

    fn properties(&self) -> Packet {
        let mut packet = Packet::answer(status::SUCCESS);
        let properties = ChannelProperties {
            reserved: 0.into(),
            max_channel_count: self.offered().into(),
            reserved1: 0.into(),
            flags: (if self.offered() > 0 { MULTI_CHANNEL } else { 0 }).into(),
            max_transfer_bytes: MAX_TRANSFER.into(),
            reserved2: 0.into(),
        };
        packet.set_properties(&properties);
        packet
    }
}
