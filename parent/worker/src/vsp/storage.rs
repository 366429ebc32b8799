//! The machine's disks: controllers by its settings, and the engine that gives guest memory to the kernel.
//!
//! All rings are made before the sandbox closes, as many as the controllers may have channels at a time, so that a running worker
//! needs no right to make one. A channel that is closed gives its ring back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use parterre_api::{DiskFormat, DiskSettings};
use parterre_partition::io::{
    Immediate, IoCompletion, IoOperation, IoRequest, IoRing, Patience, discard_blocks, open_disk,
    takes_discards,
};
use parterre_partition::memory::{GuestMemory, Regions};
use parterre_vmbus_server::ring::Segment;
use parterre_vmbus_server::{Device, Wait};
use parterre_vsp_storage::controller::queues;
use parterre_vsp_storage::disk::{Completion, DiskError, Operation, Request};
use parterre_vsp_storage::file::{Direct, Discard, DiskFile, OpenFile, raw};
use parterre_vsp_storage::pool::Pool;
use parterre_vsp_storage::{Backing, Controller, Engine, Engines, Identity, Kind, Lun, Medium, qcow2};
use uuid::Uuid;

use super::ejected::Ejected;
use crate::processor::log_line;

/// Requests of a ring that the kernel is told of at once.
const RING_DEPTH: u32 = 128;

/// Rings that no channel uses.
struct Rings {
    idle: Mutex<Vec<IoRing>>,
    memory: Regions,
}

impl Rings {
    fn give_back(&self, ring: IoRing) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(ring);
    }
}

struct RingEngines(Arc<Rings>);

impl Engines for RingEngines {
    fn engine(&self) -> io::Result<Box<dyn Engine>> {
        let ring = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = &self.0.memory;
        let pool = Pool::new(Arc::new(memory.clone()))?;
        let Some(ring) = ring else {
            // The kernel gave none.
            return Ok(Box::new(pool));
        };
        let (immediate, ended, rings) = (Immediate::new(memory.clone()), Vec::new(), self.0.clone());
        Ok(Box::new(RingEngine { ring: Some(ring), pool, immediate, ended, rings }))
    }
}

/// Files that are kept in memory at once, others by io_uring, images and what is rare by threads.
struct RingEngine {
    /// There until the engine is dropped.
    ring: Option<IoRing>,
    pool: Pool,
    immediate: Immediate,
    /// Requests that ended at once.
    ended: Vec<Completion>,
    rings: Arc<Rings>,
}

/// Whether a request may go past the page cache.
fn is_aligned(direct: &Direct, offset: u64, segments: &[Segment]) -> bool {
    let memory = u64::from(direct.memory_alignment) - 1;
    let file = u64::from(direct.offset_alignment) - 1;
    // The guest's memory is aligned in the host as it is in the guest.
    offset & file == 0
        && segments.iter().all(|segment| segment.gpa & memory == 0 && segment.len & (memory | file) == 0)
}

/// The way of a request to its file.
fn route<'a>(file: &'a DiskFile, request: &Request<'_>) -> (&'a Arc<File>, Option<&'a Arc<File>>) {
    match &file.direct {
        Some(direct) if is_aligned(direct, request.offset, request.segments) => {
            (&direct.file, Some(&file.cached))
        }
        _ => (&file.cached, None),
    }
}

/// The memory of a request, piece by piece.
fn pieces<'a>(request: &Request<'a>) -> impl Iterator<Item = (u64, u64)> + 'a {
    request.segments.iter().map(|segment| (segment.gpa, segment.len))
}

impl Engine for RingEngine {
    fn submit(&mut self, request: Request<'_>) -> Result<(), DiskError> {
        let operation = match request.operation {
            Operation::Read => IoOperation::Read,
            Operation::Write { durable } => IoOperation::Write { durable },
            Operation::Flush => IoOperation::Sync,
            Operation::Discard | Operation::WriteZeroes { .. } => return self.pool.submit(request),
        };
        let (Backing::File(disk), Some(ring)) = (&request.medium.backing, &mut self.ring) else {
            return self.pool.submit(request);
        };
        // The kernel's threads, which would do what is asked of a ring, would do the same, only later.
        if disk.resident
            && self.immediate.transfer(
                &disk.cached,
                operation,
                request.offset,
                pieces(&request),
                Patience::File,
            )
        {
            self.ended.push(Completion { tag: request.tag, result: Ok(()) });
            return Ok(());
        }
        let (file, spare) = match operation {
            IoOperation::Sync => (&disk.cached, None),
            _ => route(disk, &request),
        };
        let io = IoRequest { tag: request.tag, file, spare, operation, offset: request.offset };
        if ring.push(io, pieces(&request)) { Ok(()) } else { Err(DiskError::Memory) }
    }

