//! Copies of virtual machines' disks, made while they run, stand still, or are off. With the guest's own part in it:
//! [`super::integration`].

use anyhow::{Result, ensure};

use super::disk::{BOOT, in_guest, remove, start, until};
use super::succeed;
use crate::session::{Outcome, Session};
use crate::test::{Case, Check, USUAL};

pub const CASES: &[Case] =
    &[Case { name: "vm::backup-of-disks", setting: USUAL, check: Check::Shared(backup) }];

/// Where the guest has the name of the disk at place 0: it looks at disks side by side, and names them as they answer.
const BLOCK: &str = "/sys/bus/scsi/devices/*:0:0:0/block";

/// A guest without the daemon: nothing is copied behind its back, unless that is asked for.
fn backup(session: &mut Session) -> Result<()> {
    succeed(
        session,
        "rm -rf /tmp/b1 /tmp/b2 /tmp/b3; truncate -s 32M /tmp/kept.img; truncate -s 4M /tmp/other.img",
    )?;
    start(session, "kept", &["/tmp/kept.img", "/tmp/other.img --read-only"])?;
    let wrote = in_guest(
        session,
        "kept",
        &format!(
            "{}; d=/dev/$(ls {BLOCK}); mke2fs -q $d >/dev/null; modprobe -a ext4 2>/dev/null; mount -t ext4 $d /mnt && \
             head -c 3000000 /dev/urandom >/mnt/file && sync && sha256sum </mnt/file",
            until(&format!("[ -b /dev/$(ls {BLOCK} 2>/dev/null) ]"))
        ),
    )?;
    let refused = session.shell("parterre vm backup kept /tmp/b1 2>&1", BOOT)?;
    let helped = refused.outcome != Outcome::Exit(0) && refused.stdout.contains("--crash-consistent");
    ensure!(helped, "A backup without the guest's daemon: {}", refused.stdout);
    succeed(session, "[ ! -e /tmp/b1 ]")?;
    // It stands still meanwhile, and goes on.
    let said = succeed(session, "parterre vm backup kept /tmp/b1 --crash-consistent")?;
    ensure!(said.contains("as after a power cut") && !said.contains("disk-0-1"), "The backup says: {said}");
    in_guest(session, "kept", "echo more >/mnt/more; sync; cat /mnt/more")?;
    let copied = succeed(
        session,
        "mkdir -p /tmp/look && mount -t ext4 -o ro,loop /tmp/b1/disk-0-0.raw /tmp/look && sha256sum </tmp/look/file; \
         [ ! -e /tmp/look/more ]; umount /tmp/look",
    )?;
    ensure!(wrote == copied.trim(), "The guest wrote {wrote}, the copy has {copied}");
    succeed(session, "grep -q '\"name\": \"kept\"' /tmp/b1/definition.json")?;
    // What is there is not touched, and of what cannot be copied nothing is left.
    for (wrong, why) in [
        ("parterre vm backup kept /tmp/b1 --crash-consistent", "exists"),
        ("parterre vm backup kept /tmp/b2 --disk 0:9", "nothing to be copied at place 9"),
        ("parterre vm backup kept /tmp/b2 --disk 1", "CONTROLLER:LUN"),
        ("parterre vm backup kept /no/where/b2", "No such file"),
        ("parterre vm backup nobody /tmp/b2", "no virtual machine"),
    ] {
        let run = session.shell(&format!("{wrong} 2>&1"), BOOT)?;
        ensure!(run.outcome != Outcome::Exit(0) && run.stdout.contains(why), "`{wrong}`: {}", run.stdout);
    }
    succeed(session, "[ ! -e /tmp/b2 ] && parterre vm show kept | grep '^State: *Running'")?;
    // Off, all of it is there.
    succeed(
        session,
        "parterre vm stop kept --force && parterre vm backup kept /tmp/b2 --disk 0:0 --disk 0:1",
    )?;
    succeed(session, "cmp /tmp/kept.img /tmp/b2/disk-0-0.raw && cmp /tmp/other.img /tmp/b2/disk-0-1.raw")?;
    remove(session, "kept")?;
    succeed(session, "rm -rf /tmp/b1 /tmp/b2").map(drop)
}
