//! Whole Debian systems as guests: made from packages by mmdebstrap, with systemd, a stock cloud kernel and its initramfs
//! as the packages make it, sshd and the Hyper-V daemons, on a disk image.
//!
//! Making one takes minutes, so it is kept in the cache. Nothing may write to the image there: a box works on what it writes
//! itself (`snapshot` in [`crate::boxes`]).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::kernel::release;
use crate::boxes::BoxSpec;
use crate::install::as_root;
use crate::media::Wish;
use crate::{apt, cache, progress, tool};

/// What a system holds besides what every Debian does.
const PACKAGES: &str = "systemd-sysv,udev,dbus,linux-image-cloud-amd64,initramfs-tools,openssh-server,iproute2,iputils-ping,\
                        ethtool,kmod,hyperv-daemons";
/// Sets the system up.
const HOOK: &str = include_str!("../../guest/system");
/// Size of the disk; the file is sparse.
const DISK: &str = "2G";

/// A system: what a virtual machine needs to boot it.
#[derive(Debug, Clone)]
pub struct System {
    /// The raw disk image: one ext4 file system without a partition table, labelled `guest-root`.
    pub disk: PathBuf,
    /// The kernel's image.
    pub kernel: PathBuf,
    /// Its initramfs, as the distribution's tools made it.
    pub initrd: PathBuf,
    /// The private key of root's ssh.
    pub key: PathBuf,
}

impl System {
    /// Gives a box the system: its files in the parent below `/lab`, its disk, and ssh to reach it.
    pub fn give(self, spec: &mut BoxSpec, wish: &mut Wish) {
        let files = [("kernel", self.kernel), ("initrd", self.initrd), ("key", self.key)];
        wish.extras.files.extend(files.map(|(name, file)| (format!("lab/guest-{name}"), file)));
        wish.extras.packages.push("openssh-client".into());
        spec.scratch.push(self.disk);
    }
}

/// The Debian system of a release: `oldest`, `stable` or `newest`.
///
/// # Errors
/// When there is no such release, or the system cannot be made.
pub fn system(name: &str) -> Result<System> {
    let from = release(name).with_context(|| {
        format!("There is no Debian system '{name}'; there are oldest, stable and newest.")
    })?;
    let key = cache::key([HOOK.as_bytes(), PACKAGES.as_bytes(), DISK.as_bytes()]);
    let place = cache::sub("guests")?.join(format!("system-{name}-{key}"));
    let _lock = cache::Lock::take(&format!("system-{name}"))?;
    if !place.exists() {
        progress::step(&format!("Making a Debian system: {name}"), |step| {
            let suite = from.open()?;
            cache::complete(&place, |part| make(suite.name(), suite.sources(), part, step))
        })?;
    }
    let file = |name: &str| place.join(name);
    Ok(System { disk: file("disk"), kernel: file("kernel"), initrd: file("initrd"), key: file("key") })
}

fn make(suite: &str, sources: PathBuf, part: &Path, step: &progress::Step) -> Result<()> {
    let (root, hook) = (part.join("root"), part.join("hook"));
    fs::write(&hook, HOOK)?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    step.at("installing its packages");
    let mut command = as_root();
    command.args(["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory"]);
    // What this machine's apt is told about the age of what an archive says holds for the system's, too.
    command.arg(format!("--aptopt=Acquire::Check-Valid-Until \"{}\"", apt::checks_age()?));
    command.arg(format!("--include={PACKAGES}")).arg(format!("--customize-hook={}", hook.display()));
    tool::output(command.arg(suite).arg(&root).arg(sources))?;
    step.at("writing its disk");
    // With an identity the system does not think it starts for the first time.
    let owner = rustix::process::geteuid().as_raw();
    let script = format!(
        "set -e; cp -L root/boot/vmlinuz-* kernel; cp -L root/boot/initrd.img-* initrd; mv root/root/lab-key key; \
         tr -d - </proc/sys/kernel/random/uuid >root/etc/machine-id; \
         chown {owner} kernel initrd key; chmod 600 key; /usr/sbin/mke2fs -q -t ext4 -L guest-root -d root disk {DISK}; \
         chown {owner} disk; rm -rf root hook"
    );
    tool::output(as_root().args(["sh", "-c", &script]).current_dir(part)).map(drop)
}
