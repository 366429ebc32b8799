//! The statistics pages about the machine and the parent that the parent has mapped.

use crate::memory::Visible;
use parterre_abi::stats::StatsObjectType;

/// What a page is about: its type, and the index of the processor.
type Key = (StatsObjectType, u32);

/// A statistics page.
pub struct StatsPlace {
    key: Key,
    page: Option<Visible>,
}

/// The pages, in places that the machine layer supplies.
pub(crate) struct ParentStats(pub &'static mut [Option<StatsPlace>]);

impl ParentStats {
    /// The place for the page about `key`; `None` if there is none left.
    pub fn place(&mut self, key: Key) -> Option<&mut Option<Visible>> {
        let found = self.0.iter().position(|place| place.as_ref().is_some_and(|place| place.key == key));
        let index = found.or_else(|| self.0.iter().position(Option::is_none))?;
        let place = self.0.get_mut(index)?.get_or_insert(StatsPlace { key, page: None });
        Some(&mut place.page)
    }

    /// The page about `key`.
    pub fn get(&self, key: Key) -> Option<&Visible> {
        self.0.iter().flatten().find(|place| place.key == key)?.page.as_ref()
    }

    /// Takes the page about `key`.
    pub fn take(&mut self, key: Key) -> Option<Visible> {
        let place = self.0.iter_mut().find(|place| place.as_ref().is_some_and(|place| place.key == key))?;
        place.take()?.page
    }
}
