//! vmwp: the worker process of one virtual machine.
//!
//! Two ways to start it: by the management service (`vmwp --service`, with a description on standard input), and by
//! hand with everything on the command line, the console being the terminal.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use parterre_api::worker::{WorkerPhase, WorkerSpec, WorkerStatus};
use parterre_api::{DiskFormat, OffReason, WorkerPaths, parse_size};
use parterre_partition::memory::GuestMemory;
use parterre_partition::signal::Kicker;
use parterre_partition::{Hypervisor, PartitionConfig};
use parterre_worker::boot::BootSource;
use parterre_worker::console::ConsoleLog;
use parterre_worker::event::Events;
use parterre_worker::guest::{self, Guest};
use parterre_worker::handover;
use parterre_worker::machine::Template;
use parterre_worker::processor::log_line;
use parterre_worker::sandbox;
use parterre_worker::service::{Listeners, Service};
use parterre_worker::stdio::Terminal;
use parterre_worker::vsp::Devices;
use parterre_worker::vsp::ejected::Ejected;
use parterre_worker::vsp::hotplug::{self, Plugs};
use parterre_worker::vsp::network::Adapters;
use parterre_worker::vsp::storage::{self, Storage};
use uuid::Uuid;

/// The worker process of one virtual machine.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Be started by the management service: the description comes on standard input.
    #[arg(long, conflicts_with_all = ["kernel", "initrd"])]
    service: bool,
    /// Grow the disk on standard input, a file of this format, print its size in bytes, and end.
    #[arg(long, value_name = "FORMAT", requires = "size", conflicts_with_all = ["service", "kernel", "initrd"])]
    grow_disk: Option<DiskFormat>,
    /// How large the disk is to be.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "grow_disk")]
    size: Option<u64>,
    /// Linux kernel (bzImage) to boot.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["service", "grow_disk"])]
    kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0")]
    cmdline: String,
    /// Memory, with a unit: 512M, 2G.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    memory: u64,
    /// Number of virtual processors.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=255))]
    processors: u8,
    /// Where the console is.
    #[arg(long, value_enum, default_value = "stdio")]
    console: ConsoleKind,
    /// Do not give up privileges, so that a debugger can be used.
    #[arg(long)]
    no_sandbox: bool,
    /// Write every intercept to standard error.
    #[arg(long)]
    trace: bool,
}

/// Where COM1 goes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ConsoleKind {
    /// The terminal that started the worker; Ctrl-] ends the virtual machine.
    Stdio,
    /// Nowhere.
    None,
}

