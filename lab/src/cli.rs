//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::boxes::{BoxSpec, spec};

/// Runs Parterre on emulated machines ("boxes").
///
/// The lab makes everything that it needs by itself: it installs missing tools by apt, builds the parent's kernel
/// once, and keeps what is dear in the user's cache directory.
#[derive(Debug, Parser)]
#[command(name = "lab", bin_name = "cargo lab", version, max_term_width = 110)]
pub struct Cli {
    /// Only name missing tools, do not install them.
    #[arg(long, global = true)]
    pub no_install: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the lab does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a box with a running virtual machine and use it.
    Run(RunArgs),
    /// Run all tests.
    Test(TestArgs),
    /// Boot a box and run a command in its parent partition.
    Exec(Exec),
    /// Measure, beside KVM and QEMU in the same box.
    Bench(BenchArgs),
    /// Write a bootable disk image.
    Image(ImageArgs),
    /// Install, fetch and build all that boxes need, now.
    Setup(Setup),
}

/// Boots a box with Parterre under Linux, creates a virtual machine, starts it, and joins you to its console.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Try everything without a person; the exit status is 0 when the virtual machine reached its userland.
    #[arg(long)]
    pub check: bool,
    /// As --check, and print the summary as JSON.
    #[arg(long)]
    pub json: bool,
    /// The virtual machine's memory.
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub vm_memory: String,
    /// The virtual machine's processors.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub vm_processors: u32,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// What runs in it.
    #[command(flatten)]
    pub parent: ParentArgs,
}

/// Runs the tests: on this machine (cargo test), of the hypervisor's image, and in boxes. The last line is
/// `N passed, N failed`; the exit status is 0 when none failed.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only tests whose name holds one of these words.
    #[arg(value_name = "WORD")]
    pub filter: Vec<String>,
    /// Only name the tests.
    #[arg(long)]
    pub list: bool,
    /// Run the tests that take long, too: load for minutes, a thousand virtual machines one after the other.
    #[arg(long)]
    pub long: bool,
    /// Leave out the tests on this machine (cargo test).
    #[arg(long)]
    pub no_host: bool,
    /// Leave out the tests in boxes.
    #[arg(long)]
    pub no_boxes: bool,
    /// Run each test in a box so many times, or until one fails: for what fails once in many runs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub repeat: u32,
    /// Use this parterre.efi instead of building the project's.
    #[arg(long, value_name = "FILE")]
    pub efi: Option<PathBuf>,
    /// Keep the boxes' serial logs in this directory.
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
}

/// Measures Parterre beside its peer: the same box booted bare, with KVM and Debian's QEMU, running the same guests.
///
/// Exits are counted in instructions: in a box of one processor whose clock counts them. Larger things are timed.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Only these parts: image, exits, start, parent, memory, and devices, which is disks, network and ssh.
    #[arg(value_name = "PART", value_parser = ["image", "exits", "start", "parent", "memory", "devices", "disks", "network", "ssh"])]
    pub parts: Vec<String>,
    /// Whose processors: amd, or intel, whose boxes are slow and where only image and exits are measured, or both, in columns side
    /// by side.
    #[arg(long, value_name = "VENDOR", value_parser = ["amd", "intel", "both"], default_value = "amd")]
    pub vendor: String,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Use this parterre.efi instead of building the project's.
    #[arg(long, value_name = "FILE")]
    pub efi: Option<PathBuf>,
}

/// Writes a disk image that UEFI firmware boots: Parterre, the parent's kernel and its root file system.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// The image's file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Overwrite the file if it is there.
    #[arg(long)]
    pub force: bool,
    /// What is in it.
    #[command(flatten)]
    pub parent: ParentArgs,
}

/// Boots a box, runs COMMAND in the parent, and returns its output and exit status.
///
/// Exit status: COMMAND's own, or 120 when the parent switched the box off, 121 when the box reset, 122 when the
/// hypervisor or the parent's kernel panicked, 124 when the time was over, 125 when the lab could not do its part,
/// 126 when COMMAND could not be started.
#[derive(Debug, Args)]
pub struct Exec {
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// What runs in it.
    #[command(flatten)]
    pub parent: ParentArgs,
    /// Seconds for COMMAND; then the box ends and the exit status is 124.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    /// Seconds for the parent to come up; usually 180, and 900 in an Intel box.
    #[arg(long, value_name = "SECONDS")]
    pub boot_timeout: Option<u64>,
    /// Show the serial port (the parent kernel's and Parterre's messages) on standard error at the end.
    #[arg(long)]
    pub show_serial: bool,
    /// The command and its arguments. A single word with blanks is run by the shell.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub argv: Vec<String>,
}

