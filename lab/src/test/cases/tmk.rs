//! The test kernels (`lab/tmk`): guests that assert what the TLFS and the architecture say, each on as many virtual
//! processors as it needs.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::succeed_in;
use crate::session::Session;
use crate::test::{Case, Check, PLAIN, Setting};

/// A box with the test kernels.
pub const TMK: Setting = Setting { test_kernels: true, ..PLAIN };
/// A processor with bits of CR4 that no child is told of, so that their writes of CR4 exit.
const RICH: Setting = Setting { spec: "amd,cpu=+la57", test_kernels: true, ..PLAIN };
/// For one program; on an Intel box they take long.
const LIMIT: Duration = Duration::from_secs(300);

pub const CASES: &[Case] = &[
    Case { name: "tmk::cpuid", setting: TMK, check: Check::Shared(|s| run(s, "cpuid", 1)) },
    Case { name: "tmk::msr", setting: TMK, check: Check::Shared(|s| run(s, "msr", 1)) },
    Case { name: "tmk::hypercall", setting: TMK, check: Check::Shared(|s| run(s, "hypercall", 1)) },
    Case { name: "tmk::time", setting: TMK, check: Check::Shared(|s| run(s, "time", 2)) },
    Case { name: "tmk::apic", setting: TMK, check: Check::Shared(|s| run(s, "apic", 2)) },
    Case { name: "tmk::timer", setting: TMK, check: Check::Shared(|s| run(s, "timer", 1)) },
    Case { name: "tmk::hlt", setting: TMK, check: Check::Shared(|s| run(s, "hlt", 2)) },
    Case { name: "tmk::ipi", setting: TMK, check: Check::Shared(|s| run(s, "ipi", 4)) },
    Case { name: "tmk::synic", setting: TMK, check: Check::Shared(|s| run(s, "synic", 1)) },
    Case { name: "tmk::flush", setting: TMK, check: Check::Shared(|s| run(s, "flush", 2)) },
    Case { name: "tmk::assist", setting: TMK, check: Check::Shared(|s| run(s, "assist", 2)) },
    Case { name: "tmk::start", setting: TMK, check: Check::Shared(|s| run(s, "start", 3)) },
    Case { name: "tmk::many", setting: TMK, check: Check::Shared(|s| run(s, "many", 70)) },
    Case { name: "tmk::xmm", setting: TMK, check: Check::Shared(|s| run(s, "xmm", 2)) },
    Case { name: "tmk::state", setting: TMK, check: Check::Shared(|s| run(s, "state", 4)) },
    Case { name: "tmk::isolation", setting: TMK, check: Check::Shared(|s| run(s, "isolation", 2)) },
    Case { name: "tmk::processor-is-told-truly", setting: TMK, check: Check::Shared(processor_facts) },
    Case { name: "tmk::written-pages-are-noted", setting: TMK, check: Check::Shared(written_pages) },
    Case {
        name: "tmk::isolation-with-untold-features",
        setting: RICH,
        check: Check::Shared(|s| run(s, "isolation", 2)),
    },
];

/// Runs a program in a virtual machine to its end, and fails with what it says failed.
pub fn run(session: &mut Session, program: &str, processors: u32) -> Result<()> {
    let command =
        format!("vmwp --kernel /lab/tmk/{program} --memory 128M --processors {processors} </dev/null");
    let said = session.shell(&command, LIMIT)?;
    let ended = said.outcome;
    verdict(&said.stdout).with_context(|| format!("{program} ended with {ended:?}. {}", said.stderr))
}

/// Which pages a guest has written to is noted exactly, as migration needs it (`HvCallGetGpaPagesAccessState`).
pub fn written_pages(session: &mut Session) -> Result<()> {
    succeed_in(session, "lab-agent --dirty-pages", LIMIT).map(drop)
}

/// The vendor, the features and the frequency that the hypervisor tells of are the processor's.
pub fn processor_facts(session: &mut Session) -> Result<()> {
    succeed_in(session, "lab-agent --processor-facts", LIMIT).map(drop)
}

/// What a program said: fails with what it says failed, or if it did not come to its end.
pub fn verdict(text: &str) -> Result<()> {
    let failed: Vec<&str> = text.lines().filter(|line| line.starts_with("FAILED")).collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("\n  "));
    }
    ensure!(passed(text) > Some(0), "The program did not come to its end. It said:\n{text}");
    Ok(())
}

/// The number in a program's closing line, `tmk: N passed, N failed`.
fn passed(text: &str) -> Option<u32> {
    let closing = text.lines().rfind(|line| line.starts_with("tmk: ") && line.ends_with(" failed"))?;
    closing.strip_prefix("tmk: ")?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_is_read() {
        assert_eq!(passed("tmk: cpuid\nok a\ntmk: 12 passed, 0 failed\n"), Some(12));
        assert_eq!(passed("tmk: cpuid\nok a\n"), None);
        assert_eq!(passed(""), None);
    }
}
