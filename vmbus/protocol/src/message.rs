//! Control messages: what guest and server post to one another (`struct vmbus_channel_*`).
//!
//! Each begins with [`Header`]. A longer message than its type needs is accepted, as the guests do.

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::offer::{ChannelOffer, USER_DEFINED_BYTES};
use crate::{Guid, Version};

/// Most bytes in a message (payload of a hypervisor message).
pub const MAX_MESSAGE_SIZE: usize = 240;
/// Connection id of the guest's messages up to version 4.1.
pub const MESSAGE_CONNECTION_ID: u32 = 1;
/// Connection id of the first message from version 5.0 on.
pub const MESSAGE_CONNECTION_ID_4: u32 = 4;
/// Connection id of the guest's events before Windows 7.
pub const EVENT_CONNECTION_ID: u32 = 2;
/// The type of hypervisor message (`HV_MESSAGE_TYPE`) that carries VMBus messages in both directions.
pub const HV_MESSAGE_TYPE: u32 = 1;
/// The SINT of VMBus, unless the guest asks for another.
pub const VMBUS_SINT: u8 = 2;

/// What a message is (`enum vmbus_channel_message_type`).
#[open_enum]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)] // the names are the protocol's own
pub enum MessageType {
    INVALID = 0,
    OFFER_CHANNEL = 1,
    RESCIND_CHANNEL_OFFER = 2,
    REQUEST_OFFERS = 3,
    ALL_OFFERS_DELIVERED = 4,
    OPEN_CHANNEL = 5,
    OPEN_CHANNEL_RESULT = 6,
    CLOSE_CHANNEL = 7,
    GPADL_HEADER = 8,
    GPADL_BODY = 9,
    GPADL_CREATED = 10,
    GPADL_TEARDOWN = 11,
    GPADL_TORNDOWN = 12,
    RELID_RELEASED = 13,
    INITIATE_CONTACT = 14,
    VERSION_RESPONSE = 15,
    UNLOAD = 16,
    UNLOAD_RESPONSE = 17,
    OPEN_RESERVED_CHANNEL = 18,
    CLOSE_RESERVED_CHANNEL = 19,
    CLOSE_RESERVED_RESPONSE = 20,
    TL_CONNECT_REQUEST = 21,
    MODIFY_CHANNEL = 22,
    TL_CONNECT_RESULT = 23,
    MODIFY_CHANNEL_RESPONSE = 24,
}

macro_rules! wire {
    ($($item:item)*) => { $(
        #[repr(C, packed)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        $item
    )* };
}

