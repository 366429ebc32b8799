//! vmms: the virtual machine management service.

#![forbid(unsafe_code)]

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use parterre_api::Paths;
use parterre_vmms::{Manager, Store, adopt, rest, scheduler};
use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// The virtual machine management service.
///
/// Directories come from PARTERRE_STATE_DIR (/var/lib/parterre) and PARTERRE_RUNTIME_DIR (/run/parterre). Virtual
/// machines go on running when the service ends, and are found again when it starts.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The worker program [default: vmwp beside this program].
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
    /// Leave the kernel's scheduler as it is, though with its feature HRTICK virtual machines are slower: below a hypervisor
    /// each setting of a timer is dear.
    #[arg(long)]
    keep_scheduler: bool,
}

/// There in the parent partition alone.
const HYPERVISOR: &str = "/dev/mshv";

type AnyError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmms: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), AnyError> {
    let paths = Paths::from_environment();
    for directory in [&paths.state, &paths.runtime] {
        make_directory(directory)?;
    }
    let _lock = take_lock(&paths.state.join("vmms.lock"))?;
    let worker = arguments.worker.map_or_else(beside_this_program, Ok)?;
    let store = Store::open(&paths.database())?;
    let manager = Manager::new(paths.clone(), worker, store)?;
    manager.restore_switches().await;
    let adopted = adopt::adopt_workers(&manager).await;
    if !arguments.keep_scheduler && Path::new(HYPERVISOR).exists() {
        spare_timers();
    }
    let listener = listen(&paths.api_socket())?;
    let defined = manager.list().len();
    eprintln!(
        "vmms: {defined} virtual machines defined, {adopted} running; on {}",
        paths.api_socket().display()
    );
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        served = axum::serve(listener, rest::router(manager)) => served?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // Connections are cut and workers left running: the next service takes over.
    Ok(())
}

fn spare_timers() {
    match scheduler::spare_timers() {
        Ok(features) if features.is_empty() => {}
        Ok(features) => eprintln!(
            "vmms: turned off the scheduler's {}, with which timers are set too often (--keep-scheduler leaves it)",
            features.join(" and ")
        ),
        Err(error) => eprintln!(
            "vmms: the scheduler's feature HRTICK, with which virtual machines are slower, cannot be turned off: {error}"
        ),
    }
}

fn make_directory(path: &Path) -> Result<(), AnyError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| format!("cannot make the directory {}: {e}; run as root", path.display()).into())
}

/// Holds the state directory for this process alone.
fn take_lock(path: &Path) -> Result<File, AnyError> {
    let file =
        File::create(path).map_err(|e| format!("cannot write {}: {e}; run as root", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| format!("another vmms holds {}; stop that one first", path.display()))?;
    Ok(file)
}

fn beside_this_program() -> Result<PathBuf, AnyError> {
    Ok(std::env::current_exe()?.with_file_name("vmwp"))
}

fn listen(path: &Path) -> Result<UnixListener, AnyError> {
    // The lock is ours, so a socket that exists is a dead one's.
    let _ = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).map_err(|e| format!("cannot listen on {}: {e}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
