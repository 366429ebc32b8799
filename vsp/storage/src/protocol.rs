//! The vstor protocol: what a storage VSC and its VSP say to each other over a VMBus channel.
//!
//! Every packet of either side is one [`Packet`]; the payload's meaning depends on the operation. Numbers and layouts are
//! those of Linux's `drivers/scsi/storvsc_drv.c`. Guests before Windows 8 send it without the last 16 bytes.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Operations of a packet (`enum vstor_packet_operation`).
pub mod operation {
    /// VSP to VSC: the answer to a packet.
    pub const COMPLETE_IO: u32 = 1;
    /// VSP to VSC: a device is gone.
    pub const REMOVE_DEVICE: u32 = 2;
    /// A SCSI request.
    pub const EXECUTE_SRB: u32 = 3;
    /// Reset one logical unit.
    pub const RESET_LUN: u32 = 4;
    /// Reset the controller.
    pub const RESET_ADAPTER: u32 = 5;
    /// Reset a bus.
    pub const RESET_BUS: u32 = 6;
    /// First packet of a new channel.
    pub const BEGIN_INITIALIZATION: u32 = 7;
    /// Last packet of the initialization.
    pub const END_INITIALIZATION: u32 = 8;
    /// Is this version spoken?
    pub const QUERY_PROTOCOL_VERSION: u32 = 9;
    /// What can the channel do?
    pub const QUERY_PROPERTIES: u32 = 10;
    /// VSP to VSC: look for devices that came or went.
    pub const ENUMERATE_BUS: u32 = 11;
    /// Fibre Channel addresses.
    pub const FCHBA_DATA: u32 = 12;
    /// Offer this many sub-channels.
    pub const CREATE_SUB_CHANNELS: u32 = 13;
}

/// The server shall answer the packet (`REQUEST_COMPLETION_FLAG`).
pub const FLAG_COMPLETION: u32 = 1;
/// The channel takes sub-channels (`STORAGE_CHANNEL_SUPPORTS_MULTI_CHANNEL`).
pub const MULTI_CHANNEL: u32 = 1;

/// Statuses of a packet: `NTSTATUS` values.
pub mod status {
    /// Done.
    pub const SUCCESS: u32 = 0;
    /// The version is not spoken (`STATUS_REVISION_MISMATCH`).
    pub const REVISION_MISMATCH: u32 = 0xC000_0059;
    /// Not now (`STATUS_INVALID_DEVICE_STATE`).
    pub const INVALID_DEVICE_STATE: u32 = 0xC000_0184;
    /// Not with these values (`STATUS_INVALID_PARAMETER`).
    pub const INVALID_PARAMETER: u32 = 0xC000_000D;
    /// No such operation (`STATUS_INVALID_DEVICE_REQUEST`).
    pub const INVALID_DEVICE_REQUEST: u32 = 0xC000_0010;
}

/// Versions that are spoken: 2.0 (Windows Server 2008), 4.2 (7), 5.1 (8), 6.0 (8.1), 6.2 (10).
pub const VERSIONS: [u16; 5] = [0x0200, 0x0402, 0x0501, 0x0600, 0x0602];
/// The first version whose packets have their full length and whose channels take sub-channels.
pub const VERSION_WIN8: u16 = 0x0501;

/// Longest sense data that a request holds (`STORVSC_SENSE_BUFFER_SIZE`).
pub const SENSE_SIZE: usize = 20;

/// A SCSI request and its outcome (`struct vmscsi_request`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ScsiRequest {
    /// Length of this structure.
    pub length: U16,
    /// Outcome as the port driver sees it, see [`srb`].
    pub srb_status: u8,
    /// SCSI status byte.
    pub scsi_status: u8,
    /// The guest's number of the controller.
    pub port_number: u8,
    /// Bus; only 0 has devices.
    pub path_id: u8,
    /// Target; only 0 has devices.
    pub target_id: u8,
    /// Logical unit.
    pub lun: u8,
    /// Length of the command.
    pub cdb_length: u8,
    /// Room for sense data; in an answer, its length.
    pub sense_info_length: u8,
    /// 0 to the device, 1 from the device, 2 unknown or none.
    pub data_in: u8,
    /// Not used.
    pub reserved: u8,
    /// Length of the data; in an answer, how much was transferred.
    pub data_transfer_length: U32,
    /// The command in its first 16 bytes; in an answer, the sense data.
    pub cdb_or_sense: [u8; SENSE_SIZE],
    /// Not used.
    pub reserve: U16,
    /// Tag for ordering.
    pub queue_tag: u8,
    /// Kind of ordering.
    pub queue_action: u8,
    /// SRB flags.
    pub srb_flags: U32,
    /// In seconds.
    pub time_out_value: U32,
    /// For ordering.
    pub queue_sort_key: U32,
}

