//! The synthetic interrupt controller of a child's virtual processor (TLFS "Inter-Partition Communication").
//!
//! ```text
//!   message ──▶ MessageQueue ──slot empty?──▶ message page (SIMP) ──┐
//!   event flag ─────────────────────────────▶ event flags (SIEFP) ──┴─▶ SINT ──▶ vector for the local APIC
//! ```
//!
//! The guest writes both pages at the same time as we do, so they are reached through [`SharedPage`] only, word by word
//! and atomically where it matters; nothing that is read from them is trusted. Where the pages lie, and requesting the
//! vectors that come back, is the virtual processor's business. The parent's processors have a SynIC of another kind.

mod page;
mod queue;
mod registers;
#[cfg(test)]
mod tests;

pub use page::{FramePage, SharedPage, Signalled};
pub use queue::{MessageQueue, timer_message};
pub use registers::{Change, Synic};
