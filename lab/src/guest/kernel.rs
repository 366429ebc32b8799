//! Stock kernels: Debian's cloud kernels of several releases, and the general ones, which have drivers for screens too; taken
//! from their packages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::existing;
use crate::bundle::From;
use crate::{cache, progress};

/// A guest kernel's image: `oldest`, `stable` and `newest` are the distribution's cloud kernels of the oldest supported
/// release, of the present one, and of the newest in the archive; with `-general` behind it, the general kernel of that
/// release. Everything else is a file.
///
/// # Errors
/// When the package cannot be had or the file is not there.
pub fn kernel(name: &str) -> Result<PathBuf> {
    match flavour(name) {
        Some((from, flavour)) => image(&unpacked(name, from, flavour)?),
        None => existing(name),
    }
}

/// The folder with the modules of a kernel that [`kernel`] knows by name, and its release (`uname -r`); `None` for files.
///
/// # Errors
/// When the package cannot be had.
pub fn modules(name: &str) -> Result<Option<(PathBuf, String)>> {
    let Some((from, flavour)) = flavour(name) else { return Ok(None) };
    let place = unpacked(name, from, flavour)?;
    let folder = entries(&place, &["usr/lib/modules", "lib/modules"])
        .find(|folder| folder.join("kernel").is_dir())
        .with_context(|| incomplete(&place))?;
    let release = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    Ok(Some((folder, release)))
}

/// The release and the end of the packages' names.
fn flavour(name: &str) -> Option<(From, &'static str)> {
    match name.strip_suffix("-general") {
        Some(name) => Some((release(name)?, "amd64")),
        None => Some((release(name)?, "cloud-amd64")),
    }
}

/// As in 6.1.0-50 and 7.2.13+deb14.
const VERSION: &str = "[0-9]+[.][0-9]+[.][0-9]+([+][0-9a-z.]+)?(-[0-9]+)?";

pub(super) fn release(name: &str) -> Option<From> {
    match name {
        "oldest" => Some(From::Oldest),
        "stable" => Some(From::Stable),
        "newest" => Some(From::Newest),
        _ => None,
    }
}

fn incomplete(place: &Path) -> String {
    format!("{} does not hold what a kernel's packages should; remove it and try again.", place.display())
}

/// Everything in the folders of these names below `place`.
fn entries(place: &Path, folders: &[&str]) -> impl Iterator<Item = PathBuf> {
    let folders: Vec<_> = folders.iter().map(|folder| fs::read_dir(place.join(folder))).collect();
    folders.into_iter().flatten().flatten().flatten().map(|entry| entry.path())
}

fn unpacked(name: &str, from: From, flavour: &str) -> Result<PathBuf> {
    let name = format!("cloud-kernel-{name}");
    let place = cache::sub("bundles")?.join(&name);
    let _lock = cache::Lock::take(&name)?;
    if !place.exists() {
        progress::step(&format!("Fetching packages: {name}"), |_| {
            let suite = from.open()?;
            // Since Linux 7, image and modules have packages of their own; before, linux-image held both.
            // A version of letters and digits with no word behind it: other flavours have one.
            let names = |kind: &str| suite.names(&format!("^linux-{kind}-{VERSION}-{flavour}$"));
            let (apart, joined) = (names("binary")?, names("image")?);
            let packages = match newest(&apart) {
                Some(binary) => vec![binary.to_owned(), binary.replacen("binary", "modules", 1)],
                None => vec![newest(&joined).context("The suite has no such kernel.")?.to_owned()],
            };
            let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
            cache::complete(&place, |part| suite.unpack(&packages, false, part))
        })?;
    }
    Ok(place)
}

fn image(place: &Path) -> Result<PathBuf> {
    let folders: Vec<PathBuf> = entries(place, &["usr/lib/modules"]).chain([place.join("boot")]).collect();
    let mut files = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    files
        .find(|file| file.file_name().to_string_lossy().starts_with("vmlinuz"))
        .map(|file| file.path())
        .with_context(|| incomplete(place))
}

fn newest(names: &[String]) -> Option<&str> {
    let numbers = |name: &String| -> Vec<u32> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
    };
    names.iter().max_by_key(|name| numbers(name)).map(String::as_str)
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
}
