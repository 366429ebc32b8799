//! The service over workers that only pretend: life cycle, failures, and a service that is restarted.

use std::path::PathBuf;
use std::time::Duration;

use parterre_api::{
    DiskRequest, ErrorCode, IntegrationService, MediumRequest, OffReason, Paths, ResizeRequest, StopRequest,
    VmSettings, VmState,
};
use parterre_vmms::{Error, Manager, Store, adopt};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The example `fake_worker`, which cargo builds together with the tests.
fn fake_worker() -> PathBuf {
    let path =
        std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("fake_worker");
    assert!(path.exists(), "{} is missing: run `cargo test` without selecting a test target", path.display());
    path
}

struct Host {
    directory: TempDir,
}

impl Host {
    fn new() -> Host {
        Host { directory: tempfile::tempdir().unwrap() }
    }

    fn paths(&self) -> Paths {
        Paths { state: self.directory.path().into(), runtime: self.directory.path().join("run") }
    }

    /// A service on this host, as after its start.
    async fn service(&self) -> Manager {
        let store = Store::open(&self.paths().database()).unwrap();
        let manager = Manager::new(self.paths(), fake_worker(), store).unwrap();
        adopt::adopt_workers(&manager).await;
        manager
    }
}

fn settings(name: &str, behaviour: &str) -> VmSettings {
    VmSettings {
        name: name.into(),
        memory: 64 << 20,
        processors: 1,
        kernel: "/boot/vmlinuz".into(),
        initrd: None,
        command_line: behaviour.into(),
        ..VmSettings::default()
    }
}

const FORCE: StopRequest = StopRequest { force: true, timeout: None };

fn off(reason: OffReason) -> VmState {
    VmState::Off(reason)
}

async fn until_off(manager: &Manager, name: &str) -> VmState {
    let mut changes = manager.watch(name).unwrap();
    let vm = tokio::time::timeout(Duration::from_secs(20), changes.wait_for(|vm| vm.status.is_off())).await;
    vm.unwrap().unwrap().status.clone()
}

#[tokio::test]
async fn a_virtual_machine_lives_and_is_deleted() {
    let host = Host::new();
    let manager = host.service().await;
    let vm = manager.create(settings("one", "run")).await.unwrap();
    assert_eq!(vm.status, off(OffReason::NeverStarted));
    assert_eq!(manager.create(settings("one", "")).await.unwrap_err().code(), ErrorCode::Conflict);
    assert_eq!(manager.create(settings("a/b", "")).await.unwrap_err().code(), ErrorCode::BadRequest);

    let vm = manager.start("one").await.unwrap();
    assert_eq!(vm.status, VmState::Running { resets: 0 });
    assert!(vm.console.unwrap().exists());
    assert_eq!(manager.host().running, 1);
    assert_eq!(manager.start("one").await.unwrap_err().code(), ErrorCode::Conflict);
    let error = manager.delete("one").await.unwrap_err();
    assert!(error.to_string().contains("stop it first"), "{error}");

    let vm = manager.stop("one", StopRequest::default()).await.unwrap();
    assert_eq!((vm.status, vm.worker, vm.console), (off(OffReason::PoweredOff), None, None));
    assert_eq!(manager.stop("one", StopRequest::default()).await.unwrap().status, off(OffReason::PoweredOff));
    // By id, and a second time.
    manager.start(&vm.id.to_string()).await.unwrap();
    assert_eq!(manager.stop("one", FORCE).await.unwrap().status, off(OffReason::Stopped));
    manager.delete("one").await.unwrap();
    assert_eq!(manager.show("one").unwrap_err().code(), ErrorCode::NotFound);
    assert!(manager.list().is_empty());
}

#[tokio::test]
async fn a_virtual_machine_is_paused_and_resumed() {
    let host = Host::new();
    let manager = host.service().await;
    manager.create(settings("one", "run")).await.unwrap();
    assert_eq!(manager.pause("one", true).await.unwrap_err().code(), ErrorCode::Conflict);
    manager.start("one").await.unwrap();
    assert_eq!(manager.pause("one", true).await.unwrap().status, VmState::Paused { resets: 0 });
    assert_eq!(manager.pause("one", true).await.unwrap().status, VmState::Paused { resets: 0 });
    let error = manager.stop("one", StopRequest::default()).await.unwrap_err();
    assert!(error.to_string().contains("parterre vm resume one"), "{error}");
    assert_eq!(manager.pause("one", false).await.unwrap().status, VmState::Running { resets: 0 });
    manager.pause("one", true).await.unwrap();
    assert_eq!(manager.stop("one", FORCE).await.unwrap().status, off(OffReason::Stopped));
}

