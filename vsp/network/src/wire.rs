//! What lies below an adapter: something that takes and gives Ethernet frames, with their offloads.
//!
//! A [`Wire`] is one queue of it: in the worker a queue of a TAP device, in tests a pair of lists. The header that
//! goes with each frame is that of virtio-net, as TAP devices speak it (VIRTIO 1.2 section 5.1.6, Linux
//! `include/uapi/linux/virtio_net.h`).

use std::io;
use std::os::fd::AsFd;

use vm_memory::VolatileSlice;

/// The checksum from `checksum_start` on is to be computed, or need not be checked because it never was.
pub const NEEDS_CHECKSUM: u8 = 1;
/// The checksum was found right.
pub const CHECKSUM_VALID: u8 = 2;
/// No segments are to be made.
pub const GSO_NONE: u8 = 0;
/// Segments of TCP over IPv4.
pub const GSO_TCP_V4: u8 = 1;
/// Segments of TCP over IPv6.
pub const GSO_TCP_V6: u8 = 4;

/// What is to be done, or was not done, with a frame (`virtio_net_hdr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameHeader {
    /// [`NEEDS_CHECKSUM`], [`CHECKSUM_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`], [`GSO_TCP_V4`], [`GSO_TCP_V6`].
    pub gso: u8,
    /// Bytes of all headers, if segments are to be made.
    pub header_len: u16,
    /// Payload of a segment.
    pub gso_size: u16,
    /// Where the checksum begins.
    pub checksum_start: u16,
    /// Where it is stored, from there.
    pub checksum_offset: u16,
}

/// Size of [`FrameHeader`] on a TAP device that was not told otherwise.
pub const FRAME_HEADER_SIZE: usize = 10;

impl FrameHeader {
    /// The bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_SIZE] {
        let mut bytes = [0; FRAME_HEADER_SIZE];
        (bytes[0], bytes[1]) = (self.flags, self.gso);
        let words = [self.header_len, self.gso_size, self.checksum_start, self.checksum_offset];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From bytes.
    pub fn decode(bytes: &[u8; FRAME_HEADER_SIZE]) -> FrameHeader {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        FrameHeader {
            flags: bytes[0],
            gso: bytes[1],
            header_len: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }
}

/// What may come up a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveOffloads {
    /// Frames of which the checksum has not been computed.
    pub checksum: bool,
    /// TCP over IPv4 of up to 64 KiB.
    pub large_v4: bool,
    /// TCP over IPv6 of up to 64 KiB.
    pub large_v6: bool,
}

/// One queue of what lies below an adapter. It never blocks. Its descriptor becomes readable when a frame may be taken.
pub trait Wire: Send + Sync + AsFd {
    /// Sends a frame: `head`, then `rest`, which is guest memory.
    ///
    /// # Errors
    /// The frame is lost. A header that makes no sense is [`io::ErrorKind::InvalidInput`].
    fn send(&self, header: &FrameHeader, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Takes a frame: its length, which is greater than what is given if it did not fit.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none.
    fn receive(&self, header: &mut FrameHeader, to: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Says what may come up, for all queues.
    fn set_offloads(&self, offloads: ReceiveOffloads) -> io::Result<()>;

    /// Opens or closes the queue for frames that come up. What waits in a queue that is closed is dropped.
    fn attach(&self, attached: bool) -> io::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_wire() {
        let header = FrameHeader {
            flags: NEEDS_CHECKSUM,
            gso: GSO_TCP_V6,
            header_len: 74,
            gso_size: 1440,
            checksum_start: 54,
            checksum_offset: 16,
        };
        assert_eq!(header.encode(), [1, 4, 74, 0, 0xA0, 5, 54, 0, 16, 0]);
        assert_eq!(FrameHeader::decode(&header.encode()), header);
    }
}
