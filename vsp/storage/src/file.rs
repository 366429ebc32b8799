//! Raw files and block devices.
//!
//! A file is opened twice where its file system allows it: past the page cache (`O_DIRECT`), and through it. Requests go past the
//! cache when their addresses and lengths allow it: the guest has a cache of its own, a second copy in the parent would only take
//! memory from other guests, and what the guest wrote is where a flush makes it safe quickly. All other requests, and all of
//! read-only media, which several guests may share, go through the cache. The kernel keeps the two ways coherent.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::Arc;

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use rustix::io::Errno;

use crate::disk::{Facts, Image};

/// Least block of a disk in bytes.
pub const SECTOR: u32 = 512;
/// Block of a DVD in bytes.
pub const DVD_BLOCK: u32 = 2048;

/// Gives back a range of a block device, in bytes. The call for it is whoever's opens the device: here is no unsafe code.
pub type Discard = fn(&File, u64, u64) -> io::Result<()>;

/// The descriptors of a file that was opened by somebody who may.
#[derive(Debug)]
pub struct OpenFile {
    /// Through the page cache.
    pub cached: File,
    /// Past it, where the file system can.
    pub direct: Option<File>,
    /// How blocks are given back: for a block device that takes them.
    pub discard: Option<Discard>,
}

/// A file that requests may go to past the page cache.
#[derive(Clone, Debug)]
pub struct Direct {
    /// The file.
    pub file: Arc<File>,
    /// What addresses in memory must be multiples of.
    pub memory_alignment: u32,
    /// What offsets and lengths must be multiples of.
    pub offset_alignment: u32,
}

/// A raw file or a block device.
#[derive(Clone, Debug)]
pub struct DiskFile {
    /// Through the page cache.
    pub cached: Arc<File>,
    /// Past it.
    pub direct: Option<Direct>,
    /// How blocks of a block device are given back.
    pub discard: Option<Discard>,
    /// Its file system keeps files in memory, so that nothing is waited for but the copying.
    pub resident: bool,
}

/// A raw medium and what is to be known of it.
///
/// # Errors
/// When the file is neither a regular file nor a block device, is empty, or cannot be asked.
pub fn raw(open: OpenFile, read_only: bool, dvd: bool) -> Result<(DiskFile, Facts), String> {
    let cannot = |error: io::Error| format!("the disk's file cannot be asked for its size: {error}");
    let metadata = open.cached.metadata().map_err(cannot)?;
    let device = metadata.file_type().is_block_device();
    if !device && !metadata.file_type().is_file() {
        return Err("a disk must be a file or a block device".into());
    }
    // Works for devices too, whose metadata have no size.
    let bytes = (&open.cached).seek(SeekFrom::End(0)).map_err(cannot)?;
    let (logical, physical) = if device { device_blocks(&open.cached) } else { (SECTOR, 4096) };
    let block = if dvd { DVD_BLOCK.max(logical) } else { logical };
    let size = bytes - bytes % u64::from(block);
    if size == 0 {
        return Err(format!("a disk needs at least one block of {block} bytes"));
    }
    let (can_unmap, unmapped_zero) = match (read_only, device) {
        (true, _) => (false, false),
        (false, true) => (open.discard.is_some(), false),
        (false, false) => {
            let holes = has_holes(&open.cached, bytes);
            (holes, holes)
        }
    };
    let direct = open.direct.map(|file| direct(file, logical));
    let physical = physical.max(block);
    let resident = !device && is_resident(&open.cached);
    let facts = Facts { size, block, physical, read_only, can_unmap, unmapped_zero };
    Ok((DiskFile { cached: Arc::new(open.cached), direct, discard: open.discard, resident }, facts))
}

/// Logical and physical block of a device, made sound.
fn device_blocks(file: &File) -> (u32, u32) {
    let sound = |size: u32| size.is_power_of_two() && (SECTOR..=4096).contains(&size);
    let logical = rustix::fs::ioctl_blksszget(file).ok().filter(|size| sound(*size)).unwrap_or(SECTOR);
    let physical = rustix::fs::ioctl_blkpbszget(file).ok().filter(|size| sound(*size)).unwrap_or(logical);
    (logical, physical.max(logical))
}

/// Whether a file's file system has no disk below it.
fn is_resident(file: &File) -> bool {
    // `TMPFS_MAGIC` and `RAMFS_MAGIC` of `<linux/magic.h>`.
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58F6;
    rustix::fs::fstatfs(file).is_ok_and(|system| [TMPFS, RAMFS].contains(&(system.f_type as u64)))
}

/// Whether the file system makes holes: tried behind the end of the file, where it changes nothing.
fn has_holes(file: &File, size: u64) -> bool {
    let behind = size.next_multiple_of(1 << 16);
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, behind, 4096).is_ok()
}

/// What the kernel says of direct I/O to a file, else the usual.
fn direct(file: File, logical: u32) -> Direct {
    let told = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    let (memory, offset) = told.map_or((0, 0), |statx| (statx.stx_dio_mem_align, statx.stx_dio_offset_align));
    let sound = |value: u32, usual: u32| if value.is_power_of_two() { value } else { usual };
    Direct {
        file: Arc::new(file),
        memory_alignment: sound(memory, SECTOR),
        offset_alignment: sound(offset, logical),
    }
}

impl Image for DiskFile {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.cached.read_exact_at(buffer, offset)
    }

    fn write(&self, offset: u64, buffer: &[u8]) -> io::Result<()> {
        self.cached.write_all_at(buffer, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.cached.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let done = match self.discard {
            Some(discard) => discard(&self.cached, offset, len),
            None => punch(&self.cached, offset, len).map_err(io::Error::from),
        };
        match done {
            // Giving back is a favour; a file system that cannot keeps the blocks.
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(()),
            other => other,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let zero = || {
            let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.cached, flags, offset, len)
        };
        let hole = || punch(&self.cached, offset, len);
        let done = if unmap { hole().or_else(|_| zero()) } else { zero().or_else(|_| hole()) };
        match done {
            Err(Errno::OPNOTSUPP) => write_zero_bytes(self, offset, len),
            other => Ok(other?),
        }
    }

    fn resize(&self, size: Option<u64>) -> io::Result<u64> {
        if let Some(size) = size {
            if self.cached.metadata()?.file_type().is_block_device() {
                return Err(io::Error::other(
                    "a block device is grown by the tool that made it; do that first, and then say no size here",
                ));
            }
            // Never smaller: the file may have a rest behind its last block.
            if size > self.cached.metadata()?.len() {
                self.cached.set_len(size)?;
                self.cached.sync_all()?;
            }
        }
        (&*self.cached).seek(SeekFrom::End(0))
    }
}

fn punch(file: &File, offset: u64, len: u64) -> rustix::io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, offset, len)
}

/// The slow way, for file systems that know no other.
fn write_zero_bytes(file: &DiskFile, mut offset: u64, mut len: u64) -> io::Result<()> {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    while len > 0 {
        let piece = len.min(ZEROES.len() as u64);
        file.write(offset, &ZEROES[..piece as usize])?;
        offset += piece;
        len -= piece;
    }
    Ok(())
}
