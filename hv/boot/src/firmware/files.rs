//! Files of the EFI system partition that the program was loaded from.

use parterre_boot::config;
use uefi::proto::media::file::{Directory, File, FileAttribute, FileInfo, FileMode, RegularFile};
use uefi::{CString16, Status, boot};

use super::BootError;

/// The partition.
pub struct Partition {
    root: Directory,
}

impl Partition {
    /// Opens the partition that holds this program.
    pub fn open() -> Result<Self, BootError> {
        let root = boot::get_image_file_system(boot::image_handle())
            .and_then(|mut file_system| file_system.open_volume())
            .map_err(|error| {
                BootError::new(
                    error.status(),
                    format_args!(
                        "the file system that this program lies on cannot be opened ({}); start it from a FAT \
                         partition",
                        error.status()
                    ),
                )
            })?;
        Ok(Self { root })
    }

    /// The file at `path`, from the partition's root, with backslashes.
    pub fn find<'a>(&mut self, path: &'a str) -> Result<OpenFile<'a>, BootError> {
        let failed = |status: Status| {
            BootError::new(
                status,
                match status {
                    Status::NOT_FOUND if path == config::PATH => alloc::format!(
                        "{path} is not on the EFI system partition; write it, with a line `kernel = FILE`"
                    ),
                    Status::NOT_FOUND => alloc::format!(
                        "{path} is not on the EFI system partition; copy it there or correct {}",
                        config::PATH
                    ),
                    status => {
                        alloc::format!("{path} cannot be opened ({status}); check the EFI system partition")
                    }
                },
            )
        };
        let name = CString16::try_from(path).map_err(|_| failed(Status::INVALID_PARAMETER))?;
        let handle = self
            .root
            .open(&name, FileMode::Read, FileAttribute::empty())
            .map_err(|error| failed(error.status()))?;
        let mut file = handle.into_regular_file().ok_or_else(|| {
            BootError::new(Status::INVALID_PARAMETER, format_args!("{path} is a directory; a file is needed"))
        })?;
        let length = file.get_boxed_info::<FileInfo>().map_err(|error| failed(error.status()))?.file_size();
        Ok(OpenFile { path, file, length })
    }
}

/// An open file.
pub struct OpenFile<'a> {
    path: &'a str,
    file: RegularFile,
    length: u64,
}

impl<'a> OpenFile<'a> {
    /// Its path.
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fills `target` with what begins at `offset`.
    ///
    /// # Errors
    /// The file system fails, or the file ends before `target` is full.
    pub fn read_at(&mut self, offset: u64, target: &mut [u8]) -> Result<(), BootError> {
        let path = self.path;
        let failed = |status: Status| {
            BootError::new(
                status,
                format_args!("{path} cannot be read ({status}); the partition may be damaged"),
            )
        };
        self.file.set_position(offset).map_err(|error| failed(error.status()))?;
        let length = self.file.read(target).map_err(|error| failed(error.status()))?;
        if length == target.len() { Ok(()) } else { Err(failed(Status::END_OF_FILE)) }
    }
}
