//! Running tests, telling their outcomes, and ending the machine.

use crate::{cpu, line};
use arrayvec::ArrayString;
use core::fmt::{Arguments, Write};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// A sentence, cut off if it is too long.
pub type Why = ArrayString<200>;

/// How a test ended otherwise than well.
pub enum Outcome {
    /// Something is not as it should be.
    Failed(Why),
    /// What the test needs is not there.
    Skipped(Why),
}

/// What a test answers.
pub type TestResult = Result<(), Outcome>;

static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
static CURRENT: AtomicUsize = AtomicUsize::new(0);
static CURRENT_LENGTH: AtomicUsize = AtomicUsize::new(0);

fn sentence(text: Arguments<'_>) -> Why {
    let mut why = Why::new();
    let _ = why.write_fmt(text);
    why
}

/// A failed test.
pub fn fail<T>(why: Arguments<'_>) -> Result<T, Outcome> {
    Err(Outcome::Failed(sentence(why)))
}

/// A test that could not be done.
pub fn skip<T>(why: Arguments<'_>) -> Result<T, Outcome> {
    Err(Outcome::Skipped(sentence(why)))
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
        Err(Outcome::Failed(why)) => {
            FAILED.fetch_add(1, Ordering::Relaxed);
            line!("FAILED {name}: {why}");
        }
        Err(Outcome::Skipped(why)) => line!("skipped {name}: {why}"),
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
