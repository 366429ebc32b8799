//! What can go wrong, with the exit code that scripts see.

use std::path::PathBuf;
use std::process::ExitCode;

use parterre_api::{ErrorBody, ErrorCode};

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service answered with a failure.
    #[error("{}", .0.message)]
    Service(ErrorBody),
    /// The service is not there.
    #[error(
        "the service vmms does not answer on {path}: {source}; start it: `systemctl start vmms`, or `vmms &` as root"
    )]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The socket may not be used.
    #[error("{path} may not be used by this user; run parterre as root")]
    NotAllowed {
        /// The service's socket.
        path: PathBuf,
    },
    /// The service said something unexpected.
    #[error("the service vmms cannot be understood ({0}); it may be of another version than parterre")]
    Protocol(String),
    /// A file that was named.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The virtual machine does not run.
    #[error("virtual machine '{0}' is off and has no console; start it: `parterre vm start {0}`")]
    NoConsole(String),
    /// The guest of a virtual machine that does not run.
    #[error("virtual machine '{0}' is off and its guest cannot be asked; start it: `parterre vm start {0}`")]
    NoGuest(String),
    /// An item of data exchange.
    #[error("there is no item '{0}' in that pool; `parterre vm kvp get` without a key shows all")]
    NoItem(String),
    /// The file systems were thawed too early.
    #[error(
        "the file systems of '{name}' were thawed before the command ended, because {seconds} seconds were over: what it \
         copied is worth no more than after a power cut; use a larger --limit"
    )]
    NotFrozen {
        /// The virtual machine.
        name: String,
        /// The limit.
        seconds: u32,
    },
    /// The same, during a backup.
    #[error(
        "the file systems of '{name}' were thawed before its disks were copied, because {seconds} seconds were over, and nothing was \
         kept; use a larger --limit, or a directory on the disks' own file system if that is Btrfs or XFS, where a copy takes no time"
    )]
    ThawedEarly {
        /// The virtual machine.
        name: String,
        /// The limit.
        seconds: u32,
    },
    /// A disk that is to be copied is not there.
    #[error(
        "virtual machine '{name}' has nothing to be copied at place {lun} of controller {controller}; \
         `parterre vm disk list {name}` shows what it has"
    )]
    NoDisk {
        /// The virtual machine.
        name: String,
        /// Where.
        controller: u8,
        /// Where there.
        lun: u8,
    },
    /// A virtual machine between two states.
    #[error("virtual machine '{name}' is {state}; wait until it runs or is off")]
    Changing {
        /// The virtual machine.
        name: String,
        /// What it is doing.
        state: String,
    },
    /// Somebody writes to a disk that nobody should.
    #[error("the disk {path} is in use; stop the virtual machine that uses it, or copy that one's disks")]
    InUse {
        /// Its file.
        path: PathBuf,
    },
    /// A copy of a disk.
    #[error("cannot copy the disk {from} to {to}: {source}; nothing was kept")]
    Copy {
        /// Its file.
        from: PathBuf,
        /// The copy.
        to: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A signal.
    #[error("interrupted; nothing was kept")]
    Interrupted,
    /// There is no DVD drive.
    #[error("controller {controller} has no DVD drive; add one: `parterre vm disk add NAME --dvd`")]
    NoDrive {
        /// The controller.
        controller: u8,
    },
    /// It is not clear which DVD drive is meant.
    #[error("controller {controller} has more than one DVD drive; say which with --lun")]
    ManyDrives {
        /// The controller.
        controller: u8,
    },
    /// The terminal or the standard streams.
    #[error("cannot use the terminal: {0}")]
    Terminal(#[from] std::io::Error),
}

impl Error {
    /// What was asked for makes no sense; the sentence says why.
    pub fn wrong(message: String) -> Error {
        Error::Service(ErrorBody { code: ErrorCode::BadRequest, message })
    }

    /// The exit code, as `parterre --help` says.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Error::Service(body) => match body.code {
                ErrorCode::NotFound => 3,
                ErrorCode::Conflict => 4,
                ErrorCode::Timeout => 6,
                ErrorCode::BadRequest => 2,
                ErrorCode::Failed => 1,
            },
            Error::Unreachable { .. } | Error::NotAllowed { .. } => 5,
            Error::NoConsole(_) | Error::NoGuest(_) | Error::NoDrive { .. } => 4,
            Error::NoDisk { .. } | Error::Changing { .. } | Error::InUse { .. } => 4,
            Error::ManyDrives { .. } => 2,
            Error::NoItem(_) => 3,
            _ => 1,
        })
    }
}

impl From<hyper::Error> for Error {
    fn from(error: hyper::Error) -> Error {
        Error::Protocol(error.to_string())
    }
}
