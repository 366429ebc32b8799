//! What the command prints and how it exits, against a service in this process.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use parterre_api::Paths;
use parterre_vmms::{Manager, Store, rest};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A service without a usable worker program, and the directory it lives in.
struct Service {
    directory: TempDir,
    _runtime: Runtime,
}

impl Service {
    fn start() -> Service {
        let directory = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let paths = Paths { state: directory.path().into(), runtime: directory.path().into() };
        let store = Store::open(&paths.database()).unwrap();
        let manager = Manager::new(paths.clone(), "/nonexistent/vmwp".into(), store).unwrap();
        let listener =
            runtime.block_on(async { tokio::net::UnixListener::bind(paths.api_socket()) }).unwrap();
        runtime.spawn(async move { axum_serve(listener, manager).await });
        std::fs::write(directory.path().join("kernel"), "not a kernel").unwrap();
        Service { directory, _runtime: runtime }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        parterre(self.directory.path(), arguments)
    }

    /// Output of a command that must succeed; the directory's name is taken out of it.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        self.clean(&output.stdout)
    }

    /// Exit code and words of a command that must fail.
    fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        (output.status.code().unwrap(), self.clean(&output.stderr))
    }

    fn clean(&self, bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).replace(self.directory.path().to_str().unwrap(), "DIR")
    }

    fn create(&self, name: &str, more: &[&str]) -> String {
        let kernel = self.directory.path().join("kernel");
        let mut arguments = vec!["vm", "create", name, "--kernel", kernel.to_str().unwrap()];
        arguments.extend(more);
        self.ok(&arguments)
    }
}

async fn axum_serve(listener: tokio::net::UnixListener, manager: Manager) {
    axum::serve(listener, rest::router(manager)).await.unwrap();
}

fn parterre(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("parterre"))
        .args(arguments)
        .env("PARTERRE_RUNTIME_DIR", directory)
        .env("PARTERRE_STATE_DIR", directory)
        .output()
        .unwrap()
}

