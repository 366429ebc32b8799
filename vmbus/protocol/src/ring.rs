//! The control page of a ring (`struct hv_ring_buffer`): byte offsets of its words. The data follow in the next page.

/// Where the writer goes on, in bytes from the start of the data.
pub const WRITE_INDEX: usize = 0;
/// Where the reader goes on.
pub const READ_INDEX: usize = 4;
/// Non-zero: the reader is at work and wants no signal for new packets.
pub const INTERRUPT_MASK: usize = 8;
/// Non-zero: the writer waits for this many bytes of room and wants a signal then.
pub const PENDING_SEND_SIZE: usize = 12;
/// See [`FEATURE_PENDING_SEND_SIZE`].
pub const FEATURES: usize = 64;
/// Feature bit: this side writes and heeds the pending send size.
pub const FEATURE_PENDING_SEND_SIZE: u32 = 1;
/// Bytes behind each packet: the index at which it began, in the high half.
pub const TRAILER_SIZE: usize = 8;
