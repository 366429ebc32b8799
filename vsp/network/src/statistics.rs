//! Counters of an adapter, shared by its queues.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::frame::Destination;

/// Frames and bytes of one kind.
#[derive(Debug, Default)]
pub struct Count {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    fn add(&self, bytes: usize) {
        self.frames.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Number of frames.
    pub fn frames(&self) -> u64 {
        self.frames.load(Relaxed)
    }

    /// Number of bytes, Ethernet headers included.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

/// Counters of one direction.
#[derive(Debug, Default)]
pub struct Direction {
    /// To one address.
    pub directed: Count,
    /// To groups.
    pub multicast: Count,
    /// To everybody.
    pub broadcast: Count,
    errors: AtomicU64,
    dropped: AtomicU64,
}

impl Direction {
    /// Counts a frame that went through.
    pub fn pass(&self, destination: Destination, bytes: usize) {
        match destination {
            Destination::Directed => self.directed.add(bytes),
            Destination::Multicast => self.multicast.add(bytes),
            Destination::Broadcast => self.broadcast.add(bytes),
        }
    }

    /// Counts a frame that could not be passed on.
    pub fn error(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    /// Counts a frame that was dropped on purpose: by a guard when sent, by the filter or for want of room when received.
    pub fn drop_one(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    /// Frames that went through.
    pub fn frames(&self) -> u64 {
        self.directed.frames() + self.multicast.frames() + self.broadcast.frames()
    }

    /// Frames that could not be passed on.
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    /// Frames that were dropped on purpose.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// Counters of an adapter. "Sent" is what the guest sends.
#[derive(Debug, Default)]
pub struct Statistics {
    /// From the guest.
    pub sent: Direction,
    /// To the guest.
    pub received: Direction,
}
