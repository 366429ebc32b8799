//! The parent partition: upstream Linux as root partition on Parterre.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::succeed;
use crate::session::{Outcome, Session};
use crate::test::{Case, Check, PLAIN, Setting, USUAL};

const FOUR: Setting = Setting { spec: "amd,cpus=4,memory=4G,numa=2", ..PLAIN };

pub const CASES: &[Case] = &[
    Case { name: "parent::linux-is-root-partition", setting: USUAL, check: Check::Shared(is_root) },
    Case { name: "parent::mshv-is-there", setting: USUAL, check: Check::Shared(has_mshv) },
    Case { name: "parent::kernel-log-is-clean", setting: USUAL, check: Check::Shared(clean_log) },
    Case { name: "parent::devices-interrupt", setting: USUAL, check: Check::Shared(devices_interrupt) },
    Case { name: "parent::disk-reads", setting: USUAL, check: Check::Shared(disk_reads) },
    Case { name: "parent::cannot-read-the-hypervisor", setting: USUAL, check: Check::Shared(cannot_read) },
    Case { name: "parent::time-runs", setting: USUAL, check: Check::Shared(time_runs) },
    Case { name: "parent::load-stays-clean", setting: USUAL, check: Check::Shared(load) },
    Case { name: "parent::four-processors-two-nodes", setting: FOUR, check: Check::Shared(four_processors) },
    Case { name: "parent::powers-off", setting: FOUR, check: Check::Own(powers_off) },
    Case { name: "parent::reboots", setting: FOUR, check: Check::Own(reboots) },
];

/// Linux says that it runs as root partition, with two processors.
pub fn is_root(session: &mut Session) -> Result<()> {
    succeed(session, "dmesg | grep 'Hyper-V: running as root partition'")?;
    let online = succeed(session, "nproc")?;
    ensure!(online.trim() == "2", "{} processors are online, not 2.", online.trim());
    Ok(())
}

/// The driver for children is there, with the root scheduler.
pub fn has_mshv(session: &mut Session) -> Result<()> {
    succeed(session, "test -c /dev/mshv")?;
    succeed(session, "dmesg | grep -i 'root scheduler'").map(drop)
}

/// The parent's kernel has not complained, of whatever.
pub fn clean_log(session: &mut Session) -> Result<()> {
    let complaints = session.shell(
        "dmesg | grep -E 'WARNING|BUG:|Call Trace|Oops|soft lockup|rcu:.*stall|blocked for more than|clocksource.*unstable|I/O error|nobody cared|hogged CPU'",
        Duration::from_secs(20),
    )?;
    ensure!(complaints.stdout.is_empty(), "The parent's kernel complains:\n{}", complaints.stdout);
    Ok(())
}

/// MSI-X (NVMe, virtio) and the IO-APIC (serial port, ACPI).
fn devices_interrupt(session: &mut Session) -> Result<()> {
    succeed(
        session,
        "echo interrupt >/dev/ttyS0; dd if=/dev/nvme0n1 of=/dev/null bs=4k count=64 iflag=direct",
    )?;
    for device in ["nvme", "virtio", "ttyS0"] {
        let lines = succeed(session, &format!("grep {device} /proc/interrupts"))?;
        let count: u64 = lines.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum();
        ensure!(count > 0, "The device {device} never interrupted:\n{lines}");
    }
    Ok(())
}

fn disk_reads(session: &mut Session) -> Result<()> {
    succeed(session, "mkdir -p /mnt/esp && mount -t vfat -o ro /dev/disk/by-id/lab-boot0 /mnt/esp")?;
    let config = succeed(session, "cat /mnt/esp/parterre/parterre.conf; umount /mnt/esp")?;
    ensure!(config.contains("kernel = "), "The configuration file reads as:\n{config}");
    Ok(())
}

/// Where the hypervisor's memory is, in bytes: start and size. It says so itself at its start:
/// `hypervisor: N KiB program, N MiB of memory at ADDRESS`.
pub fn hypervisor_memory(session: &Session) -> Result<(u64, u64)> {
    let log = session.serial().text();
    let line = log
        .lines()
        .find(|line| line.contains("parterre: hypervisor:"))
        .context("No line names its memory.")?;
    let between = |before: &str, after: &str| Some(line.split_once(before)?.1.split(after).next()?.trim());
    let place = between(" at 0x", ",").context("No address is in that line.")?;
    let size = between(" program, ", " MiB").context("No size is in that line.")?;
    Ok((u64::from_str_radix(place, 16)?, size.parse::<u64>()? << 20))
}

/// Every kind of access to the hypervisor's memory ends the process that tries, and harms nobody.
pub fn cannot_read(session: &mut Session) -> Result<()> {
    let (start, size) = hypervisor_memory(session)?;
    // RAM that is the parent's can be read this way; or else the refusals below would prove nothing.
    succeed(session, "devmem 0x1000 32")?;
    for address in [start, start + 0x1000, start + size / 2, start + size - 8] {
        for access in [format!("devmem {address:#x} 32"), format!("devmem {address:#x} 32 0")] {
            let run = session.shell(&access, Duration::from_secs(20))?;
            ensure!(
                run.outcome == Outcome::Exit(139),
                "`{access}` ended with {:?}: {}",
                run.outcome,
                run.stdout
            );
        }
    }
    clean_log(session)
}

/// A second by the parent's clock lasts a second by the emulator's.
fn time_runs(session: &mut Session) -> Result<()> {
    let seconds: f64 = succeed(
        session,
        "a=$(cut -d' ' -f1 /proc/uptime); r=$(date -u +%s); while [ $(date -u +%s) -lt $((r + 3)) ]; do sleep 0.1; done; \
         b=$(cut -d' ' -f1 /proc/uptime); awk \"BEGIN { print $b - $a }\"",
    )?
    .trim()
    .parse()?;
    ensure!((1.9..4.5).contains(&seconds), "Three seconds of the wall clock were {seconds} s of uptime.");
    succeed(session, "hwclock -u -r >/dev/null").map(drop)
}

fn load(session: &mut Session) -> Result<()> {
    let each = "(dd if=/dev/urandom bs=64k count=200 | sha256sum; for i in $(seq 200); do /bin/true; done) >/dev/null 2>&1";
    super::succeed_in(
        session,
        &format!("for n in 1 2 3 4 5 6; do {each} & done; wait"),
        Duration::from_secs(180),
    )?;
    clean_log(session)
}

fn four_processors(session: &mut Session) -> Result<()> {
    let online = succeed(session, "cat /sys/devices/system/cpu/online /sys/devices/system/node/online")?;
    ensure!(online.split_whitespace().eq(["0-3", "0-1"]), "Processors and nodes online: {online}");
    let pinned =
        succeed(session, "for n in 0 1 2 3; do taskset $((1 << n)) cut -d' ' -f39 /proc/self/stat; done")?;
    ensure!(pinned.split_whitespace().eq(["0", "1", "2", "3"]), "Pinned processes ran on {pinned}");
    clean_log(session)
}

fn powers_off(session: &mut Session) -> Result<()> {
    let run = session.shell("poweroff; sleep 60", Duration::from_secs(90))?;
    ensure!(run.outcome == Outcome::PoweredOff, "After poweroff: {:?}.", run.outcome);
    Ok(())
}

fn reboots(session: &mut Session) -> Result<()> {
    let run = session.shell("reboot; sleep 60", Duration::from_secs(90))?;
    ensure!(run.outcome == Outcome::Reset, "After reboot: {:?}.", run.outcome);
    Ok(())
}
