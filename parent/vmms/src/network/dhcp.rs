//! The DHCP servers of internal switches: one process for each, which has its socket and its leases and nothing else.
//!
//! What guests send is read there and not here: the service would be a prize. A server that ends is started again; all of
//! them end with the service, and the next service starts its own, which know the leases of those before.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parterre_api::MacAddress;
use parterre_dhcp::{Leases, SERVER_PORT};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::process::{Child, Command};
use tokio::task::AbortHandle;
use uuid::Uuid;

use super::Said;

/// Before a server that ended is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// All of them.
pub(crate) struct Servers {
    program: PathBuf,
    directory: PathBuf,
    /// The tasks that watch over them; a server ends with its task.
    running: Mutex<BTreeMap<Uuid, AbortHandle>>,
}

/// What guests are told by a server.
pub(super) struct Told {
    /// The parent's address, with the length of the prefix.
    pub(super) address: String,
    /// The parent is the way to other networks, and its name servers are the guests'.
    pub(super) router: bool,
    /// Longest payload of a frame, if it is not the usual one.
    pub(super) mtu: Option<u32>,
}

/// What it takes to start a server.
struct Order {
    program: PathBuf,
    file: PathBuf,
    interface: String,
    told: Told,
}

impl Servers {
    /// None runs yet.
    pub(super) fn new(program: PathBuf, directory: PathBuf) -> Servers {
        Servers { program, directory, running: Mutex::default() }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Uuid, AbortHandle>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, id: Uuid) -> PathBuf {
        self.directory.join(id.to_string())
    }

    /// Starts a switch's server, unless it runs. Its process is a child of this thread.
    pub(super) fn start(&self, id: Uuid, interface: &str, told: Told) -> Said<()> {
        let mut running = self.running();
        if running.contains_key(&id) {
            return Ok(());
        }
        let order =
            Order { program: self.program.clone(), file: self.file(id), interface: interface.into(), told };
        let child = order.carry_out()?;
        running.insert(id, tokio::spawn(watch(order, child)).abort_handle());
        Ok(())
    }

    /// Ends a switch's server, if it has one.
    pub(super) fn stop(&self, id: Uuid) {
        if let Some(task) = self.running().remove(&id) {
            task.abort();
        }
    }

    /// Forgets a switch that is deleted.
    pub(super) fn forget(&self, id: Uuid) {
        self.stop(id);
        // Most switches have none.
        let _ = std::fs::remove_file(self.file(id));
    }

    /// The addresses that guests have of a switch now.
    pub(crate) fn leases(&self, id: Uuid) -> Vec<(MacAddress, Ipv4Addr)> {
        let text = std::fs::read_to_string(self.file(id)).unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let leases = Leases::from_text(&text);
        leases
            .taken()
            .filter(|(_, lease)| lease.until > now)
            .map(|(mac, lease)| (mac, lease.address))
            .collect()
    }
}

/// Where the parent's name servers may stand: its own resolver on the loopback interface is of no use to guests, but says whom it
/// asks itself.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The parent's name servers that guests can reach.
fn resolvers() -> Vec<Ipv4Addr> {
    let texts = RESOLVERS.iter().map(|path| std::fs::read_to_string(path).unwrap_or_default());
    texts.map(|text| name_servers(&text)).find(|found| !found.is_empty()).unwrap_or_default()
}

/// The name servers of a `resolv.conf`.
fn name_servers(text: &str) -> Vec<Ipv4Addr> {
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    named.filter(|address: &Ipv4Addr| !address.is_loopback() && !address.is_unspecified()).collect()
}

impl Told {
    /// The server's arguments.
    fn arguments(&self, resolvers: &[Ipv4Addr]) -> Vec<String> {
        let mut arguments = vec!["--address".to_owned(), self.address.clone()];
        if self.router {
            arguments.push("--router".into());
            arguments
                .extend(resolvers.iter().flat_map(|server| ["--name-server".into(), server.to_string()]));
        }
        arguments.extend(self.mtu.into_iter().flat_map(|mtu| ["--mtu".into(), mtu.to_string()]));
        arguments
    }
}

impl Order {
    fn carry_out(&self) -> Said<Child> {
        let trouble = |what: &str, error: std::io::Error| format!("DHCP cannot be served: {what}: {error}");
        let socket = socket(&self.interface)
            .map_err(|e| trouble(&format!("port {SERVER_PORT} of {} is not to be had", self.interface), e))?;
        let leases = open(&self.file).map_err(|e| trouble(&self.file.display().to_string(), e))?;
        let mut command = Command::new(&self.program);
        command
            .args(self.told.arguments(&resolvers()))
            .stdin(OwnedFd::from(socket))
            .stdout(Stdio::from(leases));
        command.kill_on_drop(true).process_group(0);
        command.spawn().map_err(|e| trouble(&self.program.display().to_string(), e))
    }
}

