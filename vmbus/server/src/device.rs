//! What a device brings with it.

use parterre_vmbus_protocol::Guid;
use parterre_vmbus_protocol::offer::{OfferFlags, USER_DEFINED_BYTES};

use crate::{ChannelError, Queue, Wait};

/// How a device is offered to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What kind of device: the guest's driver matches it.
    pub interface: Guid,
    /// Which of them; the same at each start, since the guest names devices by it. No two offers share both.
    pub instance: Guid,
    /// Flags.
    pub flags: OfferFlags,
    /// MMIO space that the guest is to find for the device, in MiB.
    pub mmio_megabytes: u16,
    /// The device's own bytes in the offer.
    pub user_defined: [u8; USER_DEFINED_BYTES],
}

impl Offer {
    /// An ordinary device.
    pub fn new(interface: Guid, instance: Guid) -> Offer {
        let user_defined = [0; USER_DEFINED_BYTES];
        let flags = OfferFlags::ENUMERATE_DEVICE_INTERFACE;
        Offer { interface, instance, flags, mmio_megabytes: 0, user_defined }
    }

    /// A pipe (integration components, hv_sock): `mode` is `PIPE_TYPE_MESSAGE` or `PIPE_TYPE_BYTE` of
    /// [`parterre_vmbus_protocol::offer`].
    pub fn pipe(interface: Guid, instance: Guid, mode: u32) -> Offer {
        let mut offer = Offer::new(interface, instance);
        offer.flags |= OfferFlags::NAMED_PIPE_MODE;
        offer.user_defined[..4].copy_from_slice(&mode.to_le_bytes());
        offer
    }
}

/// A device on the bus. It outlives the guest's opening and closing its channels, and resets of the machine; what it
/// shares between its channels it keeps behind its own lock.
pub trait Device: Send + Sync {
    /// How it is offered. Asked once for each start of the machine.
    fn offer(&self) -> Offer;

    /// The guest opens a channel: the device's first ([`Queue::index`] 0) or a sub-channel that was asked for by
    /// [`Queue::offer_subchannels`]. Called on the channel's own thread; the guest waits for the end of it. Packets may
    /// already be written.
    ///
    /// # Errors
    /// Anything: the guest is told that the opening failed, the log says why.
    fn open(&self, queue: &mut Queue) -> Result<Box<dyn Handler>, ChannelError>;
}

/// What became of a [visit](Handler::visit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Visit {
    /// Everything was done that there was to do, and what the handler waits for is as it was.
    Done,
    /// The rest is the channel's own thread's.
    Rest,
    /// Nothing was done.
    Refused,
}

/// One open channel of a device.
///
/// It is dropped when the guest closes the channel, unloads, or resets the machine. When `drop` returns, nothing may
/// touch guest memory any more: a handler with transfers under way cancels or awaits them there.
pub trait Handler: Send {
    /// Does what there is to do: the guest signalled, or something of [`wait`](Self::wait) is ready, or neither (a wake-up
    /// may be late or in vain). Called once after [`Device::open`] too.
    ///
    /// It reads packets until there are none ([`Queue::read`] gives `false`). A handler that can take no more may stop
    /// earlier; then the packets left in the ring do not wake it, only its own sources and room in the out-ring do.
    /// It must not block. What it wrote is shown to the guest, with one signal at most, when it returns.
    ///
    /// # Errors
    /// The channel is closed and its offer rescinded; the log says why.
    fn run(&mut self, queue: &mut Queue) -> Result<(), ChannelError>;

    /// Does what is quickly done of what a signal was about, on the thread of the virtual processor that signalled: that saves
    /// waking the channel's own, but the processor waits. Called at any time between two runs. As [`run`](Self::run) otherwise.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    fn visit(&mut self, queue: &mut Queue) -> Result<Visit, ChannelError> {
        let _ = queue;
        Ok(Visit::Refused)
    }

    /// Requests of the guest's that have been taken and not been answered yet.
    fn under_way(&self) -> u32 {
        0
    }

    /// Whether a guest that has many packets under way is content with a turn of the thread's that comes later, and takes more
    /// at once. Not so where it sends no more before it has the answers, as networks do (TCP small queues).
    fn is_patient(&self) -> bool {
        false
    }

    /// What to wait for besides the guest's signals, asked after each run.
    fn wait(&self, wait: &mut Wait) {
        let _ = wait;
    }
}
