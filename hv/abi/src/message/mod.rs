//! Messages from the hypervisor (TLFS chapter "Inter-Partition Communication"; Linux `hvgdk_mini.h`, `hvhdk.h`).
//!
//! A message is 256 bytes: a header and 240 bytes of payload, whose layout the message type names. Payloads of
//! intercepts begin with [`InterceptMessageHeader`].

mod intercept;
mod kind;
mod notice;

pub use intercept::*;
pub use kind::MessageType;
pub use notice::*;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in a message.
pub const MESSAGE_SIZE: usize = 256;
/// Bytes of payload in a message.
pub const MESSAGE_PAYLOAD_SIZE: usize = 240;

/// A message's header (`HV_MESSAGE_HEADER`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MessageHeader {
    /// What the payload is.
    pub message_type: MessageType,
    /// Bytes of payload that count.
    pub payload_size: u8,
    /// Flags.
    pub message_flags: MessageFlags,
    /// Must be zero.
    pub reserved: u16,
    /// The sending partition's id, or the port id of a posted message.
    pub sender: u64,
}
const _: () = assert!(size_of::<MessageHeader>() == 16);

/// Flags of a message (`HV_MESSAGE_FLAGS`).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MessageFlags {
    /// Another message waits for the slot: write EOM after emptying it.
    pub message_pending: bool,
    /// Must be zero.
    #[bits(7)]
    pub reserved: u8,
}

/// A message (`HV_MESSAGE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Message {
    /// Its header.
    pub header: MessageHeader,
    /// Its payload.
    pub payload: [u8; MESSAGE_PAYLOAD_SIZE],
}
const _: () = assert!(size_of::<Message>() == MESSAGE_SIZE);

impl Message {
    /// No message: an empty slot.
    pub const NONE: Self = Self {
        header: MessageHeader {
            message_type: MessageType::NONE,
            payload_size: 0,
            message_flags: MessageFlags::new(),
            reserved: 0,
            sender: 0,
        },
        payload: [0; MESSAGE_PAYLOAD_SIZE],
    };

    /// A message with the given payload; `None` if it is longer than [`MESSAGE_PAYLOAD_SIZE`].
    pub fn new(message_type: MessageType, sender: u64, payload: &[u8]) -> Option<Self> {
        let mut message = Self::NONE;
        message.payload.get_mut(..payload.len())?.copy_from_slice(payload);
        message.header.message_type = message_type;
        message.header.payload_size = payload.len() as u8;
        message.header.sender = sender;
        Some(message)
    }

    /// A message with a payload of one of this module's types.
    #[inline]
    pub fn with_payload<T: IntoBytes + Immutable>(
        message_type: MessageType,
        sender: u64,
        payload: &T,
    ) -> Self {
        const { assert!(size_of::<T>() <= MESSAGE_PAYLOAD_SIZE) };
        let mut message = Self::NONE;
        message.payload[..size_of::<T>()].copy_from_slice(payload.as_bytes());
        message.header.message_type = message_type;
        message.header.payload_size = size_of::<T>() as u8;
        message.header.sender = sender;
        message
    }

    /// The payload as a type of this module. Bytes beyond `payload_size` are whatever the sender left there.
    pub fn payload_as<T: FromBytes>(&self) -> T {
        const { assert!(size_of::<T>() <= MESSAGE_PAYLOAD_SIZE) };
        T::read_from_prefix(&self.payload).map_or_else(|_| T::new_zeroed(), |(payload, _)| payload)
    }
}
