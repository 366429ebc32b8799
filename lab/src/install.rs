//! Tools that the machine itself must have: a compiler and what the kernel's build needs. Everything else the lab
//! unpacks into its cache (see [`crate::bundle`]).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{progress, tool};

/// How to see whether a package is there.
#[derive(Debug, Clone, Copy)]
enum Sign {
    Program(&'static str),
    File(&'static str),
}

/// Package, and what it is needed for.
const NEEDED: [(&str, Sign); 16] = [
    ("gcc", Sign::Program("gcc")),
    ("libc6-dev", Sign::File("/usr/include/stdlib.h")),
    ("binutils", Sign::Program("strip")),
    ("make", Sign::Program("make")),
    ("flex", Sign::Program("flex")),
    ("bison", Sign::Program("bison")),
    ("bc", Sign::Program("bc")),
    ("perl-base", Sign::Program("perl")),
    ("libelf-dev", Sign::File("/usr/include/libelf.h")),
    ("zstd", Sign::Program("zstd")),
    ("xz-utils", Sign::Program("xz")),
    ("cpio", Sign::Program("cpio")),
    ("mmdebstrap", Sign::Program("mmdebstrap")),
    ("e2fsprogs", Sign::File("/usr/sbin/mke2fs")),
    ("kmod", Sign::File("/usr/sbin/depmod")),
    ("util-linux", Sign::Program("setpriv")),
];

/// The packages that this machine lacks.
pub fn missing() -> Vec<&'static str> {
    let there = |sign: &Sign| match sign {
        Sign::Program(name) => tool::found(name),
        Sign::File(path) => Path::new(path).exists(),
    };
    NEEDED.iter().filter(|(_, sign)| !there(sign)).map(|(package, _)| *package).collect()
}

/// Installs what is missing; with `only_name`, fails with its names instead.
///
/// # Errors
/// When something is missing and may not or cannot be installed.
pub fn ensure(only_name: bool) -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if only_name {
        bail!(
            "These packages are missing: {list}. Install them: `apt-get install {list}`, or leave out --no-install."
        );
    }
    eprintln!("Installing by apt: {list}");
    progress::step("Installing packages", |step| {
        step.at("reading the package lists");
        tool::output(as_root().args(["apt-get", "update", "--quiet"]))?;
        step.at(&list);
        let mut install = as_root();
        install.args(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--quiet"]);
        tool::output(install.arg("--no-install-recommends").args(&missing)).map(drop)
    })
    .with_context(|| {
        format!("The packages cannot be installed. Install them by hand: `apt-get install {list}`.")
    })
}

/// `env` for root, `sudo` for everybody else.
pub fn as_root() -> Command {
    Command::new(if rustix::process::geteuid().is_root() { "env" } else { "sudo" })
}
