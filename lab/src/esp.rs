//! The EFI system partition that a box boots from: a FAT image with `parterre.efi` where firmware looks first, and
//! beside it the configuration, kernel and root file system of the parent.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};

/// Firmware follows a file cluster by cluster, so they shall not be tiny.
const CLUSTER: u32 = 4096;
/// The smallest image: below this, FAT32 has too few clusters to be FAT32. The file is sparse.
const SMALLEST: u64 = 288 << 20;

/// One file of the partition.
#[derive(Debug)]
pub struct Item<'a> {
    /// Its path, with slashes, no leading one.
    pub path: &'a str,
    /// What is in it.
    pub contents: &'a [u8],
}

/// Writes an image that holds these files and some room to spare.
///
/// # Errors
/// When the image cannot be written.
pub fn write(image: &Path, items: &[Item<'_>]) -> Result<()> {
    fill(image, items).with_context(|| format!("The boot image {} cannot be written.", image.display()))
}

fn fill(image: &Path, items: &[Item<'_>]) -> Result<()> {
    let contents: u64 = items.iter().map(|item| item.contents.len() as u64).sum();
    let size = (contents + contents / 8 + (8 << 20)).max(SMALLEST).next_multiple_of(1 << 20);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(image)?;
    file.set_len(size)?;
    format(&file)?;
    let volume = FileSystem::new(&file, FsOptions::new())?;
    for item in items {
        let mut directory = volume.root_dir();
        let mut parts = item.path.split('/').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_some() {
                directory = directory.create_dir(part)?;
            } else {
                let mut entry = directory.create_file(part)?;
                entry.truncate()?;
                entry.write_all(item.contents)?;
                entry.flush()?;
            }
        }
    }
    volume.unmount()?;
    Ok(())
}

fn format(file: &File) -> Result<()> {
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(CLUSTER)
        .volume_label(*b"PARTERRE   ");
    fatfs::format_volume(file, options)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_was_written_is_read_back() {
        let image = std::env::temp_dir().join(format!("parterre-lab-esp-{}.img", std::process::id()));
        let big = vec![7u8; 3 << 20];
        let items = [
            Item { path: "EFI/BOOT/BOOTX64.EFI", contents: b"MZ" },
            Item { path: "parterre/vmlinuz", contents: &big },
        ];
        write(&image, &items).unwrap();
        let volume = FileSystem::new(
            OpenOptions::new().read(true).write(true).open(&image).unwrap(),
            FsOptions::new(),
        )
        .unwrap();
        for item in &items {
            let mut read = Vec::new();
            volume.root_dir().open_file(item.path).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, item.contents);
        }
        drop(volume);
        std::fs::remove_file(image).unwrap();
        assert!(write(Path::new("/no/such/dir/x.img"), &items).is_err());
    }
}
