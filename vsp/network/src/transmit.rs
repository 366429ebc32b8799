//! From the guest to the wire.

use arrayvec::ArrayVec;
use vm_memory::VolatileSlice;

use crate::adapter::View;
use crate::frame::{ETHERNET_HEADER, Guards, VLAN_TAG, check};
use crate::offload::{HEAD, Head, prepare};
use crate::packet::{GuestPacket, Source};
use crate::protocol::nvsp::Status;
use crate::statistics::Direction;
use crate::wire::{GSO_NONE, Wire};

/// Longest that RNDIS messages in one packet may be together.
const MAX_TRANSFER: u64 = 256 << 10;
/// Most pieces of guest memory of one frame. A VSC names at most 32 ranges.
const MAX_PIECES: usize = 128;
/// Longest frame that a wire takes.
const MAX_FRAME: u32 = 65535 + 14;
/// Bytes of a frame beside its payload: the header, and two tags if the guest puts them in itself.
const MAX_OVERHEAD: u32 = (ETHERNET_HEADER + 2 * VLAN_TAG) as u32;
/// Shortest message; what is left behind the last one is padding.
const MIN_MESSAGE: u64 = 44;

/// Sends all frames of a packet. The status is for the guest: frames that a guard drops are sent as far as it knows.
pub(crate) fn transmit(
    source: &Source<'_>,
    view: &View,
    guards: &Guards,
    wire: &dyn Wire,
    sent: &Direction,
) -> Status {
    let len = source.len();
    if !(MIN_MESSAGE..=MAX_TRANSFER).contains(&len) {
        return Status::InvalidRndisPacket;
    }
    let mut at = 0;
    // Each message is at least as long as its header, so this ends.
    while len - at >= MIN_MESSAGE {
        let Ok(packet) = GuestPacket::parse(source, at) else {
            sent.error();
            return Status::InvalidRndisPacket;
        };
        send_frame(source, &packet, view, guards, wire, sent);
        at += packet.len;
    }
    Status::Success
}

fn send_frame(
    source: &Source<'_>,
    packet: &GuestPacket,
    view: &View,
    guards: &Guards,
    wire: &dyn Wire,
    sent: &Direction,
) {
    let len = packet.frame_len;
    if len > MAX_FRAME {
        return sent.error();
    }
    let head_len = (len as usize).min(HEAD);
    let mut bytes = [0; HEAD];
    let bytes = &mut bytes[..head_len];
    if source.read(packet.frame_at, bytes).is_err() {
        return sent.error();
    }
    let Ok(destination) = check(bytes, view.mac, guards) else { return sent.drop_one() };
    let mut head: Head = bytes.iter().copied().collect();
    let Ok(header) = prepare(packet, &mut head) else { return sent.error() };
    // What is to be cut into segments names their size itself, and the parent's network stack checks it.
    if header.gso == GSO_NONE && len > view.mtu.saturating_add(MAX_OVERHEAD) {
        return sent.error();
    }
    let mut rest = ArrayVec::<VolatileSlice<'_>, MAX_PIECES>::new();
    let room = source.slices(packet.frame_at + head_len as u64, u64::from(len) - head_len as u64, &mut rest);
    if room != Ok(true) {
        return sent.error();
    }
    match wire.send(&header, &head, &rest) {
        Ok(()) => sent.pass(destination, len as usize),
        Err(_) => sent.error(),
    }
}
