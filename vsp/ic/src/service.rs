//! The services: names, identities, versions.
//!
//! The class identities are those of Linux `include/linux/hyperv.h`. The instance identities are those that every
//! Hyper-V machine has; Linux's file copy daemon looks for its channel by it.

use std::fmt;

use uuid::{Uuid, uuid};

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
    pub const fn class(self) -> Uuid {
        match self {
            Service::Heartbeat => uuid!("57164f39-9115-4e78-ab55-382f3bd5422d"),
            Service::TimeSync => uuid!("9527e630-d0ae-497b-adce-e80ab0175caf"),
            Service::Shutdown => uuid!("0e0b6031-5213-4934-818b-38d90ced39db"),
            Service::KeyValue => uuid!("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6"),
            Service::Backup => uuid!("35fa2e29-ea23-4236-96ae-3a6ebacba440"),
            Service::FileCopy => uuid!("34d14be3-dee4-41c8-9ae7-6b174977c192"),
        }
    }

    /// The identity of the channel.
    pub const fn instance(self) -> Uuid {
        match self {
            Service::Heartbeat => uuid!("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"),
            Service::TimeSync => uuid!("2dd1ce17-079e-403c-b352-a1921ee207ee"),
            Service::Shutdown => uuid!("b6650ff7-33bc-4840-8048-e0676786f393"),
            Service::KeyValue => uuid!("242ff919-07db-4180-9c2e-b86cb68c8c55"),
            Service::Backup => uuid!("2450ee40-33bf-4fbd-892e-9fb06e9214cf"),
            Service::FileCopy => uuid!("eb765408-105f-49b6-b4aa-c123b64d17d4"),
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
