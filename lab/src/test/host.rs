//! Tests on this machine: `cargo test` of every package.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::Tally;
use crate::{build, progress, tool};

/// What cargo is asked for: the packages for this machine, and the part of the boot program that runs anywhere.
const RUNS: [&[&str]; 2] = [
    &["--workspace", "--exclude", "parterre-boot", "--exclude", "parterre-tmk"],
    &["--package", "parterre-boot", "--lib"],
];

/// Runs them and counts.
///
/// # Errors
/// When cargo cannot be run.
pub fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    for packages in RUNS {
        tally.add(run_some(packages)?);
    }
    if tally.failed == 0 {
        println!("ok      host: {} tests", tally.passed);
    }
    Ok(tally)
}

fn run_some(packages: &[&str]) -> Result<Tally> {
    let output = progress::step("Running the tests on this machine (cargo test)", |_| {
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(build::workspace()?)
            .args(["test", "--quiet", "--no-fail-fast"])
            .args(packages)
            .stdin(Stdio::null())
            .output()
            .context("'cargo' cannot be run.")
    })?;
    let said = String::from_utf8_lossy(&output.stdout);
    let mut tally = count(&said);
    if !output.status.success() {
        println!("FAILED  host: cargo test {} ({})", packages.join(" "), output.status);
        // What went well says nothing; how a test's process ended is what cargo says.
        println!(
            "{}\n{}",
            tool::tail(&troubled(&said), 60),
            tool::tail(&String::from_utf8_lossy(&output.stderr), 40)
        );
        // A package that does not even build has no result line.
        tally.failed = tally.failed.max(1);
    }
    Ok(tally)
}

/// The harness's output without what it says of tests that passed.
fn troubled(output: &str) -> String {
    let well = |line: &str| {
        line.is_empty()
            || line.starts_with("running ")
            || line.starts_with("test result: ok")
            || line.contains('.') && line.chars().all(|c| ".i0123456789/ ".contains(c))
    };
    output.lines().filter(|line| !well(line)).collect::<Vec<_>>().join("\n")
}

/// Adds up the harness's result lines.
fn count(output: &str) -> Tally {
    let mut tally = Tally::default();
    for line in output.lines().filter(|line| line.starts_with("test result:")) {
        let number = |what: &str| {
            let (before, _) = line.split_once(what)?;
            before.split_whitespace().last()?.parse::<usize>().ok()
        };
        tally.passed += number(" passed").unwrap_or(0);
        tally.failed += number(" failed").unwrap_or(0);
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_added_up() {
        let output = "test result: ok. 30 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\nnoise\n\
                      test result: FAILED. 2 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(count(output), Tally { passed: 32, failed: 3, flaky: 0 });
        assert_eq!(count("error: could not compile"), Tally::default());
    }

    #[test]
    fn what_passed_is_left_out() {
        let output = "running 3 tests\n..i 3/3\ntest result: ok. 3 passed; 0 failed\n\nrunning 2 tests\n.\n\
                      thread 'a' panicked at b.rs:1:2:\nx\ntest result: FAILED. 1 passed; 1 failed\n";
        assert_eq!(
            troubled(output),
            "thread 'a' panicked at b.rs:1:2:\nx\ntest result: FAILED. 1 passed; 1 failed"
        );
    }
}
