//! What the parent loses by lying on Parterre: a fixed job, bound by processor and memory, against the bare box. In
//! instructions it is repeatable; in time it also shows what nested paging costs the emulator.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Row, bare, side};
use crate::boxes::BoxSpec;
use crate::media::Wish;
use crate::progress;
use crate::session::Session;

const BOOT: Duration = Duration::from_secs(300);
const LIMIT: Duration = Duration::from_secs(300);
/// The best of so many.
const TIMES: usize = 5;

/// Hashing is bound by the processor, writing and reading a file in memory by memory, the shell loop by processes.
const JOB: &str = "dd if=/dev/zero of=/tmp/job bs=1M count=48 2>/dev/null; sha256sum /tmp/job >/dev/null; \
                   for i in $(seq 100); do /bin/true; done; rm /tmp/job";

/// Does the job on both.
///
/// # Errors
/// When what is to be measured cannot be had.
pub fn measure(wish: &Wish) -> Result<Vec<Row>> {
    let without_stack = Wish { with_stack: false, ..wish.clone() };
    let bare = bare(wish)?;
    let timed = BoxSpec::default();
    let counted = BoxSpec { cpus: 1, icount: true, ..BoxSpec::default() };
    let row = |name: &str, unit, spec: &BoxSpec| Row {
        name: name.into(),
        unit,
        ours: side("The parent on Parterre", best(spec, &without_stack)),
        peer: side("The bare parent", best(spec, &bare)),
        aim: "within 3 % of bare",
    };
    Ok(vec![
        row("parent's job, counted (peer: bare)", "million instructions", &counted),
        row("parent's job, timed (peer: bare)", "ms", &timed),
    ])
}

/// The shortest time of the job in milliseconds; where the clock counts instructions, millions of them.
fn best(spec: &BoxSpec, wish: &Wish) -> Result<f64> {
    let mut session = Session::start(spec, wish, BOOT)?;
    let script = format!(
        "for n in $(seq {TIMES}); do begun=$(lab-agent --clock); {JOB}; echo took $(($(lab-agent --clock) - begun)); done"
    );
    let run = progress::step(&format!("Doing the job {TIMES} times"), |_| session.shell(&script, LIMIT))?;
    let times = run.stdout.lines().filter_map(|line| line.strip_prefix("took ")?.trim().parse::<f64>().ok());
    let best = times.reduce(f64::min);
    let best = best.with_context(|| format!("The job ended with {:?}: {}", run.outcome, run.stderr))?;
    Ok(best / 1e6)
}
