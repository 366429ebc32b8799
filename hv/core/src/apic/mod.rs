//! The local APIC of a virtual processor (Intel SDM 3A chapter 12, AMD APM 2 chapter 16; TLFS "Virtual Interrupt
//! Controller").
//!
//! It comes in two halves, after who may touch what:
//!
//! ```text
//!   any processor --post_fixed, post_nmi, post_init ...-->  Incoming   (atomics: IRR, TMR, NMI, INIT, SIPI, ExtINT)
//!   any processor --matches(destination)?--------------->      |
//!                                                              | acknowledge: IRR -> ISR
//!   the VP's own exits --read, write, eoi--------------->  LocalApic   (behind the VP's lock: ISR, LVTs, ICR, timer)
//! ```
//!
//! [`Incoming`] never waits: posting an interrupt takes no lock. [`LocalApic`] changes nothing but itself and its own
//! [`Incoming`]; what has to happen elsewhere (an IPI, an EOI that someone waits for, a timer to arm) comes back as an
//! [`Effect`] for the VP to carry out.
//!
//! The task priority register is not kept here: its upper half is the processor's CR8, which callers pass in.
//! The thermal, performance and LINT pins have local vector table entries but nothing drives them except
//! `HvCallAssertVirtualInterrupt`. There are no SMIs, no remote reads, no CMCI entry, and the APIC id cannot be
//! changed (all allowed by the TLFS).

mod base;
mod incoming;
mod ipi;
mod local;
mod lvt;
mod register;
mod state;
mod timer;

#[cfg(test)]
mod tests;

pub use base::{ApicBase, Mode};
pub use incoming::Incoming;
pub use ipi::{Delivery, Destination, Ipi};
pub use local::{Configuration, LocalApic};
pub use lvt::LocalPin;
pub use register::Register;
pub use timer::Rates;

/// The access raises #GP(0) in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// What an access to the local APIC needs to know of the virtual processor it belongs to.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The other half of this APIC.
    pub incoming: &'a Incoming,
    /// The physical time stamp counter.
    pub tsc: u64,
    /// What the guest adds to it when it reads its own (wrapping).
    pub tsc_offset: u64,
    /// The processor's CR8, 0-15.
    pub cr8: u8,
}

/// What the virtual processor has to do after an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing, but pending interrupts may have become deliverable (or no longer be).
    None,
    /// Set CR8: the task priority was written.
    SetCr8(u8),
    /// Send an interrupt, which may be to this processor as well.
    SendIpi(Ipi),
    /// An interrupt ended. Pending ones may be deliverable now, and the SynIC looks at its message queues (TLFS
    /// "Messages").
    EndOfInterrupt {
        /// The vector that was in service, if there was one.
        vector: Option<u8>,
        /// It was level-triggered: whoever asserted it waits for this (the EOI intercept).
        level: bool,
    },
    /// Ask again for [`LocalApic::timer_deadline`].
    TimerChanged,
}
