//! Payloads that tell of something that happened, without a VP waiting for an answer.

use crate::status::HvStatus;
use crate::types::{PartitionId, VpIndex, VpSet};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A synthetic timer expired (`HV_TIMER_MESSAGE_PAYLOAD`). Times are reference times in 100 ns.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TimerMessagePayload {
    /// Which of the VP's four timers.
    pub timer_index: u32,
    /// Must be zero.
    pub reserved: u32,
    /// When it expired.
    pub expiration_time: u64,
    /// When the message was put into the slot.
    pub delivery_time: u64,
}
const _: () = assert!(size_of::<TimerMessagePayload>() == 24);

/// A SINT set "as intercept" has news (Linux `hv_notification_message_payload`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NotificationMessagePayload {
    /// Which SINT.
    pub sint_index: u32,
}
const _: () = assert!(size_of::<NotificationMessagePayload>() == 4);

/// A VP has an intercept (`HV_OPAQUE_INTERCEPT_MESSAGE`); the partition is the message's sender.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OpaqueInterceptMessage {
    /// Which VP.
    pub vp_index: VpIndex,
}
const _: () = assert!(size_of::<OpaqueInterceptMessage>() == 4);

/// A pending call is done (Linux `hv_async_completion_message_payload`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AsyncCompletionMessagePayload {
    /// The partition the call was about.
    pub partition_id: PartitionId,
    /// Its status.
    pub status: HvStatus,
    /// Padding of the 32-bit status field.
    pub reserved: u16,
    /// How many calls are done.
    pub completion_count: u32,
    /// More about the status.
    pub sub_status: u64,
}
const _: () = assert!(size_of::<AsyncCompletionMessagePayload>() == 24);

/// Banks in a [`VpSignalBitsetSchedulerMessage`]: it names VPs up to 1023.
pub const SIGNAL_BITSET_BANKS: usize = 16;

/// VPs of one partition can run again (Linux `hv_vp_signal_bitset_scheduler_message`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VpSignalBitsetSchedulerMessage {
    /// Their partition.
    pub partition_id: PartitionId,
    /// Signals that were lost.
    pub overflow_count: u32,
    /// How many VPs.
    pub vp_count: u16,
    /// Must be zero.
    pub reserved: u16,
    /// Which VPs.
    pub vp_set: VpSet,
    /// The set's banks.
    pub banks: [u64; SIGNAL_BITSET_BANKS],
}
const _: () = assert!(size_of::<VpSignalBitsetSchedulerMessage>() == 160);

/// Pairs in a [`VpSignalPairSchedulerMessage`].
pub const SIGNAL_PAIRS: usize = 19;

/// VPs of several partitions can run again (Linux `hv_vp_signal_pair_scheduler_message`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VpSignalPairSchedulerMessage {
    /// Signals that were lost.
    pub overflow_count: u32,
    /// How many pairs count.
    pub vp_count: u8,
    /// Must be zero.
    pub reserved1: [u8; 3],
    /// The partitions.
    pub partition_ids: [PartitionId; SIGNAL_PAIRS],
    /// Their VPs.
    pub vp_indexes: [VpIndex; SIGNAL_PAIRS],
    /// Must be zero.
    pub reserved2: u32,
}
const _: () = assert!(size_of::<VpSignalPairSchedulerMessage>() == 240);

/// A level-triggered interrupt was ended (`HV_X64_APIC_EOI_MESSAGE`); the partition is the message's sender.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ApicEoiMessage {
    /// Which VP.
    pub vp_index: VpIndex,
    /// Which vector.
    pub interrupt_vector: u32,
}
const _: () = assert!(size_of::<ApicEoiMessage>() == 8);
