//! Memory of a virtual machine that runs: what it has, what it needs, what it shall have.

use serde::{Deserialize, Serialize};

use crate::format_size;

/// Least memory to which a running virtual machine can be brought.
pub const MIN_ASSIGNED: u64 = 32 << 20;

/// How a virtual machine stands with its memory. All amounts are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// What it has now.
    pub assigned: u64,
    /// What it started with: the most that it can have.
    pub startup: u64,
    /// What it shall have. The guest comes there as far as it can spare memory.
    pub target: u64,
    /// What the guest says that it needs: what its programs were promised, and what it will not give up. Absent before its
    /// first report, which Linux sends 45 seconds after the driver was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<u64>,
    /// What the guest says that it could still use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<u64>,
    /// Version of the protocol that the guest speaks; absent if its driver is not there (`hv_balloon`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Nothing is under way to come to the target.
    pub settled: bool,
}

impl MemoryStatus {
    /// In words, as for a column.
    pub fn words(&self) -> String {
        // Guests count in pages; people need no more than MiB.
        let size = |bytes: u64| format_size(bytes & !0xF_FFFF);
        let mut words = size(self.assigned);
        if self.target != self.assigned {
            words += &format!(" (shall have {}", size(self.target));
            words += if self.settled { ", the guest spares no more)" } else { ")" };
        }
        words
    }

    /// The guest's own words.
    pub fn demand_words(&self) -> Option<String> {
        let (demand, available) = (self.demand? >> 20, self.available? >> 20);
        Some(format!("{demand} MiB, {available} MiB available to the guest"))
    }
}

/// How much memory a virtual machine shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRequest {
    /// Bytes; a multiple of 2 MiB.
    pub bytes: u64,
    /// How many seconds to wait for the guest.
    pub seconds: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_differs() {
        let mut status = MemoryStatus {
            assigned: 512 << 20,
            startup: 512 << 20,
            target: 512 << 20,
            demand: None,
            available: None,
            version: None,
            settled: true,
        };
        assert_eq!((status.words(), status.demand_words()), ("512 MiB".into(), None));
        status.target = 256 << 20;
        assert_eq!(status.words(), "512 MiB (shall have 256 MiB, the guest spares no more)");
        status.settled = false;
        assert_eq!(status.words(), "512 MiB (shall have 256 MiB)");
        (status.demand, status.available) = (Some((100 << 20) + 4096), Some(300 << 20));
        assert_eq!(status.demand_words().unwrap(), "100 MiB, 300 MiB available to the guest");
    }
}
