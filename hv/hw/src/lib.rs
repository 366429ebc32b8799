//! The hypervisor's machine layer: all of its unsafe code
