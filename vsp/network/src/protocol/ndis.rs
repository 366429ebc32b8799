//! NDIS objects inside of RNDIS requests: task offloads and receive-side scaling.
//!
//! Layouts are those of Linux's `drivers/net/hyperv/hyperv_net.h`; the meaning of the fields is in the documentation of
//! `NDIS_OFFLOAD`, `NDIS_OFFLOAD_PARAMETERS` and `NDIS_RECEIVE_SCALE_PARAMETERS`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Object type of [`ReceiveScaleCapabilities`].
pub const TYPE_RSS_CAPABILITIES: u8 = 0x88;
/// Object type of [`ReceiveScaleParameters`].
pub const TYPE_RSS_PARAMETERS: u8 = 0x89;
/// Object type of [`Offload`].
pub const TYPE_OFFLOAD: u8 = 0xA7;
/// Object type of [`OffloadParameters`].
pub const TYPE_DEFAULT: u8 = 0x80;

/// The start of every object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ObjectHeader {
    /// What it is.
    pub kind: u8,
    /// Which revision of its layout.
    pub revision: u8,
    /// Its size in bytes.
    pub size: u16,
}

/// Checksums that an adapter computes and checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChecksumOffload {
    /// Encapsulation of IPv4 that is sent.
    pub v4_send_encapsulation: u32,
    /// IPv4 that is sent.
    pub v4_send: u32,
    /// Encapsulation of IPv4 that is received.
    pub v4_receive_encapsulation: u32,
    /// IPv4 that is received.
    pub v4_receive: u32,
    /// Encapsulation of IPv6 that is sent.
    pub v6_send_encapsulation: u32,
    /// IPv6 that is sent.
    pub v6_send: u32,
    /// Encapsulation of IPv6 that is received.
    pub v6_receive_encapsulation: u32,
    /// IPv6 that is received.
    pub v6_receive: u32,
}

/// Encapsulation: plain Ethernet.
pub const ENCAPSULATION_ETHERNET: u32 = 2;
/// IPv4: with options, TCP with options, TCP, UDP, and the header's own checksum.
pub const CHECKSUM_V4: u32 = 0x001 | 0x004 | 0x010 | 0x040 | 0x100;
/// IPv6: with extension headers, TCP with options, TCP, UDP.
pub const CHECKSUM_V6: u32 = 0x001 | 0x004 | 0x010 | 0x040;
/// Large send over IPv6: with extension headers and TCP options.
pub const LARGE_SEND_V6_OPTIONS: u32 = 0x001 | 0x004;

/// Large send, version 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LargeSendV2 {
    /// Encapsulation of IPv4.
    pub v4_encapsulation: u32,
    /// Longest payload over IPv4.
    pub v4_max_size: u32,
    /// Fewest segments over IPv4.
    pub v4_min_segments: u32,
    /// Encapsulation of IPv6.
    pub v6_encapsulation: u32,
    /// Longest payload over IPv6.
    pub v6_max_size: u32,
    /// Fewest segments over IPv6.
    pub v6_min_segments: u32,
    /// IPv6 options.
    pub v6_options: u32,
}

/// All offloads of an adapter (`NDIS_OFFLOAD`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Offload {
    /// Start.
    pub header: ObjectHeader,
    /// Checksums.
    pub checksum: ChecksumOffload,
    /// Large send, version 1; not provided.
    pub large_send_v1: [u32; 4],
    /// IPsec, version 1; not provided.
    pub ipsec_v1: [u32; 7],
    /// Large send, version 2.
    pub large_send_v2: LargeSendV2,
    /// Flags.
    pub flags: u32,
    /// IPsec, version 2; not provided. From revision 2 on.
    pub ipsec_v2: [u32; 8],
    /// Receive segment coalescing over IPv4. From revision 3 on.
    pub coalesce_v4: u8,
    /// Receive segment coalescing over IPv6. From revision 3 on.
    pub coalesce_v6: u8,
    /// Padding.
    pub reserved: [u8; 2],
    /// Encapsulated packets; not provided. From revision 3 on.
    pub encapsulated: [u32; 2],
}

/// Size of [`Offload`] in revision 1.
pub const OFFLOAD_SIZE_1: usize = core::mem::offset_of!(Offload, ipsec_v2);
/// Size of [`Offload`] in revision 2.
pub const OFFLOAD_SIZE_2: usize = core::mem::offset_of!(Offload, coalesce_v4);
/// Size of [`Offload`] in revision 3.
pub const OFFLOAD_SIZE_3: usize = size_of::<Offload>();

