//! The hypervisor's machine layer: all of its unsafe code

#![cfg_attr(not(test), no_std)]

pub mod launch;
