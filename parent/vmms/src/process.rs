//! Worker processes: starting one, knowing when it ends, and how.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use parterre_api::WorkerPaths;
use parterre_api::worker::{WorkerSpec, WorkerStatus};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, BufReader, Interest};
use tokio::net::unix::pipe;

/// A worker process, our own child or one that an earlier service started.
pub(crate) struct Process {
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// A process that runs.
    pub(crate) fn open(pid: u32) -> std::io::Result<Process> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(std::io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        // What is deprecated is that any type with a number may be passed; an `OwnedFd` is always right.
        #[allow(deprecated)]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Process { pidfd })
    }

    /// Waits until the process has ended and says how: `signal 9`, `exit status 1`.
    pub(crate) async fn ended(&self) -> String {
        if let Err(error) = self.pidfd.readable().await {
            return format!("it cannot be watched: {error}");
        }
        let how = waitid(WaitId::PidFd(rustix::fd::AsFd::as_fd(self.pidfd.get_ref())), WaitIdOptions::EXITED);
        match how {
            Ok(Some(status)) => match (status.terminating_signal(), status.exit_status()) {
                (Some(signal), _) => format!("signal {signal}"),
                (None, Some(code)) => format!("exit status {code}"),
                (None, None) => "unknown".into(),
            },
            // Not our child: it was started by an earlier service, only the end is known.
            _ => "unknown, it was started before this service".into(),
        }
    }

    /// Ends the process without asking it.
    pub(crate) fn kill(&self) {
        // A process that has ended already needs no signal.
        let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }
}

/// Makes an empty directory for a worker.
pub(crate) fn prepare_directory(paths: &WorkerPaths) -> std::io::Result<()> {
    match std::fs::remove_dir_all(paths.directory()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().recursive(true).mode(0o700).create(paths.directory())
}

fn log_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Most descriptors in one message: the kernel takes 253.
const MAX_DESCRIPTORS: usize = 128;

/// Tells a worker what it is to run. Descriptors come with blanks before the description, which JSON allows.
fn tell(stream: &mut UnixStream, spec: &[u8], descriptors: &[OwnedFd]) -> std::io::Result<()> {
    for part in descriptors.chunks(MAX_DESCRIPTORS) {
        let borrowed: Vec<_> = part.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(std::io::Error::other("too many descriptors"));
        }
        sendmsg(&*stream, &[IoSlice::new(b" ")], &mut control, SendFlags::NOSIGNAL)?;
    }
    stream.write_all(spec)?;
    stream.shutdown(Shutdown::Write)
}

/// Starts a worker with the queues of its network adapters, and waits for its first word.
pub(crate) async fn spawn(
    program: &Path,
    spec: &WorkerSpec,
    descriptors: Vec<OwnedFd>,
) -> Result<(Process, WorkerStatus), String> {
    let paths = WorkerPaths::new(spec.directory.clone());
    let trouble =
        |what: &str, error: &dyn std::fmt::Display| format!("cannot start the worker: {what}: {error}");
    prepare_directory(&paths).map_err(|e| trouble("no directory for it", &e))?;
    let log = log_file(&paths.log()).map_err(|e| trouble("no log for it", &e))?;
    let (mut ours, theirs) = UnixStream::pair().map_err(|e| trouble("no socket to it", &e))?;
    // A group of its own: what ends the service by keyboard does not end the virtual machines.
    let mut child = Command::new(program)
        .arg("--service")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(log)
        .process_group(0)
        .spawn()
        .map_err(|e| trouble(&program.display().to_string(), &e))?;
    let process = Process::open(child.id()).map_err(|e| trouble("it cannot be watched", &e))?;
    let json = serde_json::to_vec(spec).map_err(|e| trouble("its description", &e))?;
    // A worker that ends at once says why on its output, which is read below.
    let _ = tell(&mut ours, &json, &descriptors);
    drop(descriptors);
    let Some(stdout) = child.stdout.take() else {
        return Err("cannot start the worker: no pipe to it".into());
    };
    match first_word(stdout.into()).await {
        Ok(status) => Ok((process, status)),
        Err(error) => {
            process.kill();
            let how = process.ended().await;
            Err(format!("the worker did not start ({how}): {error}; its log is {}", paths.log().display()))
        }
    }
}

async fn first_word(stdout: OwnedFd) -> std::io::Result<WorkerStatus> {
    let mut line = String::new();
    BufReader::new(pipe::Receiver::from_owned_fd(stdout)?).read_line(&mut line).await?;
    if line.is_empty() {
        return Err(std::io::Error::other("it ended without a word"));
    }
    Ok(serde_json::from_str(&line)?)
}
