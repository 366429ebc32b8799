//! The worker process of one virtual machine: its partition, its processors, its devices.
//!
//! ```text
//!   main thread: epoll over console clients, control connections, events ----.
//!   one thread per VP: run -> intercept -> emulate -> run                    |
//!        |  power-off, reset, failure: Event over a channel + eventfd -------'
//!   one thread per open VMBus channel: poll -> handler of the device -> signal
//! ```
//! A machine that resets gets a new partition; guest memory, kernel and initrd stay open, so that a sandboxed worker
//! needs no path for it. The worker decides no policy: what a reset or a power-off means is told to whoever asks on
//! the control socket.

#![forbid(unsafe_code)]

pub mod attach;
pub mod boot;
pub mod console;
mod control;
pub mod crash;
pub mod emulate;
pub mod event;
pub mod gate;
pub mod guest;
pub mod handover;
pub mod machine;
pub mod processor;
pub mod sandbox;
pub mod service;
pub mod stdio;
pub mod vmbus;
pub mod vsp;
