//! Places of the cache whose number grows with each build of the project: what a lab uses stays, of the rest the last few of each
//! kind, and what was used a short while ago.
//!
//! A lab holds a shared lock on each place that it uses, for as long as it runs, so that no other takes it away meanwhile.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use crate::cache::{self, Lock};

/// How many of each kind stay, however old they are.
const KEEP: usize = 4;
/// What was used within that time stays in any case.
const RECENT: Duration = Duration::from_secs(3600);

/// What this lab uses.
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// The place for exactly these contents in a directory of the cache, filled by `make` if it is not there; it stays until this lab
/// ends. What is old in that directory goes.
///
/// # Errors
/// Those of `make` and of the file system.
pub fn place(directory: &str, contents: &[u8], make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let all = cache::sub(directory)?;
    // Between the making and the holding nobody looks for what may go.
    let _lock = Lock::take(directory)?;
    let place = all.join(cache::key([contents]));
    cache::complete(&place, make)?;
    let held = hold(&place).with_context(|| format!("{} cannot be held.", place.display()))?;
    HELD.lock().unwrap_or_else(PoisonError::into_inner).push(held);
    remove_old(&all, KEEP, RECENT);
    Ok(place)
}

/// Says that a place is used, now and until the file is closed.
fn hold(place: &Path) -> Result<File> {
    let held = File::open(place)?;
    flock(&held, FlockOperation::LockShared)?;
    held.set_modified(SystemTime::now())?;
    Ok(held)
}

/// Removes what nobody holds, but for the last `keep` of each kind and what was used within `recent`. A place's kind is the name of
/// what is in it.
fn remove_old(all: &Path, keep: usize, recent: Duration) {
    let mut kinds: BTreeMap<Option<OsString>, Vec<(SystemTime, PathBuf)>> = BTreeMap::new();
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let place = entry.path();
        let Ok(used) = entry.metadata().and_then(|metadata| metadata.modified()) else { continue };
        let unfinished = place.extension().is_some();
        let kind =
            fs::read_dir(&place).ok().and_then(|mut files| files.next()?.ok()).map(|file| file.file_name());
        kinds.entry(kind.filter(|_| !unfinished)).or_default().push((used, place));
    }
    for (kind, mut places) in kinds {
        places.sort_unstable();
        // Of what was never finished none is worth keeping.
        let old = if kind.is_some() { places.len().saturating_sub(keep) } else { places.len() };
        let is_recent = |used: &SystemTime| used.elapsed().is_ok_and(|since| since < recent);
        for (_, place) in places.into_iter().take(old).filter(|(used, _)| !is_recent(used)) {
            remove_unless_held(&place);
        }
    }
}

/// What cannot be removed now is tried again by the next lab.
fn remove_unless_held(place: &Path) {
    if let Ok(directory) = File::open(place)
        && flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
    {
        let _ = fs::remove_dir_all(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A directory with places, each as many hours old as its number says, with a file of that name in it.
    fn places(name: &str, places: &[(&str, &str, u32)]) -> PathBuf {
        let all = std::env::temp_dir().join(format!("parterre-lab-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&all);
        for (place, file, hours) in places {
            fs::create_dir_all(all.join(place)).unwrap();
            fs::write(all.join(place).join(file), "").unwrap();
            let then = SystemTime::now() - HOUR * *hours;
            File::open(all.join(place)).unwrap().set_modified(then).unwrap();
        }
        all
    }

    fn left(all: &Path) -> Vec<String> {
        let mut left: Vec<String> = fs::read_dir(all)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        left
    }

    #[test]
    fn the_last_few_of_each_kind_stay() {
        let all = places(
            "prune",
            &[
                ("a", "vmms", 9),
                ("b", "vmms", 8),
                ("c", "vmms", 7),
                ("d", "vmwp", 9),
                ("e", "vmms", 0),
                ("f.part", "vmms", 9),
            ],
        );
        remove_old(&all, 2, HOUR);
        assert_eq!(left(&all), ["c", "d", "e"]);
        remove_old(&all, 0, HOUR);
        assert_eq!(left(&all), ["e"], "what was just used");
        remove_old(&all, 0, Duration::ZERO);
        assert!(left(&all).is_empty());
        fs::remove_dir_all(&all).unwrap();
    }

    #[test]
    fn what_is_held_stays() {
        let all = places("held", &[("a", "vmms", 9), ("b", "vmms", 8)]);
        let used = hold(&all.join("a")).unwrap();
        remove_old(&all, 0, Duration::ZERO);
        assert_eq!(left(&all), ["a"]);
        // Two may use the same.
        let again = hold(&all.join("a")).unwrap();
        drop(used);
        remove_old(&all, 0, Duration::ZERO);
        assert_eq!(left(&all), ["a"]);
        drop(again);
        remove_old(&all, 0, Duration::ZERO);
        assert!(left(&all).is_empty());
        fs::remove_dir_all(&all).unwrap();
    }
}
