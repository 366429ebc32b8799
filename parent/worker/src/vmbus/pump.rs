//! The thread of an open channel.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use parterre_partition::thread::set_patient;
use parterre_vmbus_server::pace::Pace;
use parterre_vmbus_server::pump::{Turn, turn};
use parterre_vmbus_server::ring::RingError;
use parterre_vmbus_server::state::OpenRequest;
use parterre_vmbus_server::{ChannelError, Device, Queue, Wait};
use rustix::event::{Timespec, poll};

use super::VmBus;
use super::channel::{Channel, Open, Port};
use super::monitor::Watch;
use crate::processor::log_line;

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
    let handler = device.open(&mut queue)?;
    *channel.open() = Some(Open { queue, handler, pace: Pace::default(), failed: None });
    let watch = channel.monitor.map(|monitor| Watch::begin(&*bus.0.memory, monitor, channel.number));
    bus.with_server(|server| server.opened(channel.number));
    let ended = serve(channel, watch);
    // Nobody finds it any more when it goes.
    let open = channel.open().take();
    drop(open);
    ended
}

/// Runs the handler and waits, in turns, until the channel is to end.
fn serve(channel: &Channel, mut watch: Option<Watch<'_>>) -> Result<(), ChannelError> {
    let mut patient = false;
    while !channel.is_stopped() {
        let mut wait = Wait::default();
        if let Some(watch) = &watch {
            watch.take_signal();
        }
        let (turn, patience) = match channel.open().as_mut() {
            Some(open) => {
                if channel.crowded.swap(false, Ordering::Relaxed) {
                    open.pace.crowded();
                }
                (one_turn(open, &mut wait)?, open.pace.is_deep() && open.handler.is_patient())
            }
            None => return Ok(()),
        };
        be_patient(&mut patient, patience);
        if turn == Turn::Yield {
            std::thread::yield_now();
        } else if turn == Turn::Wait {
            wait.readable(channel.waker.source());
            if let Some(watch) = &mut watch {
                watch.look_again(&mut wait);
            }
            let woken = sleep(&wait)?;
            if let Some(watch) = watch.as_mut().filter(|_| woken) {
                watch.begin_anew();
            }
            channel.waker.clear();
        }
    }
    Ok(())
}

/// With many packets at a time it does not pay to displace a virtual processor, which has more to send, for each signal.
fn be_patient(patient: &mut bool, wanted: bool) {
    if *patient != wanted {
        *patient = wanted;
        if let Err(error) = set_patient(wanted) {
            log_line(format_args!("the scheduling of a VMBus channel's thread cannot be changed: {error}"));
        }
    }
}

fn one_turn(open: &mut Open, wait: &mut Wait) -> Result<Turn, ChannelError> {
    if let Some(error) = open.failed.take() {
        return Err(error);
    }
    let turn = turn(&mut open.queue, &mut *open.handler, &mut open.pace)?;
    open.handler.wait(wait);
    Ok(turn)
}

/// Sleeps until the guest signals, the channel is to end, or a source of the handler's is ready; says whether one of these
/// was it, or only the time.
fn sleep(wait: &Wait) -> Result<bool, ChannelError> {
    let left = wait.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut wait.fds(), timeout.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}
