//! What an exit costs, in instructions: the emulator's clock counts them (one processor, `-icount shift=0`), so a
//! guest that reads its time stamp counter around an exit reads the number of instructions that it took, repeatable
//! to a percent on a noisy machine. Only what needs two processors at the same time is timed.
//!
//! In Intel boxes the time stamp counter counts instructions anyway (Bochs; each processor its own, in turns of 32), also with
//! two processors.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Row, bare, median, side};
use crate::boxes::{BoxSpec, Vendor};
use crate::media::Wish;
use crate::progress;
use crate::session::Session;
use crate::test::test_kernels;

/// Counting instructions is slow.
const BOOT: Duration = Duration::from_secs(300);
const LIMIT: Duration = Duration::from_secs(120);
/// In an Intel box everything takes longer.
const LIMIT_ON_INTEL: Duration = Duration::from_secs(1200);
/// Each number is the median of so many runs of the program, of which each gives medians itself.
const TIMES: usize = 3;
/// Rows that show the program's own cost, not an exit's.
const CONTROLS: [&str; 2] = ["nothing", "touch-again"];

/// The guest program, started by one of the two.
#[derive(Clone, Copy)]
enum Side {
    Ours,
    Peer,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Ours => "Parterre",
            Side::Peer => "the peer",
        }
    }

    fn command(self, processors: u32, cmdline: &str) -> String {
        match self {
            Side::Ours => format!(
                "vmwp --kernel /lab/tmk/bench --memory 128M --processors {processors} --cmdline 'x {cmdline}' </dev/null"
            ),
            Side::Peer => {
                format!(
                    "qemu -m 128M -smp {processors} -kernel /lab/tmk/bench -append 'x {cmdline}' </dev/null"
                )
            }
        }
    }
}

/// Runs the guest program `bench` on both.
///
/// # Errors
/// When what is to be measured does not build.
pub fn measure(wish: &Wish) -> Result<Vec<Row>> {
    let (ours, peer) = wishes(wish)?;
    let mut rows = rows(&ours, &peer, "instructions", counted);
    rows.extend(self::rows(&ours, &peer, "TSC ticks", timed));
    Ok(rows)
}

/// The same in Intel boxes.
///
/// # Errors
/// As [`measure`].
pub fn measure_on_intel(wish: &Wish) -> Result<Vec<Row>> {
    let (ours, peer) = wishes(wish)?;
    Ok(rows(&ours, &peer, "instructions", counted_on_intel))
}

/// What is in the parents of both.
fn wishes(wish: &Wish) -> Result<(Wish, Wish)> {
    let mut ours = wish.clone();
    ours.extras.files.extend(test_kernels()?);
    let mut peer = bare(wish)?;
    peer.extras.files.extend(test_kernels()?);
    Ok((ours, peer))
}

type Numbers = BTreeMap<String, f64>;

fn rows(
    ours: &Wish,
    peer: &Wish,
    unit: &'static str,
    numbers: fn(&Wish, Side) -> Result<Numbers>,
) -> Vec<Row> {
    let ours = side("Parterre", numbers(ours, Side::Ours)).unwrap_or_default();
    let peer = side("The peer", numbers(peer, Side::Peer)).unwrap_or_default();
    let names: BTreeSet<&String> = ours.keys().chain(peer.keys()).collect();
    let row = |name: &String| Row {
        name: name.clone(),
        unit,
        ours: ours.get(name).copied(),
        peer: peer.get(name).copied(),
        aim: if handled_below_the_parent(name) { "at most a quarter" } else { "no dearer" },
    };
    names.into_iter().filter(|name| !CONTROLS.contains(&name.as_str())).map(row).collect()
}

/// Whether the hypervisor does it alone. The rest is the worker's work, or goes through the parent's scheduler or its
/// management of memory.
fn handled_below_the_parent(row: &str) -> bool {
    const NOT: [&str; 4] = ["port-", "touch-", "ipi-to-halted", "apic-timer-late-from-halt"];
    !NOT.iter().any(|start| row.starts_with(start))
}

/// What one processor does.
fn counted(wish: &Wish, side: Side) -> Result<Numbers> {
    let spec = BoxSpec { cpus: 1, memory: 1536, icount: true, ..BoxSpec::default() };
    let mut session = Session::start(&spec, wish, BOOT)?;
    progress::step(&format!("Counting the instructions of exits on {}", side.name()), |_| {
        let mut numbers = run(&mut session, &side.command(1, ""), TIMES, LIMIT)?;
        numbers.extend(run(&mut session, &side.command(2, "running=0"), TIMES, LIMIT)?);
        Ok(numbers)
    })
}

/// What one processor does, and what two do to each other; in boxes of one and of two processors. Once: the next time would
/// be the same.
fn counted_on_intel(wish: &Wish, side: Side) -> Result<Numbers> {
    let mut numbers = Numbers::new();
    for cpus in [1, 2] {
        let spec = BoxSpec { vendor: Vendor::Intel, cpus, memory: 1536, ..BoxSpec::default() };
        let mut session = Session::start(&spec, wish, spec.boot_limit())?;
        let title = format!("Counting the instructions of exits on {}, {cpus} processors", side.name());
        let cmdline = if cpus == 1 { "" } else { "iterations=200" };
        let more =
            progress::step(&title, |_| run(&mut session, &side.command(cpus, cmdline), 1, LIMIT_ON_INTEL))?;
        numbers.extend(more);
    }
    Ok(numbers)
}

/// What two processors do to each other.
fn timed(wish: &Wish, side: Side) -> Result<Numbers> {
    let spec = BoxSpec { cpus: 2, memory: 1536, ..BoxSpec::default() };
    let mut session = Session::start(&spec, wish, BOOT)?;
    progress::step(&format!("Timing interrupts between processors on {}", side.name()), |_| {
        let mut numbers = run(&mut session, &side.command(2, ""), TIMES, LIMIT)?;
        numbers.retain(|name, _| name == "ipi");
        Ok(numbers)
    })
}

fn run(session: &mut Session, command: &str, times: usize, limit: Duration) -> Result<Numbers> {
    let mut samples: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..times {
        let run = session.shell(command, limit)?;
        let numbers = numbers(&run.stdout);
        ensure!(
            !numbers.is_empty(),
            "`{command}` measured nothing ({:?}):\n{}{}",
            run.outcome,
            run.stdout,
            run.stderr
        );
        for (name, ticks) in numbers {
            samples.entry(name).or_default().push(ticks);
        }
    }
    Ok(samples.into_iter().filter_map(|(name, ticks)| Some((name, median(ticks)?))).collect())
}

/// The program's lines `bench NAME TICKS`.
fn numbers(output: &str) -> BTreeMap<String, f64> {
    let line = |line: &str| {
        let (name, ticks) = line.trim().strip_prefix("bench ")?.split_once(' ')?;
        Some((name.to_owned(), ticks.trim().parse().ok()?))
    };
    output.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_parent_takes_part_in_has_its_own_aim() {
        assert!(["cpuid", "self-ipi", "ipi", "apic-timer-late"].into_iter().all(handled_below_the_parent));
        assert!(!["port-read", "touch-first", "ipi-to-halted"].into_iter().any(handled_below_the_parent));
    }

    #[test]
    fn the_programs_lines_are_read() {
        let numbers =
            numbers("tmk: bench\nbench cpuid 812\nbench port-io 9000\r\nbench broken x\nok cpuid\n");
        assert_eq!(numbers.len(), 2);
        assert_eq!(numbers["cpuid"], 812.0);
        assert_eq!(numbers["port-io"], 9000.0);
    }
}
