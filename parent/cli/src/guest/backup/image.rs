//! Copying the file or device of one disk: at once where the file system can share blocks, else block by block, leaving holes
//! where there are zeroes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{SeekFrom as Offset, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Read and written at a time.
const PIECE: usize = 1 << 20;
/// Zeroes of this length that begin at a multiple of it become holes.
const HOLE: usize = 4096;

/// Copies `from`, as long as it is now, to the new file `to`. `tell` hears how many bytes of how many are done; the copy breaks off with
/// [`io::ErrorKind::Interrupted`] when `cancelled` is set. What was copied is on the disk when [`File::sync_all`] of the result has
/// returned, and not before.
///
/// # Errors
/// Of reading or writing; `to` is there already.
pub(super) fn copy(
    from: &mut File,
    to: &Path,
    cancelled: &AtomicBool,
    mut tell: impl FnMut(u64, u64),
) -> io::Result<File> {
    let copy = OpenOptions::new().write(true).create_new(true).open(to)?;
    if ioctl_ficlone(&copy, &*from).is_ok() {
        return Ok(copy);
    }
    // Works for block devices too, whose metadata knows no size.
    let size = from.seek(SeekFrom::End(0))?;
    let (mut at, mut buffer) = (0, vec![0; PIECE]);
    while let Some(data) = next_data(from, at)?.filter(|data| *data < size) {
        if cancelled.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        // From one multiple of a piece to the next, so that zeroes are seen as blocks.
        let room = PIECE as u64 - data % PIECE as u64;
        let length = usize::try_from(room.min(size - data)).unwrap_or(PIECE);
        from.seek(SeekFrom::Start(data))?;
        from.read_exact(&mut buffer[..length])?;
        write_what_is_not_zero(&copy, &buffer[..length], data)?;
        at = data + length as u64;
        tell(at, size);
    }
    copy.set_len(size)?;
    Ok(copy)
}

/// Where there is data at or behind an offset; `None` if there is none.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, Offset::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        // Devices and some file systems do not know: all of it is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}

fn write_what_is_not_zero(to: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let is_hole = |piece: &&[u8]| piece.iter().all(|byte| *byte == 0);
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        let data = rest.chunks(HOLE).take_while(|piece| !is_hole(piece)).map(<[u8]>::len).sum();
        to.write_all_at(&rest[..data], offset + done as u64)?;
        let hole: usize = rest[data..].chunks(HOLE).take_while(is_hole).map(<[u8]>::len).sum();
        done += data + hole;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn copied(bytes: &[(u64, &[u8])], size: u64) -> (Vec<u8>, u64) {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(from).unwrap();
        file.set_len(size).unwrap();
        bytes.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
        let mut told = 0;
        copy(&mut file, &to, &AtomicBool::new(false), |done, all| {
            assert!(done > told && done <= all && all == size);
            told = done;
        })
        .unwrap();
        (std::fs::read(&to).unwrap(), std::fs::metadata(&to).unwrap().blocks() * 512)
    }

    #[test]
    fn the_copy_is_the_same() {
        let long = vec![7; 3 * PIECE / 2];
        for (bytes, size) in [
            (vec![], 0),
            (vec![], 5),
            (vec![(0, &b"begin"[..])], 5),
            (vec![(0, &b"begin"[..]), (3 * PIECE as u64 + 17, b"end")], 4 * PIECE as u64 + 1),
            (vec![(4095, &b"over"[..]), (8191, &long)], 3 * PIECE as u64),
        ] {
            let mut expected = vec![0; size as usize];
            for (at, bytes) in &bytes {
                expected[*at as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            assert!(copied(&bytes, size).0 == expected, "of {size} bytes");
        }
    }

    #[test]
    fn zeroes_take_no_room() {
        let zeroes = vec![0; 8 << 20];
        let (bytes, room) = copied(&[(0, &zeroes), (4 << 20, b"x")], 8 << 20);
        assert_eq!(bytes.len(), 8 << 20);
        assert!(room <= 1 << 20, "{room} bytes");
    }

    #[test]
    fn a_copy_is_broken_off_and_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("from");
        std::fs::write(&path, vec![1; 2 * PIECE]).unwrap();
        let mut from = File::open(&path).unwrap();
        let cancelled = AtomicBool::new(false);
        let there = copy(&mut from, &path, &cancelled, |_, _| {}).unwrap_err();
        assert_eq!(there.kind(), io::ErrorKind::AlreadyExists);
        let to = directory.path().join("to");
        // On file systems that share blocks there is nothing to be broken off.
        let broken = copy(&mut from, &to, &cancelled, |_, _| cancelled.store(true, Ordering::Relaxed));
        assert!(
            broken.is_ok_and(|copy| copy.metadata().unwrap().len() == 2 * PIECE as u64)
                || cancelled.into_inner()
        );
    }
}
