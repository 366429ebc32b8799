//! The parent partition on Intel's processors (VMX, EPT): what `parent` shows on AMD's, as far as Bochs's devices allow. All in
//! one box: it takes a minute to boot.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::vm::{PROMPT, USERLAND};
use super::{isolation, parent, succeed, succeed_in, tmk};
use crate::session::{Outcome, Session};
use crate::test::{Case, Check, PLAIN, Setting};

/// An Intel box with two processors.
const INTEL: Setting =
    Setting { spec: "intel,cpus=2,net=e1000", guest: "newest+oldest", test_kernels: true, ..PLAIN };
/// A processor whose EPT has neither accessed nor dirty bits.
const OLDER: Setting =
    Setting { spec: "intel,model=corei7_sandy_bridge_2600k,cpu=+x2apic", test_kernels: true, ..PLAIN };
/// A processor with the commands and registers against speculation, AVX-512 and shadow stacks.
const NEWER: Setting = Setting { spec: "intel,cpus=2,model=tigerlake", test_kernels: true, ..PLAIN };
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
    Case {
        name: "intel::cannot-read-the-hypervisor",
        setting: INTEL,
        check: Check::Shared(parent::cannot_read),
    },
    Case { name: "intel::test-kernels", setting: INTEL, check: Check::Shared(test_kernels) },
    Case {
        name: "intel::hostile-children-side-by-side",
        setting: INTEL,
        check: Check::Shared(isolation::two_children),
    },
    Case {
        name: "intel::processor-is-told-truly",
        setting: INTEL,
        check: Check::Shared(tmk::processor_facts),
    },
    Case { name: "intel::written-pages-are-noted", setting: INTEL, check: Check::Shared(tmk::written_pages) },
    Case { name: "intel::refused-entry-is-explained", setting: INTEL, check: Check::Shared(explained) },
    Case {
        name: "intel::written-pages-are-noted-by-protection",
        setting: OLDER,
        check: Check::Shared(without_dirty_bits),
    },
    Case { name: "intel::newer-processor", setting: NEWER, check: Check::Shared(newer_processor) },
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

/// A guest in a state that no processor enters is ended, and the log has the field that it was for.
fn explained(session: &mut Session) -> Result<()> {
    succeed_in(session, "lab-agent --impossible-state", LIMIT)?;
    let log = session.serial().text();
    for words in ["VMX: an entry failed with code", "VMX: GuestCsRights is", "not accessed code"] {
        ensure!(log.contains(words), "The hypervisor's log does not say {words:?}:\n{log}");
    }
    Ok(())
}

/// Guests' speculation control, vector registers and CR4 on a processor that has more of them.
fn newer_processor(session: &mut Session) -> Result<()> {
    parent::is_root(session)?;
    let flags = succeed(session, "grep -m1 ^flags /proc/cpuinfo")?;
    for flag in ["ibrs", "ibpb", "avx512f"] {
        ensure!(flags.split_whitespace().any(|word| word == flag), "The processor has no {flag}: {flags}");
    }
    tmk::run(session, "state", 4)?;
    tmk::run(session, "isolation", 2)?;
    tmk::written_pages(session)
}

/// Clean pages are protected from writing there, and writes are noted all the same; and hostile guests get no further.
fn without_dirty_bits(session: &mut Session) -> Result<()> {
    tmk::written_pages(session)?;
    tmk::run(session, "isolation", 2)
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
