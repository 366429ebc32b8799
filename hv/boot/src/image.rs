//! The program's own image as the firmware loaded it: its sections, for the rights of its pages.
//!
//! Source: Microsoft PE Format, "COFF File Header", "Optional Header", "Section Table".

use arrayvec::ArrayVec;
use parterre_hw::launch::{ImageSection, PAGE_SIZE, PhysicalRange};

use crate::bytes::{u16_at, u32_at};

/// How many sections are kept.
pub const CAPACITY: usize = 16;

const SECTION_HEADER: usize = 40;
const IMAGE_SCN_MEM_EXECUTE: u32 = 1 << 29;
const IMAGE_SCN_MEM_WRITE: u32 = 1 << 31;

/// The sections of the image in `headers` (its first bytes in memory) that lies at `image`.
///
/// # Errors
/// What is wrong with the headers; a program built as it should be has none of these.
pub fn sections(
    headers: &[u8],
    image: PhysicalRange,
) -> Result<ArrayVec<ImageSection, CAPACITY>, &'static str> {
    const SHORT: &str = "its headers are cut short";
    if !image.base.is_multiple_of(PAGE_SIZE) {
        return Err("the firmware loaded it to an address that is no page's");
    }
    let pe = u32_at(headers, 0x3c).ok_or(SHORT)? as usize;
    if headers.get(pe..pe.saturating_add(4)) != Some(b"PE\0\0".as_slice()) {
        return Err("it has no PE header");
    }
    let count = u16_at(headers, pe + 6).ok_or(SHORT)?;
    let table = pe + 24 + usize::from(u16_at(headers, pe + 20).ok_or(SHORT)?);
    let mut sections = ArrayVec::new();
    for index in 0..usize::from(count) {
        let at = table + index * SECTION_HEADER;
        let header = headers.get(at..at + SECTION_HEADER).ok_or(SHORT)?;
        let section =
            section(header, image).ok_or("a section lies outside of it or is not aligned to pages")?;
        if section.write && section.execute {
            return Err("it has a section that is both writable and executable");
        }
        sections.try_push(section).map_err(|_| "it has more sections than expected")?;
    }
    Ok(sections)
}

fn section(header: &[u8], image: PhysicalRange) -> Option<ImageSection> {
    let length = u64::from(u32_at(header, 8)?).next_multiple_of(PAGE_SIZE);
    let offset = u64::from(u32_at(header, 12)?);
    let flags = u32_at(header, 36)?;
    if !offset.is_multiple_of(PAGE_SIZE) || offset + length > image.length.next_multiple_of(PAGE_SIZE) {
        return None;
    }
    Some(ImageSection {
        range: PhysicalRange::new(image.base + offset, length),
        write: flags & IMAGE_SCN_MEM_WRITE != 0,
        execute: flags & IMAGE_SCN_MEM_EXECUTE != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const READ: u32 = 1 << 30;

    fn headers(sections: &[(u32, u32, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[0x3c] = 0x78;
        bytes[0x78..0x7c].copy_from_slice(b"PE\0\0");
        bytes[0x7e] = sections.len() as u8;
        bytes[0x78 + 20] = 240;
        for (index, (length, offset, flags)) in sections.iter().enumerate() {
            let at = 0x78 + 24 + 240 + index * SECTION_HEADER;
            for (field, value) in [(8, length), (12, offset), (36, flags)] {
                bytes[at + field..at + field + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
        bytes
    }

    const IMAGE: PhysicalRange = PhysicalRange::new(0x7e00_0000, 0x6000);

    #[test]
    fn sections_have_addresses_and_rights() {
        let bytes = headers(&[
            (0x1234, 0x1000, READ | IMAGE_SCN_MEM_EXECUTE),
            (0x2001, 0x3000, READ | IMAGE_SCN_MEM_WRITE),
        ]);
        let found = sections(&bytes, IMAGE).unwrap();
        assert_eq!(
            found.as_slice(),
            [
                ImageSection { range: PhysicalRange::new(0x7e00_1000, 0x2000), write: false, execute: true },
                ImageSection { range: PhysicalRange::new(0x7e00_3000, 0x3000), write: true, execute: false },
            ]
        );
    }

    #[test]
    fn images_that_do_not_fit_are_refused() {
        let error = |list: &[_], image| sections(&headers(list), image).unwrap_err();
        assert!(error(&[(0x1000, 0x6000, READ)], IMAGE).contains("outside"));
        assert!(error(&[(0x1000, 0x200, READ)], IMAGE).contains("aligned"));
        assert!(
            error(&[(0x1000, 0x1000, IMAGE_SCN_MEM_WRITE | IMAGE_SCN_MEM_EXECUTE)], IMAGE).contains("both")
        );
        assert!(error(&[(0, 0x1000, READ); 17], IMAGE).contains("more sections"));
        assert!(
            sections(&headers(&[(0, 0x1000, READ); 2])[..0x1b0], IMAGE).unwrap_err().contains("cut short")
        );
        assert!(error(&[], PhysicalRange::new(0x200, 0x1000)).contains("no page's"));
        assert!(sections(&[0; 100], IMAGE).unwrap_err().contains("no PE header"));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..600), pe in 0u32..700) {
            let mut bytes = bytes;
            if bytes.len() > 0x40 {
                bytes[0x3c..0x40].copy_from_slice(&pe.to_le_bytes());
                if let Some(place) = bytes.get_mut(pe as usize..pe as usize + 4) {
                    place.copy_from_slice(b"PE\0\0");
                }
            }
            let _ = sections(&bytes, IMAGE);
        }
    }
}
