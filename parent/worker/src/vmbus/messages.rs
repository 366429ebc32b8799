//! Messages to the guest, in order: its slot takes one at a time.

use std::collections::VecDeque;

use parterre_partition::{Partition, Posted};
use parterre_vmbus_server::protocol::message::HV_MESSAGE_TYPE;
use parterre_vmbus_server::state::Target;

use crate::processor::log_line;

/// With so many messages waiting, the guest's own are refused until it has taken some.
const ENOUGH: usize = 1024;

/// The queue.
#[derive(Default)]
pub(super) struct Messages {
    queue: VecDeque<(Target, Vec<u8>)>,
}

impl Messages {
    pub(super) fn push(&mut self, target: Target, message: Vec<u8>) {
        self.queue.push_back((target, message));
    }

    /// Whether the guest should first take what is there.
    pub(super) fn is_backed_up(&self) -> bool {
        self.queue.len() >= ENOUGH
    }

    /// Forgets what was for a guest that is no more.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }

    /// Posts until the slot is full, and then asks to hear when it is free.
    pub(super) fn post(&mut self, partition: &dyn Partition) {
        while let Some((target, message)) = self.queue.front() {
            match partition.post_message(target.vp, target.sint, HV_MESSAGE_TYPE, message) {
                Ok(Posted::Full) => {
                    if let Err(error) = partition.notify_deliverable(target.vp, 1 << target.sint) {
                        log_line(format_args!("{error}"));
                    }
                    return;
                }
                Ok(Posted::Done | Posted::NobodyListens) => {}
                Err(error) => log_line(format_args!("a VMBus message is lost: {error}")),
            }
            self.queue.pop_front();
        }
    }
}