type AnyError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match (arguments.grow_disk, arguments.size) {
        (Some(format), Some(size)) => return grow_disk(format, size),
        _ if arguments.service => serve(),
        _ => run_by_hand(arguments),
    };
    match result {
        Ok(OffReason::Failed { message }) => {
            log_line(format_args!("{message}"));
            ExitCode::FAILURE
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            log_line(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

/// Grows the disk on standard input. It is done by a process of its own, without rights: somebody may have made the image to do harm.
fn grow_disk(format: DiskFormat, size: u64) -> ExitCode {
    let grown = sandbox::enter().map_err(|error| error.to_string()).and_then(|()| {
        let file = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        storage::medium(format, false, false, storage::opened(File::from(file), None))?.resized(Some(size))
    });
    match grown {
        Ok(medium) => {
            println!("{}", medium.facts.size);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn open(path: &Path) -> Result<File, AnyError> {
    File::open(path).map_err(|e| format!("cannot open {}: {e}", path.display()).into())
}

/// Opens all that a machine needs.
fn template(
    kernel: &Path,
    initrd: Option<&Path>,
    command_line: String,
    memory: u64,
    processors: u8,
) -> Result<Template, AnyError> {
    let events = Events::new()?;
    Ok(Template {
        hypervisor: Hypervisor::open()?,
        config: PartitionConfig { processors },
        memory: Arc::new(GuestMemory::new(memory)?),
        source: BootSource { kernel: open(kernel)?, initrd: initrd.map(open).transpose()?, command_line },
        console: ConsoleLog::new(events.clone()),
        events,
        kicker: Kicker::install()?,
        devices: Devices::default(),
        crashes: Arc::default(),
        trace: false,
    })
}

/// Runs the machine that the command line describes, with the console on the terminal.
fn run_by_hand(arguments: Arguments) -> Result<OffReason, AnyError> {
    let kernel = arguments.kernel.unwrap_or_default();
    let initrd = arguments.initrd.as_deref();
    let mut template = template(&kernel, initrd, arguments.cmdline, arguments.memory, arguments.processors)?;
    template.trace = arguments.trace;
    let ejected = Ejected::new(template.events.clone());
    let mut service = Service::new(template, Uuid::nil(), None, ejected)?;
    let mut terminal = None;
    if arguments.console == ConsoleKind::Stdio {
        let (opened, client) = Terminal::open()?;
        service.attach_terminal(client, std::io::stdin())?;
        terminal = Some(opened);
    }
    if !arguments.no_sandbox {
        sandbox::enter()?;
    }
    let reason = service.run();
    drop(terminal);
    Ok(reason)
}

/// Runs the machine that the management service describes on standard input. The first line on standard output says
/// that the worker is ready, or why it cannot be.
fn serve() -> Result<OffReason, AnyError> {
    let (text, descriptors) = handover::receive()?;
    let spec: WorkerSpec = serde_json::from_str(&text).map_err(|e| format!("bad description: {e}"))?;
    match prepare(&spec, descriptors) {
        Ok(service) => {
            announce(service.status())?;
            Ok(service.run())
        }
        Err(error) => {
            let message = error.to_string();
            let phase = WorkerPhase::Ended(OffReason::Failed { message: message.clone() });
            announce(&WorkerStatus::new(spec.id, std::process::id(), phase))?;
            Ok(OffReason::Failed { message })
        }
    }
}

fn prepare(spec: &WorkerSpec, descriptors: Vec<OwnedFd>) -> Result<Service, AnyError> {
    let settings = &spec.settings;
    settings.check()?;
    let processors = u8::try_from(settings.processors)?;
    let initrd = settings.initrd.as_deref();
    let mut template =
        template(&settings.kernel, initrd, settings.command_line.clone(), settings.memory, processors)?;
    let ejected = Ejected::new(template.events.clone());
    let storage =
        Storage::new(spec.id, processors.into(), &settings.disks, &template.memory, ejected.clone())?;
    template.devices.devices.extend(storage.devices());
    let adapters = Adapters::new(&settings.network_adapters, &spec.ports, descriptors)?;
    let adapters = Arc::new(adapters);
    template.devices.attachments.push(adapters.clone());
    let guest = Arc::new(Guest::new(spec.id, settings, template.memory.clone(), template.crashes.clone())?);
    template.devices.attachments.push(guest.clone());
    template.devices.listener = Some(guest.clone());
    let paths = WorkerPaths::new(spec.directory.clone());
    let bind = |path: PathBuf| {
        UnixListener::bind(&path).map_err(|e| format!("cannot listen on {}: {e}", path.display()))
    };
    let listeners = Listeners { control: bind(paths.control())?, console: bind(paths.console())? };
    let (devices, requests) = (bind(paths.devices())?, bind(paths.guest())?);
    let service = Service::new(template, spec.id, Some(listeners), ejected)?;
    sandbox::enter()?;
    // After that, so that their threads are in the sandbox too.
    hotplug::serve(devices, Plugs { storage, adapters })?;
    guest::serve(guest, requests)?;
    Ok(service)
}

fn announce(status: &WorkerStatus) -> Result<(), AnyError> {
    let mut line = serde_json::to_string(status)?;
    line.push('\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    Ok(stdout.flush()?)
}
