//! Virtual machines through the stack: created, started, used on their console, stopped, deleted.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{journaled_disk, succeed, succeed_in};
use crate::boxes::BoxSpec;
use crate::cache::RunDir;
use crate::media::Wish;
use crate::session::Session;
use crate::test::{Case, Check, PLAIN, Setting, USUAL};

const OLDEST: Setting = Setting { guest: "oldest", ..USUAL };
/// For a guest's boot to its shell.
const BOOT: Duration = Duration::from_secs(150);
/// What the lab's guest prints first.
pub const USERLAND: &str = "lab guest: userland";
/// Its prompt.
pub const PROMPT: &str = "guest:~# ";

pub const CASES: &[Case] = &[
    Case { name: "vm::definition-comes-and-goes", setting: USUAL, check: Check::Shared(definition) },
    Case { name: "vm::wrong-requests-are-explained", setting: USUAL, check: Check::Shared(wrong_requests) },
    Case { name: "vm::one-processor", setting: USUAL, check: Check::Shared(|s| boots(s, 1)) },
    Case { name: "vm::two-processors", setting: USUAL, check: Check::Shared(|s| boots(s, 2)) },
    Case { name: "vm::eight-processors", setting: USUAL, check: Check::Shared(|s| boots(s, 8)) },
    Case { name: "vm::oldest-guest", setting: OLDEST, check: Check::Shared(|s| boots(s, 2)) },
    Case { name: "vm::guest-powers-off", setting: USUAL, check: Check::Shared(guest_powers_off) },
    Case { name: "vm::guest-reboots", setting: USUAL, check: Check::Shared(guest_reboots) },
    Case { name: "vm::idle-guest-costs-nothing", setting: USUAL, check: Check::Shared(idle) },
    Case { name: "vm::killed-worker-harms-nobody", setting: USUAL, check: Check::Shared(killed_worker) },
    Case { name: "vm::definitions-survive-a-power-cut", setting: PLAIN, check: Check::Free(power_cut) },
];

/// Defines a VM, alone: what an earlier, failed case left behind goes.
pub fn create(session: &mut Session, name: &str, processors: u32) -> Result<()> {
    let list: Value = serde_json::from_str(&succeed(session, "parterre vm list --json")?)?;
    for left in list.as_array().into_iter().flatten().filter_map(|vm| vm.pointer("/settings/name")?.as_str())
    {
        session.shell(&format!("parterre vm stop '{left}' --force; parterre vm delete '{left}'"), BOOT)?;
    }
    create_another(session, name, processors)
}

pub fn create_another(session: &mut Session, name: &str, processors: u32) -> Result<()> {
    let command = format!(
        "parterre vm create {name} --memory 256M --processors {processors} --kernel /lab/guest-kernel \
         --initrd /lab/guest-initrd --cmdline 'console=ttyS0 quiet'"
    );
    succeed(session, &command).map(drop)
}

pub fn remove(session: &mut Session, name: &str) -> Result<()> {
    succeed(session, &format!("parterre vm stop {name} --force; parterre vm delete {name}")).map(drop)
}

/// Talks with the guest on its console; every step must be reached.
pub fn console(session: &mut Session, name: &str, steps: &[(&str, &str)]) -> Result<String> {
    let run = session.converse(&format!("parterre vm console {name}"), steps, BOOT)?;
    ensure!(
        run.steps == steps.len(),
        "The console of '{name}' did not say {:?} ({:?}). It said:\n{}{}",
        steps.get(run.steps).map(|step| step.0),
        run.outcome,
        run.stdout,
        run.stderr
    );
    Ok(run.stdout)
}

fn definition(session: &mut Session) -> Result<()> {
    create(session, "defined", 2)?;
    let list = succeed(session, "parterre vm list --json")?;
    let list: Value = serde_json::from_str(&list)?;
    ensure!(list.to_string().contains("\"defined\""), "The list lacks the new VM: {list}");
    succeed(session, "parterre vm show defined")?;
    succeed(session, "parterre vm delete defined")?;
    let shown = session.shell("parterre vm show defined", Duration::from_secs(20))?;
    ensure!(shown.outcome != crate::session::Outcome::Exit(0), "A deleted VM is still shown.");
    Ok(())
}

fn wrong_requests(session: &mut Session) -> Result<()> {
    for wrong in [
        "parterre vm start nobody",
        "parterre vm create bad --memory 0M --kernel /lab/guest-kernel",
        "parterre vm create bad --processors 0 --kernel /lab/guest-kernel",
        "parterre vm create bad --kernel /no/such/kernel",
    ] {
        let run = session.shell(wrong, Duration::from_secs(20))?;
        let refused = matches!(run.outcome, crate::session::Outcome::Exit(status) if status != 0);
        ensure!(refused && run.stderr.len() > 10, "`{wrong}` ended with {:?}: {}", run.outcome, run.stderr);
        session.shell("parterre vm delete bad", Duration::from_secs(20))?;
    }
    Ok(())
}

