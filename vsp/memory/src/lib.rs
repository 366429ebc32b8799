//! The parent's side of dynamic memory: a guest reports its memory pressure, gives up pages that the parent asks for (the
//! balloon), and takes them back.
//!
//! [`wire`] are the messages, [`session::Session`] the talk without input or output, [`DynamicMemory`] the device on VMBus.
//! Memory is never added beyond what a guest started with (hot add), and free pages are not reported by hypercall.
//!
//! What the guest sends is data: pages that are not its own, more than it was asked for, the same twice, or anything out of
//! turn ends the channel. A page that a guest gave up and uses all the same holds zeroes, and counts as given up.
//!
//! Source: Linux `drivers/hv/hv_balloon.c`.

#![forbid(unsafe_code)]

mod device;
mod pages;
pub mod session;
pub mod wire;

pub use device::{DynamicMemory, Ram, State};
pub use pages::NotYours;
