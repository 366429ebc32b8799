//! The hypervisor's version, as CPUID leaf 0x40000002 tells it.
//!
//! Partitions expect the version numbers of the interface that they were validated against, so the major, minor and build
//! number are those of the Microsoft hypervisor whose interface this one follows (Linux's `mshv_root.h` accepts builds
//! 27744 to 27751).

use parterre_abi::cpuid;

/// The build number of the interface followed.
pub const INTERFACE_BUILD: u32 = 27744;
/// The interface's version, 10.0.
pub const INTERFACE_MAJOR: u32 = 10;
/// See [`INTERFACE_MAJOR`].
pub const INTERFACE_MINOR: u32 = 0;
/// Parterre's own version.
pub const PARTERRE: &str = env!("CARGO_PKG_VERSION");

/// Leaf [`cpuid::VERSION`]: build, version, service pack, service branch and number.
pub(crate) fn cpuid() -> [u32; 4] {
    const { assert!(cpuid::VERSION == 0x4000_0002) };
    [INTERFACE_BUILD, INTERFACE_MAJOR << 16 | INTERFACE_MINOR, 0, 0]
}