fn boots(session: &mut Session, processors: u32) -> Result<()> {
    create(session, "booted", processors)?;
    succeed(session, "parterre vm start booted")?;
    let said = console(
        session,
        "booted",
        &[(USERLAND, ""), (PROMPT, "echo $((6 * 7)) $(nproc) $(date -u +%Y)\n"), ("42 ", ""), (PROMPT, "")],
    )?;
    let answer = said.rsplit("42 ").next().unwrap_or_default();
    ensure!(answer.starts_with(&format!("{processors} 20")), "The guest answered '{answer}'.");
    remove(session, "booted")
}

fn guest_powers_off(session: &mut Session) -> Result<()> {
    create(session, "off", 2)?;
    succeed(session, "parterre vm start off")?;
    console(session, "off", &[(PROMPT, "poweroff\n"), ("down", "")])?;
    succeed_in(
        session,
        "for i in $(seq 100); do parterre vm list | grep -w off | grep -qi -E 'off|stopped' && exit 0; sleep 0.3; done; exit 1",
        LIMIT_STATE,
    )?;
    remove(session, "off")
}

/// For a change of a VM's state to be seen.
const LIMIT_STATE: Duration = Duration::from_secs(60);

fn guest_reboots(session: &mut Session) -> Result<()> {
    create(session, "again", 2)?;
    succeed(session, "parterre vm start again")?;
    console(session, "again", &[(PROMPT, "reboot\n"), (USERLAND, ""), (PROMPT, "")])?;
    remove(session, "again")
}

/// A halted guest leaves the processors to others: its worker uses next to no processor time.
fn idle(session: &mut Session) -> Result<()> {
    create(session, "idle", 2)?;
    succeed(session, "parterre vm start idle")?;
    console(session, "idle", &[(USERLAND, ""), (PROMPT, "")])?;
    let ticks = "cat /proc/$(pidof vmwp)/stat | awk '{ print $14 + $15 }'";
    let before: u64 = succeed(session, &format!("sleep 3; {ticks}"))?.trim().parse()?;
    let after: u64 = succeed(session, &format!("sleep 5; {ticks}"))?.trim().parse()?;
    // 5 s are 500 ticks of each processor.
    ensure!(after - before < 100, "The idle guest used {} of 1000 ticks.", after - before);
    remove(session, "idle")
}

fn killed_worker(session: &mut Session) -> Result<()> {
    create(session, "victim", 1)?;
    create_another(session, "bystander", 1)?;
    succeed(session, "parterre vm start victim; pidof vmwp >/tmp/victim")?;
    succeed(session, "parterre vm start bystander")?;
    console(session, "bystander", &[(USERLAND, ""), (PROMPT, "")])?;
    succeed(session, "kill -9 $(cat /tmp/victim); sleep 1")?;
    console(session, "bystander", &[("", "\n"), (PROMPT, "echo still $((40 + 2))\n"), ("still 42", "")])?;
    succeed(session, "parterre vm start victim")?;
    console(session, "victim", &[(USERLAND, "")])?;
    remove(session, "victim")?;
    remove(session, "bystander")
}

/// Mounts the box's disk where the stack keeps its state.
const STATE_ON_DISK: &str = "#!/bin/sh
mkdir -p /var/lib/parterre && mount -t ext4 /dev/disk/by-id/lab-disk0 /var/lib/parterre
";

/// The box is switched off in the moment in which the command to create a VM returns.
fn power_cut(mut wish: Wish) -> Result<()> {
    let dir = RunDir::create()?;
    let disk = dir.path().join("state.img");
    journaled_disk(&disk, 64)?;
    let spec = BoxSpec { disks: vec![disk], ..BoxSpec::default() };
    wish.with_stack = true;
    wish.extras.texts.push(("lab/start".into(), STATE_ON_DISK.into()));
    for round in 0..2 {
        let mut session = Session::start(&spec, &wish, BOOT)?;
        for earlier in 0..round {
            succeed(&mut session, &format!("parterre vm show kept{earlier}"))?;
        }
        succeed(
            &mut session,
            &format!("mount | grep -q /var/lib/parterre && parterre vm create kept{round} --kernel /init"),
        )?;
        session.machine().kill();
    }
    let mut session = Session::start(&spec, &wish, BOOT)?;
    succeed(&mut session, "parterre vm show kept0 && parterre vm show kept1").map(drop)
}