/// A socket that hears what comes in by one interface only.
fn socket(interface: &str) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind(&SockAddr::from(std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT)))?;
    Ok(socket)
}

fn open(file: &Path) -> std::io::Result<File> {
    if let Some(directory) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(file)
}

/// Starts a server again whenever it ends.
async fn watch(order: Order, mut child: Child) {
    loop {
        let how = child.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string());
        eprintln!("vmms: the DHCP server on {} ended ({how}) and is started again", order.interface);
        child = loop {
            tokio::time::sleep(PAUSE).await;
            match order.carry_out() {
                Ok(child) => break child,
                Err(error) => eprintln!("vmms: {error}"),
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Waits until a file has so many lines.
    async fn lines(file: &Path, count: usize) -> String {
        for _ in 0..500 {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if text.lines().count() >= count {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} has not {count} lines", file.display());
    }

    /// A program that says how it was started, in the file beside it.
    fn program(directory: &Path) -> PathBuf {
        let program = directory.join("vdhcp");
        let script =
            format!("#!/bin/sh\necho $* $$ >>{}\nexec sleep 100\n", directory.join("started").display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        program
    }

    fn told() -> Told {
        Told { address: "10.9.9.1/24".into(), router: false, mtu: None }
    }

    #[test]
    fn a_server_is_told_what_guests_are() {
        assert_eq!(told().arguments(&[]), ["--address", "10.9.9.1/24"]);
        let text = "# x\nsearch lan\nnameserver 127.0.0.53\n nameserver\t10.0.0.53 \nnameserver fd00::1\nnameserver x\n";
        let found = name_servers(text);
        let all = Told { router: true, mtu: Some(9000), ..told() };
        let expected = "--address 10.9.9.1/24 --router --name-server 10.0.0.53 --mtu 9000";
        assert_eq!(all.arguments(&found).join(" "), expected);
        assert!(name_servers("").is_empty());
    }

    fn pid(text: &str) -> i32 {
        text.trim().rsplit(' ').next().unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn a_server_is_watched_over() {
        if let Err(error) = socket("lo") {
            eprintln!("not run: port {SERVER_PORT} is not to be had here: {error}");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (id, started) = (Uuid::new_v4(), directory.path().join("started"));
        let servers = Servers::new(program(directory.path()), directory.path().join("leases"));
        for _ in 0..2 {
            servers.start(id, "lo", told()).unwrap();
        }
        let first = lines(&started, 1).await;
        assert!(first.starts_with("--address 10.9.9.1/24 ") && first.lines().count() == 1, "{first}");
        let process = |text: &str| rustix::process::Pid::from_raw(pid(text)).unwrap();
        rustix::process::kill_process(process(&first), rustix::process::Signal::TERM).unwrap();
        let again = lines(&started, 2).await;
        assert_ne!(pid(&again), pid(&first));
        servers.stop(id);
        for _ in 0..500 {
            // It has ended, if not yet been waited for.
            match std::fs::read_to_string(format!("/proc/{}/stat", pid(&again))) {
                Ok(stat) if !stat.contains(") Z ") => tokio::time::sleep(Duration::from_millis(10)).await,
                _ => return,
            }
        }
        panic!("the server goes on");
    }

    #[tokio::test]
    async fn what_cannot_be_served_is_explained() {
        let directory = tempfile::tempdir().unwrap();
        let servers = Servers::new(directory.path().join("absent"), directory.path().join("leases"));
        let error = servers.start(Uuid::new_v4(), "none0", told()).unwrap_err();
        assert!(error.contains("none0"), "{error}");
        if socket("lo").is_ok() {
            let error = servers.start(Uuid::new_v4(), "lo", told()).unwrap_err();
            assert!(error.contains("absent"), "{error}");
        }
    }

    #[test]
    fn leases_are_read_while_they_last() {
        let directory = tempfile::tempdir().unwrap();
        let (id, servers) = (Uuid::new_v4(), Servers::new("/bin/false".into(), directory.path().into()));
        assert_eq!(servers.leases(id), []);
        let text = "02:00:00:00:00:01 10.9.9.7 99999999999\n02:00:00:00:00:02 10.9.9.8 5\n";
        std::fs::write(servers.file(id), text).unwrap();
        assert_eq!(servers.leases(id), [(MacAddress([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 9, 9, 7))]);
        servers.forget(id);
        assert_eq!(servers.leases(id), []);
        assert!(!servers.file(id).exists());
    }
}
