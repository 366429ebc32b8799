//! Hypervisor logic without machine access
