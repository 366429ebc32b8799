//! Guests for child partitions: Debian's stock cloud kernels, and a small initramfs of busybox.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::bundle::{self, From};
use crate::cpio::Archive;
use crate::{cache, progress, rootfs};

/// The guest's scripts: path in its root file system, permissions, contents.
const SCRIPTS: [(&str, u32, &str); 4] = [
    ("init", 0o755, include_str!("../guest/init")),
    ("etc/start", 0o755, include_str!("../guest/start")),
    ("etc/shell", 0o755, include_str!("../guest/shell")),
    ("etc/inittab", 0o644, include_str!("../guest/inittab")),
];

/// A guest kernel: `oldest` and `newest` are Debian's cloud kernels of the oldest supported release and of the
/// newest in the archive; everything else is a file.
///
/// # Errors
/// When the package cannot be had or the file is not there.
pub fn kernel(name: &str) -> Result<PathBuf> {
    match name {
        "oldest" => cloud_kernel(From::Oldest),
        "newest" => cloud_kernel(From::Newest),
        file => existing(file),
    }
}

/// A guest initramfs: `lab` is the lab's own; everything else is a file.
///
/// # Errors
/// When it cannot be made or the file is not there.
pub fn initrd(name: &str) -> Result<PathBuf> {
    if name == "lab" { lab_initrd() } else { existing(name) }
}

fn existing(file: &str) -> Result<PathBuf> {
    let path = PathBuf::from(file);
    ensure!(path.is_file(), "The file {file} is not there.");
    Ok(path)
}

/// The kernel's image alone is kept: stock cloud kernels have hypervisor and serial drivers built in or need no
/// more for a shell.
fn cloud_kernel(from: From) -> Result<PathBuf> {
    let name = if from == From::Oldest { "guest-kernel-oldest" } else { "guest-kernel-newest" };
    let place = cache::sub("bundles")?.join(name);
    let _lock = cache::Lock::take(name)?;
    if !place.exists() {
        progress::step(&format!("Fetching packages: {name}"), |_| {
            let suite = from.open()?;
            // Since Linux 7, a package of its own holds the image; before, linux-image did.
            let mut names = suite.names(r"^linux-binary-[0-9][0-9.+a-z-]*-cloud-amd64$")?;
            if names.is_empty() {
                names = suite.names(r"^linux-image-[0-9][0-9.+a-z-]*-cloud-amd64$")?;
            }
            let package = newest(&names).context("The suite has no cloud kernel.")?;
            cache::complete(&place, |part| suite.unpack(&[package], false, part))
        })?;
    }
    let mut folders = vec![place.join("boot")];
    folders.extend(
        fs::read_dir(place.join("usr/lib/modules")).into_iter().flatten().flatten().map(|e| e.path()),
    );
    let mut files =
        folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten().map(|e| e.path());
    let image = files
        .find(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("vmlinuz")));
    image.with_context(|| format!("{} holds no kernel; remove it and try again.", place.display()))
}

fn newest(names: &[String]) -> Option<&str> {
    let numbers = |name: &String| -> Vec<u32> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
    };
    names.iter().max_by_key(|name| numbers(name)).map(String::as_str)
}

fn lab_initrd() -> Result<PathBuf> {
    let base = bundle::get("guest", From::Newest, &["busybox-static"], false)?;
    let busybox = base.file("usr/bin/busybox")?;
    let path = busybox.display().to_string();
    let parts = SCRIPTS.iter().map(|(_, _, text)| text.as_bytes()).chain([path.as_bytes()]);
    let key = cache::key(parts);
    let place = cache::sub("guests")?.join(key);
    cache::complete(&place, |part| pack(&busybox, &part.join("initrd")))?;
    Ok(place.join("initrd"))
}

fn pack(busybox: &Path, to: &Path) -> Result<()> {
    let mut archive = Archive::new();
    for link in ["bin", "sbin"] {
        archive.symlink(link, &format!("usr/{link}"));
    }
    for directory in ["dev", "proc", "sys", "tmp", "root", "run", "usr/sbin", "etc"] {
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
    fs::write(to, archive.finish())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_cloud_kernel_is_taken_by_number() {
        let names = ["linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-42-cloud-amd64"].map(String::from);
        assert_eq!(newest(&names), Some("linux-image-6.1.0-42-cloud-amd64"));
        assert_eq!(newest(&[]), None);
    }

    #[test]
    fn files_must_be_there() {
        assert!(kernel("/no/such/kernel").is_err());
        assert!(initrd("/no/such/initrd").is_err());
    }
}
