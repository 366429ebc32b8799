//! `cargo lab test`: all tests of the project. On this machine (`host`), of the hypervisor's image (`image`), and in
//! boxes (`cases`). Cases with the same setting share one booted box.

mod cases;
mod host;
mod image;
mod witness;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::boxes::BoxSpec;
use crate::build;
use crate::cli::TestArgs;
use crate::guest;
use crate::media::{Below, Wish};
use crate::progress::human;
use crate::session::Session;
use crate::tool;

/// For a box's boot.
const BOOT: Duration = Duration::from_secs(180);

/// What a case's box is made of. Cases of equal settings share a box, in the order of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// The box, as `--box` takes it.
    pub spec: &'static str,
    /// Whether the parent runs without Parterre below it.
    pub bare: bool,
    /// Which guest kernel is at `/lab/guest-kernel`, with the lab's initramfs; none if empty.
    pub guest: &'static str,
    /// Which Debian system is the guest, as [`guest::system`] names it: its files are below `/lab`, its disk is the parent's
    /// `lab-scratch0`; none if empty.
    pub system: &'static str,
    /// Whether the test kernels are at `/lab/tmk`.
    pub test_kernels: bool,
}

/// The usual box: Parterre, two processors, the newest guest.
pub const USUAL: Setting = Setting {
    spec: "amd,cpus=2,memory=3G,net=e1000e,net=virtio",
    bare: false,
    guest: "newest",
    system: "",
    test_kernels: false,
};

/// A box with nothing to spare.
pub const PLAIN: Setting = Setting { spec: "amd", bare: false, guest: "", system: "", test_kernels: false };

/// How a case checks.
#[derive(Debug, Clone, Copy)]
pub enum Check {
    /// In a booted box that other cases use before and after.
    Shared(fn(&mut Session) -> Result<()>),
    /// In a booted box of its own, which may end in it.
    Own(fn(&mut Session) -> Result<()>),
    /// With boxes that it makes itself of what it is given.
    Free(fn(Wish) -> Result<()>),
}

/// One end-to-end test.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name: `layer::what-is-so`.
    pub name: &'static str,
    /// Its box.
    pub setting: Setting,
    /// What it checks.
    pub check: Check,
}

/// Counts of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Says how a test ended and counts it.
    pub fn count(&mut self, name: &str, took: Duration, result: &Result<()>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("ok      {name} ({})", human(took));
            }
            Err(e) => {
                self.failed += 1;
                println!("FAILED  {name} ({})\n  {}", human(took), tool::sentences(e));
            }
        }
    }
}

