//! The message of a synthetic timer.

use parterre_abi::message::{Message, MessageType, TimerMessagePayload};

/// The message of an expired timer, to be delivered at reference time `now`.
pub fn timer_message(index: u8, expiration: u64, now: u64) -> Message {
    let payload = TimerMessagePayload {
        timer_index: index.into(),
        reserved: 0,
        expiration_time: expiration,
        delivery_time: now,
    };
    Message::with_payload(MessageType::TIMER_EXPIRED, 0, &payload)
}
