//! Disks of virtual machines: added and removed, also while the guest runs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use parterre_api::hotplug::{DeviceAnswer, DeviceRequest};
use parterre_api::worker::EjectedDisc;
use parterre_api::{
    DiskFormat, DiskRequest, DiskSettings, DiskSize, MAX_LUNS, MediumRequest, ResizeRequest, Vm, VmSettings,
    settle_format,
};
use parterre_partition::io::open_disk;
use uuid::Uuid;

use crate::devices::tell;
use crate::manager::blocking;
use crate::{Error, Manager, Result};

impl Manager {
    /// The disks of a virtual machine.
    pub fn disks(&self, name: &str) -> Result<Vec<DiskSettings>> {
        Ok(self.show(name)?.settings.disks)
    }

    /// Adds a disk. When this returns, it is in the definition on the disk, and a guest that runs has it.
    pub async fn add_disk(&self, name: &str, request: DiskRequest) -> Result<DiskSettings> {
        let vm = self.show(name)?;
        let disk = settle(&vm, request).await?;
        let mut disks = vm.settings.disks.clone();
        disks.push(disk.clone());
        parterre_api::check_disks(&disks).map_err(Error::Conflict)?;
        let socket = self.device_socket(&vm)?;
        if let Some(socket) = socket.clone() {
            let disk = disk.clone();
            let request = DeviceRequest::AddDisk { disk: disk.clone() };
            blocking(move || plug(&socket, &disk, &request)).await?;
        }
        let added = disk.clone();
        let changed = self.change_settings(name, move |settings| {
            settings.disks.push(added);
            settings.disks.sort_by_key(|disk| (disk.controller, disk.lun));
        });
        if let Err(error) = changed.await {
            if let Some(socket) = socket {
                // What is not in the definition is not in the machine either.
                let request = DeviceRequest::RemoveDisk { controller: disk.controller, lun: disk.lun };
                let _ = blocking(move || tell(&socket, &request, &[])).await;
            }
            return Err(error);
        }
        Ok(disk)
    }

    /// Removes a disk. Its file stays.
    pub async fn remove_disk(&self, name: &str, controller: u8, lun: u8) -> Result<()> {
        let vm = self.show(name)?;
        disk_at(&vm, controller, lun)?;
        let is_it = move |disk: &DiskSettings| (disk.controller, disk.lun) == (controller, lun);
        if let Some(socket) = self.device_socket(&vm)? {
            blocking(move || tell(&socket, &DeviceRequest::RemoveDisk { controller, lun }, &[])).await?;
        }
        self.change_settings(name, move |settings| settings.disks.retain(|disk| !is_it(disk))).await.map(drop)
    }

    /// Puts another disc into a DVD drive, or takes it out. When this returns, the definition on the disk says so, and a guest that
    /// runs finds it.
    pub async fn change_medium(
        &self,
        name: &str,
        (controller, lun): (u8, u8),
        request: MediumRequest,
    ) -> Result<DiskSettings> {
        let vm = self.show(name)?;
        let before = disk_at(&vm, controller, lun)?;
        if !before.dvd {
            return Err(Error::Conflict(format!(
                "the disk at place {lun} of controller {controller} of '{name}' is no DVD drive; remove it and add another"
            )));
        }
        let MediumRequest { file, format, force } = request;
        let format = format_of(file.clone(), format).await?;
        let disk = DiskSettings { file, format, ..before.clone() };
        let mut disks = vm.settings.disks.clone();
        disks.retain(|disk| disk.id != before.id);
        disks.push(disk.clone());
        parterre_api::check_disks(&disks).map_err(Error::Conflict)?;
        let socket = self.device_socket(&vm)?;
        if let Some(socket) = socket.clone() {
            put(&socket, &disk, force).await?;
        }
        let after = disk.clone();
        let changed = self.change_settings(name, move |settings| {
            settings
                .disks
                .iter_mut()
                .filter(|disk| disk.id == after.id)
                .for_each(|disk| *disk = after.clone());
        });
        if let Err(error) = changed.await {
            if let Some(socket) = socket {
                let _ = put(&socket, &before, true).await;
            }
            return Err(error);
        }
        Ok(disk)
    }

    /// A guest has emptied drives itself: as the tray of a real machine, they are empty at the next start too. Gives what makes the
    /// definition say so, if it does not yet.
    pub(crate) fn emptied(
        &self,
        id: Uuid,
        ejected: &[EjectedDisc],
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let ejected = ejected.to_vec();
        let is_out = move |disk: &DiskSettings| {
            let same = |disc: &EjectedDisc| disc.drive == disk.id && disk.file.as_ref() == Some(&disc.file);
            disk.dvd && ejected.iter().any(same)
        };
        let vm = self.show(&id.to_string()).ok()?;
        if !vm.settings.disks.iter().any(&is_out) {
            return None;
        }
        let manager = self.clone();
        Some(async move {
            let empty = move |settings: &mut VmSettings| {
                for disk in settings.disks.iter_mut().filter(|disk| is_out(disk)) {
                    (disk.file, disk.format) = (None, DiskFormat::default());
                }
            };
            if let Err(error) = manager.change_settings(&id.to_string(), empty).await {
                let name = &vm.settings.name;
                eprintln!("vmms: '{name}' has emptied its drive, which cannot be written down: {error}");
            }
        })
    }

