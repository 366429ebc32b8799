//! Giving back the blocks of a block device.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;

/// `BLKDISCARD` of `<linux/fs.h>`: takes offset and length in bytes.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Tells a block device that a range, in bytes, is not needed any more. What it reads as afterwards is the device's business.
///
/// # Errors
/// What the kernel says; `EOPNOTSUPP` from a device that takes no discards.
pub fn discard_blocks(device: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: the kernel reads two words from `range`, which lives until the call is over, and writes nothing of ours. On a file that is no
    // block device the request means nothing, and is refused.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a file is a block device, open for writing, that takes discards. It is asked for a range that no device has: the kernel says
/// whether it would discard before it looks at that (`blk_ioctl_discard`), and nothing is changed in any case.
pub fn takes_discards(device: &File) -> bool {
    if !device.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device()) {
        return false;
    }
    let odd = discard_blocks(device, 1, 1);
    odd.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_device_takes_none() {
        let path = std::env::temp_dir().join(format!("parterre-discard-{}", std::process::id()));
        std::fs::write(&path, [7; 4096]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for file in [file, File::open("/dev/null").unwrap()] {
            assert!(!takes_discards(&file));
            assert!(discard_blocks(&file, 0, 4096).is_err());
        }
    }
}
