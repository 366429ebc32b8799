//! vmwp: the worker process of one virtual machine.

#![forbid(unsafe_code)]

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use parterre_partition::memory::GuestMemory;
use parterre_partition::signal::Kicker;
use parterre_partition::{Hypervisor, PartitionConfig};
use parterre_worker::boot::BootSource;
use parterre_worker::console::{ConsoleLog, InputQueue, Progress};
use parterre_worker::event::{Event, Events};
use parterre_worker::machine::{Machine, Template};
use parterre_worker::processor::log_line;
use parterre_worker::stdio::Terminal;
use rustix::event::{Timespec, epoll};

/// The worker process of one virtual machine.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Linux kernel (bzImage) to boot.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0")]
    cmdline: String,
    /// Memory, with a unit: 512M, 2G.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = memory_size)]
    memory: u64,
    /// Number of virtual processors.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=255))]
    processors: u8,
    /// Where the console is.
    #[arg(long, value_enum, default_value = "stdio")]
    console: ConsoleKind,
}

/// Where COM1 goes.
#[derive(Clone, Copy, ValueEnum)]
enum ConsoleKind {
    /// The terminal that started the worker; Ctrl-] ends the virtual machine.
    Stdio,
}

/// Reads a size such as `512M` or `2G`.
fn memory_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match text[digits.len()..].trim() {
        "" | "B" => 1u64,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        unit => return Err(format!("unknown unit '{unit}': use M or G, as in 512M")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("'{text}' is not a size such as 512M"))?;
    number.checked_mul(factor).ok_or_else(|| format!("'{text}' is too large"))
}

/// How long to wait before a full terminal is written to again.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

type AnyError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log_line(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

fn open(path: &PathBuf) -> Result<File, AnyError> {
    File::open(path).map_err(|e| format!("cannot open {}: {e}", path.display()).into())
}

fn run(arguments: Arguments) -> Result<(), AnyError> {
    let events = Events::new()?;
    let template = Template {
        hypervisor: Hypervisor::open()?,
        config: PartitionConfig { processors: arguments.processors },
        memory: Arc::new(GuestMemory::new(arguments.memory)?),
        source: BootSource {
            kernel: open(&arguments.kernel)?,
            initrd: arguments.initrd.as_ref().map(open).transpose()?,
            command_line: arguments.cmdline,
        },
        console: ConsoleLog::new(events.clone()),
        events,
        kicker: Kicker::install()?,
    };
    match arguments.console {
        ConsoleKind::Stdio => run_on_terminal(&template),
    }
}

/// Runs the machine with the console on the terminal, over all its resets, until it switches itself off.
fn run_on_terminal(template: &Template) -> Result<(), AnyError> {
    let (_terminal, mut client) = Terminal::open()?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &template.events, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    let stdin = std::io::stdin();
    // A regular file as standard input cannot be waited for; then there is no input.
    let mut has_input =
        epoll::add(&epoll, &stdin, epoll::EventData::new_u64(1), epoll::EventFlags::IN).is_ok();
    let mut input = InputQueue::default();
    let mut machine = template.power_on()?;
    let mut progress = Progress::Idle;
    loop {
        let mut ready = Vec::with_capacity(4);
        // A terminal that is full is tried again shortly.
        let retry = (progress == Progress::Blocked).then_some(RETRY);
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut ready), retry.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            other => drop(other?),
        }
        let typed = ready.iter().any(|event| event.data.u64() == 1);
        if typed && has_input && client.pump_input(&mut input) == Progress::Closed {
            epoll::delete(&epoll, &stdin)?;
            has_input = false;
        }
        let events = template.events.take();
        input.feed(|bytes| machine.pc().com1.receive(bytes));
        progress = client.pump_output(&template.console);
        for event in events {
            match next(template, machine, event)? {
                Some(after) => machine = after,
                None => {
                    client.pump_output(&template.console);
                    return Ok(());
                }
            }
        }
    }
}

/// What follows an event: the machine that runs from now on, or none.
fn next(template: &Template, machine: Machine, event: Event) -> Result<Option<Machine>, AnyError> {
    machine.stop();
    match event {
        Event::PowerOff => Ok(None),
        Event::Reset => Ok(Some(template.power_on()?)),
        Event::Failed(why) => Err(why.into()),
    }
}