/// Port driver statuses (`SRB_STATUS_*`).
pub mod srb {
    /// Done.
    pub const SUCCESS: u8 = 0x01;
    /// Failed; see the SCSI status and the sense data.
    pub const ERROR: u8 = 0x04;
    /// The request itself is wrong.
    pub const INVALID_REQUEST: u8 = 0x06;
    /// There is no such logical unit.
    pub const INVALID_LUN: u8 = 0x20;
    /// Flag: sense data is there.
    pub const AUTOSENSE_VALID: u8 = 0x80;
}

/// What a channel can do (`struct vmstorage_channel_properties`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChannelProperties {
    /// Zero.
    pub reserved: U32,
    /// Most sub-channels.
    pub max_channel_count: U16,
    /// Zero.
    pub reserved1: U16,
    /// See [`MULTI_CHANNEL`].
    pub flags: U32,
    /// Longest transfer of one request.
    pub max_transfer_bytes: U32,
    /// Zero.
    pub reserved2: U64,
}

/// Length of a packet's payload area.
pub const PAYLOAD_SIZE: usize = 52;
/// Length of a packet.
pub const PACKET_SIZE: usize = 64;
/// Length of a packet of a guest before Windows 8.
pub const OLD_PACKET_SIZE: usize = 48;

/// A packet (`struct vstor_packet`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Packet {
    /// See [`operation`].
    pub operation: U32,
    /// See [`FLAG_COMPLETION`].
    pub flags: U32,
    /// See [`status`].
    pub status: U32,
    /// Depends on the operation.
    pub payload: [u8; PAYLOAD_SIZE],
}

const _: () = assert!(size_of::<ScsiRequest>() == PAYLOAD_SIZE);
const _: () = assert!(size_of::<ChannelProperties>() == 24);
const _: () = assert!(size_of::<Packet>() == PACKET_SIZE);

impl Packet {
    /// A packet from the bytes of a channel; shorter ones of old guests are filled up with zeroes, longer ones cut.
    /// `None` if it is too short to be one.
    pub fn parse(bytes: &[u8]) -> Option<Packet> {
        if bytes.len() < OLD_PACKET_SIZE {
            return None;
        }
        let mut packet = Packet::new_zeroed();
        let length = bytes.len().min(PACKET_SIZE);
        packet.as_mut_bytes().get_mut(..length)?.copy_from_slice(bytes.get(..length)?);
        Some(packet)
    }

    /// A packet with an operation and nothing else.
    pub fn new(operation: u32) -> Packet {
        let mut packet = Packet::new_zeroed();
        packet.operation = operation.into();
        packet
    }

    /// The answer to a packet of initialization, with a status.
    pub fn answer(status: u32) -> Packet {
        let mut packet = Packet::new(operation::COMPLETE_IO);
        packet.status = status.into();
        packet
    }

    /// The payload as a SCSI request.
    pub fn scsi(&self) -> ScsiRequest {
        zerocopy::transmute!(self.payload)
    }

    /// Puts a SCSI request in.
    pub fn set_scsi(&mut self, request: &ScsiRequest) {
        self.payload.copy_from_slice(request.as_bytes());
    }

    /// The first two bytes of the payload: a version, or a number of sub-channels.
    pub fn word(&self) -> u16 {
        u16::from_le_bytes([self.payload[0], self.payload[1]])
    }

    /// Puts channel properties in.
    pub fn set_properties(&mut self, properties: &ChannelProperties) {
        self.payload[..size_of::<ChannelProperties>()].copy_from_slice(properties.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_all_lengths() {
        assert!(Packet::parse(&[0; 47]).is_none());
        let mut bytes = [0u8; 80];
        (bytes[0], bytes[12 + 7], bytes[63], bytes[64]) = (3, 9, 5, 7);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.operation.get(), packet.scsi().lun), (3, 9));
        assert_eq!(packet.scsi().queue_sort_key.get(), 5 << 24);
        let old = Packet::parse(&bytes[..48]).unwrap();
        assert_eq!((old.scsi().lun, old.scsi().queue_sort_key.get()), (9, 0));
    }
}
