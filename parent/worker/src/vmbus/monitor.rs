//! Looking at the bit that the guest sets instead of signalling a monitored channel.
//!
//! Nobody looks while the guest owes nothing: an idle guest costs no processor. When it owes an answer the channel's thread
//! looks soon, and then less and less often, for the guest may have no program that answers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parterre_vmbus_server::Memory;
use parterre_vmbus_server::Wait;
use parterre_vmbus_server::state::{EVENT_CONNECTION_BASE, Monitor};
use vm_memory::{VolatileMemory, VolatileSlice};

/// When to look for the first time: what the guest is told as the latency.
const SOONEST: Duration = Duration::from_millis(1);
/// How long to wait between two looks at most.
const LATEST: Duration = Duration::from_secs(1);

/// A channel's bit, and when to look at it.
pub(super) struct Watch<'a> {
    memory: &'a dyn Memory,
    monitor: Monitor,
    interval: Duration,
}

impl Watch<'_> {
    /// Begins with a channel that opens: tells the guest how soon its bit is looked at, and for which connection. A page
    /// that is not RAM is the guest's own loss: its answers are found late.
    pub(super) fn begin(memory: &dyn Memory, monitor: Monitor, channel: u32) -> Watch<'_> {
        let watch = Watch { memory, monitor, interval: SOONEST };
        let latency = SOONEST.as_nanos() / 100;
        let latency = u16::try_from(latency).unwrap_or(u16::MAX);
        watch.write(monitor.id.latency(), &latency.to_le_bytes());
        watch.write(monitor.id.parameter(), &(EVENT_CONNECTION_BASE + channel).to_le_bytes());
        watch
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        if let Some(place) = self.place(offset, bytes.len()) {
            place.copy_from(bytes);
        }
    }

    fn place(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        self.memory.slice(self.monitor.page.checked_add(offset)?, len)
    }

    /// Takes the signal, so that the guest's next one is a new one. To be done before the ring is looked at.
    pub(super) fn take_signal(&self) -> bool {
        let (offset, bit) = self.monitor.id.pending();
        let Some(word) = self.place(offset, size_of::<u32>()) else { return false };
        let Ok(word) = word.get_atomic_ref::<AtomicU32>(0) else { return false };
        word.fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    /// Has the wait end in time for the next look, if the guest owes an answer.
    pub(super) fn look_again(&mut self, wait: &mut Wait) {
        if wait.expects_guest() {
            wait.until(Instant::now() + self.interval);
            self.interval = (2 * self.interval).min(LATEST);
        } else {
            self.interval = SOONEST;
        }
    }

    /// Something has happened: an answer may come soon again.
    pub(super) fn begin_anew(&mut self) {
        self.interval = SOONEST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parterre_vmbus_server::protocol::monitor::MonitorId;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap()
    }

    fn monitor(page: u64) -> Monitor {
        Monitor { page, id: MonitorId::new(33).unwrap() }
    }

    #[test]
    fn a_signal_is_taken_once_and_other_channels_bits_are_left() {
        let memory = memory();
        let watch = Watch::begin(&memory, monitor(0x1000), 33);
        assert!(!watch.take_signal());
        memory.write_obj(0b111_u32, GuestAddress(0x1010)).unwrap();
        assert!(watch.take_signal() && !watch.take_signal());
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x1010)).unwrap(), 0b101);
        assert_eq!(
            memory.read_obj::<u32>(GuestAddress(0x1000 + 0x440 + 33 * 8)).unwrap(),
            EVENT_CONNECTION_BASE + 33
        );
        assert_eq!(memory.read_obj::<u16>(GuestAddress(0x1000 + 0x240 + 66)).unwrap(), 10_000);
    }

    #[test]
    fn a_page_that_is_no_memory_is_not_touched() {
        let memory = memory();
        for page in [0x4000, !0xFFF] {
            assert!(!Watch::begin(&memory, monitor(page), 1).take_signal(), "{page:#x}");
        }
    }

    #[test]
    fn looks_become_rare_while_the_guest_is_silent_and_there_are_none_while_it_owes_nothing() {
        let memory = memory();
        let mut watch = Watch::begin(&memory, monitor(0), 1);
        let mut idle = Wait::default();
        watch.look_again(&mut idle);
        assert_eq!(idle.deadline(), None);
        for _ in 0..20 {
            let mut wait = Wait::default();
            wait.for_answer();
            watch.look_again(&mut wait);
            assert!(wait.deadline().is_some_and(|deadline| deadline <= Instant::now() + LATEST));
        }
        assert_eq!(watch.interval, LATEST);
        watch.begin_anew();
        assert_eq!(watch.interval, SOONEST);
    }
}
