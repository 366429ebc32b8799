//! The synthetic interrupt controller of a child's virtual processor (TLFS "Inter-Partition Communication").
//!
//! ```text
//!   message ──slot empty?──▶ message page (SIMP) ──┐
//!   event flag ────────────▶ event flags (SIEFP) ──┴─▶ SINT ──▶ vector for the local APIC
//! ```
//!
//! There is no queue: whoever finds a slot full keeps its message (a timer has a place for one, the parent's program has its
//! own queue), and the guest, which is told by a mark in the slot, writes EOM when it has emptied it.
//!
//! The guest writes both pages at the same time as we do, so they are reached through [`SharedPage`] only, word by word
//! and atomically where it matters; nothing that is read from them is trusted. Where the pages lie, and requesting the
//! vectors that come back, is the virtual processor's business. The parent's processors have a SynIC of another kind.

mod page;
mod registers;
#[cfg(test)]
mod tests;
mod timer;

pub use page::{FramePage, SharedPage, Signalled};
pub use registers::{Change, Synic};
pub use timer::timer_message;
