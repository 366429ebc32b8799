//! Tests of the hypervisor as a whole on the fake machine: what the parent gets for its hypercalls and registers, and what
//! children meet when they run.
//!
//! Everything is done the way the parent's kernel does it, through [`Rig`]; [`steps`] has what it does again and again.

pub(crate) mod between;
mod calls;
mod child_registers;
mod control_registers;
mod convention;
mod devices;
mod enlightened;
mod guests;
mod offers;
mod pages;
mod parent_registers;
mod play;
mod samples;
mod start;
mod state;
mod steps;
mod synic;
mod time_page;
mod wakes;
mod xmm;

use crate::fake::{Cpu, Rig, Sizes};
