//! The device socket: devices come and go while the guest runs.
//!
//! A thread of its own, since to open an image may take a while. One connection at a time: there is one management service.

use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parterre_api::DiskSettings;
use parterre_api::hotplug::{DeviceAnswer, DeviceRequest, MAX_DESCRIPTORS};
use parterre_vsp_storage::file::OpenFile;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::network::Adapters;
use super::storage::{Storage, opened};
use crate::processor::log_line;

/// Longest request.
const LINE_LIMIT: usize = 1 << 16;
/// How long a connection may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// What has places for devices.
pub struct Plugs {
    /// For disks.
    pub storage: Storage,
    /// For network adapters.
    pub adapters: Arc<Adapters>,
}

/// Serves the socket from a thread of its own, for as long as the process lives.
///
/// # Errors
/// When there is no thread to be had.
pub fn serve(listener: UnixListener, plugs: Plugs) -> io::Result<()> {
    let serve = move || {
        for stream in listener.incoming() {
            let served = stream.and_then(|stream| answer(stream, &plugs));
            if let Err(error) = served {
                log_line(format_args!("a connection to the device socket broke off: {error}"));
            }
        }
    };
    thread::Builder::new().name("devices".into()).spawn(serve).map(drop)
}

fn answer(mut stream: UnixStream, plugs: &Plugs) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (line, descriptors) = receive(&stream)?;
    let done = serde_json::from_slice(&line)
        .map_err(|error| format!("the request cannot be read: {error}"))
        .and_then(|request| perform(request, descriptors, plugs));
    let answer = match done {
        Ok(answer) => answer,
        Err(message) => DeviceAnswer::Failed { message },
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// A line, and the descriptors that came with it.
fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    while !line.ends_with(b"\n") {
        let mut bytes = [0; 4096];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(stream, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        line.extend_from_slice(&bytes[..received.bytes]);
        if received.bytes == 0 || line.len() > LINE_LIMIT || descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok((line, descriptors))
}

fn perform(request: DeviceRequest, descriptors: Vec<OwnedFd>, plugs: &Plugs) -> Result<DeviceAnswer, String> {
    let Plugs { storage, adapters } = plugs;
    let done = |()| DeviceAnswer::Done;
    match request {
        DeviceRequest::AddDisk { disk } => storage.add(&disk, file_of(&disk, descriptors)?).map(done),
        DeviceRequest::RemoveDisk { controller, lun } => storage.remove(controller, lun).map(done),
        DeviceRequest::ChangeMedium { disk, force } => {
            storage.change_medium(&disk, file_of(&disk, descriptors)?, force).map(done)
        }
        DeviceRequest::ResizeDisk { controller, lun, size } => {
            storage.resize(controller, lun, size).map(|size| DeviceAnswer::Resized { size })
        }
        DeviceRequest::AddAdapter { adapter, mtu } => adapters.add(&adapter, mtu, descriptors).map(done),
        DeviceRequest::RemoveAdapter { id } => adapters.remove(id).map(done),
        DeviceRequest::SetLink { id, up } => adapters.set_link(id, up).map(done),
    }
}

/// The file that came with a disk.
fn file_of(disk: &DiskSettings, descriptors: Vec<OwnedFd>) -> Result<Option<OpenFile>, String> {
    disk.check()?;
    let mut files = descriptors.into_iter().map(File::from);
    match (files.next(), &disk.file) {
        (Some(cached), Some(_)) => Ok(Some(opened(cached, files.next()))),
        (None, None) => Ok(None),
        (None, Some(_)) => Err("no file came with the disk".into()),
        (Some(_), None) => Err("a file came with an empty drive".into()),
    }
}
