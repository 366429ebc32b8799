//! The thread of an open channel.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use parterre_vmbus_server::pump::{Turn, turn};
use parterre_vmbus_server::ring::RingError;
use parterre_vmbus_server::state::OpenRequest;
use parterre_vmbus_server::{ChannelError, Device, Handler, Queue, Wait};
use rustix::event::{Timespec, poll};

use super::VmBus;
use super::channel::{Channel, Port};

/// Stack of a channel's thread.
const STACK_SIZE: usize = 256 << 10;

/// Starts the thread. It tells the bus whether the channel is open and, in any case, when it has ended.
pub(super) fn start(bus: &VmBus, device: Arc<dyn Device>, request: OpenRequest) -> Result<(), String> {
    let number = request.channel;
    let channel = Channel::new(&request).map_err(|error| format!("no eventfd: {error}"))?;
    let channel = Arc::new(channel);
    bus.set_channel(number, Some(channel.clone()));
    *bus.0.running.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    let ending = Ending { bus: bus.clone(), number };
    let bus = bus.clone();
    std::thread::Builder::new()
        .name(format!("vmbus{number}"))
        .stack_size(STACK_SIZE)
        .spawn(move || {
            let ending = ending;
            if let Err(error) = run(&bus, &*device, &channel, request) {
                bus.note(format_args!("VMBus channel {number} is closed: {error}"));
            }
            bus.set_channel(number, None);
            bus.with_server(|server| server.closed(number));
            drop(ending);
        })
        .map(drop)
        .map_err(|error| format!("no thread: {error}"))
}

/// Counts the thread out, also when it could not start or panicked.
struct Ending {
    bus: VmBus,
    number: u32,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.bus.set_channel(self.number, None);
            self.bus.with_server(|server| server.closed(self.number));
        }
        *self.bus.0.running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.bus.0.all_ended.notify_all();
    }
}

fn run(
    bus: &VmBus,
    device: &dyn Device,
    channel: &Arc<Channel>,
    request: OpenRequest,
) -> Result<(), ChannelError> {
    let port = Arc::new(Port { bus: bus.clone(), channel: channel.clone() });
    let rings = request.rings.ranges.first().ok_or(RingError::Size(0))?;
    let mut queue = Queue::new(request.facts, bus.0.memory.clone(), port, rings, request.downstream_page)?;
    let mut handler = device.open(&mut queue)?;
    bus.with_server(|server| server.opened(channel.number));
    while !channel.is_stopped() {
        if turn(&mut queue, &mut *handler)? == Turn::Wait {
            wait(channel, &*handler)?;
        }
    }
    Ok(())
}

/// Sleeps until the guest signals, the channel is to end, or a source of the handler's is ready.
fn wait(channel: &Channel, handler: &dyn Handler) -> Result<(), ChannelError> {
    let mut wait = Wait::default();
    wait.readable(&channel.waker);
    handler.wait(&mut wait);
    let left = wait.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(wait.fds(), timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(std::io::Error::from(error).into()),
    }
    channel.waker.clear();
    Ok(())
}