    fn kick(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.submit();
        }
        self.pool.kick();
    }

    fn at_once(&mut self, request: &Request<'_>) -> bool {
        let operation = match request.operation {
            Operation::Read => IoOperation::Read,
            Operation::Write { durable: false } => IoOperation::Write { durable: false },
            _ => return false,
        };
        let Backing::File(disk) = &request.medium.backing else { return false };
        let patience = match route(disk, request) {
            _ if disk.resident => Patience::File,
            // Past the page cache there is always a disk to wait for.
            (_, Some(_)) => return false,
            (_, None) => Patience::None,
        };
        self.immediate.transfer(&disk.cached, operation, request.offset, pieces(request), patience)
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.ended);
        if let Some(ring) = &mut self.ring {
            ring.completions(|IoCompletion { tag, result }| {
                done.push(Completion { tag, result: result.map_err(DiskError::from) });
            });
        }
        self.pool.completions(done);
    }

    fn drain(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.drain();
        }
        self.ended.clear();
        self.pool.drain();
    }

    fn wait(&self, wait: &mut Wait) {
        if let Some(ring) = &self.ring {
            wait.readable(ring.source());
        }
        self.pool.wait(wait);
    }
}

impl Drop for RingEngine {
    fn drop(&mut self) {
        self.drain();
        if let Some(ring) = self.ring.take() {
            self.rings.give_back(ring);
        }
    }
}

/// A medium from descriptors that are open.
///
/// # Errors
/// A sentence: the file cannot be used for what it is to be.
pub fn medium(format: DiskFormat, read_only: bool, dvd: bool, open: OpenFile) -> Result<Medium, String> {
    Ok(match format {
        DiskFormat::Raw => {
            let (file, facts) = raw(open, read_only, dvd)?;
            Medium { facts, backing: Backing::File(file) }
        }
        DiskFormat::Qcow2 => {
            let (image, facts) = qcow2::open(open.cached, read_only)?;
            Medium { facts, backing: Backing::Image(Arc::new(image)) }
        }
    })
}

/// What is in a disk or drive, from descriptors that are open.
fn medium_of(disk: &DiskSettings, open: Option<OpenFile>) -> Result<Option<Arc<Medium>>, String> {
    let Some(open) = open else { return Ok(None) };
    let medium = medium(disk.format, disk.is_read_only(), disk.dvd, open);
    medium.map(Arc::new).map(Some).map_err(|error| format!("{}: {error}", disk.file_name()))
}

/// A unit with its medium.
fn unit(disk: &DiskSettings, open: Option<OpenFile>) -> Result<Lun, String> {
    let kind = if disk.dvd { Kind::Dvd } else { Kind::Disk };
    Ok(Lun::new(kind, Identity::new(disk.id, disk.serial.as_deref()), medium_of(disk, open)?))
}

/// Opens the file of a disk that has one.
fn open(disk: &DiskSettings) -> Result<Option<OpenFile>, String> {
    let Some(file) = &disk.file else { return Ok(None) };
    let open = open_disk(file, disk.is_read_only(), disk.bypasses_cache())?;
    Ok(Some(opened(open.cached, open.direct)))
}

/// Descriptors of a disk's file, with what can be done with it.
pub fn opened(cached: File, direct: Option<File>) -> OpenFile {
    let discard = takes_discards(&cached).then_some(discard_blocks as Discard);
    OpenFile { cached, direct, discard }
}

/// The controllers of a machine.
pub struct Storage {
    controllers: BTreeMap<u8, Arc<Controller>>,
    ejected: Ejected,
}

