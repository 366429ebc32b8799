//! Objects that a guest can read.

use zerocopy::IntoBytes;

use super::{Control, MAX_PACKETS, MAX_TRANSFER, object_bytes};
use crate::ETHERNET_HEADER;
use crate::protocol::ndis::{
    self, ChecksumOffload, LargeSendV2, OFFLOAD_SIZE_1, OFFLOAD_SIZE_2, OFFLOAD_SIZE_3, ObjectHeader,
    Offload, ReceiveScaleCapabilities,
};
use crate::protocol::read;
use crate::protocol::rndis::{Status, oid};

/// Longest payload of a large send: what fits into an IP packet of 64 KiB with its headers.
const LARGE_SEND_MAX: u32 = 0xF000;
/// What [`oid::GEN_VENDOR_DESCRIPTION`] says.
const DESCRIPTION: &[u8] = b"Parterre network adapter\0";
/// Full duplex; received packets come one after another; copies may be looked at; priorities are kept.
const MAC_OPTIONS: u32 = 0x01 | 0x04 | 0x08 | 0x10;

/// All objects of [`Control::query_object`], for [`oid::GEN_SUPPORTED_LIST`], and those that can only be set.
const SUPPORTED: [u32; 48] = [
    oid::GEN_SUPPORTED_LIST,
    oid::GEN_HARDWARE_STATUS,
    oid::GEN_MEDIA_SUPPORTED,
    oid::GEN_MEDIA_IN_USE,
    oid::GEN_MAXIMUM_LOOKAHEAD,
    oid::GEN_MAXIMUM_FRAME_SIZE,
    oid::GEN_LINK_SPEED,
    oid::GEN_TRANSMIT_BUFFER_SPACE,
    oid::GEN_RECEIVE_BUFFER_SPACE,
    oid::GEN_TRANSMIT_BLOCK_SIZE,
    oid::GEN_RECEIVE_BLOCK_SIZE,
    oid::GEN_VENDOR_ID,
    oid::GEN_VENDOR_DESCRIPTION,
    oid::GEN_CURRENT_PACKET_FILTER,
    oid::GEN_CURRENT_LOOKAHEAD,
    oid::GEN_MAXIMUM_TOTAL_SIZE,
    oid::GEN_MAC_OPTIONS,
    oid::GEN_MEDIA_CONNECT_STATUS,
    oid::GEN_MAXIMUM_SEND_PACKETS,
    oid::GEN_VENDOR_DRIVER_VERSION,
    oid::GEN_PHYSICAL_MEDIUM,
    oid::GEN_RECEIVE_SCALE_CAPABILITIES,
    oid::GEN_RECEIVE_SCALE_PARAMETERS,
    oid::GEN_CONFIG_PARAMETER,
    oid::GEN_XMIT_OK,
    oid::GEN_RCV_OK,
    oid::GEN_XMIT_ERROR,
    oid::GEN_RCV_ERROR,
    oid::GEN_RCV_NO_BUFFER,
    oid::GEN_DIRECTED_BYTES_XMIT,
    oid::GEN_DIRECTED_FRAMES_XMIT,
    oid::GEN_MULTICAST_BYTES_XMIT,
    oid::GEN_MULTICAST_FRAMES_XMIT,
    oid::GEN_BROADCAST_BYTES_XMIT,
    oid::GEN_BROADCAST_FRAMES_XMIT,
    oid::GEN_DIRECTED_BYTES_RCV,
    oid::GEN_DIRECTED_FRAMES_RCV,
    oid::GEN_MULTICAST_BYTES_RCV,
    oid::GEN_MULTICAST_FRAMES_RCV,
    oid::GEN_BROADCAST_BYTES_RCV,
    oid::GEN_BROADCAST_FRAMES_RCV,
    oid::GEN_FRIENDLY_NAME,
    oid::ETHERNET_PERMANENT_ADDRESS,
    oid::ETHERNET_CURRENT_ADDRESS,
    oid::ETHERNET_MULTICAST_LIST,
    oid::ETHERNET_MAXIMUM_LIST_SIZE,
    oid::TCP_OFFLOAD_PARAMETERS,
    oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
];

impl Control {
    /// The bytes of an object. `input` is what came with the query.
    pub(super) fn query_object(&self, object: u32, input: &[u8]) -> Result<Vec<u8>, Status> {
        let total = self.mtu + ETHERNET_HEADER as u32;
        let word = match object {
            oid::GEN_HARDWARE_STATUS | oid::GEN_MEDIA_SUPPORTED | oid::GEN_MEDIA_IN_USE => 0,
            oid::GEN_PHYSICAL_MEDIUM => 0,
            oid::GEN_MAXIMUM_FRAME_SIZE => self.mtu,
            oid::GEN_MAXIMUM_LOOKAHEAD | oid::GEN_CURRENT_LOOKAHEAD | oid::GEN_MAXIMUM_TOTAL_SIZE => total,
            oid::GEN_TRANSMIT_BLOCK_SIZE | oid::GEN_RECEIVE_BLOCK_SIZE => total,
            oid::GEN_TRANSMIT_BUFFER_SPACE | oid::GEN_RECEIVE_BUFFER_SPACE => MAX_TRANSFER,
            // In units of 100 bits in a second.
            oid::GEN_LINK_SPEED => u32::try_from(self.identity.speed / 100).unwrap_or(u32::MAX),
            // No vendor code of the IEEE.
            oid::GEN_VENDOR_ID => 0x00FF_FFFF,
            oid::GEN_VENDOR_DRIVER_VERSION => 0x0001_0000,
            oid::GEN_CURRENT_PACKET_FILTER => self.filter,
            oid::GEN_MAC_OPTIONS => MAC_OPTIONS,
            oid::GEN_MEDIA_CONNECT_STATUS => u32::from(!self.link),
            oid::GEN_MAXIMUM_SEND_PACKETS => MAX_PACKETS,
            oid::ETHERNET_MAXIMUM_LIST_SIZE => super::set::MAX_MULTICAST as u32,
            _ => return self.query_bytes(object, input),
        };
        Ok(word.to_le_bytes().to_vec())
    }

