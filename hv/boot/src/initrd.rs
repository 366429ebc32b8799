//! Is a file an initial RAM disk that Linux can unpack, and is all of it there?
//!
//! The kernel would boot and then stop without a root file system; here it costs one walk over the file's structure.
//! A file is a sequence of cpio archives, each plain or compressed, with zeros between them. Plain archives and
//! Zstandard frames say where they end, so they are walked; of the other compressions only the beginning is known.
//! Sources: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`, `lib/decompress.c`; RFC 8878, 3.1.

use crate::bytes::{array, u8_at};

/// What is wrong with the file, as a sentence; `None` when it looks like an initial RAM disk.
pub fn problem(bytes: &[u8]) -> Option<&'static str> {
    let mut rest = skip_zeros(bytes);
    if rest.is_empty() {
        return Some("the file holds nothing but zeros; it may be damaged, copy it anew");
    }
    while !rest.is_empty() {
        match segment(rest) {
            Segment::Length(length) => rest = skip_zeros(rest.get(length..).unwrap_or_default()),
            Segment::ToEnd => return None,
            Segment::Truncated => return Some("the file is truncated; copy it anew"),
            Segment::Unknown => {
                return Some(
                    "the file is neither a cpio archive nor compressed as Linux knows it; it may be damaged, copy \
                     it anew",
                );
            }
        }
    }
    None
}

fn skip_zeros(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    &bytes[start..]
}

/// What the file's rest begins with.
#[derive(Debug, PartialEq, Eq)]
enum Segment {
    /// An archive of so many bytes.
    Length(usize),
    /// Something that does not say where it ends.
    ToEnd,
    /// Something that goes on behind the file's end.
    Truncated,
    /// Nothing that Linux unpacks.
    Unknown,
}

impl Segment {
    fn of(length: Option<usize>) -> Self {
        length.map_or(Self::Truncated, Self::Length)
    }
}

const ZSTD: u32 = 0xfd2f_b528;

fn segment(rest: &[u8]) -> Segment {
    // gzip, xz, bzip2, lzma, lzo, lz4.
    const OTHERS: [&[u8]; 6] = [
        &[0x1f, 0x8b],
        &[0xfd, b'7', b'z', b'X', b'Z', 0],
        b"BZh",
        &[0x5d, 0, 0],
        &[0x89, b'L', b'Z', b'O'],
        &[0x02, 0x21, 0x4c, 0x18],
    ];
    if rest.starts_with(b"070701") || rest.starts_with(b"070702") {
        return Segment::of(cpio_length(rest));
    }
    if rest.starts_with(&ZSTD.to_le_bytes()) {
        return Segment::of(zstd_length(rest));
    }
    if OTHERS.iter().any(|mark| rest.starts_with(mark)) { Segment::ToEnd } else { Segment::Unknown }
}

/// Length of a "newc" archive, its trailer included; `None` when there is no trailer.
fn cpio_length(bytes: &[u8]) -> Option<usize> {
    const HEADER: usize = 110;
    const FILE_SIZE: usize = 54;
    const NAME_SIZE: usize = 94;
    let mut at: usize = 0;
    loop {
        let header = bytes.get(at..at.checked_add(HEADER)?)?;
        if !header.starts_with(b"07070") {
            return None;
        }
        let name = (at + HEADER)..(at + HEADER).checked_add(hex(header, NAME_SIZE)?)?;
        let data = name.end.checked_next_multiple_of(4)?;
        let end = data.checked_add(hex(header, FILE_SIZE)?)?;
        if bytes.get(name)?.starts_with(b"TRAILER!!!\0") {
            return Some(end);
        }
        at = end.checked_next_multiple_of(4)?;
    }
}

/// A number of eight hexadecimal digits.
fn hex(bytes: &[u8], at: usize) -> Option<usize> {
    let digits: [u8; 8] = array(bytes, at)?;
    usize::from_str_radix(core::str::from_utf8(&digits).ok()?, 16).ok()
}

