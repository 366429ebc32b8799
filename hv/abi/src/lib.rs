//! The hypervisor's published interface: numbers, layouts and names of the TLFS
