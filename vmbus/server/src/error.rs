//! Why a channel cannot go on.

use parterre_vmbus_ring::{AccessError, RingError};

/// The end of a channel; its text goes to the worker's log.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The guest made a ring or a packet that cannot be.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The guest named memory that is not its own.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The guest broke the protocol of the device. A sentence.
    #[error("{0}")]
    Protocol(String),
    /// The parent's side failed. A sentence.
    #[error("{0}")]
    Backend(String),
}

impl ChannelError {
    /// The guest broke the device's protocol.
    pub fn protocol(what: impl Into<String>) -> ChannelError {
        ChannelError::Protocol(what.into())
    }
}

impl From<std::io::Error> for ChannelError {
    fn from(error: std::io::Error) -> ChannelError {
        ChannelError::Backend(error.to_string())
    }
}
