//! An open channel between its thread and everybody else.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use parterre_partition::Partition;
use parterre_vmbus_server::bus::OfferId;
use parterre_vmbus_server::pace::Pace;
use parterre_vmbus_server::state::{Monitor, OpenRequest};
use parterre_vmbus_server::{ChannelError, ChannelPort, Gpadl, Handler, Queue, Waker, pump};
use vm_memory::VolatileMemory;

use super::VmBus;
use crate::processor::log_line;

/// What runs on a channel, one thread at a time.
pub(super) struct Open {
    pub(super) queue: Queue,
    pub(super) handler: Box<dyn Handler>,
    /// Whose thread it runs on.
    pub(super) pace: Pace,
    /// Why the channel is to be closed, when its own thread does not know yet.
    pub(super) failed: Option<ChannelError>,
}

/// The shared part of a channel.
pub(super) struct Channel {
    pub(super) number: u32,
    device: OfferId,
    sint: u8,
    vp: AtomicU32,
    interrupt_page: Option<u64>,
    pub(super) monitor: Option<Monitor>,
    /// Wakes the thread.
    pub(super) waker: Waker,
    stop: AtomicBool,
    /// A virtual processor found somebody else at the channel.
    pub(super) crowded: AtomicBool,
    /// There while the channel is open. Its own thread does not hold it while it waits.
    open: Mutex<Option<Open>>,
}

impl Channel {
    pub(super) fn new(request: &OpenRequest) -> std::io::Result<Channel> {
        Ok(Channel {
            number: request.channel,
            device: request.device,
            sint: request.target.sint,
            vp: AtomicU32::new(request.target.vp),
            interrupt_page: request.interrupt_page,
            monitor: request.monitor,
            waker: Waker::new()?,
            stop: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            open: Mutex::new(None),
        })
    }

    /// What runs on the channel, for its own thread.
    pub(super) fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is quickly done at once, and wakes the channel's thread for the rest.
    pub(super) fn signalled_by_guest(&self, vp: u32) {
        if !self.is_done_at_once(vp) {
            self.waker.wake();
        }
    }

    fn is_done_at_once(&self, vp: u32) -> bool {
        // A thread that is at it, or panicked there, is better told.
        let Ok(mut open) = self.open.try_lock() else {
            self.crowded.store(true, Ordering::Relaxed);
            return false;
        };
        let Some(open) = open.as_mut().filter(|open| open.failed.is_none() && !self.is_stopped()) else {
            return false;
        };
        let done = pump::visit(&mut open.queue, &mut *open.handler, &mut open.pace, vp);
        done.unwrap_or_else(|error| {
            open.failed = Some(error);
            false
        })
    }

    pub(super) fn interrupt_page(&self) -> Option<u64> {
        self.interrupt_page
    }

    pub(super) fn set_target(&self, vp: u32) {
        self.vp.store(vp, Ordering::Relaxed);
    }

    /// Has the thread end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// What the queue of a channel sees of the bus.
pub(super) struct Port {
    pub(super) bus: VmBus,
    pub(super) channel: Arc<Channel>,
}

impl Port {
    /// Before Windows 8: the channel's bit in the interrupt page, and flag 0 for all.
    fn set_interrupt_bit(&self, page: u64) {
        let number = self.channel.number;
        let Some(slice) = self.bus.0.memory.slice(page + u64::from(number / 32 * 4), 4) else { return };
        if let Ok(bits) = slice.get_atomic_ref::<AtomicU32>(0) {
            bits.fetch_or(1 << (number % 32), Ordering::AcqRel);
        }
    }
}

impl ChannelPort for Port {
    fn signal(&self) {
        let Channel { sint, interrupt_page, .. } = *self.channel;
        let flag = match interrupt_page {
            Some(page) => {
                self.set_interrupt_bit(page);
                0
            }
            // Numbers end with the flags.
            None => self.channel.number as u16,
        };
        let partition: &dyn Partition = &*self.bus.0.partition;
        if let Err(error) = partition.signal_event(self.target_vp(), sint, flag) {
            log_line(format_args!("VMBus channel {}: {error}", self.channel.number));
        }
    }

    fn gpadl(&self, handle: u32) -> Option<Arc<Gpadl>> {
        self.bus.state().server.gpadl(self.channel.device, handle)
    }

    fn offer_subchannels(&self, count: u16) -> u16 {
        self.bus.with_server(|server| server.offer_subchannels(self.channel.device, count))
    }

    fn target_vp(&self) -> u32 {
        self.channel.vp.load(Ordering::Relaxed)
    }
}