impl Storage {
    /// The controllers that the disks need, and the first in any case, so that disks can be added while the guest runs. Opens the
    /// disks' files.
    ///
    /// # Errors
    /// A sentence that names the disk.
    pub fn new(
        machine: Uuid,
        processors: u32,
        disks: &[DiskSettings],
        memory: &GuestMemory,
        ejected: Ejected,
    ) -> Result<Storage, String> {
        let count = disks.iter().map(|disk| disk.controller + 1).max().unwrap_or(0).max(1);
        let idle = rings(memory, u32::from(count) * u32::from(queues(processors)));
        let rings = Arc::new(Rings { idle: Mutex::new(idle), memory: memory.regions().clone() });
        let engines = Arc::new(RingEngines(rings));
        let make = |number: u8| {
            let controller = Controller::new(machine, number, processors, engines.clone());
            let controller = controller.map_err(|e| format!("cannot make SCSI controller {number}: {e}"))?;
            Ok((number, Arc::new(controller)))
        };
        let controllers = (0..count).map(make).collect::<Result<_, String>>()?;
        let storage = Storage { controllers, ejected };
        for disk in disks {
            storage.add(disk, open(disk)?)?;
        }
        Ok(storage)
    }

    /// The controllers as devices on VMBus.
    pub fn devices(&self) -> impl Iterator<Item = Arc<dyn Device>> + '_ {
        self.controllers.values().map(|controller| controller.clone() as Arc<dyn Device>)
    }

    fn controller(&self, number: u8) -> Result<&Controller, String> {
        self.controllers.get(&number).map(|controller| &**controller).ok_or_else(|| {
            format!(
                "the virtual machine was started without controller {number}; stop it, or use another controller"
            )
        })
    }

    /// Puts a disk in, with its file if it has one; the guest is told.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn add(&self, disk: &DiskSettings, open: Option<OpenFile>) -> Result<(), String> {
        let controller = self.controller(disk.controller)?;
        let unit = Arc::new(unit(disk, open)?);
        controller.add(disk.lun, unit.clone()).map_err(|error| error.to_string())?;
        self.ejected.watch(&unit, disk);
        Ok(())
    }

    /// Takes a disk out; the guest is told.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn remove(&self, controller: u8, lun: u8) -> Result<(), String> {
        self.controller(controller)?.remove(lun).map(drop).map_err(|error| error.to_string())
    }

    fn lun(&self, controller: u8, lun: u8) -> Result<Arc<Lun>, String> {
        let unit = self.controller(controller)?.lun(lun);
        unit.ok_or_else(|| format!("place {lun} of controller {controller} is empty"))
    }

    /// Puts another disc into a drive, or takes it out; the guest hears of it with its next command. A guest that has locked the drive is asked
    /// to let go of its disc, unless `force` says not to care.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn change_medium(
        &self,
        disk: &DiskSettings,
        open: Option<OpenFile>,
        force: bool,
    ) -> Result<(), String> {
        let lun = self.lun(disk.controller, disk.lun)?;
        if lun.kind() != Kind::Dvd || !disk.dvd {
            return Err(format!("the disk at place {} is no DVD drive; remove it and add another", disk.lun));
        }
        let medium = medium_of(disk, open)?;
        if lun.is_locked() && lun.medium().is_some() && !force {
            lun.request_eject();
            return Err("the guest has locked the drive, as it does while the disc is mounted; it was told that the disc is to come \
                        out: try again when it has let go of it, or use --force"
                .into());
        }
        self.ejected.change(disk, || lun.change_medium(medium));
        Ok(())
    }

    /// Grows a disk to `size` bytes, or takes notice of its file's growth; gives its size. The guest is told.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn resize(&self, controller: u8, lun: u8, size: Option<u64>) -> Result<u64, String> {
        let unit = self.lun(controller, lun)?;
        let medium = unit.medium().filter(|_| unit.kind() == Kind::Disk);
        let medium = medium.ok_or("a DVD drive has no size of its own")?;
        let grown = medium.resized(size)?;
        let size = grown.facts.size;
        if size != medium.facts.size {
            unit.change_medium(Some(Arc::new(grown)));
            // An idle guest sends no command that could be answered with the news.
            self.controller(controller)?.tell();
        }
        Ok(size)
    }
}

/// As many rings as the kernel gives, up to `count`.
fn rings(memory: &GuestMemory, count: u32) -> Vec<IoRing> {
    let mut rings = Vec::new();
    for _ in 0..count {
        match IoRing::new(memory, RING_DEPTH) {
            Ok(ring) => rings.push(ring),
            Err(error) => {
                log_line(format_args!("disks go without io_uring, which is slower: {error}"));
                break;
            }
        }
    }
    rings
}
