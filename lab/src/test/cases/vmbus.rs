//! VMBus between stock kernels and the worker: versions, devices, and guests that go without saying goodbye.

use anyhow::Result;

use super::succeed;
use super::vm::{PROMPT, USERLAND, console, create, remove};
use crate::session::Session;
use crate::test::{Case, Check, Setting, USUAL};

const OLDEST: Setting = Setting { guest: "oldest", ..USUAL };

pub const CASES: &[Case] = &[
    Case { name: "vm::vmbus-newest-guest", setting: USUAL, check: Check::Shared(|s| connects(s, "6.0")) },
    Case { name: "vm::vmbus-oldest-guest", setting: OLDEST, check: Check::Shared(|s| connects(s, "5.3")) },
    Case { name: "vm::vmbus-after-a-panic", setting: USUAL, check: Check::Shared(panics) },
];

/// A command for the guest that says which version it speaks and how many devices it has found.
const ASK: &str = "dmesg | grep -o 'Vmbus version.*'; ls /sys/bus/vmbus/devices | grep -c -; dmesg | grep -c 'vmbus.*rror'\n";

fn connects(session: &mut Session, version: &str) -> Result<()> {
    create(session, "vmbus", 2)?;
    succeed(session, "parterre vm start vmbus")?;
    let version = format!("Vmbus version:{version}");
    let said = console(session, "vmbus", &[(USERLAND, ""), (PROMPT, ASK), (&version, ""), (PROMPT, "")])?;
    check_answer(&said)?;
    remove(session, "vmbus")
}

/// What the guest said last: devices, and no error.
fn check_answer(said: &str) -> Result<()> {
    let answer = said.rsplit("Vmbus version:").next().unwrap_or_default();
    let mut numbers = answer.lines().skip(1).map(|line| line.trim().parse::<u32>().unwrap_or(u32::MAX));
    let (devices, errors) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(u32::MAX));
    anyhow::ensure!((1..100).contains(&devices), "The guest has found {devices} devices: {answer}");
    anyhow::ensure!(errors == 0, "The guest's log has {errors} errors of VMBus: {answer}");
    Ok(())
}

/// A guest that panics unloads VMBus in the middle of it and waits for the answer; the next kernel finds a fresh bus.
fn panics(session: &mut Session) -> Result<()> {
    create(session, "vmbus", 2)?;
    succeed(session, "parterre vm start vmbus")?;
    let panic = "echo 1 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger\n";
    let steps = [(PROMPT, panic), (USERLAND, ""), (PROMPT, ASK), ("Vmbus version:", ""), (PROMPT, "")];
    let said = console(session, "vmbus", &steps)?;
    anyhow::ensure!(
        !said.contains("UNLOAD did not complete"),
        "The guest got no answer to its unload: {said}"
    );
    check_answer(&said)?;
    // The crash was told, with the end of its kernel's log, which is in the worker's log too.
    succeed(
        session,
        "parterre vm show vmbus | grep '^Guest crashed: .*ago: .*Kernel panic - not syncing: sysrq'",
    )?;
    succeed(session, "grep 'guest: .*Kernel panic' /run/parterre/vms/*/worker.log")?;
    remove(session, "vmbus")
}
