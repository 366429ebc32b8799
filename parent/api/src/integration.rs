//! Integration services: which there are, which are switched on, what they do in a guest.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest key of an item for the guest, in UTF-16 units.
const MAX_KEY: usize = 255;
/// Longest value of an item for the guest, in UTF-16 units.
const MAX_VALUE: usize = 1023;
/// Most items for the guest.
const MAX_ITEMS: usize = 256;

/// An integration service, by the name that commands use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntegrationService {
    /// Is the guest alive?
    Heartbeat,
    /// The guest's clock is kept by the parent's.
    TimeSync,
    /// Shutdown and restart from the parent.
    Shutdown,
    /// Keys and values between parent and guest (KVP).
    DataExchange,
    /// Freeze and thaw of the guest's file systems (VSS).
    Backup,
    /// Copy of files into the guest.
    FileCopy,
}

impl IntegrationService {
    /// All services.
    pub const ALL: [IntegrationService; 6] = [
        IntegrationService::Heartbeat,
        IntegrationService::TimeSync,
        IntegrationService::Shutdown,
        IntegrationService::DataExchange,
        IntegrationService::Backup,
        IntegrationService::FileCopy,
    ];

    /// The name that commands use.
    pub fn name(self) -> &'static str {
        match self {
            IntegrationService::Heartbeat => "heartbeat",
            IntegrationService::TimeSync => "time-sync",
            IntegrationService::Shutdown => "shutdown",
            IntegrationService::DataExchange => "data-exchange",
            IntegrationService::Backup => "backup",
            IntegrationService::FileCopy => "file-copy",
        }
    }

    /// The name that Hyper-V shows.
    pub fn title(self) -> &'static str {
        match self {
            IntegrationService::Heartbeat => "Heartbeat",
            IntegrationService::TimeSync => "Time Synchronization",
            IntegrationService::Shutdown => "Shutdown",
            IntegrationService::DataExchange => "Key-Value Pair Exchange",
            IntegrationService::Backup => "VSS",
            IntegrationService::FileCopy => "Guest Service Interface",
        }
    }
}

impl fmt::Display for IntegrationService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for IntegrationService {
    type Err = String;

    /// Takes the name of commands or Hyper-V's.
    fn from_str(text: &str) -> Result<IntegrationService, String> {
        let is = |service: &IntegrationService| {
            text.eq_ignore_ascii_case(service.name()) || text.eq_ignore_ascii_case(service.title())
        };
        IntegrationService::ALL.into_iter().find(is).ok_or_else(|| {
            let names = IntegrationService::ALL.map(IntegrationService::name).join(", ");
            format!("there is no integration service '{text}'; there are {names}")
        })
    }
}

/// What a person decides about the integration services of a virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntegrationSettings {
    /// Services that are not as they are by default: all on, but for the file copy.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<IntegrationService, bool>,
    /// Items that the guest is given by data exchange.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub items: BTreeMap<String, String>,
}

impl IntegrationSettings {
    /// Whether a service is switched on.
    pub fn is_enabled(&self, service: IntegrationService) -> bool {
        self.services.get(&service).copied().unwrap_or(service != IntegrationService::FileCopy)
    }

    /// Checks the items.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub fn check(&self) -> Result<(), String> {
        if self.items.len() > MAX_ITEMS {
            return Err(format!(
                "{} items are too many: a guest is given at most {MAX_ITEMS}",
                self.items.len()
            ));
        }
        self.items.iter().try_for_each(|(key, value)| check_item(key, value))
    }
}

/// Checks an item for a guest.
///
/// # Errors
/// A sentence that says what is wrong and what to do.
pub fn check_item(key: &str, value: &str) -> Result<(), String> {
    let length = |text: &str| text.encode_utf16().count();
    if key.is_empty() || length(key) > MAX_KEY || key.contains('\0') {
        return Err(format!("'{}' cannot be a key: use 1 to {MAX_KEY} characters", key.escape_default()));
    }
    if length(value) > MAX_VALUE || value.contains('\0') {
        return Err(format!("the value of '{}' is longer than {MAX_VALUE} characters", key.escape_default()));
    }
    Ok(())
}

