//! Tests of the hypervisor as a whole on the fake machine: what the parent gets for its hypercalls and registers, and what
//! children meet when they run.
//!
//! Everything is done the way the parent's kernel does it, through [`Rig`]; [`steps`] has what it does again and again.

mod convention;
mod guests;
mod pages;
mod samples;
mod steps;

use crate::fake::{Cpu, Rig, Sizes};
