//! Memory comes back: what virtual machines took, the hypervisor and the parent have again when they are gone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::parent::clean_log;
use super::tmk::TMK;
use super::vm::{create, remove};
use super::{succeed, succeed_in};
use crate::progress;
use crate::session::Session;
use crate::test::{Case, Check, Setting, USUAL};

pub const CASES: &[Case] =
    &[Case { name: "vm::cycles-lose-no-memory", setting: USUAL, check: Check::Shared(cycles) }];

const ROOMY: Setting = Setting { spec: "amd,cpus=2,memory=3G", ..TMK };
pub const LONG: &[Case] =
    &[Case { name: "vm::thousand-cycles-lose-no-memory", setting: ROOMY, check: Check::Own(thousand) }];

/// Pages of the parent that partitions hold, as the hypervisor counts them.
const DEPOSITED: &str =
    "awk -F: '/DepositedPages/ { n += $2 } END { print n + 0 }' /sys/kernel/debug/mshv/partition/1/stats";
/// Partitions that there are, the parent's included.
const PARTITIONS: &str = "ls /sys/kernel/debug/mshv/partition | wc -l";
/// Free memory in KiB, with what the kernel keeps for later given back first or (each processor's list of free pages)
/// counted.
pub(super) const FREE: &str = "sync; echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory; sleep 1; \
                    awk '/^MemFree:/ { n += $2 } /^ +count:/ { n += 4 * $2 } END { print n }' \
                    /proc/meminfo /proc/zoneinfo";
/// The kernel's own memory in KiB.
const KERNEL: &str = "awk '/^(SUnreclaim|KernelStack|PageTables|Percpu|VmallocUsed):/ { n += $2 } END { print n }' /proc/meminfo";

/// How much `MemFree` swings by itself, in KiB. 30 cycles that each lose a guest's tables and no more take more than that.
const SWING: i64 = 32 << 10;

pub(super) fn number(session: &mut Session, command: &str) -> Result<i64> {
    succeed(session, command)?.trim().parse().with_context(|| format!("`{command}` printed no number."))
}

/// A few cycles with a Linux guest. The hypervisor's count must be exact; the parent's own is noisy, and must not go
/// down and down.
fn cycles(session: &mut Session) -> Result<()> {
    create(session, "cycle", 1)?;
    let once = "parterre vm start cycle && parterre vm stop cycle --force";
    let rounds = |session: &mut Session, count: u32| {
        let command = format!("for i in $(seq {count}); do {once} || exit 1; done");
        succeed_in(session, &command, Duration::from_secs(240))
    };
    rounds(session, 5)?;
    let (deposited, free) = (number(session, DEPOSITED)?, number(session, FREE)?);
    rounds(session, 30)?;
    let (still, left) = (number(session, DEPOSITED)?, number(session, FREE)?);
    ensure!(still == deposited, "After 30 cycles {still} pages are deposited instead of {deposited}.");
    ensure!(free - left < SWING, "30 cycles took {} KiB from the parent.", free - left);
    remove(session, "cycle")
}

/// Cycles of the long test, and how many are done between two measurements.
const CYCLES: u32 = 1000;
const AT_ONCE: u32 = 100;
/// Cycles that run side by side.
const LANES: u32 = 4;
/// The first so many cycles may fill caches and pools.
const WARM_UP: u32 = 200;

/// Memory after so many cycles.
#[derive(Debug, Clone, Copy)]
struct Sample {
    cycles: u32,
    deposited: i64,
    free: i64,
    kernel: i64,
}

/// A thousand virtual machines are created, started, stopped and deleted, four at a time. Their guests try all that is
/// forbidden to them, and are stopped wherever they are.
fn thousand(session: &mut Session) -> Result<()> {
    let samples = progress::step("A thousand virtual machines", |step| {
        let mut samples = Vec::new();
        for done in (AT_ONCE..=CYCLES).step_by(AT_ONCE as usize) {
            step.at(&format!("{done} of {CYCLES}"));
            succeed_in(session, &lanes(done), Duration::from_secs(1800))?;
            let partitions = number(session, PARTITIONS)?;
            ensure!(
                partitions == 1,
                "{partitions} partitions are left after {done} cycles, not the parent's alone."
            );
            samples.push(sample(session, done)?);
        }
        Ok(samples)
    })?;
    for s in &samples {
        println!(
            "        after {:4} cycles: {} pages deposited, {} KiB free, {} KiB the kernel's own",
            s.cycles, s.deposited, s.free, s.kernel
        );
    }
    judge(&samples)?;
    clean_log(session)
}

