//! Is a file an initial RAM disk that Linux can unpack?
//!
//! The kernel would boot and then stop without a root file system; here it costs one look at the file's beginning.
//! Source: Linux `init/initramfs.c` and `lib/decompress.c` for the formats and their marks.

/// The marks with which an initial RAM disk begins: cpio "newc" with and without checksums, and the compressions.
const MARKS: [&[u8]; 9] = [
    b"070701",
    b"070702",
    &[0x1f, 0x8b],
    &[0x28, 0xb5, 0x2f, 0xfd],
    &[0xfd, b'7', b'z', b'X', b'Z', 0],
    b"BZh",
    &[0x5d, 0, 0],
    &[0x89, b'L', b'Z', b'O'],
    &[0x02, 0x21, 0x4c, 0x18],
];

/// What is wrong with the file, as a sentence; `None` when it looks like an initial RAM disk.
pub fn problem(bytes: &[u8]) -> Option<&'static str> {
    // Linux skips zeros between archives, and before the first.
    let start = bytes.iter().position(|byte| *byte != 0)?;
    if MARKS.iter().any(|mark| bytes[start..].starts_with(mark)) {
        return None;
    }
    Some(
        "the file is neither a cpio archive nor compressed as Linux knows it; it may be damaged, copy it anew",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_plain_and_compressed_are_recognized() {
        assert_eq!(problem(b"070701000000"), None);
        assert_eq!(problem(&[0, 0, 0, 0, 0x1f, 0x8b, 8]), None);
        assert_eq!(problem(&[0x28, 0xb5, 0x2f, 0xfd, 4]), None);
    }

    #[test]
    fn anything_else_is_told() {
        for bad in [b"garbage!".as_slice(), b"07070", b"MZ\x90", &[0x1f]] {
            assert!(problem(bad).is_some(), "{bad:?}");
        }
    }
}
