//! Changes of what is in a drive, and of how large a disk is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::DiskFormat;

/// Greatest size of a disk in bytes: 64 TiB, as of a VHDX.
pub const MAX_DISK_SIZE: u64 = 64 << 40;

/// Another disc for a DVD drive, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MediumRequest {
    /// Absolute path of its file or block device; without, the drive is to be empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Format of the file; by its name and contents if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Take a disc out even if the guest has locked the drive.
    #[serde(default)]
    pub force: bool,
}

/// How large a disk is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    /// Bytes; without, what is below the disk has grown already, and the guest is to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

impl ResizeRequest {
    /// Checks what can be checked without the disk.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub fn check(&self) -> Result<(), String> {
        match self.size {
            Some(size) if size == 0 || size > MAX_DISK_SIZE || !size.is_multiple_of(512) => {
                Err(format!("a disk cannot have {size} bytes: give a multiple of 512, at most 64 TiB"))
            }
            _ => Ok(()),
        }
    }
}

/// How large a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSize {
    /// Bytes.
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_sectors_within_the_limit() {
        let check = |size| ResizeRequest { size }.check().is_ok();
        assert!(check(None) && check(Some(512)) && check(Some(MAX_DISK_SIZE)));
        for size in [0, 511, 1000, MAX_DISK_SIZE + 512, u64::MAX] {
            assert!(!check(Some(size)), "{size}");
        }
    }
}
