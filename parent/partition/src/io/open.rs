//! Opening what becomes a disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// A disk's file, opened and locked.
#[derive(Debug)]
pub struct DiskDescriptors {
    /// Through the page cache.
    pub cached: File,
    /// Past it (`O_DIRECT`), if that was wanted and the file system can.
    pub direct: Option<File>,
}

/// Opens a disk's file, and makes sure that no other virtual machine uses it in a way that does not go together with this one: one
/// writer, or any number of readers.
///
/// # Errors
/// A sentence that names the file.
pub fn open_disk(path: &Path, read_only: bool, past_cache: bool) -> Result<DiskDescriptors, String> {
    let cannot = |error: io::Error| format!("cannot open the disk {}: {error}", path.display());
    let options = |flags: OFlags| {
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only).custom_flags(flags.bits().cast_signed());
        options
    };
    // Should it be a pipe, nobody waits for its other end; for files and devices this means nothing.
    let cached = options(OFlags::NONBLOCK).open(path).map_err(cannot)?;
    let kind = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match flock(&cached, kind) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(format!(
                "the disk {} is used by another virtual machine; stop that one, or add the disk read-only to both",
                path.display()
            ));
        }
        Err(error) => return Err(format!("cannot lock the disk {}: {error}", path.display())),
    }
    // A file system that cannot says so; then everything goes through the cache.
    let direct = if past_cache { options(OFlags::DIRECT | OFlags::NONBLOCK).open(path).ok() } else { None };
    Ok(DiskDescriptors { cached, direct })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writer_or_many_readers() {
        let path = std::env::temp_dir().join(format!("parterre-open-{}", std::process::id()));
        assert!(open_disk(&path, true, false).unwrap_err().contains("cannot open"));
        std::fs::write(&path, "x").unwrap();
        let readers = (open_disk(&path, true, false), open_disk(&path, true, false));
        assert!(open_disk(&path, false, true).unwrap_err().contains("used by another"));
        drop(readers);
        let writer = open_disk(&path, false, true).unwrap();
        assert!(open_disk(&path, true, false).unwrap_err().contains("used by another"));
        drop(writer);
        assert!(open_disk(&path, false, false).unwrap().direct.is_none());
        std::fs::remove_file(&path).unwrap();
    }
}