#[test]
fn virtual_machines_are_listed_and_shown() {
    let service = Service::start();
    assert_eq!(service.create("web", &["--memory", "1G", "--processors", "4"]), "web: created\n");
    service.create("db 1", &["--cmdline", "console=ttyS0 quiet"]);
    insta::assert_snapshot!(service.ok(&["vm", "list"]), @r"
    NAME  STATE  PROCESSORS  MEMORY
    db 1  Off    1           512 MiB
    web   Off    4           1 GiB
    ");
    let shown = service.ok(&["vm", "show", "db 1"]);
    let without_id: Vec<_> = shown.lines().filter(|line| !line.starts_with("Id:")).collect();
    insta::assert_snapshot!(without_id.join("\n"), @r"
    Name:          db 1
    State:         Off
    Processors:    1
    Memory:        512 MiB
    Kernel:        DIR/kernel
    Command line:  console=ttyS0 quiet
    ");
    let json: serde_json::Value = serde_json::from_str(&service.ok(&["vm", "list", "--json"])).unwrap();
    assert_eq!(json[1]["settings"]["memory"], 1u64 << 30);
    assert_eq!(json[1]["status"]["state"], "off");
    assert_eq!(service.ok(&["vm", "delete", "db 1"]), "db 1: deleted\n");
    assert_eq!(service.ok(&["vm", "stop", "web"]), "web: off\n");
}

#[test]
fn services_and_items_are_kept_while_a_machine_is_off() {
    let service = Service::start();
    service.create("web", &[]);
    service.ok(&["vm", "integration", "disable", "web", "heartbeat"]);
    insta::assert_snapshot!(service.ok(&["vm", "integration", "enable", "web", "Guest Service Interface"]), @r"
    SERVICE        NAME IN HYPER-V          STATE
    heartbeat      Heartbeat                disabled
    time-sync      Time Synchronization     enabled
    shutdown       Shutdown                 enabled
    data-exchange  Key-Value Pair Exchange  enabled
    backup         VSS                      enabled
    file-copy      Guest Service Interface  enabled
    ");
    assert_eq!(service.ok(&["vm", "kvp", "set", "web", "a/b c", "1 2"]), "web: a/b c set\n");
    service.ok(&["vm", "kvp", "set", "web", "other", "3"]);
    service.ok(&["vm", "kvp", "delete", "web", "other"]);
    assert_eq!(service.ok(&["vm", "kvp", "get", "web", "a/b c", "--pool", "external"]), "1 2\n");
    let (code, words) = service.fails(&["vm", "kvp", "get", "web", "other", "--pool", "external"]);
    assert!(code == 3 && words.contains("no item 'other'"), "{words}");
    let (code, words) = service.fails(&["vm", "kvp", "set", "web", "k", &"v".repeat(2000)]);
    assert!(code == 2 && words.contains("longer than"), "{words}");
    for arguments in [
        &["vm", "kvp", "get", "web"][..],
        &["vm", "restart", "web"],
        &["vm", "connect", "web", "22"],
        &["vm", "freeze", "web", "--", "true"],
    ] {
        let (code, words) = service.fails(arguments);
        assert!(code == 4 && words.contains("parterre vm start web"), "{arguments:?}: {words}");
    }
    assert_eq!(service.ok(&["vm", "shutdown", "web"]), "web: off\n");
    let (code, words) = service.fails(&["vm", "integration", "enable", "web", "vsock"]);
    assert!(code == 2 && words.contains("data-exchange"), "{words}");
}

#[test]
fn drives_are_filled_and_emptied_while_a_machine_is_off() {
    let service = Service::start();
    service.create("web", &[]);
    let (code, words) = service.fails(&["vm", "disk", "eject", "web"]);
    assert!(code == 4 && words.contains("no DVD drive"), "{words}");
    let text = service.ok(&["vm", "disk", "add", "web", "--dvd"]);
    assert_eq!(text, "web: an empty drive added at place 0 of controller 0\n");
    let disc = service.directory.path().join("disc.iso");
    std::fs::write(&disc, [0; 4096]).unwrap();
    let disc = disc.to_str().unwrap();
    let text = service.ok(&["vm", "disk", "insert", "web", disc]);
    assert_eq!(text, "web: DIR/disc.iso is in the drive at place 0\n");
    assert!(service.ok(&["vm", "disk", "list", "web"]).contains("disc.iso"));
    assert_eq!(service.ok(&["vm", "disk", "eject", "web"]), "web: the drive at place 0 is empty\n");
    assert!(!service.ok(&["vm", "disk", "list", "web"]).contains("disc.iso"));
    let (code, words) = service.fails(&["vm", "disk", "resize", "web", "1G", "--lun", "0"]);
    assert!(code == 1 && words.contains("read-only"), "{words}");
    let (code, words) = service.fails(&["vm", "disk", "resize", "web", "1G", "--lun", "5"]);
    assert!(code == 4 && words.contains("no disk at place 5"), "{words}");
    let (code, words) = service.fails(&["vm", "disk", "resize", "web", "1000", "--lun", "0"]);
    assert!(code == 2 && words.contains("multiple of 512"), "{words}");
    service.ok(&["vm", "disk", "add", "web", "--dvd"]);
    let (code, words) = service.fails(&["vm", "disk", "eject", "web"]);
    assert!(code == 2 && words.contains("--lun"), "{words}");
    let (code, words) = service.fails(&["vm", "disk", "add", "web"]);
    assert!(code == 2 && words.contains("FILE"), "{words}");
}

#[test]
fn failures_have_words_and_codes() {
    let service = Service::start();
    service.create("web", &[]);
    let (code, words) = service.fails(&["vm", "show", "nobody"]);
    assert_eq!(
        (code, words.as_str()),
        (3, "parterre: there is no virtual machine 'nobody'; `parterre vm list` shows those that exist\n")
    );
    let kernel = service.directory.path().join("kernel");
    let kernel = kernel.to_str().unwrap();
    let (code, words) = service.fails(&["vm", "create", "web", "--kernel", kernel]);
    assert_eq!(code, 4, "{words}");
    let (code, words) = service.fails(&["vm", "create", "x/y", "--kernel", kernel]);
    assert!(code == 2 && words.contains("cannot be a name"), "{words}");
    let (code, words) = service.fails(&["vm", "create", "x", "--kernel", "/nonexistent"]);
    assert!(code == 1 && words.contains("cannot use /nonexistent"), "{words}");
    let (code, words) = service.fails(&["vm", "create", "x", "--kernel", kernel, "--memory", "1X"]);
    assert!(code == 2 && words.contains("unknown unit"), "{words}");
    let (code, words) = service.fails(&["vm", "console", "web"]);
    assert!(code == 4 && words.contains("parterre vm start web"), "{words}");
    let (code, words) = service.fails(&["vm", "start", "web"]);
    assert!(code == 1 && words.contains("/nonexistent/vmwp"), "{words}");
    assert!(service.ok(&["vm", "list"]).contains("Off (failed)"));
}

#[test]
fn a_service_that_is_not_there_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let output = parterre(directory.path(), &["vm", "list"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("start it"));
    // The host can be looked at without it.
    let output = parterre(directory.path(), &["host", "info", "--json"]);
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(info["service"].is_null());
}

#[test]
fn the_check_exits_as_it_found() {
    let directory = tempfile::tempdir().unwrap();
    let output = parterre(directory.path(), &["--json", "host", "check"]);
    let check: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code() == Some(0), check["ok"].as_bool().unwrap());
    let nx = check["findings"].as_array().unwrap().iter().find(|finding| finding["name"] == "NX").unwrap();
    assert_eq!(nx["required"], true);
}

#[test]
fn completions_name_the_commands() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = parterre(directory.path(), &["completions", shell]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("console"), "{shell}");
    }
}