/// The command that does [`AT_ONCE`] cycles.
fn lanes(round: u32) -> String {
    let each = AT_ONCE / LANES;
    format!(
        "lane() {{ for i in $(seq {each}); do vm=lane$1-$i; \
         parterre vm create $vm --memory 64M --processors 2 --kernel /lab/tmk/isolation && \
         parterre vm start $vm && usleep $(((i * 37 + $1 * 53 + {round}) % 100 * 2000)) && \
         parterre vm stop $vm --force && parterre vm delete $vm || exit 1; done >/dev/null; }}; \
         pids=; for n in $(seq {LANES}); do lane $n & pids=\"$pids $!\"; done; \
         for pid in $pids; do wait $pid || exit 1; done"
    )
}

fn sample(session: &mut Session, cycles: u32) -> Result<Sample> {
    let free = number(session, FREE)?;
    Ok(Sample { cycles, deposited: number(session, DEPOSITED)?, free, kernel: number(session, KERNEL)? })
}

/// After the warm-up the hypervisor's count never changes, and what the parent loses is less than a page a cycle: the
/// least that a lost object could cost.
fn judge(samples: &[Sample]) -> Result<()> {
    let steady: Vec<&Sample> = samples.iter().filter(|s| s.cycles >= WARM_UP).collect();
    let first = steady.first().context("No sample was taken.")?;
    for s in &steady {
        ensure!(
            s.deposited == first.deposited,
            "After {} cycles {} pages are deposited, after {} cycles {}.",
            first.cycles,
            first.deposited,
            s.cycles,
            s.deposited
        );
    }
    let lost = -trend(&steady, |s| s.free);
    let grown = trend(&steady, |s| s.kernel);
    println!("        a cycle takes {lost:.2} KiB from the parent, of them {grown:.2} KiB for its kernel");
    ensure!(lost < 4.0, "Each cycle takes {lost:.2} KiB from the parent.");
    ensure!(grown < 4.0, "Each cycle leaves {grown:.2} KiB more with the parent's kernel.");
    Ok(())
}

/// By how much a quantity grows with each cycle: the slope of the line that fits best.
fn trend(samples: &[&Sample], of: impl Fn(&Sample) -> i64) -> f64 {
    let count = samples.len() as f64;
    let mean = |f: &dyn Fn(&Sample) -> f64| samples.iter().map(|s| f(s)).sum::<f64>() / count;
    let (x, y) = (mean(&|s| f64::from(s.cycles)), mean(&|s| of(s) as f64));
    let over: f64 = samples.iter().map(|s| (f64::from(s.cycles) - x) * (of(s) as f64 - y)).sum();
    let under: f64 = samples.iter().map(|s| (f64::from(s.cycles) - x).powi(2)).sum();
    if under == 0.0 { 0.0 } else { over / under }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(lost: i64, deposited: impl Fn(i64) -> i64) -> Vec<Sample> {
        let noise = [0, 900, -1100, 300, -200, 700, -800, 100, 500, -400];
        let sample = |n: usize| {
            let cycles = 100 * (n as i64 + 1);
            let free = 2_000_000 - lost * cycles + noise[n];
            Sample {
                cycles: cycles as u32,
                deposited: deposited(cycles),
                free,
                kernel: 50_000 + noise[n] / 2,
            }
        };
        (0..10).map(sample).collect()
    }

    #[test]
    fn a_page_a_cycle_is_seen_through_the_noise() {
        assert!(judge(&samples(0, |_| 70)).is_ok());
        assert!(judge(&samples(6, |_| 70)).is_err());
    }

    #[test]
    fn deposits_must_not_change_after_the_warm_up() {
        assert!(judge(&samples(0, |cycles| if cycles < 200 { 60 } else { 70 })).is_ok());
        assert!(judge(&samples(0, |cycles| 70 + cycles / 900)).is_err());
    }
}
