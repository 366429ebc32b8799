//! The program under the firmware.

mod bare;
mod cpu;
mod files;
mod handover;
mod load;
mod memory;
mod output;
mod panic;
mod platform;
mod serial;

use alloc::string::{String, ToString};
use core::fmt;

use parterre_boot::config::{self, Config, Mode};
use parterre_boot::requirements::{self, State};
use parterre_hw::cpu::registers;
use uefi::{Status, boot, entry};

use output::say;

#[global_allocator]
static ALLOCATOR: uefi::allocator::Allocator = uefi::allocator::Allocator;

/// Why the boot ends here: a sentence for people and a status for the firmware.
struct BootError {
    status: Status,
    message: String,
}

impl BootError {
    fn new(status: Status, message: impl fmt::Display) -> Self {
        Self { status, message: message.to_string() }
    }
}

#[entry]
fn efi_main() -> Status {
    // The firmware's watchdog would reset the machine in the middle of a long load. It is off after us anyway.
    let _ = boot::set_watchdog_timer(0, 0x1_0000, None);
    match run() {
        Err(error) => {
            output::require_serial();
            say!("{}.", error.message.trim_end_matches('.'));
            say!("not started; the firmware goes on with its next boot entry.");
            error.status
        }
    }
}

/// Returns only when something is missing.
fn run() -> Result<core::convert::Infallible, BootError> {
    let mut files = files::Partition::open()?;
    let config = read_config(&mut files);
    match &config {
        Ok(config) => output::set_serial(config.serial),
        Err(_) => output::require_serial(),
    }
    say!("version {}, a hypervisor under Linux", env!("CARGO_PKG_VERSION"));
    let config = config?;
    check_paging()?;
    match config.mode {
        Mode::Parterre => check_requirements()?,
        Mode::Bare => say!("mode = bare: the kernel is started on the bare machine, without Parterre"),
    }
    let parent = load::parent(&mut files, &config)?;
    match config.mode {
        Mode::Parterre => {
            let platform = platform::read(parent.rsdp)?;
            let hypervisor = load::hypervisor(&mut files, &config, &platform)?;
            handover::start_parterre(parent, hypervisor, platform)
        }
        Mode::Bare => handover::start_bare(parent),
    }
}

fn read_config(files: &mut files::Partition) -> Result<Config, BootError> {
    let mut file = files.find(config::PATH)?;
    // One byte more than allowed is enough to tell that it is too long.
    let length = file.length().min(config::MAX_LENGTH as u64 + 1);
    let mut bytes = alloc::vec![0; length as usize];
    file.read_at(0, &mut bytes)?;
    config::parse(&bytes).map_err(|error| BootError::new(Status::INVALID_PARAMETER, error))
}

/// Page tables that are made here have four levels, and the number of levels cannot be changed while paging is on.
fn check_paging() -> Result<(), BootError> {
    const FIVE_LEVELS: u64 = 1 << 12;
    if registers::cr4() & FIVE_LEVELS == 0 {
        return Ok(());
    }
    Err(BootError::new(
        Status::UNSUPPORTED,
        "the firmware runs with five-level paging, which Parterre does not support; disable \"5-level paging\" or \
         \"LA57\" in the firmware setup",
    ))
}

fn check_requirements() -> Result<(), BootError> {
    let report = requirements::check(&cpu::ThisProcessor);
    if report.is_satisfied() {
        say!("the processor has everything that is required");
        return Ok(());
    }
    output::require_serial();
    for (name, advice) in report.missing() {
        say!("missing: {name}: {advice}.");
    }
    // What cannot be told because something else is missing needs no line; alone it does.
    for finding in &report.findings {
        if let State::Unknown(reason) = finding.state
            && report.missing().next().is_none()
        {
            say!("unknown: {}: {reason}.", finding.name);
        }
    }
    Err(BootError::new(Status::UNSUPPORTED, "this machine does not meet the requirements named above."))
}
