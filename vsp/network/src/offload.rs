//! From what the guest leaves to us to what a wire is told: checksums and segments.
//!
//! The beginning of the frame is in a copy of ours; here it is made what the wire expects, which is what Linux's own
//! network stack would have handed it.

use arrayvec::ArrayVec;

use crate::frame::{ETHERNET_HEADER, TYPE_VLAN, VLAN_TAG};
use crate::packet::{ChecksumRequest, GuestPacket, LargeSend};
use crate::wire::{FrameHeader, GSO_TCP_V4, GSO_TCP_V6, NEEDS_CHECKSUM};

/// Most bytes of a frame that are copied: all headers fit into that.
pub const HEAD: usize = 256;
/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Where the checksum is in a UDP header.
const UDP_CHECKSUM: usize = 6;
/// Least bytes of a TCP header.
const TCP_HEADER: usize = 20;
/// Least bytes of an IPv4 header.
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;

/// The beginning of a frame, with room for a tag.
pub type Head = ArrayVec<u8, { HEAD + VLAN_TAG }>;

/// The guest's wishes contradict the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contradiction;

/// Makes head and header of a frame of `packet.frame_len` bytes.
pub fn prepare(packet: &GuestPacket, head: &mut Head) -> Result<FrameHeader, Contradiction> {
    let mut header = match (packet.large_send, packet.checksum) {
        (Some(large), _) => segments(&large, head, packet.frame_len)?,
        (None, Some(request)) => checksum(&request, head)?,
        (None, None) => FrameHeader::default(),
    };
    if let Some(tag) = packet.vlan {
        insert_tag(tag, head)?;
        if header.flags & NEEDS_CHECKSUM != 0 {
            header.checksum_start += VLAN_TAG as u16;
        }
        if header.gso != 0 {
            header.header_len += VLAN_TAG as u16;
        }
    }
    Ok(header)
}

fn insert_tag(tag: u16, head: &mut Head) -> Result<(), Contradiction> {
    if head.len() < ETHERNET_HEADER {
        return Err(Contradiction);
    }
    let mut tagged = Head::new();
    let words = [TYPE_VLAN.to_be_bytes(), tag.to_be_bytes()];
    let parts = [&head[..12], words.as_flattened(), &head[12..]];
    if parts.into_iter().any(|part| tagged.try_extend_from_slice(part).is_err()) {
        return Err(Contradiction);
    }
    *head = tagged;
    Ok(())
}

fn checksum(request: &ChecksumRequest, head: &mut Head) -> Result<FrameHeader, Contradiction> {
    if request.header && request.v4 {
        put_v4_checksum(head)?;
    }
    let checksum_offset = match (request.tcp, request.udp) {
        (true, _) => TCP_CHECKSUM,
        (false, true) => UDP_CHECKSUM,
        (false, false) => return Ok(FrameHeader::default()),
    };
    let start = usize::from(request.transport_offset);
    if start < ETHERNET_HEADER + V4_HEADER || start + checksum_offset + 2 > head.len() {
        return Err(Contradiction);
    }
    Ok(FrameHeader {
        flags: NEEDS_CHECKSUM,
        checksum_start: request.transport_offset,
        checksum_offset: checksum_offset as u16,
        ..FrameHeader::default()
    })
}

/// Where the IPv4 header is, and its length.
fn v4_header(head: &[u8]) -> Result<(usize, usize), Contradiction> {
    let at = ETHERNET_HEADER;
    let first = *head.get(at).ok_or(Contradiction)?;
    let len = usize::from(first & 0xF) * 4;
    if first >> 4 != 4 || len < V4_HEADER || at + len > head.len() {
        return Err(Contradiction);
    }
    Ok((at, len))
}

fn put_v4_checksum(head: &mut Head) -> Result<(), Contradiction> {
    let (at, len) = v4_header(head)?;
    put(head, at + 10, 0);
    let sum = !fold(sum(&head[at..at + len]));
    put(head, at + 10, sum);
    Ok(())
}

/// The guest leaves lengths open (as Windows and Linux do for version 2 of large send): the IP length is zero, and so is
/// the length in the pseudo header's sum that stands in the TCP checksum's place.
fn segments(large: &LargeSend, head: &mut Head, frame_len: u32) -> Result<FrameHeader, Contradiction> {
    let start = usize::from(large.transport_offset);
    let gso_size = u16::try_from(large.segment).map_err(|_| Contradiction)?;
    if gso_size == 0 || start + TCP_HEADER > head.len() {
        return Err(Contradiction);
    }
    let words = usize::from(head[start + 12] >> 4);
    let header_len = start + words * 4;
    let (frame_len, least) = (frame_len as usize, start + TCP_HEADER);
    if header_len < least || header_len > head.len() || header_len > frame_len {
        return Err(Contradiction);
    }
    let segment_len = u16::try_from(frame_len - start).map_err(|_| Contradiction)?;
    let pseudo = if large.v4 {
        let (at, len) = v4_header(head)?;
        if at + len != start {
            return Err(Contradiction);
        }
        put(head, at + 2, u16::try_from(frame_len - at).map_err(|_| Contradiction)?);
        put_v4_checksum(head)?;
        sum(&head[at + 12..at + 20])
    } else {
        let at = ETHERNET_HEADER;
        if head.get(at).is_none_or(|first| first >> 4 != 6) || start < at + V6_HEADER {
            return Err(Contradiction);
        }
        put(head, at + 4, u16::try_from(frame_len - at - V6_HEADER).map_err(|_| Contradiction)?);
        sum(&head[at + 8..at + 40])
    };
    const PROTOCOL_TCP: u32 = 6;
    put(head, start + TCP_CHECKSUM, fold(pseudo + PROTOCOL_TCP + u32::from(segment_len)));
    Ok(FrameHeader {
        flags: NEEDS_CHECKSUM,
        gso: if large.v4 { GSO_TCP_V4 } else { GSO_TCP_V6 },
        header_len: header_len as u16,
        gso_size,
        checksum_start: large.transport_offset,
        checksum_offset: TCP_CHECKSUM as u16,
    })
}

fn put(head: &mut Head, at: usize, word: u16) {
    head[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

/// Sum of 16-bit words (RFC 1071); at most 256 bytes, so that it does not overflow.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests;
