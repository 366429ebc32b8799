//! Monitored notifications: instead of signalling a channel by hypercall the guest sets its bit in a page, at which the
//! other side looks now and then.
//!
//! A guest gives two such pages when it makes contact; its own signals are bits of the second (TLFS "Monitored
//! Notification", `HV_MONITOR_PAGE`; Linux `drivers/hv/hyperv_vmbus.h`). Which channels signal so the offer says.

/// How many channels a page has room for.
pub const MONITORS: u8 = 128;

/// Monitors in a trigger group.
const GROUP: u64 = 32;
const TRIGGER_GROUPS: u64 = 0x8;
const LATENCIES: u64 = 0x240;
const PARAMETERS: u64 = 0x440;

/// A monitor's number in offers: its places in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonitorId(u8);

impl MonitorId {
    /// `None` where a page has no such place.
    pub fn new(id: u32) -> Option<MonitorId> {
        u8::try_from(id).ok().filter(|id| *id < MONITORS).map(MonitorId)
    }

    /// As the offer says it.
    pub fn value(self) -> u8 {
        self.0
    }

    /// Offset of the 32 bits of pending signals that it is among, and its bit.
    pub fn pending(self) -> (u64, u32) {
        let id = u64::from(self.0);
        (TRIGGER_GROUPS + 8 * (id / GROUP), 1 << (id % GROUP))
    }

    /// Offset of the 16 bits that tell how soon the bit is looked at, in 100 ns.
    pub fn latency(self) -> u64 {
        LATENCIES + 2 * u64::from(self.0)
    }

    /// Offset of the 32 bits that hold the id of the connection that is signalled.
    pub fn parameter(self) -> u64 {
        PARAMETERS + 8 * u64::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_page_and_no_two_share_one() {
        assert_eq!(MonitorId::new(128), None);
        let last = MonitorId::new(127).unwrap();
        assert_eq!((last.pending(), last.latency(), last.parameter()), ((0x20, 1 << 31), 0x33e, 0x838));
        let first = MonitorId::new(0).unwrap();
        assert_eq!((first.pending(), first.latency(), first.parameter()), ((0x8, 1), 0x240, 0x440));
        let all = (0..128).filter_map(MonitorId::new);
        let places: std::collections::BTreeSet<_> = all.map(MonitorId::pending).collect();
        assert_eq!(places.len(), 128);
    }
}