/// What a service does in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ServiceState {
    /// It is switched off by the settings.
    Disabled,
    /// The virtual machine is off.
    Off,
    /// The guest has not found VMBus (yet).
    NoContact,
    /// The guest has a driver, whose part in user space has not answered (yet).
    Waiting,
    /// The guest knows VMBus, but not this service.
    NotSupported {
        /// Why, if it is not simply absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// It runs.
    Running {
        /// Version of its messages.
        version: String,
        /// Version of the framework.
        framework: String,
        /// The version that a newer guest would speak.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        update: Option<String>,
        /// What else there is to say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServiceState::Disabled => write!(f, "disabled"),
            ServiceState::Off => write!(f, "enabled"),
            ServiceState::NoContact => write!(f, "no contact"),
            ServiceState::Waiting => write!(f, "waiting for the guest's daemon"),
            ServiceState::NotSupported { reason: None } => write!(f, "not supported by guest"),
            ServiceState::NotSupported { reason: Some(reason) } => {
                write!(f, "not supported by guest ({reason})")
            }
            ServiceState::Running { version, update, detail, .. } => {
                write!(f, "running {version}")?;
                if let Some(detail) = detail {
                    write!(f, ", {detail}")?;
                }
                match update {
                    Some(update) => write!(f, "; update available ({update})"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// A service of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Which.
    pub service: IntegrationService,
    /// What it does.
    #[serde(flatten)]
    pub state: ServiceState,
}

/// The integration services of a virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntegrationStatus {
    /// Version of VMBus that the guest has chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmbus: Option<String>,
    /// The services.
    pub services: Vec<ServiceStatus>,
    /// What the guest's operating system says of itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub guest: BTreeMap<String, String>,
    /// The last crash that it has told of since the virtual machine was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash: Option<GuestCrash>,
}

/// A crash of a guest's operating system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCrash {
    /// When, in seconds since 1970 by the parent's clock.
    pub time: u64,
    /// Parameters, whose meaning is the guest's business.
    pub parameters: [u64; 5],
    /// The end of its kernel's log, or nothing.
    pub message: String,
}

impl GuestCrash {
    /// What there is to say in one line, without the time.
    pub fn summary(&self) -> String {
        let mut lines = self.message.lines().map(str::trim).filter(|line| !line.is_empty());
        let panic = lines.clone().find(|line| line.contains("Kernel panic"));
        match panic.or_else(|| lines.next_back()) {
            Some(line) => line.into(),
            None => format!("parameters {:x?}", self.parameters),
        }
    }
}

impl IntegrationStatus {
    /// The state while the virtual machine is off.
    pub fn off(settings: &IntegrationSettings) -> IntegrationStatus {
        let state = |service| match settings.is_enabled(service) {
            true => ServiceState::Off,
            false => ServiceState::Disabled,
        };
        let services =
            IntegrationService::ALL.map(|service| ServiceStatus { service, state: state(service) });
        IntegrationStatus { services: services.into(), ..IntegrationStatus::default() }
    }
}

/// What is changed about a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceChange {
    /// Switch it on or off.
    pub enabled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_names_and_defaults() {
        for service in IntegrationService::ALL {
            assert_eq!(service.name().parse(), Ok(service));
            assert_eq!(service.title().parse(), Ok(service));
            assert_eq!(serde_json::to_string(&service).unwrap(), format!("\"{}\"", service.name()));
        }
        assert!("vsock".parse::<IntegrationService>().unwrap_err().contains("heartbeat"));
        let mut settings: IntegrationSettings = serde_json::from_str("{}").unwrap();
        assert!(settings.is_enabled(IntegrationService::Heartbeat));
        assert!(!settings.is_enabled(IntegrationService::FileCopy));
        settings.services.insert(IntegrationService::FileCopy, true);
        assert_eq!(serde_json::to_string(&settings).unwrap(), r#"{"services":{"file-copy":true}}"#);
        assert!(settings.is_enabled(IntegrationService::FileCopy));
    }

    #[test]
    fn items_are_checked() {
        assert_eq!(check_item("k", ""), Ok(()));
        assert!(check_item("", "v").is_err());
        assert!(check_item(&"k".repeat(256), "v").is_err());
        assert!(check_item("k", &"v".repeat(1024)).is_err());
    }

    #[test]
    fn crashes_speak() {
        let crash = |message: &str| {
            GuestCrash { time: 0, parameters: [1, 2, 3, 4, 0xab], message: message.into() }.summary()
        };
        assert_eq!(crash(""), "parameters [1, 2, 3, 4, ab]");
        assert_eq!(
            crash("[ 1.0] a\n[ 2.0] Kernel panic - not syncing: x\n[ 2.1] CPU: 0\n"),
            "[ 2.0] Kernel panic - not syncing: x"
        );
        assert_eq!(crash("a\nb\n\n"), "b");
    }

    #[test]
    fn states_speak() {
        let running = ServiceState::Running {
            version: "3.0".into(),
            framework: "3.0".into(),
            update: Some("4.0".into()),
            detail: Some("OK".into()),
        };
        assert_eq!(running.to_string(), "running 3.0, OK; update available (4.0)");
        assert_eq!(ServiceState::NotSupported { reason: None }.to_string(), "not supported by guest");
        let status = ServiceStatus { service: IntegrationService::Backup, state: ServiceState::Waiting };
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(json, r#"{"service":"backup","state":"waiting"}"#);
        assert_eq!(serde_json::from_str::<ServiceStatus>(&json).unwrap(), status);
    }
}
