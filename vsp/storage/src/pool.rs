//! An engine of threads: for images whose format needs calls that block, and where the kernel has no io_uring.
//!
//! Data goes through a buffer of the thread's, since libraries want memory that nobody changes beside them.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use parterre_vmbus_ring::{Memory, Segment};
use parterre_vmbus_server::{Wait, Waker};

use crate::disk::{Completion, DiskError, Engine, Engines, Medium, Operation, Request};

/// Threads of an engine. They are started when there is work for them.
const THREADS: usize = 4;
const STACK_SIZE: usize = 256 << 10;

pub(crate) struct Job {
    pub(crate) tag: u32,
    medium: Arc<Medium>,
    operation: Operation,
    offset: u64,
    len: u64,
    segments: Vec<Segment>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    done: Vec<Completion>,
    /// Jobs that a thread is at.
    running: usize,
    idle: usize,
    threads: usize,
    /// Threads that have not come to work yet.
    starting: usize,
    ended: bool,
}

struct Shared {
    state: Mutex<State>,
    /// There is a job, or the end.
    work: Condvar,
    /// A job has ended.
    progress: Condvar,
    waker: Waker,
    memory: Arc<dyn Memory>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine. Its threads end with it.
pub struct Pool(Arc<Shared>);

impl Pool {
    /// An engine without threads as yet.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn new(memory: Arc<dyn Memory>) -> io::Result<Pool> {
        let (state, work, progress) = (Mutex::default(), Condvar::new(), Condvar::new());
        Ok(Pool(Arc::new(Shared { state, work, progress, waker: Waker::new()?, memory })))
    }

    fn start_thread(&self) -> io::Result<()> {
        let shared = self.0.clone();
        let thread = thread::Builder::new().name("disk".into()).stack_size(STACK_SIZE);
        thread.spawn(move || work(&shared)).map(drop)
    }

    /// Nobody will come to what was submitted.
    fn fail_all(&self, state: &mut State, error: &io::Error) {
        while let Some(job) = state.jobs.pop_front() {
            let error =
                error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            state.done.push(Completion { tag: job.tag, result: Err(error.into()) });
        }
        self.0.waker.wake();
    }
}

impl From<Request<'_>> for Job {
    fn from(request: Request<'_>) -> Job {
        let Request { tag, medium, operation, offset, len, segments } = request;
        Job { tag, medium: medium.clone(), operation, offset, len, segments: segments.to_vec() }
    }
}

impl Engine for Pool {
    fn submit(&mut self, request: Request<'_>) -> Result<(), DiskError> {
        let job = Job::from(request);
        self.0.lock().jobs.push_back(job);
        Ok(())
    }

    fn kick(&mut self) {
        let mut state = self.0.lock();
        if state.jobs.is_empty() {
            return;
        }
        while state.idle + state.starting < state.jobs.len() && state.threads < THREADS {
            match self.start_thread() {
                Ok(()) => (state.threads, state.starting) = (state.threads + 1, state.starting + 1),
                Err(error) if state.threads == 0 => return self.fail_all(&mut state, &error),
                // The others will come to it.
                Err(_) => break,
            }
        }
        let one = state.jobs.len() == 1;
        drop(state);
        if one { self.0.work.notify_one() } else { self.0.work.notify_all() }
    }

    fn completions(&mut self, done: &mut Vec<Completion>) {
        let mut state = self.0.lock();
        if !state.done.is_empty() {
            self.0.waker.clear();
            done.append(&mut state.done);
        }
    }

    fn drain(&mut self) {
        let mut state = self.0.lock();
        state.jobs.clear();
        while state.running > 0 {
            state = self.0.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.done.clear();
        self.0.waker.clear();
    }

    fn wait(&self, wait: &mut Wait) {
        wait.readable(self.0.waker.source());
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.drain();
        self.0.lock().ended = true;
        self.0.work.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut buffer = Vec::new();
    let mut state = shared.lock();
    state.starting -= 1;
    loop {
        if state.ended {
            return;
        }
        let Some(job) = state.jobs.pop_front() else {
            state.idle += 1;
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            continue;
        };
        state.running += 1;
        drop(state);
        let result = perform(&job, &*shared.memory, &mut buffer);
        state = shared.lock();
        state.running -= 1;
        if state.done.is_empty() {
            shared.waker.wake();
        }
        state.done.push(Completion { tag: job.tag, result });
        shared.progress.notify_all();
    }
}

/// Does a job with a buffer in between.
pub(crate) fn perform(job: &Job, memory: &dyn Memory, buffer: &mut Vec<u8>) -> Result<(), DiskError> {
    let image = job.medium.image();
    let (offset, len) = (job.offset, job.len);
    match job.operation {
        Operation::Read => {
            buffer.resize(total(&job.segments), 0);
            image.read(offset, buffer)?;
            copy(memory, &job.segments, |at, slice| slice.copy_from(&buffer[at..]))
        }
        Operation::Write { durable } => {
            buffer.resize(total(&job.segments), 0);
            copy(memory, &job.segments, |at, slice| {
                slice.copy_to(&mut buffer[at..]);
            })?;
            image.write(offset, buffer)?;
            if durable { Ok(image.flush()?) } else { Ok(()) }
        }
        Operation::Flush => Ok(image.flush()?),
        Operation::Discard => Ok(image.discard(offset, len)?),
        Operation::WriteZeroes { unmap } => Ok(image.write_zeroes(offset, len, unmap)?),
    }
}

fn total(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.len as usize).sum()
}

fn copy(
    memory: &dyn Memory,
    segments: &[Segment],
    mut with: impl FnMut(usize, vm_memory::VolatileSlice<'_>),
) -> Result<(), DiskError> {
    let mut at = 0;
    for segment in segments {
        let slice = memory.slice(segment.gpa, segment.len as usize).ok_or(DiskError::Memory)?;
        with(at, slice);
        at += segment.len as usize;
    }
    Ok(())
}

/// Makes pools over a guest's memory.
pub struct Pools(pub Arc<dyn Memory>);

impl Engines for Pools {
    fn engine(&self) -> io::Result<Box<dyn Engine>> {
        Ok(Box::new(Pool::new(self.0.clone())?))
    }
}
