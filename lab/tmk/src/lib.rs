//! A tiny kernel for tests inside a virtual machine ("test micro kernel").
//!
//! Each program in `src/bin` is a bootable image: a Linux `bzImage` of some ten kilobytes, so that any VMM that boots
//! Linux boots it. It prints one line for each test on COM1 (`ok NAME`, `FAILED NAME: why`, `skipped NAME: why`), closes
//! with `tmk: N passed, N failed` and powers the machine off. It knows nothing of the hypervisor below but what the
//! architecture and the TLFS say, and runs on others of the kind, or on none.
//!
//! A program here owns its whole machine. So instructions that only change the machine's state (ports, MSRs, control
//! registers) are safe functions: what they can break is the test itself. Functions that read or write memory by
//! address are `unsafe`.

#![no_std]

pub mod acpi;
pub mod apic;
#[cfg(target_os = "none")]
mod boot;
pub mod cpu;
pub mod fault;
pub mod harness;
pub mod hv;
pub mod paging;
pub mod params;
pub mod serial;
pub mod smp;
pub mod time;

pub use fault::{Fault, catch};
pub use harness::{Outcome, TestResult};

/// Defines the program: its name and its tests, functions that answer [`TestResult`].
#[macro_export]
macro_rules! program {
    ($name:literal: $($test:ident),* $(,)?) => {
        /// The entry from the framework.
        #[unsafe(no_mangle)]
        extern "Rust" fn tmk_main() {
            $crate::harness::begin($name);
            $( $crate::harness::run(stringify!($test), $test); )*
        }
    };
}

/// Ends the test with a reason unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return $crate::harness::fail(format_args!($($reason)+));
        }
    };
}

/// Ends the test without a verdict: what it needs is not there.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {
        return $crate::harness::skip(format_args!($($reason)+))
    };
}
