//! What a guest can do wrong.

/// Guest memory could not be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// Not within the buffer.
    #[error("{len} bytes at offset {offset:#x} are not within a buffer of {size:#x} bytes")]
    OutOfBounds {
        /// First byte.
        offset: u64,
        /// Bytes wanted.
        len: u64,
        /// Bytes that the buffer has.
        size: u64,
    },
    /// The page is not RAM.
    #[error("guest physical address {0:#x} is not memory of the guest")]
    NotRam(u64),
}

/// A malformed ring or packet. The channel cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// A page of the ring is not RAM.
    #[error("the ring cannot be accessed: {0}")]
    Access(#[from] AccessError),
    /// The ring's pages cannot be a ring.
    #[error(
        "a ring of {0:#x} bytes is not possible: one control page and at least one page of data are needed"
    )]
    Size(u64),
    /// An index points outside of the ring, or not to a multiple of 8.
    #[error("ring index {index:#x} is not possible in {size:#x} bytes of data")]
    Index {
        /// The index.
        index: u32,
        /// Bytes of data.
        size: u32,
    },
    /// Lengths in a descriptor contradict one another or the ring.
    #[error(
        "a packet says that it is {length} bytes long with a payload at {offset}; {available} bytes are there"
    )]
    PacketLength {
        /// Length of the packet.
        length: u32,
        /// Offset of the payload.
        offset: u32,
        /// Bytes in the ring.
        available: u32,
    },
    /// A type that guests do not send.
    #[error("packets of type {0} are not known")]
    PacketType(u16),
    /// The ranges of a packet do not fit in it.
    #[error(
        "a packet says that it has {count} ranges, {length} bytes are too few for them or one is malformed"
    )]
    Ranges {
        /// Ranges announced.
        count: u32,
        /// Bytes between descriptor and payload.
        length: usize,
    },
    /// A packet that can never be sent in this ring.
    #[error("a packet of {packet} bytes never fits in a ring of {size} bytes")]
    NeverFits {
        /// Bytes of the packet.
        packet: usize,
        /// Bytes of the ring.
        size: u32,
    },
}
