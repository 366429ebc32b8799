//! Versions of the VMBus protocol, major number in the high half (Linux `VERSION_*`).

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A protocol version.
#[repr(transparent)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct Version(pub u32);

impl Version {
    /// Windows Server 2008.
    pub const WS2008: Version = Version::new(0, 13);
    /// Windows 7, Windows Server 2008 R2: connection ids, dedicated interrupts.
    pub const WIN7: Version = Version::new(1, 1);
    /// Windows 8, Windows Server 2012: target processor at open, sub-channels.
    pub const WIN8: Version = Version::new(2, 4);
    /// Windows 8.1: unload, modify channel.
    pub const WIN8_1: Version = Version::new(3, 0);
    /// Windows 10: hv_sock.
    pub const WIN10: Version = Version::new(4, 0);
    /// Windows 10, modify channel with a response.
    pub const WIN10_V4_1: Version = Version::new(4, 1);
    /// Windows 10: message connection id and SINT are negotiated.
    pub const WIN10_V5: Version = Version::new(5, 0);
    /// As 5.0, with a longer connect request for hv_sock.
    pub const WIN10_V5_1: Version = Version::new(5, 1);
    /// As 5.1, with a silo in the connect request.
    pub const WIN10_V5_2: Version = Version::new(5, 2);
    /// As 5.2, modify channel is answered.
    pub const WIN10_V5_3: Version = Version::new(5, 3);
    /// Feature flags (confidential channels).
    pub const WIN10_V6_0: Version = Version::new(6, 0);

    /// All versions, oldest first.
    pub const ALL: [Version; 11] = [
        Self::WS2008,
        Self::WIN7,
        Self::WIN8,
        Self::WIN8_1,
        Self::WIN10,
        Self::WIN10_V4_1,
        Self::WIN10_V5,
        Self::WIN10_V5_1,
        Self::WIN10_V5_2,
        Self::WIN10_V5_3,
        Self::WIN10_V6_0,
    ];

    /// The version `major.minor`.
    pub const fn new(major: u16, minor: u16) -> Version {
        Version((major as u32) << 16 | minor as u32)
    }

    /// Whether the server speaks this version.
    pub fn is_known(self) -> bool {
        Self::ALL.contains(&self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xFFFF)
    }
}
