//! A guest's kernel starts another one by itself, which finds the processors and the bus as after a reset.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::vm::{PROMPT, USERLAND, console, remove};
use super::{succeed, succeed_in};
use crate::boxes::BoxSpec;
use crate::media::Wish;
use crate::session::Session;
use crate::test::{Case, Check, USUAL};

pub const CASES: &[Case] = &[Case { name: "vm::kexec", setting: USUAL, check: Check::Free(kexec) }];

const BOOT: Duration = Duration::from_secs(180);

/// The guest's initramfs with `kexec`, the libraries that it names, and a kernel with its own initramfs for it.
const PACK: &str = "mkdir -p /tmp/more/next /tmp/more/lib64 && cd /tmp/more && cp /usr/sbin/kexec next/ && \
    cp -L /lib64/ld-linux-x86-64.so.2 lib64/ && \
    for file in $(LD_TRACE_LOADED_OBJECTS=1 /usr/sbin/kexec | tr ' ' '\\n' | grep ^/); do \
        mkdir -p .${file%/*} && cp -L $file .$file; done && \
    cp /lab/guest-kernel next/kernel && cp /lab/guest-initrd next/initrd && \
    (cat /lab/guest-initrd; find . | cpio -o -H newc) >/tmp/initrd && rm -r /tmp/more";
const CREATE: &str = "dd if=/dev/urandom of=/tmp/disk.img bs=1M count=8 2>/dev/null && \
    parterre vm create kexec --memory 512M --processors 3 --kernel /lab/guest-kernel --initrd /tmp/initrd \
        --cmdline 'console=ttyS0 quiet' && \
    parterre vm disk add kexec /tmp/disk.img && parterre vm start kexec";
const NEXT: &str = "/next/kexec -s -l /next/kernel --initrd=/next/initrd --append='console=ttyS0 quiet another' && \
    /next/kexec -e\n";
const ASK: &str = "cat /proc/cmdline; echo on $(nproc) processors; md5sum /dev/sda; echo said all\n";

fn kexec(mut wish: Wish) -> Result<()> {
    wish.extras.packages.push("kexec-tools".into());
    let spec = BoxSpec { memory: 3072, ..BoxSpec::default() };
    let mut session = Session::start(&spec, &wish, BOOT)?;
    succeed_in(&mut session, PACK, BOOT)?;
    succeed(&mut session, CREATE)?;
    let steps = [(USERLAND, ""), (PROMPT, NEXT), (USERLAND, ""), (PROMPT, ASK), ("\nsaid all", "")];
    let said = console(&mut session, "kexec", &steps)?;
    let said = said.rsplit(USERLAND).next().unwrap_or_default();
    let sum = succeed(&mut session, "md5sum </tmp/disk.img")?;
    let sum = sum.split_whitespace().next().unwrap_or_default();
    for expected in ["quiet another", "on 3 processors", sum] {
        ensure!(said.contains(expected), "The other kernel did not say '{expected}': {said}");
    }
    let log = succeed(&mut session, "grep 'the guest .* VMBus' /run/parterre/vms/*/worker.log")?;
    let told: Vec<bool> = log.lines().map(|line| line.contains("speaks")).collect();
    ensure!(told == [true, false, true], "The worker does not tell of two kernels and a good-bye: {log}");
    remove(&mut session, "kexec")
}
