//! What a waiting person sees: one line per step, with the time it has taken so far.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Runs one step. On a terminal a spinner turns with the step's name and elapsed time; at the end, steps that took
/// longer than a second leave a line. Everything goes to standard error.
///
/// # Errors
/// The step's own.
pub fn step<T>(name: &str, work: impl FnOnce(&Step) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let bar = ProgressBar::new_spinner();
    bar.set_draw_target(ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed_precise}]") {
        bar.set_style(style);
    }
    bar.set_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    let step = Step { name: name.to_owned(), bar, begun: Instant::now() };
    let result = work(&step);
    let took = step.begun.elapsed();
    step.bar.finish_and_clear();
    let mark = if result.is_ok() { "+" } else { "!" };
    if took > Duration::from_secs(1) || result.is_err() {
        eprintln!("{mark} {name} ({})", human(took));
    }
    result
}

/// A step under way.
#[derive(Debug)]
pub struct Step {
    name: String,
    bar: ProgressBar,
    begun: Instant,
}

impl Step {
    /// Shows what the step is at now.
    pub fn at(&self, what: &str) {
        self.bar.set_message(format!("{}: {what}", self.name));
    }
}

/// A duration as people write it: `0.4 s`, `12.3 s`, `4 min 05 s`.
pub fn human(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 100.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(human(Duration::from_millis(440)), "0.4 s");
        assert_eq!(human(Duration::from_secs(245)), "4 min 05 s");
    }
}
