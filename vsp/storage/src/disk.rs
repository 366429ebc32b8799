//! What lies below a logical unit: media, and engines that move data between them and guest memory.
//!
//! A [`Medium`] is shared by all channels of a controller. An [`Engine`] belongs to one channel and serves all its media: requests
//! are handed over one by one, started together by [`Engine::kick`], and reported when they are done. So a batch of requests
//! costs one system call, whatever disks it is for.

use std::io;
use std::sync::Arc;

use parterre_vmbus_ring::Segment;
use parterre_vmbus_server::Wait;

use crate::file::DiskFile;
use crate::scsi::Sense;

/// What a medium is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Size in bytes; a multiple of `block`.
    pub size: u64,
    /// Logical block in bytes: a power of two from 512 on.
    pub block: u32,
    /// Physical block in bytes: what is written without being read first.
    pub physical: u32,
    /// It cannot be written.
    pub read_only: bool,
    /// Blocks can be given back.
    pub can_unmap: bool,
    /// Blocks given back read as zeroes.
    pub unmapped_zero: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Medium to memory.
    Read,
    /// Memory to medium; `durable`: done only when it would survive a power cut (FUA).
    Write {
        /// See above.
        durable: bool,
    },
    /// Everything written so far is to survive a power cut.
    Flush,
    /// The range is not needed any more.
    Discard,
    /// The range is to read as zeroes; `unmap`: and its room may be given back.
    WriteZeroes {
        /// See above.
        unmap: bool,
    },
}

/// A request to an engine.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Comes back in the [`Completion`].
    pub tag: u32,
    /// Of what.
    pub medium: &'a Arc<Medium>,
    /// What.
    pub operation: Operation,
    /// Where on the medium, in bytes.
    pub offset: u64,
    /// How much, in bytes; for reads and writes the length of all segments.
    pub len: u64,
    /// Where in memory; empty unless it is a read or a write.
    pub segments: &'a [Segment],
}

/// A request that has ended.
#[derive(Debug)]
pub struct Completion {
    /// Of the request.
    pub tag: u32,
    /// How it ended.
    pub result: Result<(), DiskError>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A segment lies outside of guest memory.
    #[error("a request names memory that the guest does not have")]
    Memory,
    /// The backing file said no.
    #[error(transparent)]
    File(#[from] io::Error),
}

impl DiskError {
    /// The sense data of a failed operation; `None` if the request itself was wrong.
    pub fn sense(&self, operation: Operation) -> Option<Sense> {
        use rustix::io::Errno;
        let DiskError::File(error) = self else { return None };
        let full = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG].map(Errno::raw_os_error);
        let refused = [Errno::ROFS, Errno::PERM, Errno::ACCESS, Errno::BADF].map(Errno::raw_os_error);
        let gone = [Errno::NODEV, Errno::NXIO, Errno::STALE].map(Errno::raw_os_error);
        let code = error.raw_os_error().unwrap_or(0);
        Some(match operation {
            _ if gone.contains(&code) => Sense::TARGET_FAILURE,
            Operation::Read => Sense::READ_ERROR,
            _ if full.contains(&code) => Sense::NO_SPACE,
            _ if refused.contains(&code) => Sense::WRITE_PROTECTED,
            _ => Sense::WRITE_ERROR,
        })
    }
}

/// An image that is read and written by calls that block, from memory that is not the guest's.
pub trait Image: Send + Sync {
    /// Fills `buffer` from `offset` on.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all of `buffer`.
    fn write(&self, offset: u64, buffer: &[u8]) -> io::Result<()>;
    /// Makes everything written survive a power cut.
    fn flush(&self) -> io::Result<()>;
    /// Gives a range back, where that is possible.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range read as zeroes.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
    /// Grows it to `size` bytes, or, without a size, looks how large somebody else has made it. Gives its size in bytes from now on.
    fn resize(&self, size: Option<u64>) -> io::Result<u64>;
}

/// Where the data is. Clones are of the same data.
#[derive(Clone)]
pub enum Backing {
    /// In a raw file or a block device: an engine may give its descriptor to the kernel.
    File(DiskFile),
    /// Behind a format.
    Image(Arc<dyn Image>),
}

/// A disk's data with what is known about it.
pub struct Medium {
    /// What it is like.
    pub facts: Facts,
    /// Where it is.
    pub backing: Backing,
}

impl Medium {
    /// The medium by calls that block.
    pub fn image(&self) -> &dyn Image {
        match &self.backing {
            Backing::File(file) => file,
            Backing::Image(image) => &**image,
        }
    }

    /// The same data in another size: grown to `size` bytes, or as large as somebody else has made it.
    ///
    /// # Errors
    /// A sentence. A disk never becomes smaller: what the guest has at its end would be lost.
    pub fn resized(&self, size: Option<u64>) -> Result<Medium, String> {
        let Facts { block, size: old, read_only, .. } = self.facts;
        if let Some(size) = size {
            if read_only {
                return Err("the disk is read-only and cannot be grown".into());
            }
            if size < old || !size.is_multiple_of(block.into()) {
                return Err(format!(
                    "the disk has {old} bytes and can only be grown, to a multiple of {block} bytes, not to {size}"
                ));
            }
        }
        let bytes =
            self.image().resize(size).map_err(|error| format!("the disk cannot be grown: {error}"))?;
        let size = bytes - bytes % u64::from(block);
        if size < old {
            return Err(format!(
                "the disk's file has become smaller: {size} bytes instead of {old}; the guest was not told, and cannot read \
                 what is missing"
            ));
        }
        Ok(Medium { facts: Facts { size, ..self.facts }, backing: self.backing.clone() })
    }
}

/// One channel's way to its media.
pub trait Engine: Send {
    /// Takes a request over. It may only be queued until the next [`kick`](Self::kick).
    ///
    /// # Errors
    /// The request was not taken and no completion will come.
    fn submit(&mut self, request: Request<'_>) -> Result<(), DiskError>;

    /// Starts what was submitted. Until then, submitting has started no thread and made no system call that could wait.
    fn kick(&mut self);

    /// Reads or writes at once, on the caller's thread, if nothing is waited for there but the copying. `false`: it could not be done
    /// so, or not well; then it is to be submitted, and what has been moved already is moved again.
    fn at_once(&mut self, request: &Request<'_>) -> bool {
        let _ = request;
        false
    }

    /// Adds what has ended to `done`.
    fn completions(&mut self, done: &mut Vec<Completion>);

    /// Waits until nothing that was submitted touches guest memory any more; completions are forgotten.
    fn drain(&mut self);

    /// Names what is readable while there are completions.
    fn wait(&self, wait: &mut Wait);
}

/// Makes engines: one for each channel that is opened.
pub trait Engines: Send + Sync {
    /// An engine for a channel.
    ///
    /// # Errors
    /// When the kernel has none to give.
    fn engine(&self) -> io::Result<Box<dyn Engine>>;
}
