//! What a box boots: the parent's kernel and root file system, with Parterre below them or without.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::boxes::{Boot, Vendor};
use crate::build::{self, Hypervisor};
use crate::esp::{self, Item};
use crate::rootfs::{self, Extras};
use crate::{kernel, progress, symbols};

/// The parent's command line, unless more is asked for. A panic ends the machine at once; network devices that
/// nobody asked for stay away.
const CMDLINE: &str = "console=ttyS0,115200 panic=-1 tsc=reliable bonding.max_bonds=0 dummy.numdummies=0";

/// What lies under the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// Parterre.
    Parterre,
    /// Nothing: the same kernel, started by the same firmware, has the machine to itself.
    Nothing,
}

/// A file of the boot partition, by its path: other contents, or none for its absence.
pub type Change = (&'static str, Option<Vec<u8>>);

/// What shall be booted.
#[derive(Debug, Clone)]
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
    /// Files of the boot partition that are other than usual.
    pub changes: Vec<Change>,
    /// Whether a second disk follows on which nothing is changed, and which starts the parent bare.
    pub fallback: bool,
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
            changes: Vec::new(),
            fallback: false,
            serial_log: None,
        }
    }
}

/// What was made for a box, and the facts that a summary shows.
#[derive(Debug)]
pub struct Media {
    /// What the emulator boots.
    pub boot: Boot,
    /// The size of `parterre.efi` in bytes, if it is there.
    pub image_size: Option<u64>,
}

/// What Linux in an Intel box is told besides: its agent and its shell are at the ends of serial cables.
const INTEL_CMDLINE: &str = "lab.agent=ttyS1 lab.console=ttyS2";

/// Builds what is wished for and writes it into `dir`, for boxes of that vendor.
///
/// # Errors
/// When a part does not build or a file cannot be written.
pub fn prepare(wish: &Wish, vendor: Vendor, dir: &Path) -> Result<Media> {
    let kernel = kernel::parent()?;
    let programs = build::programs(wish.with_stack)?;
    let hypervisor = match (wish.below, vendor, &wish.efi) {
        (Below::Nothing, Vendor::Amd, _) => None,
        // Intel boxes start no kernel without a boot program.
        (Below::Parterre, _, Some(image)) | (Below::Nothing, Vendor::Intel, Some(image)) => {
            Some(Hypervisor { image: image.clone() })
        }
        (Below::Parterre, _, None) | (Below::Nothing, Vendor::Intel, None) => Some(build::hypervisor()?),
    };
    progress::step("Packing the box", |_| {
        let initrd = rootfs::pack(&programs, &wish.extras)?;
        let cables = if vendor == Vendor::Intel { INTEL_CMDLINE } else { "" };
        let cmdline = [CMDLINE, cables, &wish.cmdline].join(" ").trim().to_owned();
        let Some(hypervisor) = hypervisor else {
            let file = dir.join("initrd");
            fs::write(&file, initrd)?;
            let boot = Boot::Kernel { kernel: kernel.image.clone(), initrd: file, cmdline };
            return Ok(Media { boot, image_size: None });
        };
        let read =
            |path: &Path| fs::read(path).with_context(|| format!("{} cannot be read.", path.display()));
        let (image, vmlinuz) = (read(&hypervisor.image)?, read(&kernel.image)?);
        let symbols = symbols::of_image(&hypervisor.image)?.unwrap_or_default();
        let parts = Parts { image, vmlinuz, initrd, symbols, cmdline };
        let mut disks = vec![dir.join("boot0.img")];
        let bare = "mode = bare".to_owned();
        let mut configuration = wish.configuration.clone();
        if wish.below == Below::Nothing {
            configuration.push(bare.clone());
        }
        parts.write(&disks[0], &configuration, &wish.changes)?;
        if wish.fallback {
            disks.push(dir.join("boot1.img"));
            parts.write(&disks[1], &[bare], &[])?;
        }
        Ok(Media { boot: Boot::Disks(disks), image_size: Some(parts.image.len() as u64) })
    })
}

/// The files of a boot partition.
struct Parts {
    image: Vec<u8>,
    vmlinuz: Vec<u8>,
    initrd: Vec<u8>,
    symbols: String,
    cmdline: String,
}

impl Parts {
    fn write(&self, disk: &Path, settings: &[String], changes: &[Change]) -> Result<()> {
        let (kernel, initrd) = (crc32fast::hash(&self.vmlinuz), crc32fast::hash(&self.initrd));
        let mut configuration = configuration(&self.cmdline, settings);
        configuration.push_str(&format!("kernel-crc32 = {kernel:08x}\ninitrd-crc32 = {initrd:08x}\n"));
        let mut items = vec![
            Item { path: "EFI/BOOT/BOOTX64.EFI", contents: &self.image },
            Item { path: "parterre/parterre.conf", contents: configuration.as_bytes() },
            Item { path: "parterre/vmlinuz", contents: &self.vmlinuz },
            Item { path: "parterre/initrd", contents: &self.initrd },
            Item { path: "parterre/parterre.sym", contents: self.symbols.as_bytes() },
        ];
        for (path, contents) in changes {
            items.retain(|item| item.path != *path);
            items.extend(contents.as_ref().map(|contents| Item { path, contents }));
        }
        esp::write(disk, &items)
    }
}

/// The file that `parterre.efi` reads.
fn configuration(cmdline: &str, more: &[String]) -> String {
    let mut text = format!(
        "# Written by the lab.\nkernel = \\parterre\\vmlinuz\ninitrd = \\parterre\\initrd\ncmdline = {cmdline}\n\
         serial = 0x3f8\nsymbols = \\parterre\\parterre.sym\n"
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
        let text = configuration("console=ttyS0 a=b", &["mode = bare".into()]);
        let settings: Vec<_> =
            text.lines().filter(|l| !l.starts_with('#')).map(|l| l.split_once(" = ").unwrap().0).collect();
        assert_eq!(settings, ["kernel", "initrd", "cmdline", "serial", "symbols", "mode"]);
        assert!(text.contains("cmdline = console=ttyS0 a=b\n"));
    }
}
