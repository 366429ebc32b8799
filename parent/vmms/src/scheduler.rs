//! The parent's scheduler features (Linux `kernel/sched/features.h`) that are dear below a hypervisor.
//!
//! With `HRTICK` Linux sets a timer at nearly each switch between threads, for slices that end to the microsecond. On a bare
//! machine that is cheap. In the parent partition each setting of a timer is an exit to the hypervisor, and with virtual
//! machines at work these are the most of all. Without it slices end with the tick, as in older kernels.
//!
//! Nothing is kept: the features are the kernel's, until it starts again or somebody sets them.

use std::io;
use std::path::Path;

/// The kernel's file: it is read as a list of features, those that are off with `NO_` before them, and takes one at a time.
const FEATURES: &str = "/sys/kernel/debug/sched/features";
/// What is turned off.
const DEAR: [&str; 2] = ["HRTICK", "HRTICK_DL"];

/// Turns off what is dear, and returns its names. None where the kernel has no such feature, or does not show them.
///
/// # Errors
/// The kernel shows a feature and refuses to turn it off.
pub fn spare_timers() -> io::Result<Vec<&'static str>> {
    spare_timers_in(Path::new(FEATURES))
}

fn spare_timers_in(file: &Path) -> io::Result<Vec<&'static str>> {
    // A kernel without debugfs, or with it locked down, is no worse than one that has no such features.
    let features = std::fs::read_to_string(file).unwrap_or_default();
    let on = |name: &&str| features.split_whitespace().any(|feature| feature == *name);
    let found: Vec<_> = DEAR.into_iter().filter(on).collect();
    for name in &found {
        std::fs::write(file, format!("NO_{name}\n"))?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_features(text: &str) -> (Vec<&'static str>, String) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("features");
        std::fs::write(&file, text).unwrap();
        let found = spare_timers_in(&file).unwrap();
        (found, std::fs::read_to_string(&file).unwrap())
    }

    #[test]
    fn what_is_on_is_turned_off() {
        let (found, written) = with_features("PLACE_LAG NO_NEXT_BUDDY HRTICK NO_HRTICK_DL TTWU_QUEUE \n");
        assert_eq!(found, ["HRTICK"]);
        assert_eq!(written, "NO_HRTICK\n");
        assert_eq!(with_features("HRTICK HRTICK_DL").0, ["HRTICK", "HRTICK_DL"]);
    }

    #[test]
    fn what_is_off_or_not_there_is_left_alone() {
        let off = "PLACE_LAG NO_HRTICK NO_HRTICK_DL\n";
        assert_eq!(with_features(off), (vec![], off.to_owned()));
        assert_eq!(with_features("PLACE_LAG XHRTICK\n").0, [""; 0]);
        assert_eq!(spare_timers_in(Path::new("/nonexistent/features")).unwrap(), [""; 0]);
    }
}