/// What is decided about a guest that stands still it finds when it goes on; what it would have to answer is refused.
#[tokio::test]
async fn services_are_switched_while_the_guest_stands_still() {
    let host = Host::new();
    let manager = host.service().await;
    let id = manager.create(settings("one", "run")).await.unwrap().id;
    manager.start("one").await.unwrap();
    manager.pause("one", true).await.unwrap();
    manager.set_service("one", IntegrationService::Backup, false).await.unwrap();
    let told = host.paths().worker(id).directory().join("told");
    let told = std::fs::read_to_string(told).unwrap();
    assert!(told.contains("backup") && told.contains("false"), "{told}");
    assert!(!manager.show("one").unwrap().settings.integration.is_enabled(IntegrationService::Backup));
    let error = manager.set_item("one", "key".into(), Some("value".into())).await.unwrap_err();
    assert!(error.to_string().contains("resume"), "{error}");
    assert!(manager.show("one").unwrap().settings.integration.items.is_empty());
    manager.stop("one", FORCE).await.unwrap();
}

#[tokio::test]
async fn failures_are_told_in_words() {
    let manager = Host::new();
    let (host, manager) = (&manager, manager.service().await);
    for (behaviour, words) in
        [("fail", "no hypervisor here"), ("die", "exit status 3"), ("nonsense", "did not start")]
    {
        manager.create(settings(behaviour, behaviour)).await.unwrap();
        let error = manager.start(behaviour).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(manager.show(behaviour).unwrap().status.is_off());
    }
    drop(manager);
    let store = Store::open(&host.paths().database()).unwrap();
    let manager = Manager::new(host.paths(), "/nonexistent/vmwp".into(), store).unwrap();
    let error = manager.start("fail").await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/vmwp"), "{error}");
}

