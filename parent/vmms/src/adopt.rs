//! Finding the workers of an earlier service: virtual machines go on while the service restarts.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;
use uuid::Uuid;

use parterre_api::WorkerPaths;

use crate::Manager;
use crate::process::Process;
use crate::supervise::Link;

/// How long a worker has to tell its state. One that does not is hung: its control thread waits for nothing else.
const PATIENCE: Duration = Duration::from_secs(30);

/// Takes charge of every worker that runs, and clears away what dead ones left. Returns how many run.
pub async fn adopt_workers(manager: &Manager) -> usize {
    let directory = manager.paths().workers();
    let Ok(entries) = std::fs::read_dir(&directory) else { return 0 };
    let mut adopted = 0;
    for entry in entries.flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| Uuid::parse_str(name).ok()) else {
            continue;
        };
        match adopt(manager, id, &entry.path()).await {
            Ok(()) => adopted += 1,
            Err(why) => {
                eprintln!("vmms: no worker for {id}: {why}");
                // Whatever is left there belongs to a worker that is gone.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
    adopted
}

async fn adopt(manager: &Manager, id: Uuid, directory: &Path) -> Result<(), String> {
    let paths = WorkerPaths::new(directory.to_owned());
    let stream = UnixStream::connect(paths.control()).await.map_err(|e| e.to_string())?;
    // The kernel says who is at the other end; the worker's own word is not needed for that.
    let credentials = stream.peer_cred().map_err(|e| e.to_string())?;
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).ok_or("its process is unknown")?;
    let process = Process::open(pid).map_err(|e| e.to_string())?;
    let mut link = Link::new(process, stream);
    let Some(status) = timeout(PATIENCE, link.report()).await.ok().flatten() else {
        // Nobody could reach it any more, and it would keep its disks.
        link.process.kill();
        return Err(format!("it did not answer within {} seconds and was ended", PATIENCE.as_secs()));
    };
    if status.id != id || !manager.knows(id) {
        link.process.kill();
        return Err("it runs a virtual machine that is not defined any more; it was ended".into());
    }
    manager.adopt(id, pid, &status, link);
    Ok(())
}
