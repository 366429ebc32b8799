//! Copies of a virtual machine's disks that belong together: made while its guest's file systems are frozen, or while it stands still.
//!
//! ```text
//!   off:      nobody may start it meanwhile (a lock on each file)
//!   running:  freeze, copy, thaw; with --crash-consistent pause, copy, resume
//!   paused:   copy
//! ```
//! Whatever happens, the guest goes on before the command ends, and a copy that is not whole is removed.

mod image;

use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parterre_api::{DiskSettings, ErrorBody, Vm, VmState, format_size};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use super::freeze;
use super::interrupt::Interrupts;
use crate::client::{Client, vm_path};
use crate::error::Error;
use crate::progress::Progress;

/// The definition of the virtual machine, beside the copies.
const DEFINITION: &str = "definition.json";

/// What is wanted.
pub(super) struct Wish {
    /// The virtual machine.
    pub(super) name: String,
    /// Where the copies go: a directory that is not there yet.
    pub(super) directory: PathBuf,
    /// Places of disks, by controller; all that can be written if empty.
    pub(super) disks: Vec<(u8, u8)>,
    /// For how many seconds file systems may be frozen.
    pub(super) limit: u32,
    /// Have the virtual machine stand still instead of asking its guest.
    pub(super) crash_consistent: bool,
}

/// What a copy is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Consistency {
    /// The machine was off.
    Off,
    /// File systems are whole.
    FileSystems,
    /// It is what a power cut would have left.
    Crash,
}

/// A disk that was copied.
#[derive(Debug, Serialize)]
pub(super) struct Copied {
    controller: u8,
    lun: u8,
    /// The copy.
    pub(super) file: PathBuf,
}

/// What was made.
#[derive(Debug, Serialize)]
pub(super) struct Backup {
    /// Where.
    pub(super) directory: PathBuf,
    /// What it is worth.
    pub(super) consistency: Consistency,
    /// The copies.
    pub(super) disks: Vec<Copied>,
}

/// Makes the copies.
pub(super) async fn backup(client: &Client, wish: &Wish) -> Result<Backup, Error> {
    let vm: Vm = client.get(&vm_path(&wish.name)).await?;
    let disks = chosen(&vm, &wish.disks)?;
    let interrupts = Interrupts::catch()?;
    let directory = &wish.directory;
    fs::create_dir(directory).map_err(|source| Error::File { path: directory.clone(), source })?;
    let cancelled = Arc::new(AtomicBool::new(false));
    let made = tokio::select! {
        made = make(client, wish, &vm, disks, cancelled.clone()) => made,
        // Ends the copy, and so the other branch.
        never = cancel(interrupts, &cancelled) => match never {},
    };
    if made.is_err() {
        // What is there is not whole. Nobody else had put anything there.
        let _ = fs::remove_dir_all(directory);
    }
    made
}

/// Has the copy break off when somebody wants the command to end.
async fn cancel(mut interrupts: Interrupts, cancelled: &AtomicBool) -> Infallible {
    loop {
        interrupts.next().await;
        cancelled.store(true, Ordering::Relaxed);
    }
}

/// The disks to be copied.
fn chosen(vm: &Vm, wanted: &[(u8, u8)]) -> Result<Vec<DiskSettings>, Error> {
    let disks = &vm.settings.disks;
    if wanted.is_empty() {
        let changing = disks.iter().filter(|disk| disk.file.is_some() && !disk.is_read_only());
        return Ok(changing.cloned().collect());
    }
    let at = |place: &(u8, u8)| {
        let found = disks.iter().find(|disk| (disk.controller, disk.lun) == *place && disk.file.is_some());
        found.cloned().ok_or_else(|| Error::NoDisk {
            name: vm.settings.name.clone(),
            controller: place.0,
            lun: place.1,
        })
    };
    wanted.iter().map(at).collect()
}

