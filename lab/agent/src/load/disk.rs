//! A disk: random reads and writes past the page cache, of two sizes, one at a time and many at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, SeekFrom};

use crate::Measured;

/// The first of these that there is: a VMBus disk, a virtio one.
const DISKS: [&str; 2] = ["/dev/sda", "/dev/vda"];
/// How long the disk may take to appear.
const PATIENCE: Duration = Duration::from_secs(20);
/// Memory for transfers past the page cache is aligned to this.
const ALIGNMENT: usize = 4096;

/// Measures all rows.
pub fn measure(time: Duration) -> Result<()> {
    let disk = open()?;
    let size = rustix::fs::seek(&disk, SeekFrom::End(0)).context("The disk's size cannot be had.")?;
    crate::begin();
    for (block, name) in [(4096, "4 KiB"), (1 << 20, "1 MiB")] {
        for write in [false, true] {
            for depth in [1, 32] {
                let measured = operations(&disk, size / block as u64, block, write, depth, time)?;
                let what = if write { "write" } else { "read" };
                crate::row(&format!("{what} {name} depth {depth}"), &measured, 1.0);
            }
        }
    }
    Ok(())
}

fn open() -> Result<File> {
    let begun = Instant::now();
    loop {
        for disk in DISKS {
            let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
            match rustix::fs::open(disk, flags, Mode::empty()) {
                Ok(file) => return Ok(file.into()),
                Err(error) if begun.elapsed() > PATIENCE => {
                    return Err(error).with_context(|| format!("{disk} cannot be opened."));
                }
                Err(_) => {}
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// How many operations are done in a time, by as many threads as the queue is deep.
fn operations(
    disk: &File,
    blocks: u64,
    block: usize,
    write: bool,
    depth: u64,
    time: Duration,
) -> Result<Measured> {
    let (count, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let work = |seed| {
            let (count, stop) = (&count, &stop);
            move || one_after_the_other(disk, seed, blocks, block, write, count, stop)
        };
        let threads: Vec<_> = (1..=depth).map(|seed| scope.spawn(work(seed))).collect();
        thread::sleep(time / 4);
        let (before, begun) = (count.load(Relaxed), Instant::now());
        thread::sleep(time);
        let (amount, time) = (count.load(Relaxed) - before, begun.elapsed());
        stop.store(true, Relaxed);
        for thread in threads {
            thread.join().ok().context("A thread ended by itself.")?.context("The disk failed.")?;
        }
        Ok(Measured { amount, seconds: time.as_secs_f64(), total: count.load(Relaxed) })
    })
}

fn one_after_the_other(
    disk: &File,
    seed: u64,
    blocks: u64,
    block: usize,
    write: bool,
    count: &AtomicU64,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut memory = vec![seed as u8; block + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let buffer = &mut memory[start..start + block];
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    while !stop.load(Relaxed) {
        // Marsaglia's xorshift.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let offset = random % blocks * block as u64;
        if write {
            disk.write_all_at(buffer, offset)?;
        } else {
            disk.read_exact_at(buffer, offset)?;
        }
        count.fetch_add(1, Relaxed);
    }
    Ok(())
}
