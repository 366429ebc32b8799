//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use parterre_api::{IntegrationService, parse_size};

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
    /// Virtual switches.
    #[command(subcommand)]
    Switch(crate::network::SwitchCommand),
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
    /// Have a virtual machine stand still. It keeps its memory; its clock is set when it is resumed.
    Pause {
        /// Name or id.
        name: String,
    },
    /// Have a paused virtual machine go on.
    Resume {
        /// Name or id.
        name: String,
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
    /// Show how a virtual machine stands with its memory, or decide how much it shall have.
    ///
    /// One that runs gives memory up to the parent as far as its guest can spare it (its balloon), and takes it back, up to
    /// what it started with; that lasts until it is off. One that is off starts with the new amount.
    Memory {
        /// Name or id.
        name: String,
        /// How much it shall have, with a unit: 512M, 2G.
        #[arg(value_name = "SIZE", value_parser = parse_size)]
        size: Option<u64>,
        /// How many seconds to wait for the guest.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u32,
    },
    /// Keep a picture of what a running virtual machine shows on its screen.
    Screenshot {
        /// Name or id.
        name: String,
        /// The PNG file to write.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// The disks of a virtual machine.
    #[command(subcommand)]
    Disk(crate::disk::DiskCommand),
    /// The network adapters of a virtual machine.
    #[command(subcommand)]
    Network(crate::network::NetworkCommand),
    /// What is asked of the guest itself.
    #[command(flatten)]
    Guest(GuestCommand),
}

/// Commands that the guest carries out, by its integration services or by a program that listens in it.
#[derive(Subcommand)]
pub enum GuestCommand {
    /// Have the guest shut itself down, and wait until it is off.
    Shutdown {
        /// Name or id.
        name: String,
        /// Have the guest end programs that do not want to end.
        #[arg(long)]
        force: bool,
        /// Have it save its memory to its own disk first.
        #[arg(long)]
        hibernate: bool,
        /// What the guest may show to people.
        #[arg(long, value_name = "TEXT", default_value = "")]
        message: String,
        /// How many seconds to wait.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u32,
    },
    /// Have the guest restart itself, and wait until it has.
    Restart {
        /// Name or id.
        name: String,
        /// Have the guest end programs that do not want to end.
        #[arg(long)]
        force: bool,
        /// What the guest may show to people.
        #[arg(long, value_name = "TEXT", default_value = "")]
        message: String,
        /// How many seconds to wait.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u32,
    },
    /// The integration services of a guest.
    #[command(subcommand)]
    Integration(IntegrationCommand),
    /// Keys and values between parent and guest.
    #[command(subcommand)]
    Kvp(KvpCommand),
    /// Copy a file into the guest (the service file-copy must be enabled).
    Copy {
        /// Name or id.
        name: String,
        /// The file here.
        file: PathBuf,
        /// Its absolute path in the guest; with a slash at the end, the directory it goes to.
        destination: String,
        /// Replace a file that is there.
        #[arg(long)]
        overwrite: bool,
        /// Make directories that are not there.
        #[arg(long)]
        create_path: bool,
    },
    /// Freeze the guest's file systems, run a command here (that copies its disks), and thaw them again.
    ///
    /// The exit code is the command's; it is 1 if the file systems were not frozen until the command's end.
    Freeze {
        /// Name or id.
        name: String,
        /// Thaw them after so many seconds, whatever the command does.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        limit: u32,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Copy the disks of a virtual machine into a new directory, all as they are at the same moment.
    ///
    /// If it runs, its guest's file systems are frozen meanwhile (the service backup has to run in the guest), which takes no time where the
    /// parent's file system can share blocks (Btrfs, XFS). Copies are raw or qcow2 as the disks are, usable as disks, and beside them
    /// lies definition.json. Discs and read-only disks are left out, unless named.
    Backup {
        /// Name or id.
        name: String,
        /// The directory; it must not be there yet.
        directory: PathBuf,
        /// Only this disk, as in 0:1 for place 1 of controller 0; may be given more than once.
        #[arg(long = "disk", value_name = "CONTROLLER:LUN", value_parser = place)]
        disks: Vec<(u8, u8)>,
        /// Do not ask the guest: have it stand still while its disks are copied, which are then as after a power cut.
        #[arg(long)]
        crash_consistent: bool,
        /// Thaw the file systems after so many seconds, at most 600, and give up.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        limit: u32,
    },
    /// Thaw file systems that something else left frozen.
    Thaw {
        /// Name or id.
        name: String,
    },
    /// Type a text on the guest's keyboard, as one with the layout of the United States writes it.
    Type {
        /// Name or id.
        name: String,
        /// The text.
        text: String,
        /// Press the enter key after it.
        #[arg(long)]
        enter: bool,
    },
    /// Press keys on the guest's keyboard, those of each argument together: ctrl-alt-del, alt-sysrq-s, f2.
    Press {
        /// Name or id.
        name: String,
        /// Keys that are held together.
        #[arg(required = true, value_name = "KEYS")]
        chords: Vec<String>,
    },
    /// Set the guest's clock by the parent's, now.
    SyncTime {
        /// Name or id.
        name: String,
    },
    /// Connect standard input and output with a program that listens on a port in the guest (AF_VSOCK).
    Connect {
        /// Name or id.
        name: String,
        /// The port.
        port: u32,
        /// How many seconds to wait for the guest.
        #[arg(long, value_name = "SECONDS", default_value_t = 10)]
        timeout: u32,
    },
    /// Wait for a program in the guest to connect to a port of the parent (AF_VSOCK, CID 2), then connect standard input and
    /// output with it.
    Listen {
        /// Name or id.
        name: String,
        /// The port.
        port: u32,
    },
}

/// Commands about integration services.
#[derive(Subcommand)]
pub enum IntegrationCommand {
    /// Show all services: enabled or not, and what they do in the guest.
    List {
        /// Name or id.
        name: String,
    },
    /// Switch a service on.
    Enable {
        /// Name or id.
        name: String,
        /// heartbeat, time-sync, shutdown, data-exchange, backup or file-copy.
        service: IntegrationService,
    },
    /// Switch a service off.
    Disable {
        /// Name or id.
        name: String,
        /// heartbeat, time-sync, shutdown, data-exchange, backup or file-copy.
        service: IntegrationService,
    },
}

/// Commands about data exchange.
#[derive(Subcommand)]
pub enum KvpCommand {
    /// Print the items of a pool, or one of them.
    Get {
        /// Name or id.
        name: String,
        /// Print this item's value only.
        key: Option<String>,
        /// Whose items.
        #[arg(long, value_enum, default_value = "guest")]
        pool: Pool,
    },
    /// Give the guest an item, now and at each start.
    Set {
        /// Name or id.
        name: String,
        /// Key.
        key: String,
        /// Value.
        value: String,
    },
    /// Take an item from the guest.
    Delete {
        /// Name or id.
        name: String,
        /// Key.
        key: String,
    },
    /// Print the addresses that the guest has given a network adapter.
    Addresses {
        /// Name or id.
        name: String,
        /// The adapter's MAC address: 00:15:5D:00:00:01.
        mac: String,
    },
}

/// Pools of data exchange.
#[derive(Clone, Copy, ValueEnum)]
pub enum Pool {
    /// From the parent to the guest.
    External,
    /// From the guest to the parent.
    Guest,
    /// What the guest's operating system says of itself.
    Auto,
    /// What the parent says of the machine.
    AutoExternal,
    /// The guest's own.
    AutoInternal,
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

/// Reads the place of a disk.
fn place(text: &str) -> Result<(u8, u8), String> {
    let numbers = text.split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.ok_or_else(|| format!("'{text}' is no place of a disk; write CONTROLLER:LUN, as in 0:1"))
}
