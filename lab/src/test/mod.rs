//! `cargo lab test`: all tests of the project. On this machine (`host`), of the hypervisor's image (`image`), and in
//! boxes (`cases`, run by `boxed`).

mod boxed;
mod cases;
mod host;
mod image;
mod witness;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

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
    /// Which guest kernel is at `/lab/guest-kernel`, with the lab's initramfs; none if empty. Of several, with `+` between
    /// them, the others are at `/lab/guest-kernel-NAME`.
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
    /// How many of those that passed did so only when they were run once more.
    pub flaky: usize,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.flaky += other.flaky;
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
    tally.add(boxed::run(&cases, args));
    let left_out = cases::long().iter().filter(|case| wanted(case.name)).count();
    if !args.long && !args.no_boxes && left_out > 0 {
        println!("Tests that take long, left out (run with --long): {left_out}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.flaky > 0 {
        println!(
            "Of those that passed, {} failed first (FLAKY above): each is a defect, here or in the emulator.",
            tally.flaky
        );
    }
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn file_name(case: &str) -> String {
    case.replace("::", "-")
}

fn wish(setting: &Setting, args: &TestArgs, name: &str) -> Result<Wish> {
    let with_stack = !setting.guest.is_empty() || !setting.system.is_empty() || setting.test_kernels;
    let mut wish = Wish { efi: args.efi.clone(), with_stack, ..Wish::default() };
    if setting.bare {
        wish.below = Below::Nothing;
    }
    if !setting.guest.is_empty() {
        for (place, name) in setting.guest.split('+').enumerate() {
            let suffix = if place == 0 { String::new() } else { format!("-{name}") };
            wish.extras.files.push((format!("lab/guest-kernel{suffix}"), guest::kernel(name)?));
            wish.extras.files.push((format!("lab/guest-initrd{suffix}"), guest::initrd("lab", name)?));
        }
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
