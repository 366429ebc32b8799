//! The talk to a worker about devices that come and go while the guest runs.

use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parterre_api::hotplug::{DeviceAnswer, DeviceRequest, MAX_DESCRIPTORS};
use parterre_api::{Vm, VmState};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::{Error, Manager, Result};

/// How long a worker has for a request.
const PATIENCE: Duration = Duration::from_secs(30);

impl Manager {
    /// Where the worker takes devices; `None` if the virtual machine is off.
    pub(crate) fn device_socket(&self, vm: &Vm) -> Result<Option<PathBuf>> {
        match vm.status {
            VmState::Off(_) => Ok(None),
            VmState::Running { .. } => Ok(Some(self.paths().worker(vm.id).devices())),
            _ => Err(Error::Conflict(format!(
                "virtual machine '{}' is {}; wait until it runs or is off",
                vm.settings.name,
                vm.status.word().to_lowercase()
            ))),
        }
    }
}

/// Asks a worker; a refusal is an error.
pub(crate) fn tell(
    socket: &Path,
    request: &DeviceRequest,
    descriptors: &[BorrowedFd<'_>],
) -> Result<DeviceAnswer> {
    let lost = |error: io::Error| Error::Failed(format!("the worker cannot be asked: {error}"));
    match exchange(socket, request, descriptors).map_err(lost)? {
        DeviceAnswer::Failed { message } => Err(Error::Failed(message)),
        answer => Ok(answer),
    }
}

fn exchange(
    socket: &Path,
    request: &DeviceRequest,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<DeviceAnswer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one request"));
    }
    let sent = sendmsg(&stream, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(line.get(sent..).unwrap_or_default())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
