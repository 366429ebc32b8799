//! The hypervisor's published interface: names, numbers and layouts of the Microsoft hypervisor.
//!
//! This crate is the Top-Level Functional Specification (TLFS) and Linux's `include/hyperv/*.h` written down as
//! Rust types, one module per chapter. It holds no behaviour beyond packing, unpacking and checking of reserved
//! bits; what the hypervisor does with a value stands in `parterre-core`.
//!
//! Everything here may come from a guest. So every type accepts every bit pattern (open enumerations instead of
//! Rust enums, integers instead of references) and no function panics.
//!
//! Names are those of the specification without the `HV_` prefix, in Rust's case: `HV_STATUS_INVALID_ALIGNMENT` is
//! [`HvStatus::INVALID_ALIGNMENT`](status::HvStatus::INVALID_ALIGNMENT), `HvX64RegisterRip` is
//! [`RegisterName::RIP`](registers::RegisterName::RIP). Sizes and offsets are held equal to the `mshv-bindings` crate by the tests.

#![no_std]
#![forbid(unsafe_code)]

pub mod cpuid;
pub mod device_interrupt;
pub mod hypercall;
pub mod lapic;
pub mod message;
pub mod msr;
pub mod processor_features;
pub mod property;
pub mod registers;
pub mod stats;
pub mod status;
pub mod synic;
pub mod timer;
pub mod types;
pub mod vp_page;
