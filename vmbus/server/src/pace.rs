//! Who takes a guest's packets: the virtual processor that signals them, in a [visit](crate::Handler::visit), or the channel's own
//! thread.
//!
//! A visit is the quickest way for one packet, but it is one exit for each. A guest that has many requests under way is served
//! with less by the thread: while it is at work the guest need not signal, so that one signal and one interrupt do for many
//! packets, and virtual processors have time to send more.
//!
//! In a visit a guest looks as if it had one request under way, however many it has. So the thread is tried now and then, and
//! more rarely after it was in vain. There is no clock and no ring here, only the decision.

/// Packets from one try to the next, at first and at most. A try costs the wakings of [`RUNS`].
const FIRST_TRY: u32 = 64;
const LAST_TRY: u32 = 1024;
/// What it counts for that two virtual processors are at the channel at a time, in packets.
const CROWD: u32 = 16;
/// Runs of the thread after which the mode is judged.
const RUNS: u32 = 16;
/// What these runs find in all, at least, if the thread is the better one. With one large transfer at a time, which comes in
/// two parts, it is two each.
const DEEP: u32 = 40;

/// The mode of one channel. See the module.
#[derive(Debug)]
pub struct Pace {
    deep: bool,
    /// Packets until the thread is tried, and how many that were.
    left: u32,
    patience: u32,
    /// Runs of the thread since the mode was judged, and what they found.
    runs: u32,
    found: u32,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { deep: false, left: FIRST_TRY, patience: FIRST_TRY, runs: 0, found: 0 }
    }
}

impl Pace {
    /// Whether the channel's thread takes everything.
    pub fn is_deep(&self) -> bool {
        self.deep
    }

    /// A visit took `packets`.
    pub fn visited(&mut self, packets: u32) {
        self.count(packets);
    }

    /// A visit was not possible, because someone else was at the channel.
    pub fn crowded(&mut self) {
        self.count(CROWD);
    }

    fn count(&mut self, packets: u32) {
        self.left = self.left.saturating_sub(packets);
        if self.left == 0 && !self.deep {
            (self.deep, self.runs, self.found) = (true, 0, 0);
        }
    }

    /// The thread ran: it took `packets`, and left requests `under_way`.
    pub fn ran(&mut self, packets: u32, under_way: u32) {
        if !self.deep || packets == 0 {
            return;
        }
        self.runs += 1;
        self.found = self.found.saturating_add(packets.max(under_way));
        if self.runs < RUNS {
            return;
        }
        if self.found < DEEP {
            self.deep = false;
            self.patience = (self.patience * 2).min(LAST_TRY);
        } else {
            self.patience = FIRST_TRY;
        }
        self.left = self.patience;
        (self.runs, self.found) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `packets` the thread takes, if it finds `depth` at a time.
    fn taken_by_thread(pace: &mut Pace, packets: u32, depth: u32) -> u32 {
        let (mut left, mut by_thread) = (packets, 0);
        while left > 0 {
            if pace.is_deep() {
                pace.ran(depth.min(left), 0);
                by_thread += depth.min(left);
                left -= depth.min(left);
            } else {
                pace.visited(1);
                left -= 1;
            }
        }
        by_thread
    }

    #[test]
    fn packets_one_at_a_time_are_visited() {
        let by_thread = taken_by_thread(&mut Pace::default(), 100_000, 1);
        assert!((1..=2500).contains(&by_thread), "{by_thread} of 100,000: tries, but few");
    }

    #[test]
    fn many_at_a_time_are_the_threads_soon_and_for_long() {
        let mut pace = Pace::default();
        assert_eq!(taken_by_thread(&mut pace, 10_000, 32), 10_000 - FIRST_TRY);
        // No longer.
        taken_by_thread(&mut pace, 2 * RUNS, 1);
        assert!(!pace.is_deep());
        // After long calm it takes longer.
        taken_by_thread(&mut pace, 100_000, 1);
        let by_thread = taken_by_thread(&mut pace, 10_000, 32);
        assert!((9_000 - LAST_TRY..10_000).contains(&by_thread), "{by_thread}");
    }

    #[test]
    fn requests_under_way_are_seen_where_packets_come_singly() {
        let mut pace = Pace::default();
        pace.visited(FIRST_TRY);
        for _ in 0..100 {
            pace.ran(1, 31);
            assert!(pace.is_deep());
        }
    }

    #[test]
    fn processors_that_meet_bring_the_try_nearer() {
        let mut pace = Pace::default();
        (0..FIRST_TRY / CROWD).for_each(|_| pace.crowded());
        assert!(pace.is_deep());
        // What wakes the thread without a packet says nothing.
        (0..100).for_each(|_| pace.ran(0, 0));
        assert!(pace.is_deep());
    }
}
