//! RNDIS packet messages: taking apart those of the guest, building the heads of those for it.
//!
//! Headers and per-packet information are copied out of the guest once, and only the copy is believed. Frames stay where
//! they are.

use parterre_vmbus_ring::{AccessError, Buffer, Memory};
use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

use crate::protocol::read;
use crate::protocol::rndis::{HEADER_SIZE, Header, Packet, PpiHeader, kind, ppi};

/// Most bytes of per-packet information that are looked at; a VSC sends less than 100.
const MAX_PPI: usize = 512;
/// Header and fixed part of a packet message.
const FIXED: usize = HEADER_SIZE + size_of::<Packet>();

/// Bytes of a guest's packet: those in the send buffer, then those that the packet names.
pub struct Source<'a> {
    memory: &'a dyn Memory,
    parts: [(&'a Buffer, u64, u64); 2],
}

impl<'a> Source<'a> {
    /// `first` is (buffer, offset, length); `second` is whole.
    pub fn new(
        memory: &'a dyn Memory,
        first: Option<(&'a Buffer, u64, u64)>,
        second: &'a Buffer,
    ) -> Source<'a> {
        Source { memory, parts: [first.unwrap_or((second, 0, 0)), (second, 0, second.len())] }
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|(_, _, len)| len).sum()
    }

    /// Gives each piece of a range of bytes.
    fn pieces(
        &self,
        offset: u64,
        len: u64,
        mut give: impl FnMut(VolatileSlice<'a>) -> Result<(), AccessError>,
    ) -> Result<(), AccessError> {
        let size = self.len();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(AccessError::OutOfBounds { offset, len, size });
        }
        let (mut offset, mut left) = (offset, len);
        for (buffer, start, part) in self.parts {
            if offset >= part {
                offset -= part;
                continue;
            }
            let take = left.min(part - offset);
            for slice in buffer.slices(self.memory, start + offset, take)? {
                give(slice?)?;
            }
            left -= take;
            offset = 0;
        }
        Ok(())
    }

    /// Copies bytes out.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), AccessError> {
        let mut done = 0;
        self.pieces(offset, to.len() as u64, |slice| {
            done += slice.copy_to(&mut to[done..]);
            Ok(())
        })
    }

    /// Adds the memory of a range of bytes to a list; says whether there was room for all of its pieces.
    pub fn slices<const N: usize>(
        &self,
        offset: u64,
        len: u64,
        list: &mut arrayvec::ArrayVec<VolatileSlice<'a>, N>,
    ) -> Result<bool, AccessError> {
        let mut room = true;
        self.pieces(offset, len, |slice| {
            room &= list.try_push(slice).is_ok();
            Ok(())
        })?;
        Ok(room)
    }
}

/// What checksums the guest leaves to us (`NDIS_TCP_IP_CHECKSUM_NETWORK_BUFFER_INFO`, transmit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChecksumRequest {
    /// Over IPv4; else IPv6.
    pub v4: bool,
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
    /// The IPv4 header.
    pub header: bool,
    /// Where the TCP or UDP header begins.
    pub transport_offset: u16,
}

/// Segments that the guest leaves to us (`NDIS_TCP_LARGE_SEND_OFFLOAD_NET_BUFFER_LIST_INFO`, version 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LargeSend {
    /// Over IPv4; else IPv6.
    pub v4: bool,
    /// Payload of a segment.
    pub segment: u32,
    /// Where the TCP header begins.
    pub transport_offset: u16,
}

/// A packet message of the guest's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestPacket {
    /// Length of the message.
    pub len: u64,
    /// Where the frame is.
    pub frame_at: u64,
    /// Length of the frame.
    pub frame_len: u32,
    /// Checksums.
    pub checksum: Option<ChecksumRequest>,
    /// Segments.
    pub large_send: Option<LargeSend>,
    /// Tag control information of an IEEE 802.1Q tag.
    pub vlan: Option<u16>,
}

/// Why there is no packet at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// Memory that is none.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Another message, or lengths that contradict one another.
    #[error("an RNDIS packet message does not hold what it says")]
    Malformed,
    /// Version 1 of large send, which was not offered.
    #[error("a large send of version 1 was not offered")]
    LargeSendV1,
}

impl GuestPacket {
    /// Reads the message at an offset.
    pub fn parse(source: &Source<'_>, at: u64) -> Result<GuestPacket, BadPacket> {
        let mut fixed = [0; FIXED];
        source.read(at, &mut fixed)?;
        let header: Header = read(&fixed).ok_or(BadPacket::Malformed)?;
        let packet: Packet = read(&fixed[HEADER_SIZE..]).ok_or(BadPacket::Malformed)?;
        let len = u64::from(header.len);
        if header.kind != kind::PACKET || len < FIXED as u64 || len > source.len() - at {
            return Err(BadPacket::Malformed);
        }
        // Offsets count from the end of the header.
        let inside = |offset: u32, size: u32| {
            let start = HEADER_SIZE as u64 + u64::from(offset);
            (start >= FIXED as u64 && start + u64::from(size) <= len).then_some(start)
        };
        let frame_at = at + inside(packet.data_offset, packet.data_len).ok_or(BadPacket::Malformed)?;
        let mut parsed = GuestPacket { len, frame_at, frame_len: packet.data_len, ..GuestPacket::default() };
        if packet.ppi_len != 0 {
            let start = inside(packet.ppi_offset, packet.ppi_len).ok_or(BadPacket::Malformed)?;
            let mut bytes = [0; MAX_PPI];
            let bytes = bytes.get_mut(..packet.ppi_len as usize).ok_or(BadPacket::Malformed)?;
            source.read(at + start, bytes)?;
            parsed.take_information(bytes)?;
        }
        Ok(parsed)
    }

