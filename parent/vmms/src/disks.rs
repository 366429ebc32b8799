//! Disks of virtual machines: added and removed, also while the guest runs.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parterre_api::hotplug::{DeviceAnswer, DeviceRequest};
use parterre_api::{DiskRequest, DiskSettings, MAX_LUNS, Vm, VmState, settle_format};
use parterre_partition::io::open_disk;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use uuid::Uuid;

use crate::manager::blocking;
use crate::{Error, Manager, Result};

/// How long a worker has to put a disk in.
const PATIENCE: Duration = Duration::from_secs(30);

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
            blocking(move || plug(&socket, disk)).await?;
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
        let is_it = move |disk: &DiskSettings| (disk.controller, disk.lun) == (controller, lun);
        if !vm.settings.disks.iter().any(is_it) {
            return Err(Error::Conflict(format!(
                "virtual machine '{name}' has no disk at place {lun} of controller {controller}; \
                 `parterre vm disk list {name}` shows those that it has"
            )));
        }
        if let Some(socket) = self.device_socket(&vm)? {
            blocking(move || tell(&socket, &DeviceRequest::RemoveDisk { controller, lun }, &[])).await?;
        }
        self.change_settings(name, move |settings| settings.disks.retain(|disk| !is_it(disk))).await.map(drop)
    }

    /// Where the worker takes devices; `None` if the virtual machine is off.
    fn device_socket(&self, vm: &Vm) -> Result<Option<PathBuf>> {
        match vm.status {
            VmState::Off(_) => Ok(None),
            VmState::Running { .. } => Ok(Some(self.paths().worker(vm.id).devices())),
            _ => Err(Error::Conflict(format!(
                "virtual machine '{}' is {}; wait until it runs or is off",
                vm.settings.name,
                vm.status.word().to_lowercase()
            ))),
        }
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
    let (file, wanted) = (request.file.clone(), request.format);
    let format = blocking(move || {
        let first = first_bytes(&file).map_err(|error| {
            Error::BadRequest(format!("cannot use {} as a disk: {error}", file.display()))
        })?;
        settle_format(&file, wanted, &first).map_err(Error::BadRequest)
    })
    .await?;
    let DiskRequest { file, read_only, dvd, serial, cache, .. } = request;
    let disk =
        DiskSettings { id: Uuid::new_v4(), controller, lun, file, format, read_only, dvd, serial, cache };
    disk.check().map_err(Error::BadRequest)?;
    Ok(disk)
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

/// Opens a disk's file and hands it to a worker.
fn plug(socket: &Path, disk: DiskSettings) -> Result<()> {
    let open = open_disk(&disk.file, disk.is_read_only(), disk.bypasses_cache()).map_err(Error::Conflict)?;
    let files: Vec<&File> = [Some(&open.cached), open.direct.as_ref()].into_iter().flatten().collect();
    tell(socket, &DeviceRequest::AddDisk { disk }, &files)
}

/// Asks a worker; a refusal is an error.
fn tell(socket: &Path, request: &DeviceRequest, files: &[&File]) -> Result<()> {
    let lost = |error: io::Error| Error::Failed(format!("the worker cannot be asked: {error}"));
    match exchange(socket, request, files).map_err(lost)? {
        DeviceAnswer::Done => Ok(()),
        DeviceAnswer::Failed { message } => Err(Error::Failed(message)),
    }
}

fn exchange(socket: &Path, request: &DeviceRequest, files: &[&File]) -> io::Result<DeviceAnswer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("too many descriptors for one request"));
    }
    let sent = sendmsg(&stream, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(line.get(sent..).unwrap_or_default())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
