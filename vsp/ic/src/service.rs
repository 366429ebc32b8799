//! The services: names, identities, versions.
//!
//! The class identities are those of Linux `include/linux/hyperv.h`. The instance identities are those that every
//! Hyper-V machine has; Linux's file copy daemon looks for its channel by it.

use std::fmt;

use parterre_vmbus_server::Guid;

use crate::wire::{MessageType, Version};

/// An integration service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Is the guest alive?
    Heartbeat,
    /// The guest's clock.
    TimeSync,
    /// Shutdown and restart from the parent.
    Shutdown,
    /// Data exchange: keys and values (KVP).
    KeyValue,
    /// Backup: freeze and thaw of file systems (VSS).
    Backup,
    /// Copy of files into the guest.
    FileCopy,
}

/// Versions of the framework that are offered, oldest first.
pub const FRAMEWORK_VERSIONS: &[Version] = &[Version::new(1, 0), Version::new(3, 0)];

impl Service {
    /// All services.
    pub const ALL: [Service; 6] = [
        Service::Heartbeat,
        Service::TimeSync,
        Service::Shutdown,
        Service::KeyValue,
        Service::Backup,
        Service::FileCopy,
    ];

    /// The name that Hyper-V shows.
    pub const fn name(self) -> &'static str {
        match self {
            Service::Heartbeat => "Heartbeat",
            Service::TimeSync => "Time Synchronization",
            Service::Shutdown => "Shutdown",
            Service::KeyValue => "Key-Value Pair Exchange",
            Service::Backup => "VSS",
            Service::FileCopy => "Guest Service Interface",
        }
    }

    /// The identity of the kind of channel.
    pub const fn class(self) -> Guid {
        match self {
            Service::Heartbeat => Guid::from_u128(0x57164f39_9115_4e78_ab55_382f3bd5422d),
            Service::TimeSync => Guid::from_u128(0x9527e630_d0ae_497b_adce_e80ab0175caf),
            Service::Shutdown => Guid::from_u128(0x0e0b6031_5213_4934_818b_38d90ced39db),
            Service::KeyValue => Guid::from_u128(0xa9a0f4e7_5a45_4d96_b827_8a841e8c03e6),
            Service::Backup => Guid::from_u128(0x35fa2e29_ea23_4236_96ae_3a6ebacba440),
            Service::FileCopy => Guid::from_u128(0x34d14be3_dee4_41c8_9ae7_6b174977c192),
        }
    }

    /// The identity of the channel.
    pub const fn instance(self) -> Guid {
        match self {
            Service::Heartbeat => Guid::from_u128(0xfd149e91_82e0_4a7d_afa6_2a4166cbd7c0),
            Service::TimeSync => Guid::from_u128(0x2dd1ce17_079e_403c_b352_a1921ee207ee),
            Service::Shutdown => Guid::from_u128(0xb6650ff7_33bc_4840_8048_e0676786f393),
            Service::KeyValue => Guid::from_u128(0x242ff919_07db_4180_9c2e_b86cb68c8c55),
            Service::Backup => Guid::from_u128(0x2450ee40_33bf_4fbd_892e_9fb06e9214cf),
            Service::FileCopy => Guid::from_u128(0xeb765408_105f_49b6_b4aa_c123b64d17d4),
        }
    }

    /// The kind of its requests.
    pub const fn message_type(self) -> MessageType {
        match self {
            Service::Heartbeat => MessageType::Heartbeat,
            Service::TimeSync => MessageType::TimeSync,
            Service::Shutdown => MessageType::Shutdown,
            Service::KeyValue => MessageType::KeyValue,
            Service::Backup => MessageType::Backup,
            Service::FileCopy => MessageType::FileCopy,
        }
    }

    /// Versions of its messages that are offered, oldest first.
    pub const fn versions(self) -> &'static [Version] {
        const V1_0: Version = Version::new(1, 0);
        const V3_0: Version = Version::new(3, 0);
        const V3_1: Version = Version::new(3, 1);
        const V3_2: Version = Version::new(3, 2);
        const V4_0: Version = Version::new(4, 0);
        const V5_0: Version = Version::new(5, 0);
        const V1_1: Version = Version::new(1, 1);
        match self {
            Service::Heartbeat => &[V1_0, V3_0],
            Service::TimeSync => &[V1_0, V3_0, V4_0],
            Service::Shutdown => &[V1_0, V3_0, V3_1, V3_2],
            Service::KeyValue => &[V1_0, V3_0, V4_0],
            Service::Backup => &[V5_0],
            Service::FileCopy => &[V1_1],
        }
    }

    /// Whether a guest that takes this version would do better with a newer driver.
    pub fn is_outdated(self, version: Version) -> bool {
        self.versions().iter().any(|newer| *newer > version)
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn identities_are_unique_and_versions_ascend() {
        let all = Service::ALL.map(|service| [service.class(), service.instance()]).concat();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        for service in Service::ALL {
            assert!(service.versions().is_sorted());
            let newest = service.versions().last().unwrap();
            assert!(!service.is_outdated(*newest));
        }
        assert!(Service::TimeSync.is_outdated(Version::new(3, 0)));
    }
}
