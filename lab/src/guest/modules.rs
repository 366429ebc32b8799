//! The modules of a stock kernel that the lab's guest needs: drivers for VMBus devices and for virtio ones (the peer's), and
//! for what stands on them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::kernel;
use crate::cpio::Archive;
use crate::{cache, tool};

/// Module names; what they need comes along. A kernel may have some built in, or be without.
const WANTED: &[&str] = &[
    "hv_vmbus",
    "hv_storvsc",
    "hv_netvsc",
    "hv_utils",
    "hv_balloon",
    "hv_sock",
    "hyperv_keyboard",
    "hyperv_drm",
    "hyperv_fb",
    "uio_hv_generic",
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_scsi",
    "virtio_net",
    "sd_mod",
    "sr_mod",
    "sg",
    "ext4",
    "isofs",
    "8021q",
];

/// An archive with the modules of a kernel that [`kernel::kernel`] knows by name; `None` if it is a file, whose modules nobody
/// knows.
///
/// # Errors
/// When the kernel's packages cannot be had or read.
pub fn archive(kernel: &str) -> Result<Option<PathBuf>> {
    let Some((folder, release)) = kernel::modules(kernel)? else { return Ok(None) };
    let key = cache::key([folder.display().to_string().as_bytes(), WANTED.join(" ").as_bytes()]);
    let place = cache::sub("guests")?.join(format!("modules-{key}"));
    let _lock = cache::Lock::take("guest-modules")?;
    cache::complete(&place, |part| pack(&folder, &release, part))?;
    Ok(Some(place.join("modules")))
}

/// A module's name as `modprobe` compares it.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    Some(file.split_once(".ko")?.0.replace('-', "_"))
}

fn pack(folder: &Path, release: &str, part: &Path) -> Result<()> {
    let all = all_modules(&folder.join("kernel"))?;
    let tree = part.join("lib/modules").join(release);
    fs::create_dir_all(&tree)?;
    let mut wanted: Vec<String> = WANTED.iter().map(|&name| name.to_owned()).collect();
    let mut seen = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        let Some(path) = all.iter().find(|path| name_of(path).as_deref() == Some(&name)) else { continue };
        if seen.insert(name.clone()) {
            let file = tree.join(format!("{name}.ko"));
            fs::write(&file, uncompressed(path)?)?;
            wanted.extend(needs(&file)?);
        }
    }
    tool::output(Command::new("/usr/sbin/depmod").arg("--basedir").arg(part).arg(release))?;
    let mut archive = Archive::new();
    archive.tree(&part.join("lib"), "usr/lib", &|_| false)?;
    fs::write(part.join("modules"), archive.finish())?;
    Ok(fs::remove_dir_all(part.join("lib"))?)
}

fn all_modules(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("{} cannot be read.", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    Ok(found)
}

/// The modules' compression differs by release; busybox loads uncompressed ones only.
fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return Ok(fs::read(path)?),
    };
    let output = Command::new(program).args(["--decompress", "--stdout", "--quiet"]).arg(path).output();
    let output = output.with_context(|| format!("{program} cannot be run."))?;
    anyhow::ensure!(output.status.success(), "{program} cannot decompress {}.", path.display());
    Ok(output.stdout)
}

/// What a module says it needs, softly too.
fn needs(file: &Path) -> Result<Vec<String>> {
    let list =
        |field: &str| tool::output(Command::new("/usr/sbin/modinfo").args(["--field", field]).arg(file));
    let hard = list("depends")?;
    let soft = list("softdep")?;
    let names = hard.split([',', '\n']).chain(soft.split_whitespace().filter(|word| !word.ends_with(':')));
    Ok(names.map(|name| name.trim().replace('-', "_")).filter(|name| !name.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_as_modprobe_does() {
        assert_eq!(name_of(Path::new("a/hyperv-keyboard.ko.xz")).as_deref(), Some("hyperv_keyboard"));
        assert_eq!(name_of(Path::new("sd_mod.ko")).as_deref(), Some("sd_mod"));
        assert_eq!(name_of(Path::new("modules.order")), None);
    }
}