    fn query_bytes(&self, object: u32, input: &[u8]) -> Result<Vec<u8>, Status> {
        match object {
            oid::GEN_SUPPORTED_LIST => Ok(SUPPORTED.as_bytes().to_vec()),
            oid::GEN_VENDOR_DESCRIPTION => Ok(DESCRIPTION.to_vec()),
            oid::GEN_FRIENDLY_NAME => {
                // The VSC gives 512 bytes for it.
                Ok(self.identity.name.encode_utf16().take(255).flat_map(u16::to_le_bytes).collect())
            }
            oid::ETHERNET_PERMANENT_ADDRESS => Ok(self.identity.mac.to_vec()),
            oid::ETHERNET_CURRENT_ADDRESS => Ok(self.mac.to_vec()),
            oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES => Ok(self.offload_capabilities(input)),
            oid::GEN_RECEIVE_SCALE_CAPABILITIES => Ok(self.scaling_capabilities()),
            _ => self.query_statistics(object),
        }
    }

    /// In the revision that the VSC asks for, if it says one.
    fn offload_capabilities(&self, input: &[u8]) -> Vec<u8> {
        let wanted = read::<ObjectHeader>(input).map_or(1, |header| header.revision);
        let (revision, size) = match wanted {
            0 | 1 => (1, OFFLOAD_SIZE_1),
            2 => (2, OFFLOAD_SIZE_2),
            _ => (3, OFFLOAD_SIZE_3),
        };
        let ethernet = ndis::ENCAPSULATION_ETHERNET;
        let coalesce = u8::from(self.can_coalesce);
        let offload = Offload {
            header: ObjectHeader { kind: ndis::TYPE_OFFLOAD, revision, size: size as u16 },
            checksum: ChecksumOffload {
                v4_send_encapsulation: ethernet,
                v4_send: ndis::CHECKSUM_V4,
                v4_receive_encapsulation: ethernet,
                v4_receive: ndis::CHECKSUM_V4,
                v6_send_encapsulation: ethernet,
                v6_send: ndis::CHECKSUM_V6,
                v6_receive_encapsulation: ethernet,
                v6_receive: ndis::CHECKSUM_V6,
            },
            large_send_v2: LargeSendV2 {
                v4_encapsulation: ethernet,
                v4_max_size: LARGE_SEND_MAX,
                v4_min_segments: 2,
                v6_encapsulation: ethernet,
                v6_max_size: LARGE_SEND_MAX,
                v6_min_segments: 2,
                v6_options: ndis::LARGE_SEND_V6_OPTIONS,
            },
            coalesce_v4: coalesce,
            coalesce_v6: coalesce,
            ..Offload::default()
        };
        object_bytes(&offload, size)
    }

    fn scaling_capabilities(&self) -> Vec<u8> {
        let size = size_of::<ReceiveScaleCapabilities>();
        let capabilities = ReceiveScaleCapabilities {
            header: ObjectHeader { kind: ndis::TYPE_RSS_CAPABILITIES, revision: 2, size: size as u16 },
            flags: ndis::RSS_CAPABILITIES,
            interrupts: u32::from(self.identity.queues),
            queues: u32::from(self.identity.queues),
            table_entries: ndis::RSS_TABLE_ENTRIES,
        };
        capabilities.as_bytes().to_vec()
    }

    fn query_statistics(&self, object: u32) -> Result<Vec<u8>, Status> {
        let (sent, received) = (&self.statistics.sent, &self.statistics.received);
        let number = match object {
            oid::GEN_XMIT_OK => sent.frames(),
            oid::GEN_RCV_OK => received.frames(),
            oid::GEN_XMIT_ERROR => sent.errors(),
            oid::GEN_RCV_ERROR => received.errors(),
            oid::GEN_RCV_NO_BUFFER => received.dropped(),
            oid::GEN_DIRECTED_BYTES_XMIT => sent.directed.bytes(),
            oid::GEN_DIRECTED_FRAMES_XMIT => sent.directed.frames(),
            oid::GEN_MULTICAST_BYTES_XMIT => sent.multicast.bytes(),
            oid::GEN_MULTICAST_FRAMES_XMIT => sent.multicast.frames(),
            oid::GEN_BROADCAST_BYTES_XMIT => sent.broadcast.bytes(),
            oid::GEN_BROADCAST_FRAMES_XMIT => sent.broadcast.frames(),
            oid::GEN_DIRECTED_BYTES_RCV => received.directed.bytes(),
            oid::GEN_DIRECTED_FRAMES_RCV => received.directed.frames(),
            oid::GEN_MULTICAST_BYTES_RCV => received.multicast.bytes(),
            oid::GEN_MULTICAST_FRAMES_RCV => received.multicast.frames(),
            oid::GEN_BROADCAST_BYTES_RCV => received.broadcast.bytes(),
            oid::GEN_BROADCAST_FRAMES_RCV => received.broadcast.frames(),
            _ => return Err(Status::InvalidOid),
        };
        Ok(number.to_le_bytes().to_vec())
    }
}

#[cfg(test)]
pub(super) fn supported() -> &'static [u32] {
    &SUPPORTED
}
