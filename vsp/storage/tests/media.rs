//! Media on files that are really there: raw ones and images.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use imago::FormatCreateBuilder;
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use parterre_vsp_storage::file::{OpenFile, raw};
use parterre_vsp_storage::qcow2;
use parterre_vsp_storage::{Backing, Image, Medium};
use proptest::prelude::*;

/// A file without a name, `size` bytes long.
fn file(size: u64) -> File {
    let path = path();
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(size).unwrap();
    file
}

fn path() -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("parterre-media-{}-{number}", std::process::id()))
}

fn open(file: &File) -> OpenFile {
    OpenFile { cached: file.try_clone().unwrap(), direct: None, discard: None }
}

fn image(size: u64) -> File {
    let file = file(0);
    let storage = ImageFile::try_from(file.try_clone().unwrap()).unwrap();
    Qcow2::<ImageFile>::create_builder(storage).size(size).create().unwrap();
    file
}

#[test]
fn a_file_is_asked_for_its_size() {
    let (_, facts) = raw(open(&file(1 << 20)), false, false).unwrap();
    assert_eq!((facts.size, facts.block, facts.physical), (1 << 20, 512, 4096));
    // What is not a whole block is not there.
    assert_eq!(raw(open(&file((1 << 20) + 700)), false, false).unwrap().1.size, (1 << 20) + 512);
    let (_, dvd) = raw(open(&file(5000)), true, true).unwrap();
    assert_eq!((dvd.size, dvd.block, dvd.can_unmap), (4096, 2048, false));
    for (size, dvd) in [(0, false), (511, false), (2047, true)] {
        assert!(raw(open(&file(size)), false, dvd).unwrap_err().contains("at least one block"));
    }
    let directory = OpenFile { cached: File::open("/").unwrap(), direct: None, discard: None };
    assert!(raw(directory, true, false).is_err());
    let device = OpenFile { cached: File::open("/dev/null").unwrap(), direct: None, discard: None };
    assert!(raw(device, true, false).unwrap_err().contains("block device"));
}

#[test]
fn files_that_are_kept_in_memory_are_known() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    for (place, resident) in
        [(" /dev/shm tmpfs ", true), (" / ext4 ", false), (" / xfs ", false), (" / btrfs ", false)]
    {
        if !mounts.contains(place) {
            continue;
        }
        let directory = place.split(' ').nth(1).unwrap();
        let path = PathBuf::from(directory).join(path().file_name().unwrap());
        let Ok(file) = OpenOptions::new().read(true).write(true).create_new(true).open(&path) else {
            continue;
        };
        std::fs::remove_file(&path).unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(raw(open(&file), false, false).unwrap().0.resident, resident, "{place}");
    }
}

#[test]
fn holes_read_as_zeroes_and_keep_the_size() {
    let file = file(1 << 20);
    let (disk, facts) = raw(open(&file), false, false).unwrap();
    disk.write(0, &vec![7; 1 << 20]).unwrap();
    disk.flush().unwrap();
    let check = |range: std::ops::Range<usize>| {
        let mut all = vec![1; 1 << 20];
        disk.read(0, &mut all).unwrap();
        assert!(all[range.clone()].iter().all(|byte| *byte == 0));
        assert!(all[range.end..range.end + 4096].iter().all(|byte| *byte == 7));
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    };
    for (unmap, offset) in [(false, 0), (true, 1 << 17)] {
        disk.write_zeroes(offset, 65536, unmap).unwrap();
        check(offset as usize..offset as usize + 65536);
    }
    disk.discard(1 << 18, 65536).unwrap();
    if facts.unmapped_zero {
        check(1 << 18..(1 << 18) + 65536);
    }
}

#[test]
fn a_file_that_shrinks_below_its_disk_is_an_error_and_no_end() {
    let file = file(1 << 20);
    let (disk, _) = raw(open(&file), false, false).unwrap();
    file.set_len(1000).unwrap();
    let mut block = [0; 512];
    disk.read(0, &mut block).unwrap();
    assert!(disk.read(512, &mut block).is_err());
    assert!(disk.read(8192, &mut block).is_err());
}

#[test]
fn images_keep_what_was_flushed() {
    let file = image(64 << 20);
    {
        let (disk, facts) = qcow2::open(file.try_clone().unwrap(), false).unwrap();
        assert_eq!((facts.size, facts.can_unmap), (64 << 20, true));
        disk.write(5 << 20, b"kept").unwrap();
        disk.write(9 << 20, &[3; 300_000]).unwrap();
        disk.discard(9 << 20, 131_072).unwrap();
        disk.write_zeroes((9 << 20) + 200_000, 50_000, false).unwrap();
        disk.flush().unwrap();
        // As after a crash: nothing is written back that was not flushed.
        std::mem::forget(disk);
    }
    let (disk, facts) = qcow2::open(file, true).unwrap();
    assert!(facts.read_only && !facts.can_unmap);
    let mut bytes = vec![1; 300_000];
    disk.read(5 << 20, &mut bytes[..4]).unwrap();
    assert_eq!(&bytes[..4], b"kept");
    disk.read(9 << 20, &mut bytes).unwrap();
    assert!(bytes[..131_072].iter().all(|byte| *byte == 0));
    assert!(bytes[131_072..200_000].iter().all(|byte| *byte == 3));
    assert!(bytes[200_000..250_000].iter().all(|byte| *byte == 0));
    assert!(bytes[250_000..].iter().all(|byte| *byte == 3));
    assert!(disk.write(0, b"x").is_err());
}

