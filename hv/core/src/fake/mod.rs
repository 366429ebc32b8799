//! A machine that does not exist, for tests: the traits of [`machine`](crate::machine) over ordinary memory.
//!
//! It keeps records of what it was asked (kicks, interrupts, register writes), lets a test set what it answers, and runs
//! *scripts* in place of guest code. It translates no instruction, has no caches and no translation buffers. A test
//! that would wait for ever panics.
//!
//! ```text
//! let board = FakeMachine::builder().processors(2).build();
//! let parent = board.parent_vcpu();
//! board.machine.script(0).exit(Exit::Cpuid { length: Some(2) });
//! ```

mod board;
mod lock;
mod memory;
mod page;
mod platform;
mod player;
mod processor;
mod rig;
mod script;
mod slat;
#[cfg(test)]
mod tests;
mod vcpu;

pub use board::{Board, Builder};
pub use memory::FakeMemory;
pub use page::FakePage;
pub use platform::FakeMachine;
#[cfg(test)]
pub(crate) use platform::HYPERCALL_INSTRUCTION;
pub use player::Player;
pub use processor::FakeProcessor;
pub use rig::{Cpu, GeneralProtection, Rig, Sizes};
pub use script::{Flow, Script};
pub use slat::FakeSlat;
pub use vcpu::FakeVcpu;
