//! Media for tests: disks in memory, some of which fail, and an engine without threads.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use parterre_vmbus_server::{Memory, Wait};

use crate::disk::{Backing, Completion, DiskError, Engine, Engines, Facts, Image, Medium, Request};
use crate::pool::{Job, perform};

/// A disk in memory. It can be told to fail, and counts its flushes.
pub struct MemoryDisk {
    data: Mutex<Vec<u8>>,
    error: AtomicI32,
    flushes: AtomicU64,
}

/// The disk itself, and the way to it for whoever tests with it.
#[derive(Clone)]
pub struct Probe(Arc<MemoryDisk>);

impl Probe {
    /// A disk of zeroes.
    pub fn new(size: usize) -> Probe {
        let (error, flushes) = (AtomicI32::new(0), AtomicU64::new(0));
        Probe(Arc::new(MemoryDisk { data: Mutex::new(vec![0; size]), error, flushes }))
    }

    /// A medium on this disk.
    pub fn medium(&self, block: u32, read_only: bool) -> Arc<Medium> {
        let size = self.with(|data| data.len()) as u64;
        let (physical, can_unmap) = (block.max(4096), !read_only);
        let facts = Facts { size, block, physical, read_only, can_unmap, unmapped_zero: can_unmap };
        Arc::new(Medium { facts, backing: Backing::Image(Arc::new(self.clone())) })
    }

    /// All further operations fail with this error number; 0 for none.
    pub fn fail(&self, errno: i32) {
        self.0.error.store(errno, Ordering::Release);
    }

    /// How often the disk was flushed.
    pub fn flushes(&self) -> u64 {
        self.0.flushes.load(Ordering::Acquire)
    }

    /// The disk's bytes.
    pub fn with<T>(&self, look: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        look(&mut self.0.data.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn on<T>(&self, offset: u64, len: usize, work: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        match self.0.error.load(Ordering::Acquire) {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        self.with(|data| {
            let range = usize::try_from(offset).ok().and_then(|at| Some(at..at.checked_add(len)?));
            let range = range.and_then(|range| data.get_mut(range));
            Ok(work(range.expect("no request leaves the disk")))
        })
    }
}

impl Image for Probe {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.on(offset, buffer.len(), |data| buffer.copy_from_slice(data))
    }

    fn write(&self, offset: u64, buffer: &[u8]) -> io::Result<()> {
        self.on(offset, buffer.len(), |data| data.copy_from_slice(buffer))
    }

    fn flush(&self) -> io::Result<()> {
        self.on(0, 0, |_| ())?;
        self.0.flushes.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.on(offset, len as usize, |data| data.fill(0))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        self.on(offset, len as usize, |data| data.fill(0))
    }

    fn resize(&self, size: Option<u64>) -> io::Result<u64> {
        self.on(0, 0, |_| ())?;
        Ok(self.with(|data| {
            if let Some(size) = size {
                data.resize(size as usize, 0);
            }
            data.len() as u64
        }))
    }
}

/// Makes engines that do everything at once, in order.
pub struct Inline(pub Arc<dyn Memory>);

impl Engines for Inline {
    fn engine(&self) -> io::Result<Box<dyn Engine>> {
        Ok(Box::new(InlineEngine { memory: self.0.clone(), done: Vec::new() }))
    }
}

struct InlineEngine {
    memory: Arc<dyn Memory>,
    done: Vec<Completion>,
}

impl Engine for InlineEngine {
    fn submit(&mut self, request: Request<'_>) -> Result<(), DiskError> {
        let tag = request.tag;
        let result = perform(&Job::from(request), &*self.memory, &mut Vec::new());
        self.done.push(Completion { tag, result });
        Ok(())
    }

    fn kick(&mut self) {}

    fn at_once(&mut self, request: &Request<'_>) -> bool {
        perform(&Job::from(*request), &*self.memory, &mut Vec::new()).is_ok()
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    fn drain(&mut self) {
        self.done.clear();
    }

    fn wait(&self, _wait: &mut Wait) {}
}
