//! Runs cases in boxes. Those with the same setting share one booted box.
//!
//! A case that fails is run once more in a fresh box. The emulator has races of its own, and a defect that shows once in
//! hundreds of runs shall not stop a change that has nothing to do with it; but it is told (`FLAKY`), with what the box
//! was doing, and it counts. `--repeat` looks for such a defect, and then the first failure is the end.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::{BOOT, Case, Check, Setting, Tally, file_name, wish, witness};
use crate::boxes::BoxSpec;
use crate::cli::TestArgs;
use crate::guest;
use crate::progress::human;
use crate::session::Session;
use crate::tool;

/// Runs the cases, in the order of the settings' first appearance, then those that have boxes of their own.
pub fn run(cases: &[Case], args: &TestArgs) -> Tally {
    let mut tally = Tally::default();
    let mut settings: Vec<Setting> = Vec::new();
    for case in cases {
        if matches!(case.check, Check::Shared(_)) && !settings.contains(&case.setting) {
            settings.push(case.setting);
        }
    }
    for setting in settings {
        let mut shared = Shared { setting, session: None, hopeless: None };
        for case in cases.iter().filter(|case| case.setting == setting) {
            if let Check::Shared(check) = case.check {
                run_one(case, args, &mut tally, |args| shared.run(case.name, check, args));
            }
        }
    }
    for case in cases {
        match case.check {
            Check::Shared(_) => {}
            Check::Own(check) => run_one(case, args, &mut tally, |args| {
                let mut session = boot(&case.setting, args, case.name)?;
                timed(|| check(&mut session).map_err(|error| with_serial(error, &session)))
            }),
            Check::Free(check) => {
                run_one(case, args, &mut tally, |args| {
                    timed(|| wish(&case.setting, args, case.name).and_then(check))
                });
            }
        }
    }
    tally
}

/// How long a check took, without the boot of a box that it shares, and what came of it.
type Checked = (Duration, Result<()>);

fn timed(check: impl FnOnce() -> Result<()>) -> Result<Checked> {
    let begun = Instant::now();
    let result = check();
    Ok((begun.elapsed(), result))
}

/// Runs a case, once more if it fails, and counts it.
fn run_one(
    case: &Case,
    args: &TestArgs,
    tally: &mut Tally,
    mut check: impl FnMut(&TestArgs) -> Result<Checked>,
) {
    if args.repeat > 1 && tally.failed > 0 {
        return;
    }
    let mut once = || check(args).unwrap_or_else(|error| (Duration::ZERO, Err(error)));
    let (took, first) = once();
    let Err(error) = &first else { return tally.count(case.name, took, &first) };
    if args.repeat > 1 {
        return tally.count(case.name, took, &first);
    }
    println!(
        "failed  {} ({}), once more in a fresh box\n  {}",
        case.name,
        human(took),
        tool::sentences(error)
    );
    let (took, second) = once();
    if second.is_ok() {
        tally.flaky += 1;
        println!("FLAKY   {}: failed first, then passed", case.name);
    }
    tally.count(case.name, took, &second);
}

/// A box that cases share. One that a case failed in is not used again.
struct Shared {
    setting: Setting,
    session: Option<Session>,
    /// The case for which it did not boot, not even when tried again: the others need not wait for it.
    hopeless: Option<&'static str>,
}

impl Shared {
    fn run(
        &mut self,
        name: &'static str,
        check: fn(&mut Session) -> Result<()>,
        args: &TestArgs,
    ) -> Result<Checked> {
        if let Some(other) = self.hopeless.filter(|other| *other != name) {
            return Err(anyhow!("Its box did not boot: see {other}."));
        }
        let booted = self.session.take().map_or_else(|| boot(&self.setting, args, name), Ok);
        let mut session = booted.inspect_err(|_| self.hopeless = Some(name))?;
        self.hopeless = None;
        let (took, result) = timed(|| check(&mut session).map_err(|error| with_serial(error, &session)))?;
        if result.is_err() {
            tell(&mut session, &self.setting, args, name);
        } else if session.alive() {
            self.session = Some(session);
        }
        Ok((took, result))
    }
}

/// Tells what a box does in which something failed.
fn tell(session: &mut Session, setting: &Setting, args: &TestArgs, name: &str) {
    if let Some(logs) = &args.logs {
        keep_processors(session, setting, &logs.join(format!("{}.processors", file_name(name))));
    }
    println!("  What the box of {name} says of itself:\n{}", witness::report(session));
}

/// What the processors of a box do in which something failed: the only witness if it hangs.
fn keep_processors(session: &mut Session, setting: &Setting, file: &Path) {
    let count = setting.spec.parse::<BoxSpec>().map_or(1, |spec| spec.cpus);
    if let Err(e) = std::fs::write(file, session.machine().processors(count)) {
        eprintln!("{} cannot be written: {e}", file.display());
    }
}

/// An error, with what the serial port said last when that may explain it.
fn with_serial(error: anyhow::Error, session: &Session) -> anyhow::Error {
    match session.serial().panic() {
        Some(_) => error.context(format!("The box panicked:\n{}", tool::tail(&session.serial().text(), 40))),
        None => error,
    }
}

fn boot(setting: &Setting, args: &TestArgs, name: &str) -> Result<Session> {
    let mut spec: BoxSpec = setting.spec.parse()?;
    let mut wish = wish(setting, args, name)?;
    if !setting.system.is_empty() {
        guest::system(setting.system)?.give(&mut spec, &mut wish);
    }
    Session::start(&spec, &wish, BOOT.max(spec.boot_limit()))
}
