//! Instructions and registers of the processor that have no safe equivalent.

pub mod interrupts;
pub mod msr;
pub mod mtrr;
pub mod port;
pub mod registers;
pub mod tables;
