//! The parent's kernel panics, and its crash kernel takes over.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::succeed;
use crate::boxes::BoxSpec;
use crate::media::Wish;
use crate::session::Session;
use crate::test::{Case, Check, PLAIN};
use crate::tool;

pub const CASES: &[Case] =
    &[Case { name: "parent::crash-kernel-takes-over", setting: PLAIN, check: Check::Free(crash) }];

const BOOT: Duration = Duration::from_secs(180);
/// What the crash kernel's userland says, when it has read some memory of the kernel that crashed.
const SAID: &str = "crash kernel: has read";

/// Runs in both kernels; only the crash kernel has the other's memory. (What was deposited cannot be read: the crash kernel
/// runs above the hypervisor, too.)
const START: &str = "#!/bin/sh
[ -e /proc/vmcore ] || exit 0
echo \"crash kernel: Linux $(uname -r) on $(nproc) processors\" >/dev/console
echo \"crash kernel: has read $(dd if=/proc/vmcore bs=1M count=16 2>/dev/null | wc -c) bytes\" >/dev/console
";

const LOAD: &str = "mkdir -p /mnt/esp && mount -t vfat -o ro /dev/disk/by-id/lab-boot0 /mnt/esp && \
    kexec --kexec-file-syscall --load-panic /mnt/esp/parterre/vmlinuz --initrd=/mnt/esp/parterre/initrd \
    --command-line='console=ttyS0,115200 panic=-1 nr_cpus=1 tsc=reliable' && cat /sys/kernel/kexec_crash_loaded";

fn crash(mut wish: Wish) -> Result<()> {
    wish.with_stack = false;
    wish.extras.packages.push("kexec-tools".into());
    wish.extras.texts.push(("lab/start".into(), START.into()));
    wish.cmdline = "crashkernel=512M".into();
    let mut session = Session::start(&BoxSpec::default(), &wish, BOOT)?;
    succeed(&mut session, LOAD)?;
    session.shell("echo c >/proc/sysrq-trigger", Duration::from_secs(20))?;
    let deadline = Instant::now() + BOOT;
    while !session.serial().text().contains(SAID) {
        if Instant::now() > deadline {
            let log = session.serial().text();
            bail!("The crash kernel did not come to its end. The end of the log:\n{}", tool::tail(&log, 60));
        }
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