/// Length of a Zstandard frame: its header, blocks and checksum.
fn zstd_length(bytes: &[u8]) -> Option<usize> {
    const CHECKSUM: u8 = 1 << 2;
    const SINGLE_SEGMENT: u8 = 1 << 5;
    const LAST: u32 = 1;
    const RUN_LENGTH: u32 = 1;

    let descriptor = u8_at(bytes, 4)?;
    let single = descriptor & SINGLE_SEGMENT != 0;
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 0b11)];
    let content_size = match descriptor >> 6 {
        0 => usize::from(single),
        size => 1 << size,
    };
    let mut at = 5 + usize::from(!single) + dictionary + content_size;
    loop {
        let [low, middle, high]: [u8; 3] = array(bytes, at)?;
        let block = u32::from_le_bytes([low, middle, high, 0]);
        let length = if block >> 1 & 0b11 == RUN_LENGTH { 1 } else { (block >> 3) as usize };
        at += 3 + length;
        if block & LAST != 0 {
            break;
        }
    }
    let end = at + if descriptor & CHECKSUM != 0 { 4 } else { 0 };
    (end <= bytes.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes =
            std::format!("070701{:048x}{:08x}{:032x}{:08x}{:08x}", 0, data.len(), 0, name.len() + 1, 0)
                .into_bytes();
        assert_eq!(bytes.len(), 110);
        bytes.extend(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn archive() -> Vec<u8> {
        [entry("init", b"#!/bin/sh\n"), entry("dev", b""), entry("TRAILER!!!", b"")].concat()
    }

    /// A frame with a window, a checksum, one run-length block and one raw block.
    fn frame() -> Vec<u8> {
        let blocks = [&[0b010, 1, 0, 0xaa][..], &[0b001 | 3 << 3, 0, 0, 1, 2, 3]].concat();
        [&ZSTD.to_le_bytes()[..], &[0b100, 0x50], &blocks, &[9; 4]].concat()
    }

    #[test]
    fn archives_plain_and_compressed_are_recognized() {
        assert_eq!(problem(&archive()), None);
        assert_eq!(problem(&frame()), None);
        assert_eq!(problem(&[archive(), vec![0; 512], frame(), vec![0; 9]].concat()), None);
        assert_eq!(problem(&[archive(), vec![0x1f, 0x8b, 8, 0]].concat()), None);
    }

    #[test]
    fn frames_have_the_length_of_their_parts() {
        assert_eq!(zstd_length(&frame()), Some(frame().len()));
        // A single segment with a content size of 4 bytes and a dictionary of 2, one raw block of none.
        let other = [&ZSTD.to_le_bytes()[..], &[0b1010_0010], &[0; 2 + 4], &[1, 0, 0]].concat();
        assert_eq!(zstd_length(&other), Some(other.len()));
    }

    #[test]
    fn a_file_that_ends_too_early_is_told() {
        for whole in [archive(), frame()] {
            for length in 6..whole.len() - 4 {
                assert!(problem(&whole[..length]).unwrap().contains("truncated"), "{length}");
            }
        }
    }

    #[test]
    fn anything_else_is_told() {
        for bad in [b"garbage!".as_slice(), b"07070", b"MZ\x90", &[0x1f]] {
            assert!(problem(bad).unwrap().contains("neither"), "{bad:?}");
        }
        assert!(problem(&[0; 100]).unwrap().contains("zeros"));
        assert!(problem(&[archive(), b"garbage".to_vec()].concat()).unwrap().contains("neither"));
    }

    proptest! {
        #[test]
        fn damage_anywhere_gives_an_answer(at in 0usize..300, value: u8) {
            let mut bytes = [archive(), frame()].concat();
            let length = bytes.len();
            bytes[at % length] = value;
            let _ = problem(&bytes);
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = problem(&[&ZSTD.to_le_bytes(), bytes.as_slice()].concat());
            let _ = problem(&[b"070701", bytes.as_slice()].concat());
        }
    }
}
