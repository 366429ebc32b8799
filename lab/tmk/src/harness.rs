//! Running tests, telling their outcomes, and ending the machine.

use crate::{cpu, line};
use arrayvec::ArrayString;
use core::cell::UnsafeCell;
use core::fmt::{Arguments, Write};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// How a test ended otherwise than well. The reason is kept apart: one test runs at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Something is not as it should be.
    Failed,
    /// What the test needs is not there.
    Skipped,
}

/// What a test answers.
pub type TestResult = Result<(), Outcome>;

/// The last reason, cut off if it is too long.
struct Reason(UnsafeCell<ArrayString<200>>);
// SAFETY: only the boot processor runs tests, and only tests give reasons.
unsafe impl Sync for Reason {}
static REASON: Reason = Reason(UnsafeCell::new(ArrayString::new_const()));

static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
static CURRENT: AtomicUsize = AtomicUsize::new(0);
static CURRENT_LENGTH: AtomicUsize = AtomicUsize::new(0);

fn keep_reason(text: Arguments<'_>) {
    // SAFETY: see `Reason`; the reference ends with this function.
    let reason = unsafe { &mut *REASON.0.get() };
    reason.clear();
    let _ = reason.write_fmt(text);
}

fn reason() -> ArrayString<200> {
    // SAFETY: see `Reason`.
    unsafe { *REASON.0.get() }
}

/// A failed test.
pub fn fail<T>(why: Arguments<'_>) -> Result<T, Outcome> {
    keep_reason(why);
    Err(Outcome::Failed)
}

/// A test that could not be done.
pub fn skip<T>(why: Arguments<'_>) -> Result<T, Outcome> {
    keep_reason(why);
    Err(Outcome::Skipped)
}

/// Says which program this is.
pub fn begin(program: &'static str) {
    line!("tmk: {program}");
}

/// Runs a test and prints its line.
pub fn run(name: &'static str, test: fn() -> TestResult) {
    CURRENT.store(name.as_ptr() as usize, Ordering::Relaxed);
    CURRENT_LENGTH.store(name.len(), Ordering::Relaxed);
    match test() {
        Ok(()) => {
            PASSED.fetch_add(1, Ordering::Relaxed);
            line!("ok {name}");
        }
        Err(Outcome::Failed) => {
            FAILED.fetch_add(1, Ordering::Relaxed);
            line!("FAILED {name}: {}", reason());
        }
        Err(Outcome::Skipped) => line!("skipped {name}: {}", reason()),
    }
    cpu::disable_interrupts();
}

/// Ends the program because of something that should not have happened; it counts as the current test's failure.
pub fn abort(why: Arguments<'_>) -> ! {
    let (address, length) = (CURRENT.load(Ordering::Relaxed), CURRENT_LENGTH.load(Ordering::Relaxed));
    let name = if address == 0 {
        "start"
    } else {
        // SAFETY: `run` stored the address and length of a `&'static str`.
        unsafe { core::str::from_utf8_unchecked(core::slice::from_raw_parts(address as *const u8, length)) }
    };
    FAILED.fetch_add(1, Ordering::Relaxed);
    line!("FAILED {name}: {why}");
    finish()
}

/// Prints the closing line and powers off: by ACPI (PM1a control at 0x604), else by a reset.
pub fn finish() -> ! {
    line!("tmk: {} passed, {} failed", PASSED.load(Ordering::Relaxed), FAILED.load(Ordering::Relaxed));
    cpu::outw(0x604, 0x2000);
    for _ in 0..1_000_000 {
        core::hint::spin_loop();
    }
    cpu::outb(0x64, 0xFE);
    loop {
        cpu::disable_interrupts();
        // SAFETY: nothing is left to do.
        unsafe { core::arch::asm!("hlt", options(nomem, nostack)) };
    }
}
