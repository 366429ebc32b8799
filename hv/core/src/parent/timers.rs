//! The timers that one processor watches for virtual processors that are not running.
//!
//! A blocked virtual processor may have a timer of its own to wake it. The processor that it last ran on watches for it:
//! its entry lies here until it runs again or the time comes. An entry is a hint; whoever finds it due asks the virtual
//! processor itself. So entries may be stale, and when the queue is full everyone blocked here is asked instead.

use arrayvec::ArrayVec;

/// Entries that are kept exactly.
const CAPACITY: usize = 128;

/// A virtual processor: its partition's slot and its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    /// The partition's slot.
    pub slot: u16,
    /// The virtual processor's index.
    pub vp: u16,
}

/// See the module.
#[derive(Default)]
pub(crate) struct TimerQueue {
    entries: ArrayVec<(u64, Watched), CAPACITY>,
    /// The earliest deadline that found no room.
    overflow: Option<u64>,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// This one.
    One(Watched),
    /// Possibly anyone who blocked on this processor.
    Anyone,
}

impl TimerQueue {
    /// Watches for `who` until `deadline` (TSC), in place of what was watched for it before.
    pub fn insert(&mut self, deadline: u64, who: Watched) {
        self.remove(who);
        if self.entries.try_push((deadline, who)).is_err() {
            self.overflow = Some(self.overflow.map_or(deadline, |earlier| earlier.min(deadline)));
        }
    }

    /// Stops watching for `who`.
    pub fn remove(&mut self, who: Watched) {
        if let Some(index) = self.entries.iter().position(|(_, watched)| *watched == who) {
            self.entries.swap_remove(index);
        }
    }

    /// Stops watching for a partition that ends.
    pub fn remove_partition(&mut self, slot: u16) {
        self.entries.retain(|(_, watched)| watched.slot != slot);
    }

    /// Whether nothing is watched for.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.overflow.is_none()
    }

    /// When the next entry is due.
    #[inline]
    pub fn next(&self) -> Option<u64> {
        self.entries.iter().map(|(deadline, _)| *deadline).chain(self.overflow).min()
    }

    /// Takes something that is due at `now`.
    #[inline]
    pub fn take_due(&mut self, now: u64) -> Option<Due> {
        if let Some(index) = self.entries.iter().position(|(deadline, _)| *deadline <= now) {
            return self.entries.swap_pop(index).map(|(_, watched)| Due::One(watched));
        }
        self.overflow.take_if(|deadline| *deadline <= now).map(|_| Due::Anyone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vp(vp: u16) -> Watched {
        Watched { slot: 1, vp }
    }

    #[test]
    fn what_is_due_comes_out_once_and_nothing_else() {
        let mut queue = TimerQueue::default();
        queue.insert(50, vp(0));
        queue.insert(20, vp(1));
        queue.insert(70, vp(1));
        assert_eq!(queue.next(), Some(50));
        assert_eq!(queue.take_due(49), None);
        assert_eq!(queue.take_due(60), Some(Due::One(vp(0))));
        assert_eq!(queue.take_due(60), None);
        assert!(!queue.is_empty());
        queue.remove_partition(1);
        assert_eq!(queue.next(), None);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_full_queue_loses_nobody() {
        let mut queue = TimerQueue::default();
        for index in 0..CAPACITY as u16 + 2 {
            queue.insert(1000 + u64::from(index), vp(index));
        }
        let beyond = 1000 + CAPACITY as u64;
        let mut anyone = 0;
        while let Some(due) = queue.take_due(beyond) {
            anyone += u32::from(due == Due::Anyone);
        }
        assert_eq!(anyone, 1);
        assert_eq!(queue.next(), None);
    }
}
