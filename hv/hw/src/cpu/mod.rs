//! Instructions and registers of the processor that have no safe equivalent.

pub mod msr;
