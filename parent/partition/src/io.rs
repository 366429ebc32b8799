//! File I/O straight into and out of guest memory, by io_uring.
//!
//! An [`IoRing`] takes requests, starts all of them with one system call, and tells when they have ended. The kernel reads and writes
//! guest memory itself; nothing is copied on the way. A ring is restricted to reading, writing and syncing files before
//! it is used: whoever takes over the process can open nothing and connect to nothing with it, although seccomp does not see what
//! goes through a ring.
//!
//! It knows no disks and no formats; `vsp/storage` stands above it.

mod discard;
mod immediate;
mod open;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::{GuestMemory, Regions};

pub use discard::{discard_blocks, takes_discards};
pub use immediate::{Immediate, Patience};
pub use open::{DiskDescriptors, open_disk};

/// Operations that a ring takes.
const ALLOWED: [u8; 5] =
    [opcode::Read::CODE, opcode::Write::CODE, opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE];
/// How often the kernel is asked again to take requests when it says that it has no memory for them.
const RETRIES: u32 = 1000;

/// What to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOperation {
    /// File to guest memory.
    Read,
    /// Guest memory to file; `durable`: it has ended only when the data would survive a power cut.
    Write {
        /// See above.
        durable: bool,
    },
    /// All that has been written is to survive a power cut.
    Sync,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct IoRequest<'a> {
    /// Comes back in the [`IoCompletion`].
    pub tag: u32,
    /// Of what file.
    pub file: &'a Arc<File>,
    /// The same file opened another way, for when the kernel finds the request not aligned for the first (`EINVAL`).
    pub spare: Option<&'a Arc<File>>,
    /// What.
    pub operation: IoOperation,
    /// Where in the file.
    pub offset: u64,
}

/// A request that has ended.
#[derive(Debug)]
pub struct IoCompletion {
    /// Of the request.
    pub tag: u32,
    /// How it ended. A file that is shorter than the request is an error.
    pub result: io::Result<()>,
}

/// A request under way.
struct Slot {
    tag: u32,
    file: Arc<File>,
    spare: Option<Arc<File>>,
    operation: IoOperation,
    offset: u64,
    /// What has not been transferred yet. The kernel may read this array until the request ends, so it is not touched
    /// in between.
    vectors: Vec<libc::iovec>,
    left: usize,
}

/// A ring.
pub struct IoRing {
    ring: IoUring,
    /// A descriptor of the ring for those who wait for it.
    readiness: Arc<OwnedFd>,
    memory: Regions,
    slots: Vec<Option<Box<Slot>>>,
    free: Vec<u32>,
    /// Requests that the kernel has and those that it is about to get.
    under_way: usize,
    /// Requests that ended without the kernel.
    ended: VecDeque<IoCompletion>,
    /// Vectors to be used again.
    spare_vectors: Vec<Vec<libc::iovec>>,
}

// SAFETY: the pointers in the slots point into guest memory, which has no thread affinity and which only the kernel
// accesses through them; the ring's own memory is reached through `&mut self` alone.
unsafe impl Send for IoRing {}

impl IoRing {
    /// A ring for about `depth` requests at a time over a guest's memory.
    ///
    /// # Errors
    /// When the kernel has no io_uring, or has been told not to give one.
    pub fn new(memory: &GuestMemory, depth: u32) -> io::Result<IoRing> {
        // Ends of requests are looked at when the thread enters the kernel anyway, without interrupting it.
        let ring = IoUring::builder().setup_r_disabled().setup_coop_taskrun().build(depth)?;
        let mut restrictions: Vec<Restriction> = ALLOWED.map(Restriction::sqe_op).into();
        restrictions.push(Restriction::sqe_flags_allowed(0));
        ring.submitter().register_restrictions(&mut restrictions)?;
        ring.submitter().register_enable_rings()?;
        Ok(IoRing {
            readiness: Arc::new(ring.as_fd().try_clone_to_owned()?),
            ring,
            memory: memory.regions().clone(),
            slots: Vec::new(),
            free: Vec::new(),
            under_way: 0,
            ended: VecDeque::new(),
            spare_vectors: Vec::new(),
        })
    }

    /// Takes a request; the kernel hears of it at the next [`submit`](Self::submit). `segments` are pieces of guest memory, `(address,
    /// length)`; none for [`IoOperation::Sync`]. `false`: one of them is not guest memory, and the request was not taken.
    pub fn push(&mut self, request: IoRequest<'_>, segments: impl Iterator<Item = (u64, u64)>) -> bool {
        let mut vectors = self.spare_vectors.pop().unwrap_or_default();
        let Some(left) = gather(&self.memory, segments, &mut vectors) else {
            self.spare_vectors.push(vectors);
            return false;
        };
        let IoRequest { tag, file, spare, operation, offset } = request;
        let (file, spare) = (file.clone(), spare.cloned());
        let slot = Box::new(Slot { tag, file, spare, operation, offset, vectors, left });
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.under_way += 1;
        self.start(index, slot);
        true
    }

    /// Puts the entry of a slot into the submission queue.
    fn start(&mut self, index: u32, slot: Box<Slot>) {
        let entry = slot.entry().user_data(index.into());
        // Kept from here on until the kernel has answered.
        self.slots[index as usize] = Some(slot);
        for _ in 0..RETRIES {
            // SAFETY: the entry's pointers are those of the slot that was just put in its place: it and the memory that its
            // vectors point into (kept mapped by `self.memory`) stay where they are until the kernel's answer for `index`
            // has been taken by `take`, or, should that never come, for ever (`drain`).
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The queue is full.
            self.submit();
        }
        self.end(index, Err(io::ErrorKind::OutOfMemory.into()));
    }

