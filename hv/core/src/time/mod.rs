//! A partition's time: its reference time and the synthetic timers that run on it (TLFS "Timers").
//!
//! Everything follows from one source, the time stamp counter, which is the same on all processors. Nothing here
//! ticks and nothing here arms a timer: the virtual processor asks for a deadline and looks again when it has passed.
//!
//! ```text
//!   physical TSC --(+ offset, while not frozen)--> the partition's TSC --(* scale >> 64, + offset)--> reference time
//! ```

mod clock;
mod timers;

#[cfg(test)]
mod tests;

pub use clock::{Clock, ReferenceTsc};
pub use timers::{Expiration, SyntheticTimers};
