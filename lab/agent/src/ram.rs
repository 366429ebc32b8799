//! Which of its RAM a kernel can read, tried through `/dev/mem`. Needs a kernel without `CONFIG_STRICT_DEVMEM`.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

const PAGE: u64 = 4096;
/// How much is read at once as long as that works.
const CHUNK: u64 = 2 << 20;

/// The page-aligned ranges of RAM that cannot be read.
///
/// # Errors
/// When the kernel does not tell its RAM, or has no `/dev/mem`.
pub fn unreadable() -> Result<Vec<Range<u64>>> {
    let map = fs::read_to_string("/proc/iomem").context("/proc/iomem cannot be read.")?;
    let memory = File::open("/dev/mem").context("/dev/mem cannot be opened.")?;
    let ranges = system_ram(&map);
    anyhow::ensure!(!ranges.is_empty(), "/proc/iomem names no RAM.");
    let mut buffer = vec![0; CHUNK as usize];
    let mut readable = |range: &Range<u64>| {
        let length = (range.end - range.start).min(CHUNK) as usize;
        memory.read_exact_at(&mut buffer[..length], range.start).is_ok()
    };
    Ok(ranges.iter().flat_map(|range| failing(range, &mut readable)).fold(Vec::new(), join))
}

/// The RAM in `/proc/iomem`, in whole pages.
fn system_ram(map: &str) -> Vec<Range<u64>> {
    let parse = |line: &str| {
        let (range, what) = line.split_once(" : ")?;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| u64::from_str_radix(text.trim(), 16).ok();
        let (start, end) = (number(first)?, number(last)?.checked_add(1)?);
        let whole = start.checked_next_multiple_of(PAGE)?..end / PAGE * PAGE;
        (what == "System RAM" && !line.starts_with(' ') && whole.start < whole.end).then_some(whole)
    };
    map.lines().filter_map(parse).collect()
}

/// What of a range fails: chunks are tried first, and the pages of those that fail.
fn failing(range: &Range<u64>, works: &mut impl FnMut(&Range<u64>) -> bool) -> Vec<Range<u64>> {
    let pieces = |range: &Range<u64>, size: u64| {
        let end = range.end;
        (range.start..end).step_by(size as usize).map(move |start| start..end.min(start + size))
    };
    let mut failed = Vec::new();
    for chunk in pieces(range, CHUNK) {
        if !works(&chunk) {
            failed.extend(pieces(&chunk, PAGE).filter(|page| !works(page)));
        }
    }
    failed
}

/// Adds a range to a list, joined to the last one if it follows that.
fn join(mut list: Vec<Range<u64>>, next: Range<u64>) -> Vec<Range<u64>> {
    match list.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => list.push(next),
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_read_out_of_the_kernels_map() {
        let map = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n00100000-7fffffff : System RAM\n\
                   \x20 01000000-01ffffff : Kernel code\nnonsense\nffff-0 : System RAM\n";
        assert_eq!(system_ram(map), [0x1000..0x9_f000, 0x10_0000..0x8000_0000]);
        assert_eq!(system_ram(""), Vec::<Range<u64>>::new());
    }

    #[test]
    fn failing_pages_are_found_and_joined() {
        let bad = [0x20_1000..0x20_3000, 0x3f_f000..0x40_1000, 0x60_0000..0x60_1000];
        let hits = |range: &Range<u64>| bad.iter().any(|b| b.start < range.end && range.start < b.end);
        let found = failing(&(0x1000..0x60_1000), &mut |range| !hits(range));
        assert_eq!(found.into_iter().fold(Vec::new(), join), bad);
    }
}