/// What a VSC wants of the offloads (`NDIS_OFFLOAD_PARAMETERS`). Zero always means: as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OffloadParameters {
    /// Start.
    pub header: ObjectHeader,
    /// IPv4 header checksum.
    pub v4: u8,
    /// TCP over IPv4.
    pub tcp_v4: u8,
    /// UDP over IPv4.
    pub udp_v4: u8,
    /// TCP over IPv6.
    pub tcp_v6: u8,
    /// UDP over IPv6.
    pub udp_v6: u8,
    /// Large send, version 1.
    pub large_send_v1: u8,
    /// IPsec, version 1.
    pub ipsec_v1: u8,
    /// Large send, version 2, over IPv4.
    pub large_send_v4: u8,
    /// Large send, version 2, over IPv6.
    pub large_send_v6: u8,
    /// TCP connection offload over IPv4.
    pub connection_v4: u8,
    /// TCP connection offload over IPv6.
    pub connection_v6: u8,
    /// Padding.
    pub reserved: u8,
    /// Flags.
    pub flags: u32,
    /// IPsec, version 2.
    pub ipsec_v2: u8,
    /// IPsec, version 2, over IPv4.
    pub ipsec_v2_v4: u8,
    /// Receive segment coalescing over IPv4.
    pub coalesce_v4: u8,
    /// Receive segment coalescing over IPv6.
    pub coalesce_v6: u8,
    /// Encapsulated packets.
    pub encapsulated: u8,
    /// Kinds of encapsulation.
    pub encapsulation_types: u8,
    /// Padding.
    pub reserved2: [u8; 2],
}

/// Bytes of [`OffloadParameters`] that every VSC knows.
pub const OFFLOAD_PARAMETERS_MIN: usize = 16;

/// A checksum is left to the VSC, in both directions.
pub const CHECKSUM_OFF: u8 = 1;
/// A checksum is computed and checked here.
pub const CHECKSUM_SEND_AND_RECEIVE: u8 = 4;
/// Off, for large send and coalescing.
pub const OFF: u8 = 1;
/// On, for large send and coalescing.
pub const ON: u8 = 2;

/// What receive-side scaling can do (`NDIS_RECEIVE_SCALE_CAPABILITIES`). Linux's layout is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
pub struct ReceiveScaleCapabilities {
    /// Start.
    pub header: ObjectHeader,
    /// Flags.
    pub flags: u32,
    /// Number of interrupts.
    pub interrupts: u32,
    /// Number of queues.
    pub queues: u32,
    /// Entries of the indirection table.
    pub table_entries: u16,
}

/// Toeplitz over TCP and IPv4, TCP and IPv6; message-signalled interrupts.
pub const RSS_CAPABILITIES: u32 = 0x0100_0000 | 0x0000_0300;
/// Entries of the indirection table.
pub const RSS_TABLE_ENTRIES: u16 = 128;
/// Most bytes of the secret key.
pub const RSS_KEY_MAX: usize = 40;

/// How received packets shall be spread (`NDIS_RECEIVE_SCALE_PARAMETERS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReceiveScaleParameters {
    /// Start.
    pub header: ObjectHeader,
    /// What is changed.
    pub flags: u16,
    /// Not used.
    pub base_cpu: u16,
    /// Function and kinds of packets.
    pub hash: u32,
    /// Bytes of the indirection table.
    pub table_len: u16,
    /// Padding.
    pub reserved: u16,
    /// Where the table is, from the start of this structure.
    pub table_offset: u32,
    /// Bytes of the key.
    pub key_len: u16,
    /// Padding.
    pub reserved2: u16,
    /// Where the key is, from the start of this structure.
    pub key_offset: u32,
    /// Processor masks; not used.
    pub masks: [u32; 3],
}

/// The hash is as it was.
pub const RSS_HASH_UNCHANGED: u16 = 2;
/// The table is as it was.
pub const RSS_TABLE_UNCHANGED: u16 = 4;
/// The key is as it was.
pub const RSS_KEY_UNCHANGED: u16 = 8;
/// Scaling is switched off.
pub const RSS_DISABLE: u16 = 0x10;

const _: () = {
    assert!(size_of::<ChecksumOffload>() == 32);
    assert!(OFFLOAD_SIZE_1 == 112);
    assert!(OFFLOAD_SIZE_2 == 144);
    assert!(OFFLOAD_SIZE_3 == 156);
    assert!(size_of::<OffloadParameters>() == 28);
    assert!(size_of::<ReceiveScaleCapabilities>() == 18);
    assert!(size_of::<ReceiveScaleParameters>() == 40);
};
