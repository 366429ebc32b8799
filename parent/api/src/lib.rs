//! Request and response types of the management interface, and of the talk between `vmms` and its workers.
//!
//! The REST interface is spoken over a unix socket ([`Paths::api_socket`]):
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/host` | | [`HostInfo`] |
//! | `GET /v1/vms` | | list of [`Vm`] |
//! | `POST /v1/vms` | [`VmSettings`] | [`Vm`] |
//! | `GET /v1/vms/{name}` | | [`Vm`] |
//! | `GET /v1/vms/{name}/watch` | | one [`Vm`] per line, now and at each change |
//! | `POST /v1/vms/{name}/start` | | [`Vm`], once it runs |
//! | `POST /v1/vms/{name}/stop` | [`StopRequest`] | [`Vm`], once it is off |
//! | `DELETE /v1/vms/{name}` | | nothing |
//! | `POST /v1/vms/{name}/pause`, `.../resume` | | [`Vm`], once it stands still or goes on |
//! | `POST /v1/vms/{name}/shutdown` | [`guest::ShutdownRequest`] | [`Vm`], once it is off or has restarted |
//! | `GET /v1/vms/{name}/integration` | | [`IntegrationStatus`] |
//! | `PUT /v1/vms/{name}/integration/{service}` | [`ServiceChange`] | [`IntegrationStatus`] |
//! | `GET /v1/vms/{name}/memory` | | [`MemoryStatus`] |
//! | `PUT /v1/vms/{name}/memory` | [`MemoryRequest`] | [`MemoryStatus`], once the guest is there or spares no more |
//! | `GET /v1/vms/{name}/screenshot` | | a PNG file |
//! | `GET /v1/vms/{name}/items/{pool}` | | the items, by key |
//! | `PUT`, `DELETE /v1/vms/{name}/items/external/{key}` | [`guest::ItemValue`], none | nothing |
//! | `POST /v1/vms/{name}/freeze`, `.../thaw` | [`guest::FreezeRequest`], none | [`guest::GuestAnswer`] |
//! | `GET /v1/vms/{name}/disks` | | list of [`DiskSettings`] |
//! | `POST /v1/vms/{name}/disks` | [`DiskRequest`] | [`DiskSettings`] |
//! | `DELETE /v1/vms/{name}/disks/{controller}/{lun}` | | nothing |
//! | `PUT /v1/vms/{name}/disks/{controller}/{lun}/medium` | [`MediumRequest`] | [`DiskSettings`] |
//! | `PUT /v1/vms/{name}/disks/{controller}/{lun}/size` | [`ResizeRequest`] | [`DiskSize`], once the guest has been told |
//! | `POST /v1/vms/{name}/network` | [`AdapterRequest`] | [`Vm`] |
//! | `DELETE /v1/vms/{name}/network/{mac}` | | nothing |
//! | `PUT /v1/vms/{name}/network/{mac}/link` | [`LinkRequest`] | [`Vm`] |
//! | `GET /v1/switches` | | list of [`Switch`] |
//! | `POST /v1/switches` | [`SwitchSettings`] | [`Switch`] |
//! | `GET /v1/switches/{name}` | | [`Switch`] |
//! | `DELETE /v1/switches/{name}` | | nothing |
//!
//! Failures are answered with [`ErrorBody`]. It holds no logic beyond checks of what is written in it.

#![forbid(unsafe_code)]

mod disk;
pub mod guest;
pub mod hotplug;
mod integration;
mod medium;
mod memory;
mod network;
mod paths;
mod size;
mod vlan;
mod vm;
pub mod worker;

pub use disk::{
    DiskCache, DiskFormat, DiskRequest, DiskSettings, MAX_CONTROLLERS, MAX_LUNS, check_disks, settle_format,
};
pub use integration::{
    GuestCrash, IntegrationService, IntegrationSettings, IntegrationStatus, ServiceChange, ServiceState,
    ServiceStatus, check_item,
};
pub use medium::{DiskSize, MAX_DISK_SIZE, MediumRequest, ResizeRequest};
pub use memory::{MIN_ASSIGNED, MemoryRequest, MemoryStatus};
pub use network::{
    AdapterOptions, AdapterRequest, AddressLease, DEFAULT_MTU, LinkRequest, MAX_NETWORK_ADAPTERS, MacAddress,
    NetworkAdapter, Switch, SwitchKind, SwitchSettings, parse_prefix,
};
pub use paths::{Paths, WorkerPaths};
pub use size::{format_size, parse_size};
pub use vlan::{Trunk, VlanList};
pub use vm::{MAX_PROCESSORS, MIN_MEMORY, OffReason, StopRequest, Vm, VmSettings, VmState, check_memory};

use serde::{Deserialize, Serialize};

/// What an answer of failure holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what happened, to which object, what to do.
    pub message: String,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request makes no sense as it stands.
    BadRequest,
    /// There is no such virtual machine.
    NotFound,
    /// The virtual machine is in a state that does not allow it.
    Conflict,
    /// It was tried and failed.
    Failed,
    /// It did not happen in the time given.
    Timeout,
}

/// What the service knows of the machine it runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Version of the service.
    pub version: String,
    /// Whether `/dev/mshv` is there.
    pub hypervisor_device: bool,
    /// Number of virtual machines defined.
    pub virtual_machines: usize,
    /// Number of virtual machines that run.
    pub running: usize,
}
