//! The lab's guest: an initramfs of busybox, with the modules of one kernel behind it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{existing, modules};
use crate::bundle::{self, From};
use crate::cpio::Archive;
use crate::{cache, rootfs};

/// The guest's scripts: path in its root file system, permissions, contents.
const SCRIPTS: [(&str, u32, &str); 4] = [
    ("init", 0o755, include_str!("../../guest/init")),
    ("etc/start", 0o755, include_str!("../../guest/start")),
    ("etc/shell", 0o755, include_str!("../../guest/shell")),
    ("etc/inittab", 0o644, include_str!("../../guest/inittab")),
];

/// A guest initramfs: `lab` is the lab's own, with the modules of `kernel` (as [`super::kernel`] takes it); everything
/// else is a file.
///
/// # Errors
/// When it cannot be made or the file is not there.
pub fn initrd(name: &str, kernel: &str) -> Result<PathBuf> {
    if name != "lab" {
        return existing(name);
    }
    let base = bundle::get("guest", From::Newest, &["busybox-static"], false)?;
    let busybox = base.file("usr/bin/busybox")?;
    let modules = modules::archive(kernel)?;
    let names = [
        busybox.display().to_string(),
        modules.as_ref().map_or(String::new(), |path| path.display().to_string()),
    ];
    let parts = SCRIPTS.iter().map(|(_, _, text)| text.as_bytes()).chain(names.iter().map(String::as_bytes));
    let place = cache::sub("guests")?.join(cache::key(parts));
    let _lock = cache::Lock::take("guests")?;
    cache::complete(&place, |part| {
        // The kernel unpacks one archive after the other.
        let mut bytes = pack(&busybox)?;
        if let Some(modules) = &modules {
            bytes.extend(fs::read(modules)?);
        }
        Ok(fs::write(part.join("initrd"), bytes)?)
    })?;
    Ok(place.join("initrd"))
}

fn pack(busybox: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for link in ["bin", "sbin"] {
        archive.symlink(link, &format!("usr/{link}"));
    }
    archive.symlink("lib", "usr/lib");
    for directory in ["dev", "proc", "sys", "tmp", "root", "run", "mnt", "usr/sbin", "usr/lib/modules", "etc"]
    {
        archive.directory(directory);
    }
    archive.device("dev/console", 0o600, 5, 1);
    SCRIPTS.iter().for_each(|(path, mode, text)| archive.file(path, *mode, text.as_bytes()));
    archive.file("usr/bin/busybox", 0o755, &fs::read(busybox)?);
    for applet in rootfs::applets(busybox)? {
        archive.symlink(&format!("usr/bin/{applet}"), "busybox");
    }
    for command in ["init", "reboot", "poweroff", "halt"] {
        archive.symlink(&format!("usr/sbin/{command}"), "/usr/bin/busybox");
    }
    Ok(archive.finish())
}