#[test]
fn blocks_of_a_device_are_given_back_by_its_own_call() {
    fn refused(_: &File, _: u64, len: u64) -> std::io::Result<()> {
        // 95: EOPNOTSUPP, 5: EIO.
        Err(std::io::Error::from_raw_os_error(if len == 512 { 95 } else { 5 }))
    }
    let open = OpenFile { discard: Some(refused), ..open(&file(1 << 20)) };
    let (disk, _) = raw(open, false, false).unwrap();
    disk.write(0, &[7; 4096]).unwrap();
    disk.discard(0, 512).unwrap();
    assert_eq!(disk.discard(0, 1024).unwrap_err().raw_os_error(), Some(5));
    let mut bytes = [0; 4096];
    disk.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096]);
}

#[test]
fn files_and_images_grow_and_keep_what_they_hold() {
    let plain = file(1 << 20);
    let (disk, facts) = raw(open(&plain), false, false).unwrap();
    let raw = Medium { facts, backing: Backing::File(disk) };
    let (disk, facts) = qcow2::open(image(1 << 20), false).unwrap();
    let image = Medium { facts, backing: Backing::Image(Arc::new(disk)) };
    for medium in [raw, image] {
        medium.image().write((1 << 20) - 4, b"kept").unwrap();
        let grown = medium.resized(Some(3 << 30)).unwrap();
        assert_eq!((grown.facts.size, medium.facts.size), (3 << 30, 1 << 20));
        let mut bytes = [1; 8];
        grown.image().read((1 << 20) - 4, &mut bytes).unwrap();
        assert_eq!(&bytes, b"kept\0\0\0\0");
        grown.image().write((3 << 30) - 512, &[7; 512]).unwrap();
        grown.image().flush().unwrap();
        assert_eq!(grown.resized(Some(3 << 30)).unwrap().facts.size, 3 << 30);
        assert!(grown.resized(Some(1 << 30)).is_err());
        assert_eq!(grown.resized(None).unwrap().facts.size, 3 << 30);
        // More than a table of the format, or a file, can have.
        assert!(grown.resized(Some(1 << 63)).is_err());
        grown.image().read((3 << 30) - 512, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 8]);
    }
    assert_eq!(plain.metadata().unwrap().len(), 3 << 30);
}

#[test]
fn a_grown_image_is_found_grown() {
    let file = image(1 << 20);
    let (disk, _) = qcow2::open(file.try_clone().unwrap(), false).unwrap();
    assert_eq!(disk.resize(Some(5 << 30)).unwrap(), 5 << 30);
    // As after a crash.
    std::mem::forget(disk);
    assert_eq!(qcow2::open(file, true).unwrap().1.size, 5 << 30);
}

#[test]
fn images_that_are_none_or_need_others_are_refused() {
    for size in [0, 100, 1 << 20] {
        assert!(qcow2::open(file(size), true).is_err());
    }
    // An image that names a file of the parent's as what lies below it.
    let over = file(0);
    let storage = ImageFile::try_from(over.try_clone().unwrap()).unwrap();
    let builder = Qcow2::<ImageFile>::create_builder(storage).size(1 << 20);
    builder.backing("/etc/passwd".into(), "raw".into()).create().unwrap();
    assert!(qcow2::open(over, true).is_err());
}

#[test]
fn images_whose_counts_leave_out_the_header_are_refused() {
    let whole = image(8 << 20);
    let word = |at| {
        let mut bytes = [0; 8];
        whole.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let table = word(48);
    let block = word(table);
    for (place, bytes) in [(48, 7 << 40), (48, 0_u64), (table, 0), (block, 0)] {
        let damaged = image(8 << 20);
        damaged.write_all_at(&bytes.to_be_bytes(), place).unwrap();
        assert!(qcow2::open(damaged, false).is_err(), "{bytes:#x} at {place:#x}");
    }
    assert!(qcow2::open(whole, false).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damaged_images_are_errors(places in prop::collection::vec((0usize..512, any::<u8>()), 1..20)) {
        let file = image(8 << 20);
        for (place, byte) in places {
            file.write_all_at(&[byte], place as u64).unwrap();
        }
        if let Ok((disk, facts)) = qcow2::open(file, false) {
            let mut buffer = vec![0; 4096];
            for offset in [0, facts.size / 2 / 512 * 512, facts.size - 512] {
                let _ = disk.read(offset, &mut buffer[..512]);
                let _ = disk.write(offset, &buffer[..512]);
            }
            let _ = disk.flush();
            std::mem::forget(disk);
        }
    }
}
