//! The parent partition on Intel's processors (VMX, EPT): what `parent` shows on AMD's, as far as Bochs's devices allow. All in
//! one box: it takes a minute to boot.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{parent, succeed, tmk};
use crate::session::{Outcome, Session};
use crate::test::{Case, Check, PLAIN, Setting};

/// An Intel box with two processors.
const INTEL: Setting = Setting { spec: "intel,cpus=2,net=e1000", test_kernels: true, ..PLAIN };
/// The box's clock goes by instructions: a machine with other work to do may make seconds of it into minutes.
const LIMIT: Duration = Duration::from_secs(300);

pub const CASES: &[Case] = &[
    Case { name: "intel::linux-is-root-partition", setting: INTEL, check: Check::Shared(parent::is_root) },
    Case { name: "intel::mshv-is-there", setting: INTEL, check: Check::Shared(parent::has_mshv) },
    Case { name: "intel::kernel-log-is-clean", setting: INTEL, check: Check::Shared(parent::clean_log) },
    Case { name: "intel::devices-interrupt", setting: INTEL, check: Check::Shared(devices_interrupt) },
    Case { name: "intel::vmx-is-the-hypervisors", setting: INTEL, check: Check::Shared(vmx_is_hidden) },
    Case { name: "intel::test-kernels", setting: INTEL, check: Check::Shared(test_kernels) },
    Case { name: "intel::powers-off", setting: INTEL, check: Check::Own(powers_off) },
];

/// The IDE channel, the serial ports and the network card, all by the IO-APIC.
fn devices_interrupt(session: &mut Session) -> Result<()> {
    succeed(
        session,
        "ip link set eth0 up; dd if=/dev/disk/by-id/lab-boot0 of=/dev/null bs=4k count=256 iflag=direct",
    )?;
    for device in ["ata_piix", "ttyS1"] {
        let lines = succeed(session, &format!("grep {device} /proc/interrupts"))?;
        let count: u64 = lines.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum();
        ensure!(count > 0, "The device {device} never interrupted:\n{lines}");
    }
    Ok(())
}

/// The parent is on an Intel processor and has no VMX of its own.
fn vmx_is_hidden(session: &mut Session) -> Result<()> {
    let processor = succeed(session, "cat /proc/cpuinfo")?;
    ensure!(processor.contains("GenuineIntel"), "The box has another processor:\n{processor}");
    let flags = processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    ensure!(!flags.split_whitespace().any(|flag| flag == "vmx"), "The parent is told of VMX: {flags}");
    Ok(())
}

/// What `tmk` shows on AMD's processors, by the same programs.
fn test_kernels(session: &mut Session) -> Result<()> {
    for case in tmk::CASES {
        if let Check::Shared(check) = case.check {
            check(session).with_context(|| format!("As {}, on an Intel processor", case.name))?;
        }
    }
    Ok(())
}

/// Power-off reaches the machine.
fn powers_off(session: &mut Session) -> Result<()> {
    let outcome = session.shell("poweroff -f; sleep 3000", LIMIT)?.outcome;
    ensure!(outcome == Outcome::PoweredOff, "The box ended with {outcome:?}.");
    Ok(())
}
