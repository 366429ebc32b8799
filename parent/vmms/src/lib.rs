//! The virtual machine management service: keeps the definitions, starts a worker per virtual machine and watches
//! over it, answers the REST interface.
//!
//! ```text
//!   REST over a unix socket -> rest -> Manager -> Store (definitions, SQLite)
//!                                         |-----> supervisor, one task per worker: control socket, pidfd
//! ```
//! The service may end and start again while virtual machines run: workers are processes of their own, found again by
//! their directories in the runtime directory. Nothing about a running machine is kept only here.

#![forbid(unsafe_code)]

pub mod adopt;
mod devices;
mod disks;
pub mod error;
mod guest;
pub mod manager;
mod memory;
mod network;
mod process;
pub mod rest;
pub mod scheduler;
pub mod store;
mod supervise;
mod switches;

pub use error::{Error, Result};
pub use manager::Manager;
pub use store::Store;
