//! The peer: Debian's QEMU with KVM, inside a bare box. Of its packages only the program, its libraries and the PC's
//! firmware come along; they lie in `/opt/qemu`, and `/usr/bin/qemu` starts it.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::bundle::{self, From};
use crate::rootfs::{Extras, libraries};

const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const FIRMWARE: [&str; 3] =
    ["usr/share/seabios/bios-256k.bin", "usr/share/qemu/linuxboot_dma.bin", "usr/share/qemu/kvmvapic.bin"];
const START: &str = "#!/bin/sh
exec /opt/qemu/lib/ld-linux-x86-64.so.2 --library-path /opt/qemu/lib /opt/qemu/qemu-system-x86_64 -L /opt/qemu/share \\
    -accel kvm -cpu host -machine q35 -nodefaults -no-user-config -display none -no-reboot -serial stdio \"$@\"
";

/// Puts the peer into a parent.
///
/// # Errors
/// When its packages cannot be had.
pub fn add(extras: &mut Extras) -> Result<()> {
    let packages = bundle::get("qemu", From::Newest, &["qemu-system-x86", "ovmf", "seabios"], true)?;
    let program = packages.file(PROGRAM)?;
    let directory = packages.root().join(LIBRARIES);
    let mut files: Vec<(&str, PathBuf)> = vec![("opt/qemu", program.clone())];
    files.push(("opt/qemu/lib", directory.join("ld-linux-x86-64.so.2")));
    files.extend(libraries(&program, &directory)?.into_iter().map(|library| ("opt/qemu/lib", library)));
    for firmware in FIRMWARE {
        files.push(("opt/qemu/share", packages.file(firmware)?));
    }
    for (place, file) in files {
        let name = file.file_name().and_then(|name| name.to_str()).context("A file without a name.")?;
        extras.programs.push((format!("{place}/{name}"), file.clone()));
    }
    extras.texts.push(("usr/bin/qemu".into(), START.into()));
    Ok(())
}
