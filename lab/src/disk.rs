//! `cargo lab image`: a disk image with a partition table, to be written to a stick or a real machine's disk.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::{GptConfig, partition_types};

use crate::boxes::{Boot, Vendor};
use crate::cache::RunDir;
use crate::cli::ImageArgs;
use crate::{media, progress};

const MIB: u64 = 1 << 20;

/// Makes the image.
///
/// # Errors
/// When a part does not build, or the file is there already or cannot be written.
pub fn run(args: &ImageArgs) -> Result<ExitCode> {
    if args.file.exists() && !args.force {
        bail!("{} is there already. Name another file, or overwrite it with --force.", args.file.display());
    }
    let dir = RunDir::create()?;
    let media = media::prepare(&args.parent.wish()?, Vendor::Amd, dir.path())?;
    let Boot::Disks(partitions) = media.boot else {
        bail!("There is no image of the bare parent; leave out --bare.");
    };
    let partition = partitions.first().context("The image was not made.")?;
    progress::step("Writing the image", |_| {
        write(partition, &args.file)
            .with_context(|| format!("The image {} cannot be written.", args.file.display()))
    })?;
    let size = fs::metadata(&args.file)?.len();
    println!("{}: {} MiB, bootable by UEFI firmware (secure boot off).", args.file.display(), size / MIB);
    Ok(ExitCode::SUCCESS)
}

/// Writes a GPT disk whose one partition is the EFI system partition.
fn write(partition: &Path, to: &Path) -> Result<()> {
    let size = fs::metadata(partition)?.len();
    // A MiB in front for alignment, one behind for the second table.
    let total = size + 2 * MIB;
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(to)?;
    file.set_len(total)?;
    let sectors = u32::try_from(total / 512 - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut file)?;
    let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut disk = config.create_from_device(&mut file, None)?;
    let id = disk.add_partition("EFI system partition", size, partition_types::EFI, 0, Some(MIB / 512))?;
    let start = disk
        .partitions()
        .get(&id)
        .context("The new partition is not in the table.")?
        .bytes_start(LogicalBlockSize::Lb512)?;
    disk.write()?;
    copy_sparse(&mut File::open(partition)?, &mut file, start)
}

/// Copies what is not zero, so that the image stays sparse.
fn copy_sparse(from: &mut File, to: &mut File, start: u64) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut at = start;
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        if buffer[..n].iter().any(|&byte| byte != 0) {
            to.seek(SeekFrom::Start(at))?;
            to.write_all(&buffer[..n])?;
        }
        at += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_is_where_the_table_says() {
        let base = std::env::temp_dir().join(format!("parterre-lab-disk-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        let mut contents = vec![0; 5 << 20];
        contents[123_456] = 7;
        fs::write(base.join("esp"), &contents).unwrap();
        write(&base.join("esp"), &base.join("disk")).unwrap();
        let disk = GptConfig::new().open(base.join("disk")).unwrap();
        let partition = disk.partitions().values().next().unwrap();
        assert_eq!(partition.part_type_guid, partition_types::EFI);
        let start = usize::try_from(partition.bytes_start(LogicalBlockSize::Lb512).unwrap()).unwrap();
        let image = fs::read(base.join("disk")).unwrap();
        assert!(image[start..].starts_with(&contents));
        fs::remove_dir_all(&base).unwrap();
    }
}
