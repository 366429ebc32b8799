//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use parterre_api::parse_size;

/// Manages the virtual machines of a Parterre host.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such virtual machine, 4 not possible in its state, 5 the service
/// vmms cannot be reached, 6 not in time.
#[derive(Parser)]
#[command(name = "parterre", version)]
pub struct Arguments {
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Groups of commands.
#[derive(Subcommand)]
pub enum Command {
    /// The machine that virtual machines run on.
    #[command(subcommand)]
    Host(HostCommand),
    /// Virtual machines.
    #[command(subcommand)]
    Vm(VmCommand),
    /// Print completions for a shell, as in: parterre completions bash > /etc/bash_completion.d/parterre
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Commands about the host.
#[derive(Clone, Copy, Subcommand)]
pub enum HostCommand {
    /// Show versions, processors, memory and virtual machines.
    Info,
    /// Check requirements and features, each present or not; exits with 1 if a requirement is missing.
    Check,
}

/// Commands about virtual machines. NAME is the name or the id of a virtual machine.
#[derive(Subcommand)]
pub enum VmCommand {
    /// Define a virtual machine.
    Create(Create),
    /// List all virtual machines.
    List,
    /// Show a virtual machine.
    Show {
        /// Name or id.
        name: String,
    },
    /// Start a virtual machine and wait until it runs.
    Start {
        /// Name or id.
        name: String,
    },
    /// Shut a virtual machine down by its power button and wait until it is off.
    Stop {
        /// Name or id.
        name: String,
        /// Switch it off at once, as by pulling the plug.
        #[arg(long)]
        force: bool,
        /// How many seconds to wait for the guest.
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        timeout: u32,
    },
    /// Use the serial console of a running virtual machine; Ctrl-] leaves it.
    Console {
        /// Name or id.
        name: String,
    },
    /// Delete the definition of a virtual machine that is off.
    Delete {
        /// Name or id.
        name: String,
    },
}

/// What a new virtual machine is to be.
#[derive(Args)]
pub struct Create {
    /// Its name: letters, digits, spaces, '-', '_' and '.'.
    pub name: String,
    /// Memory, with a unit: 512M, 2G.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    pub memory: u64,
    /// Number of virtual processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub processors: u16,
    /// Linux kernel (bzImage) to boot.
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0")]
    pub cmdline: String,
}