#[tokio::test]
async fn ends_of_workers_are_seen() {
    let host = Host::new();
    let manager = host.service().await;
    manager.create(settings("off", "off")).await.unwrap();
    manager.start("off").await.unwrap();
    assert_eq!(until_off(&manager, "off").await, off(OffReason::PoweredOff));
    for name in ["first", "second"] {
        manager.create(settings(name, "run")).await.unwrap();
        manager.start(name).await.unwrap();
    }
    let pid = manager.show("first").unwrap().worker.unwrap();
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    let how = "signal 9".to_string();
    assert_eq!(until_off(&manager, "first").await, off(OffReason::WorkerEnded { how }));
    // The other one does not notice.
    assert_eq!(manager.show("second").unwrap().status, VmState::Running { resets: 0 });
    manager.stop("second", FORCE).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_does_not_listen_is_left_running_until_forced() {
    let host = Host::new();
    let manager = host.service().await;
    manager.create(settings("deaf", "deaf")).await.unwrap();
    manager.start("deaf").await.unwrap();
    let error = manager.stop("deaf", StopRequest { force: false, timeout: Some(0) }).await.unwrap_err();
    assert!(matches!(&error, Error::Timeout(words) if words.contains("--force")), "{error}");
    assert_eq!(manager.show("deaf").unwrap().status, VmState::Running { resets: 0 });
    assert_eq!(manager.stop("deaf", FORCE).await.unwrap().status, off(OffReason::Stopped));
}

#[tokio::test]
async fn discs_are_changed_only_where_the_guest_lets_go() {
    let host = Host::new();
    let manager = host.service().await;
    manager.create(settings("one", "run")).await.unwrap();
    let disc = host.directory.path().join("disc.iso");
    std::fs::write(&disc, [0; 4096]).unwrap();
    let drive = |lun| DiskRequest { lun: Some(lun), dvd: true, ..DiskRequest::default() };
    manager.add_disk("one", drive(1)).await.unwrap();
    manager.add_disk("one", drive(9)).await.unwrap();
    manager.start("one").await.unwrap();
    let insert = MediumRequest { file: Some(disc.clone()), ..MediumRequest::default() };
    let changed = manager.change_medium("one", (0, 1), insert.clone()).await.unwrap();
    assert_eq!(changed.file.as_ref(), Some(&disc));
    let error = manager.change_medium("one", (0, 9), insert.clone()).await.unwrap_err();
    assert!(error.to_string().contains("locked"), "{error}");
    let files = || manager.disks("one").unwrap().into_iter().map(|disk| disk.file).collect::<Vec<_>>();
    assert_eq!(files(), [Some(disc.clone()), None]);
    manager.change_medium("one", (0, 9), MediumRequest { force: true, ..insert }).await.unwrap();
    manager.change_medium("one", (0, 1), MediumRequest::default()).await.unwrap();
    assert_eq!(files(), [None, Some(disc)]);
    let missing = MediumRequest { file: Some("/nonexistent".into()), ..MediumRequest::default() };
    assert_eq!(
        manager.change_medium("one", (0, 1), missing).await.unwrap_err().code(),
        ErrorCode::BadRequest
    );
    let resized = manager.resize_disk("one", (0, 1), ResizeRequest { size: Some(1 << 20) }).await.unwrap();
    assert_eq!(resized.size, 1 << 20);
    assert_eq!(manager.resize_disk("one", (0, 1), ResizeRequest::default()).await.unwrap().size, 4096);
    manager.stop("one", FORCE).await.unwrap();
    // Off, the disk's size is found at the start, and a disc is never grown.
    for size in [None, Some(1 << 20)] {
        assert!(manager.resize_disk("one", (0, 1), ResizeRequest { size }).await.is_err());
    }
}

/// Starts three machines in a service that then ends, tasks and all. Returns the workers' process ids.
#[tokio::test]
async fn a_drive_that_the_guest_empties_is_empty_at_the_next_start() {
    let host = Host::new();
    let manager = host.service().await;
    manager.create(settings("one", "eject")).await.unwrap();
    for disc in ["one", "two"] {
        let file = host.directory.path().join(disc);
        std::fs::write(&file, vec![0; 4096]).unwrap();
        let request = DiskRequest { file: Some(file), dvd: true, ..DiskRequest::default() };
        manager.add_disk("one", request).await.unwrap();
    }
    manager.start("one").await.unwrap();
    manager.stop("one", FORCE).await.unwrap();
    let files = |manager: &Manager| {
        manager.disks("one").unwrap().into_iter().map(|disk| disk.file.is_some()).collect::<Vec<_>>()
    };
    assert_eq!(files(&manager), [false, true]);
    drop(manager);
    // On the disk too.
    let store = Store::open(&host.paths().database()).unwrap();
    let (_, stored) = store.all().unwrap().into_iter().next().unwrap();
    assert_eq!(stored.disks[0].file, None);
}

fn a_service_that_ends(host: &Host) -> [u32; 3] {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let manager = host.service().await;
        for name in ["lives", "dies", "gone"] {
            manager.create(settings(name, "run")).await.unwrap();
            manager.start(name).await.unwrap();
        }
        ["lives", "dies", "gone"].map(|name| manager.show(name).unwrap().worker.unwrap())
    })
}

#[test]
fn a_restarted_service_finds_its_workers() {
    let host = Host::new();
    let pids = a_service_that_ends(&host);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(after_the_restart(&host, pids));
}

async fn after_the_restart(host: &Host, [lives, dies, gone]: [u32; 3]) {
    kill_process(Pid::from_raw(dies as i32).unwrap(), Signal::KILL).unwrap();
    let gone_id = Store::open(&host.paths().database()).unwrap().all().unwrap();
    let gone_id = gone_id.iter().find(|(_, settings)| settings.name == "gone").unwrap().0;
    Store::open(&host.paths().database()).unwrap().remove(gone_id).unwrap();
    // Long enough for the killed worker's socket to be dead.
    tokio::time::sleep(Duration::from_millis(100)).await;

    let second = host.service().await;
    assert_eq!(second.show("lives").unwrap().worker, Some(lives));
    let mut changes = second.watch("lives").unwrap();
    changes.wait_for(|vm| vm.status == VmState::Running { resets: 0 }).await.unwrap();
    assert_eq!(second.show("dies").unwrap().status, off(OffReason::NeverStarted));
    // A worker whose virtual machine is not defined any more is ended.
    assert!(second.show("gone").is_err());
    let ended = || {
        let stat = std::fs::read_to_string(format!("/proc/{gone}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(" Z ")
    };
    for _ in 0..500 {
        if ended() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(ended());
    assert_eq!(
        second.stop("lives", StopRequest::default()).await.unwrap().status,
        off(OffReason::PoweredOff)
    );
    second.start("lives").await.unwrap();
    second.stop("lives", FORCE).await.unwrap();
}
