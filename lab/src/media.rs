//! What a box boots: the parent's kernel and root file system, with Parterre below them or without.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::boxes::Boot;
use crate::build::{self, Hypervisor};
use crate::esp::{self, Item};
use crate::rootfs::{self, Extras};
use crate::{kernel, progress};

/// The parent's command line, unless more is asked for. A panic ends the machine at once; network devices that
/// nobody asked for stay away.
const CMDLINE: &str = "console=ttyS0,115200 panic=-1 bonding.max_bonds=0 dummy.numdummies=0";

/// What lies under the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// Parterre.
    Parterre,
    /// Nothing: the same kernel, started by the same firmware, has the machine to itself.
    Nothing,
}

/// What shall be booted.
#[derive(Debug)]
pub struct Wish {
    /// With Parterre or bare.
    pub below: Below,
    /// A ready `parterre.efi` instead of the project's own.
    pub efi: Option<PathBuf>,
    /// Whether the parent has the virtualization stack.
    pub with_stack: bool,
    /// What else is in the parent.
    pub extras: Extras,
    /// Added to the parent's command line.
    pub cmdline: String,
    /// Lines added to Parterre's configuration file.
    pub configuration: Vec<String>,
    /// Where the serial log is kept.
    pub serial_log: Option<PathBuf>,
}

impl Default for Wish {
    fn default() -> Wish {
        Wish {
            below: Below::Parterre,
            efi: None,
            with_stack: true,
            extras: Extras::default(),
            cmdline: String::new(),
            configuration: Vec::new(),
            serial_log: None,
        }
    }
}

/// What was made for a box, and the facts that a summary shows.
#[derive(Debug)]
pub struct Media {
    /// What the emulator boots.
    pub boot: Boot,
    /// The kernel's version.
    pub kernel_version: String,
    /// The size of `parterre.efi` in bytes, if it is there.
    pub image_size: Option<u64>,
}

/// Builds what is wished for and writes it into `dir`.
///
/// # Errors
/// When a part does not build or a file cannot be written.
pub fn prepare(wish: &Wish, dir: &Path) -> Result<Media> {
    let kernel = kernel::parent()?;
    let programs = build::programs(wish.with_stack)?;
    let hypervisor = match (wish.below, &wish.efi) {
        (Below::Nothing, _) => None,
        (Below::Parterre, Some(image)) => Some(Hypervisor { image: image.clone() }),
        (Below::Parterre, None) => Some(build::hypervisor()?),
    };
    progress::step("Packing the box", |_| {
        let initrd = rootfs::pack(&programs, &wish.extras)?;
        let cmdline = format!("{CMDLINE} {}", wish.cmdline).trim().to_owned();
        let Some(hypervisor) = hypervisor else {
            let file = dir.join("initrd");
            fs::write(&file, initrd)?;
            let boot = Boot::Kernel { kernel: kernel.image.clone(), initrd: file, cmdline };
            return Ok(Media { boot, kernel_version: kernel.version.clone(), image_size: None });
        };
        let read =
            |path: &Path| fs::read(path).with_context(|| format!("{} cannot be read.", path.display()));
        let (image, vmlinuz) = (read(&hypervisor.image)?, read(&kernel.image)?);
        let configuration = configuration(&cmdline, &wish.configuration);
        let disk = dir.join("boot.img");
        let items = [
            Item { path: "EFI/BOOT/BOOTX64.EFI", contents: &image },
            Item { path: "parterre/parterre.conf", contents: configuration.as_bytes() },
            Item { path: "parterre/vmlinuz", contents: &vmlinuz },
            Item { path: "parterre/initrd", contents: &initrd },
        ];
        esp::write(&disk, &items)?;
        let size = image.len() as u64;
        Ok(Media { boot: Boot::Disk(disk), kernel_version: kernel.version.clone(), image_size: Some(size) })
    })
}

/// The file that `parterre.efi` reads.
fn configuration(cmdline: &str, more: &[String]) -> String {
    let mut text = format!(
        "# Written by the lab.\nkernel = \\parterre\\vmlinuz\ninitrd = \\parterre\\initrd\ncmdline = {cmdline}\n\
         serial = 0x3f8\n"
    );
    for line in more {
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_one_setting_a_line() {
        let text = configuration("console=ttyS0 a=b", &["symbols = x".into()]);
        let settings: Vec<_> =
            text.lines().filter(|l| !l.starts_with('#')).map(|l| l.split_once(" = ").unwrap().0).collect();
        assert_eq!(settings, ["kernel", "initrd", "cmdline", "serial", "symbols"]);
        assert!(text.contains("cmdline = console=ttyS0 a=b\n"));
    }
}