/// The options that describe a box.
#[derive(Debug, Clone, Args)]
pub struct MachineArgs {
    /// The box, as in amd,cpus=4,memory=4G,numa=2,disk=FILE,net=e1000e,cpu=-svm or intel,cpus=2. The options below add to it.
    #[arg(long = "box", value_name = "SPEC", default_value = "")]
    pub spec: String,
    /// Whose processors: amd, or intel, whose boxes are slow (a minute to Linux).
    #[arg(long, value_name = "VENDOR")]
    pub vendor: Option<String>,
    /// Number of processors.
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory, as in 512M or 4G.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Number of NUMA nodes.
    #[arg(long, value_name = "N")]
    pub numa: Option<u32>,
    /// A raw disk image; the parent sees it as /dev/disk/by-id/lab-disk0, the next as lab-disk1.
    #[arg(long, value_name = "FILE")]
    pub disk: Vec<PathBuf>,
    /// A network card: e1000e, igb or virtio, in an Intel box e1000.
    #[arg(long, value_name = "CARD")]
    pub net: Vec<String>,
    /// Processor features to add or take, as in -svm or +invtsc,-npt.
    #[arg(long, value_name = "FLAGS", value_delimiter = ',', allow_hyphen_values = true)]
    pub cpu_flags: Vec<String>,
    /// Let the clock count instructions (one processor only): repeatable, but no good for input and output.
    #[arg(long)]
    pub icount: bool,
}

/// The options that describe what a box boots.
#[derive(Debug, Clone, Args)]
pub struct ParentArgs {
    /// Boot the same parent kernel with no Parterre below it.
    #[arg(long)]
    pub bare: bool,
    /// Use this parterre.efi instead of building the project's.
    #[arg(long, value_name = "FILE")]
    pub efi: Option<PathBuf>,
    /// Leave the virtualization stack (parterre, vmms, vmwp) out of the parent.
    #[arg(long)]
    pub no_stack: bool,
    /// Lay this directory over the parent's root file system.
    #[arg(long, value_name = "DIR")]
    pub overlay: Option<PathBuf>,
    /// Lay a Debian package (the newest, with all it depends on) over the parent's root file system.
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',')]
    pub with: Vec<String>,
    /// A guest kernel; the parent has it as /lab/guest-kernel. `oldest` and `newest` are Debian's cloud kernels,
    /// `newest-general` the general one.
    #[arg(long, value_name = "FILE")]
    pub guest_kernel: Option<String>,
    /// A guest initramfs; the parent has it as /lab/guest-initrd. `lab` is the lab's own.
    #[arg(long, value_name = "FILE")]
    pub guest_initrd: Option<String>,
    /// A whole Debian system as guest: oldest, stable or newest. The parent has its kernel and initramfs as /lab/guest-kernel
    /// and /lab/guest-initrd, its disk as /dev/disk/by-id/lab-scratch0 and the key to its ssh as /lab/guest-key.
    #[arg(long, value_name = "RELEASE", conflicts_with_all = ["guest_kernel", "guest_initrd"])]
    pub guest_system: Option<String>,
    /// Put the test kernels (lab/tmk) at /lab/tmk; `vmwp --kernel /lab/tmk/cpuid` runs one.
    #[arg(long)]
    pub test_kernels: bool,
    /// Added to the parent kernel's command line.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    pub cmdline: String,
    /// A line added to Parterre's configuration file, as in 'mode = bare'.
    #[arg(long, value_name = "LINE")]
    pub config: Vec<String>,
    /// Keep what the box writes to its serial port in this file.
    #[arg(long, value_name = "FILE")]
    pub serial_log: Option<PathBuf>,
}

/// Installs, fetches and builds all that boxes need.
#[derive(Debug, Args)]
pub struct Setup {
    /// Forget what is in the cache and take the newest packages and kernel.
    #[arg(long)]
    pub refresh: bool,
}

impl MachineArgs {
    /// The box that these options describe.
    ///
    /// # Errors
    /// When an option makes no sense, or the box is impossible.
    pub fn spec(&self) -> anyhow::Result<BoxSpec> {
        let vendor = self.vendor.as_deref().unwrap_or_default();
        let mut box_spec: BoxSpec = format!("{},{vendor}", self.spec).parse()?;
        box_spec.cpus = self.cpus.unwrap_or(box_spec.cpus);
        box_spec.numa = self.numa.unwrap_or(box_spec.numa);
        if let Some(memory) = &self.memory {
            box_spec.memory = spec::memory(memory)?;
        }
        for name in &self.net {
            box_spec.nics.push(spec::nic(name)?);
        }
        for disk in &self.disk {
            box_spec.disks.push(std::path::absolute(disk)?);
        }
        box_spec.cpu_flags.extend(self.cpu_flags.iter().cloned());
        box_spec.icount |= self.icount;
        box_spec.check()?;
        Ok(box_spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_add_to_the_specification() {
        let cli = Cli::parse_from([
            "lab",
            "exec",
            "--box",
            "amd,cpus=4",
            "--numa",
            "2",
            "--cpu-flags",
            "-svm,+invtsc",
            "--",
            "uname",
            "-a",
        ]);
        let Command::Exec(exec) = cli.command else { panic!("not exec") };
        let spec = exec.machine.spec().unwrap();
        assert_eq!((spec.cpus, spec.numa), (4, 2));
        assert_eq!(spec.cpu_flags, ["-svm", "+invtsc"]);
        assert_eq!(exec.argv, ["uname", "-a"]);
    }
}
