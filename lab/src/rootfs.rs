//! The parent's root file system: an initramfs of busybox and the C library from packages, the lab's agent, and the
//! virtualization stack.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::Programs;
use crate::bundle::{self, Bundle};
use crate::cpio::Archive;
use crate::tool;

/// The parent's init and its scripts: path in the root file system, contents.
const SCRIPTS: [(&str, &str); 6] = [
    ("init", include_str!("../rootfs/init")),
    ("etc/lab/start", include_str!("../rootfs/start")),
    ("etc/lab/agent", include_str!("../rootfs/agent")),
    ("etc/lab/vmms", include_str!("../rootfs/vmms")),
    ("etc/lab/console", include_str!("../rootfs/console")),
    ("etc/lab/stop", include_str!("../rootfs/stop")),
];
const FILES: [(&str, &str); 5] = [
    ("etc/inittab", include_str!("../rootfs/inittab")),
    ("etc/profile", include_str!("../rootfs/profile")),
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nparterre:x:900:900::/nonexistent:/bin/false\nvmwp:x:901:901::/nonexistent:/bin/false\nnobody:x:65534:65534::/nonexistent:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\nkvm:x:104:\nparterre:x:900:\nvmwp:x:901:\nnogroup:x:65534:\n"),
    ("etc/os-release", "ID=parterre-lab\nNAME=\"Parterre lab parent\"\n"),
];
const DIRECTORIES: [&str; 12] =
    ["dev", "proc", "sys", "run", "tmp", "root", "mnt", "var/log", "var/lib", "var/run", "lab", "opt"];
/// Since the merge of /usr, these are links in every distribution.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// What goes into the parent besides the base.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// Debian packages, laid over the base with all they depend on.
    pub packages: Vec<String>,
    /// A directory laid over everything.
    pub overlay: Option<PathBuf>,
    /// Single files: path in the root file system, file on this machine.
    pub files: Vec<(String, PathBuf)>,
    /// Single programs, likewise.
    pub programs: Vec<(String, PathBuf)>,
    /// Scripts: path in the root file system, contents.
    pub texts: Vec<(String, String)>,
}

/// The packages that every parent is made of.
///
/// # Errors
/// When they cannot be fetched.
pub fn base() -> Result<Bundle> {
    bundle::get("parent", bundle::From::Newest, &["busybox-static", "libc6", "libgcc-s1"], false)
}

/// Packs the parent's root file system.
///
/// # Errors
/// When packages cannot be fetched, or a file cannot be read.
pub fn pack(programs: &Programs, extras: &Extras) -> Result<Vec<u8>> {
    let base = base()?;
    let mut archive = Archive::new();
    for link in MERGED {
        archive.symlink(link, &format!("usr/{link}"));
    }
    DIRECTORIES.iter().for_each(|path| archive.directory(path));
    archive.device("dev/console", 0o600, 5, 1);
    archive.device("dev/null", 0o666, 1, 3);
    archive.tree(base.root(), "", &unneeded)?;
    busybox(&mut archive, &base)?;
    SCRIPTS.iter().for_each(|(path, text)| archive.file(path, 0o755, text.as_bytes()));
    FILES.iter().for_each(|(path, text)| archive.file(path, 0o644, text.as_bytes()));
    for program in &programs.files {
        add_program(&mut archive, &base, program)?;
    }
    if !extras.packages.is_empty() {
        let names: Vec<&str> = extras.packages.iter().map(String::as_str).collect();
        let packages = bundle::get("with", bundle::From::Newest, &names, true)?;
        archive.tree(packages.root(), "", &unneeded)?;
    }
    for (path, file) in &extras.files {
        let contents = fs::read(file).with_context(|| format!("{} cannot be read.", file.display()))?;
        archive.file(path, 0o644, &contents);
    }
    for (path, file) in &extras.programs {
        let contents = fs::read(file).with_context(|| format!("{} cannot be read.", file.display()))?;
        archive.file(path, 0o755, &contents);
    }
    for (path, text) in &extras.texts {
        archive.file(path, 0o755, text.as_bytes());
    }
    if let Some(overlay) = &extras.overlay {
        archive.tree(overlay, "", &|_| false)?;
    }
    Ok(archive.finish())
}

/// What packages hold that no box needs.
fn unneeded(path: &str) -> bool {
    let prefixes = [
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/lintian",
        "usr/share/bash-completion",
        "usr/share/initramfs-tools",
        "usr/lib/x86_64-linux-gnu/gconv",
        "usr/lib/x86_64-linux-gnu/audit",
    ];
    prefixes.contains(&path) || MERGED.contains(&path)
}

/// Links every command that busybox has to it.
fn busybox(archive: &mut Archive, base: &Bundle) -> Result<()> {
    for name in applets(&base.file("usr/bin/busybox")?)? {
        archive.symlink(&format!("usr/bin/{name}"), "/usr/bin/busybox");
    }
    for name in ["init", "reboot", "poweroff", "halt"] {
        archive.symlink(&format!("usr/sbin/{name}"), "/usr/bin/busybox");
    }
    Ok(())
}

/// The commands that a busybox has, without those that a box has no use for.
///
/// # Errors
/// When it cannot be run.
pub fn applets(busybox: &Path) -> Result<Vec<String>> {
    let names = tool::output(Command::new(busybox).arg("--list"))?;
    let useless = ["busybox", "linuxrc", "dpkg", "dpkg-deb", "rpm", "init", "reboot", "poweroff", "halt"];
    Ok(names
        .lines()
        .map(str::trim)
        .filter(|n| !n.is_empty() && !useless.contains(n))
        .map(str::to_owned)
        .collect())
}

/// Adds a program to `/usr/bin`, and those libraries it needs that the packages do not bring, from this machine.
fn add_program(archive: &mut Archive, base: &Bundle, program: &Path) -> Result<()> {
    let contents = fs::read(program).with_context(|| format!("{} cannot be read.", program.display()))?;
    let name = program.file_name().and_then(|n| n.to_str()).context("A program without a name.")?;
    let elf = goblin::elf::Elf::parse(&contents)
        .with_context(|| format!("{} is no program.", program.display()))?;
    for library in elf.libraries {
        let packaged = base.root().join("usr/lib/x86_64-linux-gnu").join(library).exists();
        if !packaged {
            let path = Path::new("/usr/lib/x86_64-linux-gnu").join(library);
            let library_contents = fs::read(&path).with_context(|| {
                format!(
                    "The program '{name}' needs the library {library}, which is not at {}.",
                    path.display()
                )
            })?;
            archive.file(&format!("usr/lib/x86_64-linux-gnu/{library}"), 0o755, &library_contents);
        }
    }
    archive.file(&format!("usr/bin/{name}"), 0o755, &contents);
    Ok(())
}

/// The libraries in `directory` that a program needs, directly or through each other.
///
/// # Errors
/// When the program or one of the libraries cannot be read.
pub fn libraries(program: &Path, directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut open = vec![program.to_owned()];
    while let Some(file) = open.pop() {
        let contents = fs::read(&file).with_context(|| format!("{} cannot be read.", file.display()))?;
        let elf = goblin::elf::Elf::parse(&contents)
            .with_context(|| format!("{} is no program.", file.display()))?;
        for name in elf.libraries {
            let library = directory.join(name);
            if library.exists() && found.insert(library.clone()) {
                open.push(library);
            }
        }
    }
    Ok(found)
}
