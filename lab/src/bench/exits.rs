//! What an exit costs, in instructions: the emulator's clock counts them (one processor, `-icount shift=0`), so a
//! guest that reads its time stamp counter around an exit reads the number of instructions that it took, repeatable
//! to a percent on a noisy machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Row, bare, side};
use crate::boxes::BoxSpec;
use crate::media::Wish;
use crate::session::Session;
use crate::test::test_kernels;

/// Counting instructions is slow.
const BOOT: Duration = Duration::from_secs(300);
const LIMIT: Duration = Duration::from_secs(400);

const OURS: &str = "vmwp --kernel /lab/tmk/bench --memory 128M --processors 2 </dev/null";
const PEER: &str = "qemu -m 128M -smp 2 -kernel /lab/tmk/bench </dev/null";
/// The least of so many runs: what the parent does between whiles only ever adds.
const TIMES: usize = 4;
/// Rows that show the program's own cost, not an exit's.
const CONTROLS: [&str; 2] = ["nothing", "touch-again"];

/// Runs the guest program `bench` on both.
///
/// # Errors
/// When what is to be measured does not build.
pub fn measure(wish: &Wish) -> Result<Vec<Row>> {
    let mut ours = wish.clone();
    ours.extras.files.extend(test_kernels()?);
    let mut peer = bare(wish)?;
    peer.extras.files.extend(test_kernels()?);
    let ours = side("Parterre", run(&ours, OURS)).unwrap_or_default();
    let peer = side("The peer", run(&peer, PEER)).unwrap_or_default();
    let names: BTreeSet<&String> = ours.keys().chain(peer.keys()).collect();
    let row = |name: &String| Row {
        name: name.clone(),
        unit: "instructions",
        ours: ours.get(name).copied(),
        peer: peer.get(name).copied(),
        aim: if name.starts_with("port-") { "no dearer" } else { "at most a quarter" },
    };
    Ok(names.into_iter().filter(|name| !CONTROLS.contains(&name.as_str())).map(row).collect())
}

fn run(wish: &Wish, command: &str) -> Result<BTreeMap<String, f64>> {
    let spec = BoxSpec { cpus: 1, memory: 1536, icount: true, ..BoxSpec::default() };
    let mut session = Session::start(&spec, wish, BOOT)?;
    let mut least = BTreeMap::new();
    for _ in 0..TIMES {
        let run = session.shell(command, LIMIT)?;
        let numbers = numbers(&run.stdout);
        ensure!(
            !numbers.is_empty(),
            "`{command}` measured nothing ({:?}):\n{}{}",
            run.outcome,
            run.stdout,
            run.stderr
        );
        for (name, ticks) in numbers {
            let known = least.entry(name).or_insert(ticks);
            *known = ticks.min(*known);
        }
    }
    Ok(least)
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
    fn the_programs_lines_are_read() {
        let numbers =
            numbers("tmk: bench\nbench cpuid 812\nbench port-io 9000\r\nbench broken x\nok cpuid\n");
        assert_eq!(numbers.len(), 2);
        assert_eq!(numbers["cpuid"], 812.0);
        assert_eq!(numbers["port-io"], 9000.0);
    }
}