    /// Grows a disk, or takes notice that it has grown; a guest that runs is told. Gives its size.
    pub async fn resize_disk(
        &self,
        name: &str,
        (controller, lun): (u8, u8),
        request: ResizeRequest,
    ) -> Result<DiskSize> {
        request.check().map_err(Error::BadRequest)?;
        let vm = self.show(name)?;
        let disk = disk_at(&vm, controller, lun)?;
        let size = request.size;
        let size = match (self.device_socket(&vm)?, size) {
            (Some(socket), size) => {
                let request = DeviceRequest::ResizeDisk { controller, lun, size };
                match blocking(move || tell(&socket, &request, &[])).await? {
                    DeviceAnswer::Resized { size } => size,
                    _ => return Err(Error::Failed("the worker does not say how large the disk is".into())),
                }
            }
            (None, Some(size)) => {
                let worker = self.worker_program().to_owned();
                blocking(move || grow(&worker, &disk, size)).await?
            }
            (None, None) => {
                return Err(Error::Conflict(format!(
                    "virtual machine '{name}' is off and finds the disk's size when it starts; give a size to grow the disk now"
                )));
            }
        };
        Ok(DiskSize { size })
    }
}

/// Chooses what the request leaves open.
async fn settle(vm: &Vm, request: DiskRequest) -> Result<DiskSettings> {
    let controller = request.controller.unwrap_or(0);
    let taken =
        |lun: &u8| vm.settings.disks.iter().any(|disk| (disk.controller, disk.lun) == (controller, *lun));
    let lun = match request.lun {
        Some(lun) => lun,
        None => (0..MAX_LUNS).find(|lun| !taken(lun)).ok_or_else(|| {
            Error::Conflict(format!(
                "all places of controller {controller} are taken; use another controller"
            ))
        })?,
    };
    let format = format_of(request.file.clone(), request.format).await?;
    let DiskRequest { file, read_only, dvd, serial, cache, .. } = request;
    let disk =
        DiskSettings { id: Uuid::new_v4(), controller, lun, file, format, read_only, dvd, serial, cache };
    disk.check().map_err(Error::BadRequest)?;
    Ok(disk)
}

/// The disk at a place.
fn disk_at(vm: &Vm, controller: u8, lun: u8) -> Result<DiskSettings> {
    let mut disks = vm.settings.disks.iter();
    let disk = disks.find(|disk| (disk.controller, disk.lun) == (controller, lun));
    disk.cloned().ok_or_else(|| {
        let name = &vm.settings.name;
        Error::Conflict(format!(
            "virtual machine '{name}' has no disk at place {lun} of controller {controller}; \
             `parterre vm disk list {name}` shows those that it has"
        ))
    })
}

/// The format of a file that is about to become a disk; an empty drive has none.
async fn format_of(file: Option<PathBuf>, wanted: Option<DiskFormat>) -> Result<DiskFormat> {
    let Some(file) = file else { return Ok(DiskFormat::default()) };
    blocking(move || {
        let first = first_bytes(&file).map_err(|error| {
            Error::BadRequest(format!("cannot use {} as a disk: {error}", file.display()))
        })?;
        settle_format(&file, wanted, &first).map_err(Error::BadRequest)
    })
    .await
}

/// What a file begins with.
fn first_bytes(path: &Path) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileTypeExt;
    let kind = std::fs::metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::other("it is neither a file nor a block device"));
    }
    let mut first = Vec::new();
    File::open(path)?.take(64).read_to_end(&mut first)?;
    Ok(first)
}

/// Opens a disk's file, if it has one, and hands it to a worker.
fn plug(socket: &Path, disk: &DiskSettings, request: &DeviceRequest) -> Result<()> {
    let open = disk.file.as_ref().map(|file| open_disk(file, disk.is_read_only(), disk.bypasses_cache()));
    let open = open.transpose().map_err(Error::Conflict)?;
    let files = open.iter().flat_map(|open| [Some(&open.cached), open.direct.as_ref()]).flatten();
    let descriptors: Vec<BorrowedFd<'_>> = files.map(AsFd::as_fd).collect();
    tell(socket, request, &descriptors).map(drop)
}

/// Has a worker put another disc into a drive.
async fn put(socket: &Path, disk: &DiskSettings, force: bool) -> Result<()> {
    let (socket, disk) = (socket.to_owned(), disk.clone());
    let request = DeviceRequest::ChangeMedium { disk: disk.clone(), force };
    blocking(move || plug(&socket, &disk, &request)).await
}

/// Grows a disk that nobody uses. The service does not look into images; a program without rights does.
fn grow(worker: &Path, disk: &DiskSettings, size: u64) -> Result<u64> {
    let failed = |why: String| Error::Failed(format!("{} cannot be grown: {why}", disk.file_name()));
    let (Some(file), false) = (&disk.file, disk.is_read_only()) else {
        return Err(failed("it is read-only".into()));
    };
    let open = open_disk(file, false, false).map_err(Error::Conflict)?;
    let output = Command::new(worker)
        .args(["--grow-disk", disk.format.name(), "--size", &size.to_string()])
        .stdin(Stdio::from(open.cached))
        .output()
        .map_err(|error| failed(format!("{}: {error}", worker.display())))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match said(&output.stdout).parse() {
        Ok(size) if output.status.success() => Ok(size),
        _ => Err(failed(said(&output.stderr))),
    }
}
