//! Dynamic memory: a guest gives memory up to the parent and takes it back.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::integration::until;
use super::memory::{FREE, number};
use super::succeed;
use super::vm::{PROMPT, USERLAND, console, remove};
use crate::session::Session;
use crate::test::{Case, Check, Setting, USUAL};

const OLDEST: Setting = Setting { guest: "oldest", ..USUAL };

pub const CASES: &[Case] = &[
    Case { name: "vm::memory-balloon", setting: USUAL, check: Check::Shared(balloon) },
    Case { name: "vm::memory-balloon-oldest-guest", setting: OLDEST, check: Check::Shared(balloon) },
];

/// A guest that reports its pressure from the first second on, not from the 45th.
const CREATE: &str = "parterre vm create balloon --memory 512M --kernel /lab/guest-kernel --initrd /lab/guest-initrd \
                      --cmdline 'console=ttyS0 quiet hv_balloon.pressure_report_delay=1'";
const MIB: u64 = 1 << 20;
/// What the guest uses and no longer needs, in MiB; it fits what the guest may have in files.
const USED: i64 = 160;
/// Has the guest use that, so that the parent's memory is behind it.
const USE: &str = "dd if=/dev/zero of=/tmp/file bs=1M count=160 2>/dev/null && rm /tmp/file";

fn balloon(session: &mut Session) -> Result<()> {
    succeed(session, CREATE)?;
    succeed(session, "parterre vm start balloon")?;
    console(session, "balloon", &[(USERLAND, ""), (PROMPT, "")])?;
    ask(session, "balloon", USE, 1)?;
    until(session, "parterre vm show balloon | grep -q '^Memory demand: .*available'", super::LIMIT)?;
    let (total, free) = (guest_total(session, 2)?, number(session, FREE)?);

    succeed(session, "parterre vm memory balloon 256M")?;
    expect(session, "assigned", 256 * MIB)?;
    let (smaller, gained) = (guest_total(session, 3)?, number(session, FREE)?);
    let given = total - smaller;
    ensure!(given > 240 << 10, "The guest gave up {given} KiB of the 256 MiB that it was asked for.");
    // The guest gives up what it used first or what it never did; most of all that it has is either.
    let least = (USED - 100) << 10;
    ensure!(gained - free > least, "The parent has only {} KiB more than before.", gained - free);

    let greedy = succeed(session, "parterre vm memory balloon 32M")?;
    ensure!(greedy.contains("spares no more"), "The guest gave up nearly everything: {greedy}");
    succeed(session, "parterre vm memory balloon 512M")?;
    expect(session, "assigned", 512 * MIB)?;
    let again = guest_total(session, 4)?;
    ensure!(again == total, "The guest had {total} KiB and has {again} KiB when it has got all back.");
    let before = number(session, FREE)?;
    ask(session, "balloon", USE, 5)?;
    let after = number(session, FREE)?;
    ensure!(before - after > least, "The guest uses memory again, the parent only {} KiB.", before - after);
    refusals(session)?;
    remove(session, "balloon")
}

fn refusals(session: &mut Session) -> Result<()> {
    for (size, word) in [("1G", "started with 512 MiB"), ("1M", "at least 32M")] {
        let run = session.shell(&format!("parterre vm memory balloon {size}"), super::LIMIT)?;
        ensure!(run.stderr.contains(word), "{size} were not refused: {}{}", run.stdout, run.stderr);
    }
    succeed(session, "parterre vm stop balloon --force; parterre vm memory balloon 300M")?;
    let settings = succeed(session, "parterre vm show balloon")?;
    ensure!(settings.contains("300 MiB"), "The setting was not changed: {settings}");
    Ok(())
}

/// Runs a command in the guest; returns what the console says. Each needs a number of its own, because the console repeats
/// what was said before.
pub(super) fn ask(session: &mut Session, name: &str, command: &str, number: u32) -> Result<String> {
    let (line, answer) = (format!("{command}; echo asked-$(({number}))\n"), format!("asked-{number}"));
    console(session, name, &[("", "\n"), (PROMPT, &line), (&answer, "")])
}

/// Memory that the guest's kernel manages, in KiB.
fn guest_total(session: &mut Session, number: u32) -> Result<i64> {
    let said = ask(session, "balloon", "grep MemTotal /proc/meminfo", number)?;
    let told = said.rsplit("MemTotal:").next().and_then(|rest| rest.split_whitespace().next());
    told.and_then(|number| number.parse().ok()).with_context(|| format!("The guest said no number: {said}"))
}

/// What `parterre vm show --json` says of the memory.
fn expect(session: &mut Session, field: &str, bytes: u64) -> Result<()> {
    let vm: Value = serde_json::from_str(&succeed(session, "parterre vm show balloon --json")?)?;
    let memory = vm.get("memory").context("There is nothing about memory.")?;
    ensure!(memory.get(field).and_then(Value::as_u64) == Some(bytes), "{field} is not {bytes}: {memory}");
    Ok(())
}