    fn take_information(&mut self, mut bytes: &[u8]) -> Result<(), BadPacket> {
        while !bytes.is_empty() {
            let header: PpiHeader = read(bytes).ok_or(BadPacket::Malformed)?;
            let size = header.size as usize;
            if size < size_of::<PpiHeader>() || size > bytes.len() {
                return Err(BadPacket::Malformed);
            }
            let (piece, rest) = bytes.split_at(size);
            let value: Option<u32> = piece.get(header.offset as usize..).and_then(read);
            self.take_piece(header.kind, value)?;
            bytes = rest;
        }
        Ok(())
    }

    fn take_piece(&mut self, kind: u32, value: Option<u32>) -> Result<(), BadPacket> {
        if !matches!(kind, ppi::CHECKSUM | ppi::LARGE_SEND | ppi::VLAN) {
            // The hash of the flow, and whatever else helps others.
            return Ok(());
        }
        let value = value.ok_or(BadPacket::Malformed)?;
        let bit = |place: u32| value & 1 << place != 0;
        match kind {
            ppi::CHECKSUM => {
                self.checksum = Some(ChecksumRequest {
                    v4: bit(0),
                    tcp: bit(2),
                    udp: bit(3),
                    header: bit(4),
                    transport_offset: (value >> 16 & 0x3FF) as u16,
                });
            }
            ppi::LARGE_SEND if !bit(30) => return Err(BadPacket::LargeSendV1),
            ppi::LARGE_SEND => {
                self.large_send = Some(LargeSend {
                    v4: !bit(31),
                    segment: value & 0xF_FFFF,
                    transport_offset: (value >> 20 & 0x3FF) as u16,
                });
            }
            _ => {
                let (priority, cfi, id) = (value & 7, value >> 3 & 1, value >> 4 & 0xFFF);
                self.vlan = Some((priority << 13 | cfi << 12 | id) as u16);
            }
        }
        Ok(())
    }
}

/// Room before a frame in a section of the receive buffer.
pub const HEADROOM: usize = 96;
/// Bytes of one piece of per-packet information with a word in it.
const PPI_SIZE: usize = size_of::<PpiHeader>() + 4;

/// What is said of a frame for the guest (`NDIS_TCP_IP_CHECKSUM_NETWORK_BUFFER_INFO`, receive).
pub mod found {
    /// The TCP checksum is right.
    pub const TCP_GOOD: u32 = 1 << 3;
    /// The UDP checksum is right.
    pub const UDP_GOOD: u32 = 1 << 4;
    /// What stands in the checksum's place is not the checksum: it never was computed.
    pub const NOT_COMPUTED: u32 = 1 << 7;
}

/// Which piece of a coalesced packet a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The frame is whole.
    Whole,
    /// One of several.
    Part {
        /// The first.
        first: bool,
        /// The last.
        last: bool,
    },
}

/// The bytes before a frame's data in its section; the data follow at [`HEADROOM`].
pub fn receive_head(data_len: usize, checksum: u32, piece: Piece) -> [u8; HEADROOM] {
    let mut head = [0; HEADROOM];
    let mut at = FIXED;
    let mut add = |kind: u32, value: u32| {
        let header = PpiHeader { size: PPI_SIZE as u32, kind, offset: size_of::<PpiHeader>() as u32 };
        head[at..at + size_of::<PpiHeader>()].copy_from_slice(header.as_bytes());
        head[at + size_of::<PpiHeader>()..at + PPI_SIZE].copy_from_slice(&value.to_le_bytes());
        at += PPI_SIZE;
    };
    if checksum != 0 {
        add(ppi::CHECKSUM, checksum);
    }
    if let Piece::Part { first, last } = piece {
        // Version 1, flags, number of the packet (`struct rndis_pktinfo_id`).
        let flags = 1 | u32::from(first) << 1 | u32::from(last) << 2;
        add(ppi::PACKET_ID, 1 | flags << 8);
    }
    let ppi_len = (at - FIXED) as u32;
    let packet = Packet {
        data_offset: (HEADROOM - HEADER_SIZE) as u32,
        data_len: data_len as u32,
        ppi_offset: if ppi_len == 0 { 0 } else { size_of::<Packet>() as u32 },
        ppi_len,
        ..Packet::default()
    };
    let header = Header { kind: kind::PACKET, len: (HEADROOM + data_len) as u32 };
    head[..HEADER_SIZE].copy_from_slice(header.as_bytes());
    head[HEADER_SIZE..FIXED].copy_from_slice(packet.as_bytes());
    head
}

const _: () = assert!(FIXED + 2 * PPI_SIZE <= HEADROOM);

#[cfg(test)]
mod tests;
