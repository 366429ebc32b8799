//! vdhcp: the DHCP server of one internal switch.
//!
//! The management service opens everything and starts it: standard input is the UDP socket, bound to the switch's
//! interface; standard output is the file with the leases, which is read first and rewritten when they change; messages go to
//! standard error. It ends when the service does.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use parterre_dhcp::{CLIENT_PORT, Extras, Leases, Server, Subnet};
use rustix::process::{Signal, set_parent_process_death_signal};

/// Most open files: those that it has, and room to read which user it shall become.
const MAX_FILES: u64 = 16;
/// Longest packet: what Ethernet carries.
const MAX_PACKET: usize = 1500;
/// Most that is read of a file of leases: what the most of them take, several times.
const MAX_TEXT: u64 = 1 << 20;

/// System calls that it makes once it serves.
const SYSTEM_CALLS: &[libc::c_long] = &[
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_pwrite64,
    libc::SYS_ftruncate,
    libc::SYS_write,
    libc::SYS_clock_gettime,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_close,
    libc::SYS_futex,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The DHCP server of one internal switch; started by the management service.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The parent's address in the switch, with the length of the prefix.
    #[arg(long, value_name = "ADDRESS/PREFIX")]
    address: String,
    /// That address is the way to other networks.
    #[arg(long)]
    router: bool,
    /// A name server that guests are told of.
    #[arg(long, value_name = "ADDRESS")]
    name_server: Vec<Ipv4Addr>,
    /// Longest payload of a frame, for guests to know.
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u16>,
}

type AnyError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vdhcp: {error}");
            ExitCode::FAILURE
        }
    }
}

fn subnet(address: &str) -> Result<Subnet, AnyError> {
    match parterre_api::parse_prefix(address)? {
        (std::net::IpAddr::V4(own), prefix) => Ok(Subnet::new(own, prefix)?),
        (std::net::IpAddr::V6(own), _) => Err(format!("{own} is not an IPv4 address").into()),
    }
}

fn run(arguments: &Arguments) -> Result<(), AnyError> {
    let subnet = subnet(&arguments.address)?;
    let socket = UdpSocket::from(rustix::io::dup(rustix::stdio::stdin())?);
    let file = File::from(rustix::io::dup(rustix::stdio::stdout())?);
    let mut before = Vec::new();
    (&file).take(MAX_TEXT).read_to_end(&mut before)?;
    let Arguments { router, name_server, mtu, .. } = arguments;
    let extras = Extras { router: *router, name_servers: name_server.clone(), mtu: *mtu };
    let server = Server::new(subnet, extras, &Leases::from_text(&String::from_utf8_lossy(&before)));
    parterre_sandbox::give_up_rights(MAX_FILES)?;
    // Becoming another user would take this back.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    let calls = SYSTEM_CALLS.iter().map(|call| (*call, Vec::new())).collect::<BTreeMap<_, _>>();
    parterre_sandbox::allow_only(calls, Vec::new())?;
    serve(&socket, &file, server)
}

fn serve(socket: &UdpSocket, file: &File, mut server: Server) -> Result<(), AnyError> {
    let mut packet = [0; MAX_PACKET];
    loop {
        let length = match socket.recv_from(&mut packet) {
            Ok((length, _)) => length,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(format!("nothing can be received: {e}").into()),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let Some(answer) = server.answer(&packet[..length], now) else { continue };
        // Kept first: what a guest was told, the next server knows.
        if server.take_changed()
            && let Err(e) = keep(file, server.leases())
        {
            eprintln!("vdhcp: the leases cannot be kept: {e}");
        }
        // What is lost the guest asks for again; the interface may be down.
        let _ = socket.send_to(&answer.packet, (answer.to, CLIENT_PORT));
    }
}

fn keep(file: &File, leases: &Leases) -> std::io::Result<()> {
    let text = leases.to_text();
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}
