//! Copying a file into a guest.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use parterre_api::guest::{FileTarget, GuestAnswer, GuestRequest};
use parterre_api::{Vm, format_size};

use super::socket;
use crate::error::Error;
use crate::progress::Progress;

/// Copies a file.
pub(super) fn copy(
    vm: &Vm,
    path: &Path,
    destination: &str,
    overwrite: bool,
    create_path: bool,
) -> Result<(), Error> {
    let at_file = |source| Error::File { path: path.into(), source };
    let mut file = File::open(path).map_err(at_file)?;
    let size = file.metadata().map_err(at_file)?.len();
    let mut target = destination.to_owned();
    if target.ends_with('/') {
        target.push_str(&path.file_name().unwrap_or_default().to_string_lossy());
    }
    let request = GuestRequest::CopyFile(FileTarget { path: target, size, overwrite, create_path });
    let (mut stream, answer) = socket::open(vm, &request)?;
    if answer != GuestAnswer::Ready {
        return Err(socket::unexpected());
    }
    let progress = Progress::start(&format!("copying {}", path.display()));
    let (mut buffer, mut sent) = (vec![0; 64 << 10], 0);
    while sent < size {
        let count = file.read(&mut buffer).map_err(at_file)?;
        // What a file that grows has got since is not copied; one that shrinks ends the copy.
        let count = count.min(usize::try_from(size - sent).unwrap_or(count));
        // A guest that fails answers while bytes are on their way; its answer says more than the broken pipe.
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            break;
        }
        sent += count as u64;
        let (done, all) = (format_size(sent), format_size(size));
        progress.step(&format!("copying {}: {done} of {all}", path.display()));
    }
    if sent < size {
        // The worker waits for the rest no longer.
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    socket::read_answer(&vm.settings.name, &stream).map(drop)
}
