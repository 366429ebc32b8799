//! What is on the wire between a network VSC and this VSP: layouts and numbers, no behaviour.
//!
//! Three layers lie on one another. NVSP is the channel's own protocol: versions, shared buffers, sub-channels. RNDIS messages travel
//! inside it: requests about the adapter, and Ethernet frames. NDIS objects travel inside RNDIS requests: offloads and
//! receive-side scaling. All numbers are little-endian. The source of each is Linux's `drivers/net/hyperv/hyperv_net.h`
//! and `include/linux/rndis.h`; RNDIS itself is published as [MS-RNDIS].

pub mod ndis;
pub mod nvsp;
pub mod rndis;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Reads a structure from the start of bytes; `None` if they are too few.
pub(crate) fn read<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(value, _)| value)
}

/// Reads a structure of which the sender may know only the first part: what is absent is zero.
pub(crate) fn read_padded<T: FromBytes + IntoBytes + KnownLayout + Immutable>(bytes: &[u8]) -> T {
    let mut value = T::new_zeroed();
    let len = bytes.len().min(size_of::<T>());
    value.as_mut_bytes()[..len].copy_from_slice(&bytes[..len]);
    value
}