    /// Gives the kernel what was pushed since the last time.
    pub fn submit(&mut self) {
        for _ in 0..RETRIES {
            let queue = self.ring.submission();
            if queue.is_empty() && !queue.cq_overflow() {
                return;
            }
            drop(queue);
            match self.ring.submit() {
                Ok(_) => {}
                // No memory, or ends that nobody has looked at: the kernel works on it while others run.
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    /// Tells what has ended since the last time.
    pub fn completions(&mut self, mut tell: impl FnMut(IoCompletion)) {
        loop {
            let answers: arrayvec::ArrayVec<cqueue::Entry, 32> = self.ring.completion().take(32).collect();
            if answers.is_empty() {
                break;
            }
            for answer in answers {
                self.take(&answer);
            }
        }
        // Requests that go on after a part of them was done.
        self.submit();
        self.ended.drain(..).for_each(&mut tell);
    }

    /// Takes the kernel's answer for a slot: the request has ended, or goes on.
    fn take(&mut self, answer: &cqueue::Entry) {
        let index = answer.user_data() as u32;
        let Some(mut slot) = self.slots.get_mut(index as usize).and_then(Option::take) else { return };
        match slot.advance(answer.result()) {
            Some(result) => {
                self.slots[index as usize] = Some(slot);
                self.end(index, result);
            }
            None => self.start(index, slot),
        }
    }

    fn end(&mut self, index: u32, result: io::Result<()>) {
        let Some(slot) = self.slots.get_mut(index as usize).and_then(Option::take) else { return };
        self.free.push(index);
        self.under_way -= 1;
        self.ended.push_back(IoCompletion { tag: slot.tag, result });
        if self.spare_vectors.len() < 64 {
            self.spare_vectors.push(slot.vectors);
        }
    }

    /// Waits until the kernel touches guest memory no more. What ended is forgotten.
    pub fn drain(&mut self) {
        let mut failures = 0;
        while self.under_way > 0 && failures < RETRIES {
            if self.ring.submit_and_wait(1).is_err() {
                failures += 1;
                std::thread::yield_now();
            }
            self.completions(|_| {});
        }
        if self.under_way > 0 {
            // The kernel does not answer and may still write: nothing that it knows of may go.
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(self.memory.clone());
            self.free.clear();
            self.under_way = 0;
        }
        self.ended.clear();
    }
}

impl Drop for IoRing {
    fn drop(&mut self) {
        self.drain();
    }
}

impl IoRing {
    /// What is readable while there are ends to be told.
    pub fn source(&self) -> Arc<OwnedFd> {
        self.readiness.clone()
    }
}

impl Slot {
    fn entry(&self) -> squeue::Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        let flags = match self.operation {
            IoOperation::Write { durable: true } => libc::RWF_DSYNC,
            _ => 0,
        };
        let count = self.vectors.len() as u32;
        match (self.operation, self.vectors.as_slice()) {
            (IoOperation::Sync, _) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            (IoOperation::Read, [one]) => {
                opcode::Read::new(fd, one.iov_base.cast(), length(one)).offset(self.offset).build()
            }
            (IoOperation::Read, all) => {
                opcode::Readv::new(fd, all.as_ptr(), count).offset(self.offset).build()
            }
            (IoOperation::Write { .. }, [one]) => {
                let write = opcode::Write::new(fd, one.iov_base.cast_const().cast(), length(one));
                write.offset(self.offset).rw_flags(flags).build()
            }
            (IoOperation::Write { .. }, all) => {
                opcode::Writev::new(fd, all.as_ptr(), count).offset(self.offset).rw_flags(flags).build()
            }
        }
    }

    /// Takes the kernel's result; `None` if the request is to be started once more for what is left of it.
    fn advance(&mut self, result: i32) -> Option<io::Result<()>> {
        match result {
            error if error < 0 => self.failed(-error),
            _ if self.operation == IoOperation::Sync => Some(Ok(())),
            done => {
                let done = (done as usize).min(self.left);
                self.left -= done;
                if self.left == 0 {
                    return Some(Ok(()));
                }
                if done == 0 {
                    return Some(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                self.skip(done);
                None
            }
        }
    }

    fn failed(&mut self, errno: i32) -> Option<io::Result<()>> {
        match errno {
            libc::EINTR | libc::EAGAIN => None,
            libc::EINVAL if self.spare.is_some() => {
                self.file = self.spare.take()?;
                None
            }
            errno => Some(Err(io::Error::from_raw_os_error(errno))),
        }
    }

    /// Leaves out the first `done` bytes.
    fn skip(&mut self, mut done: usize) {
        self.offset += done as u64;
        let whole = self.vectors.iter().take_while(|vector| {
            let covered = vector.iov_len <= done;
            if covered {
                done -= vector.iov_len;
            }
            covered
        });
        let whole = whole.count();
        self.vectors.drain(..whole);
        if let Some(first) = self.vectors.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(done);
            first.iov_len -= done;
        }
    }
}

/// Makes the vectors of pieces of guest memory and gives their length; `None` if one of them is not guest memory.
fn gather(
    memory: &Regions,
    segments: impl Iterator<Item = (u64, u64)>,
    vectors: &mut Vec<libc::iovec>,
) -> Option<usize> {
    vectors.clear();
    let mut total = 0;
    for (gpa, len) in segments {
        let slice = memory.get_slice(GuestAddress(gpa), usize::try_from(len).ok()?).ok()?;
        total += slice.len();
        vectors.push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
    }
    Some(total)
}

/// A vector's length for the kernel, which takes no more than 2 GiB at a time; the rest is done by starting once more.
fn length(vector: &libc::iovec) -> u32 {
    vector.iov_len.min(1 << 30) as u32
}

#[cfg(test)]
mod tests;
