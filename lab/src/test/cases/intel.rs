//! The parent partition on Intel's processors (VMX, EPT): what `parent` shows on AMD's, as far as Bochs's devices allow. All in
//! one box: it takes a minute to boot.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::vm::{PROMPT, USERLAND};
use super::{parent, succeed, tmk};
use crate::session::{Outcome, Session};
use crate::test::{Case, Check, PLAIN, Setting};

/// An Intel box with two processors.
const INTEL: Setting =
    Setting { spec: "intel,cpus=2,net=e1000", guest: "newest+oldest", test_kernels: true, ..PLAIN };
/// The box's clock goes by instructions: a machine with other work to do may make seconds of it into minutes.
const LIMIT: Duration = Duration::from_secs(300);
/// For a guest's boot to its shell: a minute on a machine with nothing else to do.
const GUEST: Duration = Duration::from_secs(900);

pub const CASES: &[Case] = &[
    Case { name: "intel::linux-is-root-partition", setting: INTEL, check: Check::Shared(parent::is_root) },
    Case { name: "intel::mshv-is-there", setting: INTEL, check: Check::Shared(parent::has_mshv) },
    Case { name: "intel::kernel-log-is-clean", setting: INTEL, check: Check::Shared(parent::clean_log) },
    Case { name: "intel::devices-interrupt", setting: INTEL, check: Check::Shared(devices_interrupt) },
    Case { name: "intel::vmx-is-the-hypervisors", setting: INTEL, check: Check::Shared(vmx_is_hidden) },
    Case { name: "intel::test-kernels", setting: INTEL, check: Check::Shared(test_kernels) },
    Case { name: "intel::newest-guest", setting: INTEL, check: Check::Shared(|s| guest_boots(s, "", 2)) },
    Case {
        name: "intel::oldest-guest",
        setting: INTEL,
        check: Check::Shared(|s| guest_boots(s, "-oldest", 3)),
    },
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

/// A stock kernel comes to a shell on its serial console, uses all of its processors there and powers off.
fn guest_boots(session: &mut Session, which: &str, processors: u32) -> Result<()> {
    let command = format!(
        "vmwp --kernel /lab/guest-kernel{which} --initrd /lab/guest-initrd{which} --memory 256M \
         --processors {processors} --cmdline 'console=ttyS0'"
    );
    let question = format!(
        "for n in $(seq 0 {}); do taskset $((1 << n)) echo on $n; done; echo answer $((6 * 7)) $(nproc)\n",
        processors - 1
    );
    let answer = format!("answer 42 {processors}");
    let steps = [(USERLAND, ""), (PROMPT, &*question), (&*answer, ""), (PROMPT, "poweroff\n"), ("down", "")];
    let run = session.converse(&command, &steps, GUEST)?;
    ensure!(
        run.steps == steps.len(),
        "The guest did not say {:?} ({:?}). It said:\n{}{}",
        steps.get(run.steps).map(|step| step.0),
        run.outcome,
        run.stdout,
        run.stderr
    );
    let missing = (0..processors).find(|n| !run.stdout.contains(&format!("\non {n}")));
    ensure!(missing.is_none(), "Nothing ran on processor {missing:?} of the guest:\n{}", run.stdout);
    Ok(())
}

/// Power-off reaches the machine.
fn powers_off(session: &mut Session) -> Result<()> {
    let outcome = session.shell("poweroff -f; sleep 3000", LIMIT)?.outcome;
    ensure!(outcome == Outcome::PoweredOff, "The box ended with {outcome:?}.");
    Ok(())
}
