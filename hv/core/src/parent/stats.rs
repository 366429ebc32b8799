//! The statistics pages about the machine and the parent that the parent has mapped.

use crate::memory::Visible;
use arrayvec::ArrayVec;
use parterre_abi::stats::StatsObjectType;

/// Pages that can be mapped at a time: two for each of 256 processors, and a few.
const CAPACITY: usize = 2 * 256 + 4;

/// What a page is about: its type, and the index of the processor.
type Key = (StatsObjectType, u32);

/// See the module.
#[derive(Default)]
pub(crate) struct ParentStats(ArrayVec<(Key, Option<Visible>), CAPACITY>);

impl ParentStats {
    /// The place for the page about `key`; `None` if there is none left.
    pub fn place(&mut self, key: Key) -> Option<&mut Option<Visible>> {
        let found = self.0.iter().position(|(known, _)| *known == key);
        let index = match found {
            Some(index) => index,
            None => {
                self.0.try_push((key, None)).ok()?;
                self.0.len() - 1
            }
        };
        self.0.get_mut(index).map(|(_, frame)| frame)
    }

    /// Takes the page about `key`.
    pub fn take(&mut self, key: Key) -> Option<Visible> {
        let index = self.0.iter().position(|(known, _)| *known == key)?;
        self.0.swap_remove(index).1
    }
}
