//! By which queue of the wire a channel's frames go out.
//!
//! A wire brings frames of a connection by the queue by which its own went last. A guest chooses the channel of a connection by
//! chance (a hash), and so the processor that is interrupted for it; its program runs on any. Where that program talks in turns
//! with somebody, each answer then wakes two processors, one after the other. So the frames of a channel leave by the queue of the
//! processor that sends them, once it has been the same for a while. A stream is better off with two processors, of which one
//! takes frames and the other has the program.

use std::sync::atomic::Ordering;

use crate::adapter::Lane;

/// So many frames come from one processor, one signal for each, before its queue is taken.
const STEADY: u32 = 8;
/// So many frames without signals of their own are a stream, which goes by the channel's own queue.
const STREAM: u32 = 64;
/// So many bytes for the guest from one frame of its own to the next are a stream, of which its frames are the receipts.
const MANY: u64 = 4096;

/// The queue of one channel's frames.
pub(crate) struct Route {
    /// The channel's own.
    own: usize,
    /// The one that is taken.
    lane: usize,
    /// The VP that sent last, and how often in a row.
    vp: u32,
    steady: u32,
    /// Frames since, of which it is not known who sent them.
    unknown: u32,
    /// Bytes for the guest until the last frame.
    received: u64,
}

impl Route {
    /// Of the channel with this index.
    pub(crate) fn new(own: usize) -> Route {
        Route { own, lane: own, vp: 0, steady: 0, unknown: 0, received: 0 }
    }

    /// The queue of the next frame, which VP `visitor` sends. The adapter has `received` so many bytes for the guest until now.
    pub(crate) fn next<'a>(
        &mut self,
        visitor: Option<u32>,
        received: u64,
        lanes: &'a [Lane],
    ) -> Option<&'a Lane> {
        let news = received.wrapping_sub(std::mem::replace(&mut self.received, received));
        match visitor {
            Some(_) if news > MANY => self.steady = 0,
            Some(vp) => self.sent_by(vp, lanes),
            None => self.sent_by_somebody(),
        }
        lanes.get(self.lane).filter(|lane| lane.is_attached()).or_else(|| lanes.get(self.own))
    }

    fn sent_by(&mut self, vp: u32, lanes: &[Lane]) {
        self.unknown = 0;
        self.steady = if vp == self.vp { self.steady.saturating_add(1) } else { 0 };
        self.vp = vp;
        if self.steady == STEADY {
            let of = |lane: &Lane| lane.is_attached() && lane.vp.load(Ordering::Relaxed) == vp;
            let its = if lanes.get(self.own).is_some_and(of) { None } else { lanes.iter().position(of) };
            self.lane = its.unwrap_or(self.own);
        }
    }

    fn sent_by_somebody(&mut self) {
        self.unknown = self.unknown.saturating_add(1);
        if self.unknown == STREAM {
            (self.lane, self.steady) = (self.own, 0);
        }
    }
}
