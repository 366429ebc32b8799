//! Page tables: partitions' second-level address translation, and the hypervisor's own.

pub mod host;
pub mod slat;
