//! The state of the integration services in words.

use std::time::UNIX_EPOCH;

use parterre_api::{GuestCrash, IntegrationService, IntegrationStatus, ServiceState, ServiceStatus};
use parterre_vsp_ic::heartbeat::{Applications, Health, Heartbeat};
use parterre_vsp_ic::kvp::KeyValue;
use parterre_vsp_ic::vss::{Backup, FileSystems};
use parterre_vsp_ic::{Component, Link, Protocol, Session};

use super::Guest;
use crate::crash::Crash;

impl Guest {
    /// What all services do.
    pub fn status(&self) -> IntegrationStatus {
        let version = self.bus_version();
        let state = |service| self.state(service, version.is_some());
        let services =
            IntegrationService::ALL.map(|service| ServiceStatus { service, state: state(service) });
        let guest = self.items.with(|session, _| session.protocol().guest_items().to_vec());
        IntegrationStatus {
            vmbus: version.map(|version| version.to_string()),
            services: services.into(),
            guest: guest.into_iter().map(|item| (item.key, item.value)).collect(),
            crash: self.crashes.last().map(told),
        }
    }

    fn state(&self, service: IntegrationService, contact: bool) -> ServiceState {
        if !self.is_enabled(service) {
            return ServiceState::Disabled;
        }
        match service {
            IntegrationService::Heartbeat => {
                state(&self.heartbeat, contact, |session, now| heartbeat(session.protocol(), now))
            }
            IntegrationService::TimeSync => state(&self.time, contact, |session, _| {
                let count = session.protocol().synchronized();
                (count == 0).then(|| "clock not set yet".into())
            }),
            IntegrationService::Shutdown => state(&self.shutdown, contact, |_, _| None),
            IntegrationService::DataExchange => {
                state(&self.items, contact, |session, _| guest_version(session.protocol()))
            }
            IntegrationService::Backup => {
                state(&self.backup, contact, |session, _| backup(session.protocol()))
            }
            IntegrationService::FileCopy => state(&self.copy, contact, |session, _| {
                session.protocol().is_busy().then(|| "copying a file".into())
            }),
        }
    }
}

fn told(crash: Crash) -> GuestCrash {
    let Crash { time, parameters, message } = crash;
    let time = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    GuestCrash { time, parameters, message }
}

fn heartbeat(heart: &Heartbeat, now: std::time::Duration) -> Option<String> {
    let health = match heart.health(now) {
        Health::NoContact => "no answer yet",
        Health::Ok => "OK",
        Health::Lost => "lost communication",
    };
    Some(match heart.applications() {
        Applications::Unknown => health.into(),
        Applications::Healthy => format!("{health} (applications healthy)"),
        Applications::Critical => format!("{health} (applications critical)"),
    })
}

fn guest_version(items: &KeyValue) -> Option<String> {
    items.guest_item("IntegrationServicesVersion").map(|version| format!("guest's own version {version}"))
}

fn backup(backup: &Backup) -> Option<String> {
    match backup.file_systems() {
        FileSystems::Thawed => None,
        FileSystems::Changing => Some("file systems being frozen or thawed".into()),
        FileSystems::Frozen => Some("file systems frozen".into()),
        FileSystems::Unknown => {
            Some("file systems perhaps frozen: the guest did not say that it has thawed them".into())
        }
    }
}

/// The state of one service; `detail` adds what is its own while it runs.
fn state<P: Protocol>(
    component: &Component<P>,
    contact: bool,
    detail: impl FnOnce(&Session<P>, std::time::Duration) -> Option<String>,
) -> ServiceState {
    component.with(|session, now| match session.link() {
        Link::Closed if !contact => ServiceState::NoContact,
        Link::Closed => ServiceState::NotSupported { reason: None },
        Link::Negotiating => ServiceState::Waiting,
        Link::Mismatch => {
            let reason = match session.complaint() {
                Some(complaint) => complaint.to_string(),
                None => "no version in common".into(),
            };
            ServiceState::NotSupported { reason: Some(reason) }
        }
        Link::Running(choice) => {
            let newest = session.protocol().versions().last().filter(|newest| **newest > choice.version);
            ServiceState::Running {
                version: choice.version.to_string(),
                framework: choice.framework.to_string(),
                update: newest.map(ToString::to_string),
                detail: detail(session, now),
            }
        }
    })
}
