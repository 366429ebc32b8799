//! Messages that wait for an empty slot.

use super::{SharedPage, Synic};
use arrayvec::ArrayVec;
use parterre_abi::message::{Message, MessageType, TimerMessagePayload};
use parterre_abi::msr::SINT_COUNT;
use parterre_abi::status::{HvResult, HvStatus};

/// The messages queued for one virtual processor, `N` at most, in the order they came in.
///
/// Timers are not queued here: each has a buffer of its own ([`SyntheticTimers`](crate::time::SyntheticTimers)).
#[derive(Clone, Debug, Default)]
pub struct MessageQueue<const N: usize> {
    waiting: ArrayVec<(u8, Message), N>,
}

impl<const N: usize> MessageQueue<N> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { waiting: ArrayVec::new_const() }
    }

    /// Delivers `message` to source `sint`, or queues it behind those that wait for the same slot. Gives the vector to
    /// request.
    ///
    /// # Errors
    /// As [`Synic::put_message`], but a slot that is not empty is no error unless the queue is full: then
    /// `INSUFFICIENT_BUFFERS`.
    pub fn post<P: SharedPage>(
        &mut self,
        synic: &Synic,
        page: &P,
        sint: u8,
        message: &Message,
    ) -> HvResult<Option<u8>> {
        if !self.is_waiting(sint) {
            match synic.put_message(page, sint, message) {
                Err(HvStatus::OBJECT_IN_USE) => {}
                other => return other,
            }
        }
        self.waiting.try_push((sint, *message)).map_err(|_| HvStatus::INSUFFICIENT_BUFFERS)?;
        Ok(None)
    }

    /// Delivers what the slots take, after EOM, EOI, or a change of the SynIC. Gives the vectors to request.
    pub fn deliver<P: SharedPage>(&mut self, synic: &Synic, page: &P) -> ArrayVec<u8, SINT_COUNT> {
        let mut vectors = ArrayVec::new();
        let mut tried = 0u16;
        let mut index = 0;
        while let Some(&(sint, mut message)) = self.waiting.get(index) {
            // One message fits a slot, so the first one for each source decides about those behind it.
            let first = tried & 1 << (sint & 15) == 0;
            tried |= 1 << (sint & 15);
            // In the message from the start: a mark set later could come after the guest has looked.
            let more = self.waiting.iter().skip(index + 1).any(|(waiting, _)| *waiting == sint);
            message.header.message_flags.set_message_pending(more);
            let put =
                if first { synic.put_message(page, sint, &message) } else { Err(HvStatus::OBJECT_IN_USE) };
            let Ok(vector) = put else {
                index += 1;
                continue;
            };
            self.waiting.remove(index);
            // There are no more sources than places.
            let _ = vector.map(|vector| vectors.try_push(vector));
        }
        vectors
    }

    /// Whether a message waits for the slot of `sint`.
    pub fn is_waiting(&self, sint: u8) -> bool {
        self.waiting.iter().any(|(waiting, _)| *waiting == sint)
    }

    /// Drops everything: the virtual processor was reset, or its partition ends.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }
}

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
