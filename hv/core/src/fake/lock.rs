//! A lock that a failed test does not poison.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A mutex whose content stays usable after a panic elsewhere.
#[derive(Debug, Default)]
pub(super) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub fn get(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
