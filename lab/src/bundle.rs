//! Bundles: sets of Debian packages with all that they need, unpacked side by side in the cache.
//!
//! A bundle's programs run with the bundle's own libraries and loader, so the machine needs none of them and its
//! own stay as they are. A bundle is fetched once and then kept; see [`refresh`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{Distribution, Suite};
use crate::{cache, progress};

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// A set of unpacked packages.
#[derive(Debug, Clone)]
pub struct Bundle {
    root: PathBuf,
}

/// Which suite a bundle is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The newest packages of the distribution.
    Newest,
    /// The distribution's present stable release.
    Stable,
    /// The oldest release that is supported as a guest.
    Oldest,
}

impl From {
    /// The suite's name in the machine's distribution, and its opened state.
    ///
    /// # Errors
    /// As [`Suite::open`].
    pub fn open(self) -> Result<Suite> {
        let distribution = Distribution::of_this_machine()?;
        let name = match self {
            From::Newest => distribution.newest(),
            From::Stable => distribution.stable(),
            From::Oldest => distribution.oldest(),
        };
        Suite::open(&distribution, name)
    }
}

/// The bundle of these packages and, with `all`, of everything they depend on; fetched unless the cache has it.
///
/// # Errors
/// When the packages cannot be fetched or unpacked.
pub fn get(name: &str, from: From, packages: &[&str], all: bool) -> Result<Bundle> {
    let key = cache::key([format!("{from:?} {all} {}", packages.join(" ")).as_bytes()]);
    let root = cache::sub("bundles")?.join(format!("{name}-{key}"));
    let _lock = cache::Lock::take(&format!("bundle-{name}"))?;
    if !root.exists() {
        progress::step(&format!("Fetching packages: {name}"), |_| {
            let suite = from.open()?;
            cache::complete(&root, |part| suite.unpack(packages, all, part))
        })?;
    }
    Ok(Bundle { root })
}

/// Forgets all bundles, so that the next use fetches the newest packages.
///
/// # Errors
/// When a directory cannot be removed.
pub fn refresh() -> Result<()> {
    let all = cache::sub("bundles")?;
    fs::remove_dir_all(&all).with_context(|| format!("{} cannot be removed.", all.display()))
}

impl Bundle {
    /// Where the packages lie.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file of the bundle, by its path in the packages.
    ///
    /// # Errors
    /// When the packages do not hold it.
    pub fn file(&self, path: &str) -> Result<PathBuf> {
        let file = self.root.join(path);
        anyhow::ensure!(
            file.exists(),
            "The packages in {} hold no '{path}'; they may have changed. Run `cargo lab setup --refresh`.",
            self.root.display()
        );
        Ok(file)
    }

    /// A command that runs one of the bundle's programs with the bundle's loader and libraries.
    ///
    /// # Errors
    /// When the packages hold no such program.
    pub fn command(&self, program: &str) -> Result<Command> {
        let libraries = self.root.join(LIBRARIES);
        let mut command = Command::new(self.file(&format!("{LIBRARIES}/ld-linux-x86-64.so.2"))?);
        command.arg("--library-path").arg(&libraries).arg(self.file(program)?);
        command.env("QEMU_MODULE_DIR", libraries.join("qemu"));
        Ok(command)
    }
}