/// Runs the tests.
///
/// # Errors
/// When something that all tests need does not build.
pub fn run(args: &TestArgs) -> Result<ExitCode> {
    let wanted =
        |name: &str| args.filter.is_empty() || args.filter.iter().any(|word| name.contains(word.as_str()));
    let mut cases = cases::all();
    if args.long {
        cases.extend(cases::long());
    }
    cases.retain(|case| !args.no_boxes && wanted(case.name));
    if args.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(ExitCode::SUCCESS);
    }
    let cases: Vec<Case> =
        cases.into_iter().flat_map(|case| std::iter::repeat_n(case, args.repeat as usize)).collect();
    let mut tally = Tally::default();
    if !args.no_host && args.filter.is_empty() {
        tally.add(host::run()?);
    }
    if args.filter.is_empty() || wanted("image::") {
        tally.add(image::run()?);
    }
    tally.add(run_cases(&cases, args)?);
    let left_out = cases::long().iter().filter(|case| wanted(case.name)).count();
    if !args.long && !args.no_boxes && left_out > 0 {
        println!("Tests that take long, left out (run with --long): {left_out}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether repeated tests found what they were repeated for.
fn enough(args: &TestArgs, tally: &Tally) -> bool {
    args.repeat > 1 && tally.failed > 0
}

fn run_cases(cases: &[Case], args: &TestArgs) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut settings: Vec<Setting> = Vec::new();
    for case in cases {
        if matches!(case.check, Check::Shared(_)) && !settings.contains(&case.setting) {
            settings.push(case.setting);
        }
    }
    for setting in settings {
        if enough(args, &tally) {
            break;
        }
        let group =
            cases.iter().filter(|case| matches!(case.check, Check::Shared(_)) && case.setting == setting);
        run_shared(&setting, group, args, &mut tally);
    }
    for case in cases {
        if enough(args, &tally) {
            break;
        }
        let begun = Instant::now();
        let result = match case.check {
            Check::Shared(_) => continue,
            Check::Own(check) => {
                boot(&case.setting, args, case.name).and_then(|mut session| check(&mut session))
            }
            Check::Free(check) => wish(&case.setting, args, case.name).and_then(check),
        };
        tally.count(case.name, begun.elapsed(), &result);
    }
    Ok(tally)
}

/// Runs cases in one box; a new one is booted when a case leaves the old one unusable.
fn run_shared<'a>(
    setting: &Setting,
    cases: impl Iterator<Item = &'a Case>,
    args: &TestArgs,
    tally: &mut Tally,
) {
    let mut session: Option<Session> = None;
    let mut hopeless: Option<String> = None;
    for case in cases {
        if enough(args, tally) {
            break;
        }
        let begun = Instant::now();
        let Check::Shared(check) = case.check else { continue };
        if let Some(why) = &hopeless {
            tally.count(case.name, Duration::ZERO, &Err(anyhow!("Its box did not boot: {why}")));
            continue;
        }
        let mut usable = match session.take().map_or_else(|| boot(setting, args, case.name), Ok) {
            Ok(usable) => usable,
            Err(e) => {
                tally.count(case.name, begun.elapsed(), &Err(e));
                hopeless = Some(format!("see {}.", case.name));
                continue;
            }
        };
        let begun = Instant::now();
        let result = check(&mut usable).map_err(|e| with_serial(e, &usable));
        tally.count(case.name, begun.elapsed(), &result);
        if result.is_err() {
            if let Some(logs) = &args.logs {
                let file = logs.join(format!("{}.processors", file_name(case.name)));
                keep_processors(&mut usable, setting, &file);
            }
            println!("  What the box says of itself:\n{}", witness::report(&mut usable));
        }
        if usable.alive() {
            session = Some(usable);
        }
    }
}

fn file_name(case: &str) -> String {
    case.replace("::", "-")
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
    Session::start(&spec, &wish, BOOT)
}

fn wish(setting: &Setting, args: &TestArgs, name: &str) -> Result<Wish> {
    let with_stack = !setting.guest.is_empty() || !setting.system.is_empty() || setting.test_kernels;
    let mut wish = Wish { efi: args.efi.clone(), with_stack, ..Wish::default() };
    if setting.bare {
        wish.below = Below::Nothing;
    }
    if !setting.guest.is_empty() {
        wish.extras.files.push(("lab/guest-kernel".into(), guest::kernel(setting.guest)?));
        wish.extras.files.push(("lab/guest-initrd".into(), guest::initrd("lab", setting.guest)?));
    }
    if setting.test_kernels {
        wish.extras.files.extend(test_kernels()?);
    }
    if let Some(logs) = &args.logs {
        std::fs::create_dir_all(logs).with_context(|| format!("{} cannot be made.", logs.display()))?;
        wish.serial_log = Some(logs.join(format!("{}.log", file_name(name))));
    }
    Ok(wish)
}

/// The test kernels, by their place in the parent.
///
/// # Errors
/// When they do not build.
pub fn test_kernels() -> Result<Vec<(String, PathBuf)>> {
    let built = build::test_kernels()?;
    let place = |file: PathBuf| Some((format!("lab/tmk/{}", file.file_name()?.to_str()?), file));
    Ok(built.into_iter().filter_map(place).collect())
}
