//! Hostile children side by side, and a parent that looks where it has nothing to see.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::parent::hypervisor_memory;
use super::tmk::{TMK, verdict};
use super::vm::{PROMPT, console, create, remove};
use super::{succeed, succeed_in};
use crate::session::{Outcome, Session};
use crate::test::{Case, Check, PLAIN, Setting};

pub const CASES: &[Case] = &[
    Case {
        name: "isolation::hostile-children-side-by-side",
        setting: TMK,
        check: Check::Shared(two_children),
    },
    Case {
        name: "isolation::deposited-pages-are-out-of-reach",
        setting: SMALL,
        check: Check::Own(deposited),
    },
];

/// Little memory, because all of it is read.
const SMALL: Setting = Setting { spec: "amd,memory=1G", guest: "newest", ..PLAIN };
/// For two isolation programs on the same processors.
const LIMIT: Duration = Duration::from_secs(400);

/// Two children try everything that is forbidden, at the same time and on the same processors. Each holds secrets in all
/// its memory and looks for the other's; then a third looks for what both have left behind.
pub fn two_children(session: &mut Session) -> Result<()> {
    let (start, size) = hypervisor_memory(session)?;
    let vmwp = |secret: u32, foreign: u32| {
        format!(
            "vmwp --kernel /lab/tmk/isolation --memory 128M --processors 2 --cmdline \
             'secret={secret} foreign={foreign} hypervisor={start} hypervisor-end={} msr-step=3' </dev/null",
            start + size - 4096
        )
    };
    let (first, second) = (0x0A11_CE01, 0x0B0B_0B01);
    let both = format!(
        "{} >/tmp/first 2>&1 & {} >/tmp/second 2>&1 & wait",
        vmwp(first, second),
        vmwp(second, first)
    );
    succeed_in(session, &both, LIMIT)?;
    for who in ["first", "second"] {
        let said = succeed(session, &format!("cat /tmp/{who}; rm /tmp/{who}"))?;
        verdict(&said).with_context(|| format!("The {who} of two children:"))?;
    }
    let third = session.shell(&vmwp(0x0CA1_F001, first), LIMIT)?;
    verdict(&third.stdout).context("A third child, after both:")
}

/// What the parent deposits for a child cannot be read any more, and neither read nor written by its programs; when the
/// child is gone, all of it can be.
fn deposited(session: &mut Session) -> Result<()> {
    const PAGE: u64 = 4096;
    create(session, "held", 2)?;
    // The first child makes the parent deposit for itself, too, and that stays.
    succeed(session, "parterre vm start held && parterre vm stop held --force")?;
    let before = unreadable(session)?;
    succeed(session, "parterre vm start held")?;
    console(session, "held", &[(PROMPT, "")])?;
    let pages: u64 = succeed(
        session,
        "cat /sys/kernel/debug/mshv/partition/*/stats | awk -F: '/DepositedPages/ { n += $2 } END { print n }'",
    )?
    .trim()
    .parse()?;
    let during = unreadable(session)?;
    let hidden = total(&during) / PAGE;
    ensure!(hidden > 0, "A child runs, but the parent can read all of its RAM.");
    // The hypervisor shows some of the deposited pages to the parent: messages, registers, statistics.
    ensure!(
        hidden <= pages && hidden * 2 >= pages,
        "{pages} pages are deposited, but {hidden} cannot be read."
    );
    for range in during.iter().take(4) {
        for access in [format!("devmem {:#x} 32", range.0), format!("devmem {:#x} 32 0", range.1 - 4)] {
            let run = session.shell(&access, Duration::from_secs(20))?;
            ensure!(
                run.outcome == Outcome::Exit(139),
                "`{access}` of a deposited page ended with {:?}: {}",
                run.outcome,
                run.stdout
            );
        }
    }
    remove(session, "held")?;
    let after = unreadable(session)?;
    ensure!(
        total(&after) == total(&before),
        "{} bytes of RAM could not be read before the child was there, {} cannot be now.",
        total(&before),
        total(&after)
    );
    Ok(())
}

fn unreadable(session: &mut Session) -> Result<Vec<(u64, u64)>> {
    let said = succeed_in(session, "lab-agent --unreadable", Duration::from_secs(180))?;
    let number = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16);
    said.lines()
        .map(|line| {
            let (start, end) = line.split_once('-').context("The list of unreadable RAM makes no sense.")?;
            Ok((number(start)?, number(end)?))
        })
        .collect()
}

fn total(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(start, end)| end - start).sum()
}
