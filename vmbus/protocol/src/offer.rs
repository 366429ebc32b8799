//! What a channel offer says of its device (`struct vmbus_channel_offer`).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Guid;

/// Bytes in an offer and in an open request that belong to the device.
pub const USER_DEFINED_BYTES: usize = 120;

bitflags! {
    /// Flags of an offer (`VMBUS_CHANNEL_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct OfferFlags: u16 {
        /// The guest shows the device to its device manager.
        const ENUMERATE_DEVICE_INTERFACE = 0x0001;
        /// A pipe; the first word of the user-defined bytes is its mode.
        const NAMED_PIPE_MODE = 0x0010;
        /// Loopback.
        const LOOPBACK_OFFER = 0x0100;
        /// The offer comes from the parent.
        const PARENT_OFFER = 0x0200;
        /// Signals of this channel go through the monitor pages.
        const REQUEST_MONITORED_NOTIFICATION = 0x0400;
        /// hv_sock.
        const TLNPI_PROVIDER_OFFER = 0x2000;
    }
}

/// Pipe mode in the first word of the user-defined bytes: a stream of bytes.
pub const PIPE_TYPE_BYTE: u32 = 0;
/// Pipe mode: messages.
pub const PIPE_TYPE_MESSAGE: u32 = 4;

/// The offer.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ChannelOffer {
    /// What kind of device.
    pub interface: Guid,
    /// Which of them.
    pub instance: Guid,
    /// Zero.
    pub reserved1: [u64; 2],
    /// See [`OfferFlags`].
    pub flags: u16,
    /// MMIO space that the device wants, in MiB.
    pub mmio_megabytes: u16,
    /// The device's own.
    pub user_defined: [u8; USER_DEFINED_BYTES],
    /// 0 for the primary channel.
    pub subchannel_index: u16,
    /// Zero.
    pub reserved3: u16,
}
const _: () = assert!(size_of::<ChannelOffer>() == 176);