/// How the machine is kept from changing its disks.
async fn make(
    client: &Client,
    wish: &Wish,
    vm: &Vm,
    disks: Vec<DiskSettings>,
    cancelled: Arc<AtomicBool>,
) -> Result<Backup, Error> {
    let path = vm_path(&wish.name);
    let copies = Copies { directory: wish.directory.clone(), disks, cancelled };
    let (consistency, files) = match vm.status {
        VmState::Off(_) => (Consistency::Off, copies.make(true).await?),
        VmState::Paused { .. } => (Consistency::Crash, copies.make(false).await?),
        VmState::Running { .. } if wish.crash_consistent => {
            client.post::<Vm>(&(path.clone() + "/pause"), &()).await?;
            let files = copies.make(false).await;
            client.post::<Vm>(&(path + "/resume"), &()).await?;
            (Consistency::Crash, files?)
        }
        VmState::Running { .. } => {
            freeze::begin(client, &wish.name, wish.limit).await.map_err(with_remedy)?;
            let files = copies.make(false).await;
            let was_frozen = freeze::thaw(client, &wish.name).await?;
            let files = files?;
            if !was_frozen {
                return Err(Error::ThawedEarly { name: wish.name.clone(), seconds: wish.limit });
            }
            (Consistency::FileSystems, files)
        }
        _ => {
            return Err(Error::Changing { name: wish.name.clone(), state: vm.status.word().to_lowercase() });
        }
    };
    // The guest goes on already.
    let disks = keep(&wish.directory, vm, files)?;
    Ok(Backup { directory: wish.directory.clone(), consistency, disks })
}

/// What can be done if the guest does not freeze.
fn with_remedy(error: Error) -> Error {
    match error {
        Error::Service(body) => {
            let message =
                format!("{}; --crash-consistent copies the disks without the guest's help", body.message);
            Error::Service(ErrorBody { message, ..body })
        }
        other => other,
    }
}

/// Copies to be made.
struct Copies {
    directory: PathBuf,
    disks: Vec<DiskSettings>,
    cancelled: Arc<AtomicBool>,
}

type Files = Vec<(Copied, File)>;

impl Copies {
    /// Makes them, on a thread of its own; `lock`: nobody else may use the disks meanwhile.
    async fn make(self, lock: bool) -> Result<Files, Error> {
        let copying = tokio::task::spawn_blocking(move || {
            let progress = Progress::start("copying disks");
            self.disks.iter().map(|disk| self.one(disk, lock, &progress)).collect()
        });
        copying.await.unwrap_or_else(|error| Err(Error::Protocol(error.to_string())))
    }

    fn one(&self, disk: &DiskSettings, lock: bool, progress: &Progress) -> Result<(Copied, File), Error> {
        let (controller, lun) = (disk.controller, disk.lun);
        let from = disk.file.clone().unwrap_or_default();
        let at_source = |source| Error::File { path: from.clone(), source };
        let mut source = File::open(&from).map_err(at_source)?;
        if lock {
            let locked = flock(&source, FlockOperation::NonBlockingLockShared);
            locked.map_err(|_| Error::InUse { path: from.clone() })?;
        }
        let file = self.directory.join(format!("disk-{controller}-{lun}.{}", disk.format.name()));
        let copied = image::copy(&mut source, &file, &self.cancelled, |done, all| {
            let (done, all) = (format_size(done), format_size(all));
            progress.step(&format!("copying {}: {done} of {all}", from.display()));
        });
        match copied {
            Ok(copy) => Ok((Copied { controller, lun, file }, copy)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(Error::Interrupted),
            Err(source) => Err(Error::Copy { from, to: file, source }),
        }
    }
}

/// Makes what was copied survive a power cut, and writes down what machine it is of.
fn keep(directory: &Path, vm: &Vm, files: Files) -> Result<Vec<Copied>, Error> {
    let _progress = Progress::start("waiting until all is on the disk");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { path, source }
    };
    for (copied, file) in &files {
        file.sync_all().map_err(failed(&copied.file))?;
    }
    let definition = directory.join(DEFINITION);
    let text = serde_json::to_string_pretty(&vm.settings).map_err(|e| Error::Protocol(e.to_string()))?;
    fs::write(&definition, text + "\n").map_err(failed(&definition))?;
    File::open(&definition).and_then(|file| file.sync_all()).map_err(failed(&definition))?;
    File::open(directory).and_then(|file| file.sync_all()).map_err(failed(directory))?;
    Ok(files.into_iter().map(|(copied, _)| copied).collect())
}