wire! {
    /// Head of every message.
    pub struct Header {
        /// What it is.
        pub message_type: MessageType,
        /// Zero.
        pub padding: u32,
    }

    /// Server to guest: there is a channel.
    pub struct OfferChannel {
        /// Head.
        pub header: Header,
        /// The device.
        pub offer: ChannelOffer,
        /// The channel's id in later messages.
        pub channel_id: u32,
        /// Index of its bit in the monitor pages, 0xFF for none.
        pub monitor_id: u8,
        /// Bit 0: `monitor_id` is valid.
        pub monitor_allocated: u8,
        /// Bit 0: signals go by `connection_id`, without a bit in the interrupt page (Windows 7 and later).
        pub is_dedicated: u16,
        /// Connection id for the guest's signals (Windows 7 and later).
        pub connection_id: u32,
    }

    /// A message about one channel: rescind, close, relid released.
    pub struct ChannelMessage {
        /// Head.
        pub header: Header,
        /// Which channel.
        pub channel_id: u32,
    }

    /// Guest to server: open a channel.
    pub struct OpenChannel {
        /// Head.
        pub header: Header,
        /// Which channel.
        pub channel_id: u32,
        /// The guest's name for this request.
        pub open_id: u32,
        /// GPADL of both rings.
        pub ring_gpadl: u32,
        /// On which VP the guest wants its signals (Windows 8 and later).
        pub target_vp: u32,
        /// The guest's in-ring begins at this page of the GPADL.
        pub downstream_page_offset: u32,
        /// The device's own.
        pub user_data: [u8; USER_DEFINED_BYTES],
    }

    /// Server to guest: how the opening went.
    pub struct OpenResult {
        /// Head.
        pub header: Header,
        /// Which channel.
        pub channel_id: u32,
        /// The guest's name for the request.
        pub open_id: u32,
        /// 0 for success.
        pub status: u32,
    }

    /// Guest to server: memory that both sides are to know by a handle. Ranges follow, more of them in [`GpadlBody`].
    pub struct GpadlHeader {
        /// Head.
        pub header: Header,
        /// For which channel.
        pub channel_id: u32,
        /// The handle.
        pub gpadl: u32,
        /// Bytes of all ranges.
        pub range_length: u16,
        /// How many ranges.
        pub range_count: u16,
    }

    /// Guest to server: goes on where the last message about the GPADL ended.
    pub struct GpadlBody {
        /// Head.
        pub header: Header,
        /// Number of this body, from 0.
        pub message_number: u32,
        /// The handle.
        pub gpadl: u32,
    }

    /// Server to guest.
    pub struct GpadlCreated {
        /// Head.
        pub header: Header,
        /// For which channel.
        pub channel_id: u32,
        /// The handle.
        pub gpadl: u32,
        /// 0 for success.
        pub status: u32,
    }

    /// Guest to server: forget a GPADL.
    pub struct GpadlTeardown {
        /// Head.
        pub header: Header,
        /// Of which channel.
        pub channel_id: u32,
        /// The handle.
        pub gpadl: u32,
    }

    /// Server to guest: the memory is the guest's alone again.
    pub struct GpadlTorndown {
        /// Head.
        pub header: Header,
        /// The handle.
        pub gpadl: u32,
    }

    /// Guest to server: begin to talk, in this version.
    pub struct InitiateContact {
        /// Head.
        pub header: Header,
        /// The version.
        pub version: Version,
        /// VP for the server's messages.
        pub target_vp: u32,
        /// Address of the interrupt page; from 5.0 on SINT in bits 7:0, VTL in bits 15:8, feature flags in the high half.
        pub interrupt_page_or_target: u64,
        /// Address of the page of the guest's monitored signals.
        pub monitor_page1: u64,
        /// Address of the page of the server's.
        pub monitor_page2: u64,
    }

    /// Server to guest: whether the version is spoken. Before 5.0 it ends with `connection_state`.
    pub struct VersionResponse {
        /// Head.
        pub header: Header,
        /// 1 if the version is spoken.
        pub supported: u8,
        /// 0 for success.
        pub connection_state: u8,
        /// Zero.
        pub padding: u16,
        /// Connection id for the guest's messages from now on; the version that may be asked for instead if not supported.
        pub connection_id: u32,
    }

    /// As [`VersionResponse`], in 6.0 and later.
    pub struct VersionResponse2 {
        /// The older part.
        pub response: VersionResponse,
        /// Feature flags that both sides know.
        pub features: u32,
    }

    /// Guest to server: connect to a service of the parent (hv_sock).
    pub struct TlConnectRequest {
        /// Head.
        pub header: Header,
        /// The guest's end: becomes the instance of the offer that answers.
        pub endpoint_id: Guid,
        /// The service.
        pub service_id: Guid,
    }

    /// Server to guest: there is no such service.
    pub struct TlConnectResult {
        /// Head.
        pub header: Header,
        /// The guest's end.
        pub endpoint_id: Guid,
        /// The service.
        pub service_id: Guid,
        /// An NTSTATUS.
        pub status: u32,
    }

    /// Guest to server: send the channel's signals to another VP.
    pub struct ModifyChannel {
        /// Head.
        pub header: Header,
        /// Which channel.
        pub channel_id: u32,
        /// The VP.
        pub target_vp: u32,
    }

    /// Server to guest (5.3 and later).
    pub struct ModifyChannelResponse {
        /// Head.
        pub header: Header,
        /// Which channel.
        pub channel_id: u32,
        /// 0 for success.
        pub status: u32,
    }
}

const _: () = assert!(size_of::<OfferChannel>() == 196);
const _: () = assert!(size_of::<OpenChannel>() == 148);
const _: () = assert!(size_of::<GpadlHeader>() == 20);
const _: () = assert!(size_of::<InitiateContact>() == 40);

impl Header {
    /// The head of a message of this type.
    pub const fn new(message_type: MessageType) -> Header {
        Header { message_type, padding: 0 }
    }
}
