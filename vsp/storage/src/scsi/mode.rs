//! MODE SENSE: the mode pages of disks and DVD drives (SPC-5, 7.5; SBC-4, 6.5; MMC-3, annex).
//!
//! No page can be changed.

use super::Sense;

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A direct-access block device.
    Disk,
    /// A DVD drive.
    Dvd,
}

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0A;
const EXCEPTIONS: u8 = 0x1C;
const CAPABILITIES: u8 = 0x2A;
const ALL: u8 = 0x3F;
/// Page control: the values now, those that can be changed, the defaults, those that were saved.
const CHANGEABLE: u8 = 1;
const SAVED: u8 = 3;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// MODE SENSE (10) instead of (6).
    pub ten: bool,
    /// Page code.
    pub page: u8,
    /// Subpage code.
    pub subpage: u8,
    /// Page control.
    pub control: u8,
}

/// The answer of a unit; `read_only` if it cannot be written.
///
/// # Errors
/// [`Sense::INVALID_FIELD`] if there is no such page, and the sense data of saved values, which there are none of.
pub fn sense(kind: Kind, question: Question, read_only: bool) -> Result<Vec<u8>, Sense> {
    if question.control == SAVED {
        return Err(Sense { key: 5, asc: 0x39, ascq: 0 });
    }
    let pages: &[u8] = match kind {
        Kind::Disk => &[CACHING, CONTROL, EXCEPTIONS],
        Kind::Dvd => &[CONTROL, EXCEPTIONS, CAPABILITIES],
    };
    let wanted: Vec<u8> =
        pages.iter().copied().filter(|page| question.page == ALL || question.page == *page).collect();
    if wanted.is_empty() || !matches!(question.subpage, 0 | 0xFF) {
        return Err(Sense::INVALID_FIELD);
    }
    let mut body = Vec::new();
    for page in wanted {
        let mut data = page_data(page);
        if question.control == CHANGEABLE {
            data[2..].fill(0);
        }
        body.extend(data);
    }
    // Write protection; a disk takes FUA.
    let device = match kind {
        Kind::Disk => 0x10 | u8::from(read_only) << 7,
        Kind::Dvd => 0,
    };
    Ok(with_header(question.ten, device, body))
}

/// The length in a header counts what follows it.
fn with_header(ten: bool, device: u8, body: Vec<u8>) -> Vec<u8> {
    let mut data = if ten {
        let length = (body.len() + 6) as u16;
        let [high, low] = length.to_be_bytes();
        vec![high, low, 0, device, 0, 0, 0, 0]
    } else {
        vec![(body.len() + 3) as u8, 0, device, 0]
    };
    data.extend(body);
    data
}

fn page_data(page: u8) -> Vec<u8> {
    let mut data = match page {
        CACHING => vec![0; 20],
        CONTROL | EXCEPTIONS => vec![0; 12],
        _ => vec![0; 22],
    };
    data[0] = page;
    data[1] = (data.len() - 2) as u8;
    match page {
        // The parent's cache holds what was written until SYNCHRONIZE CACHE.
        CACHING => data[2] = 0x04,
        // Commands may be reordered.
        CONTROL => data[3] = 0x10,
        CAPABILITIES => {
            // Reads DVD-ROM, CD-R and CD-RW; multi-session; can be locked and ejected, has a tray.
            (data[2], data[4], data[6]) = (0x0B, 0x40, 0x29);
        }
        _ => {}
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(kind: Kind, ten: bool, page: u8, control: u8) -> Result<Vec<u8>, Sense> {
        sense(kind, Question { ten, page, subpage: 0, control }, true)
    }

    #[test]
    fn headers_and_pages_have_their_lengths() {
        for kind in [Kind::Disk, Kind::Dvd] {
            for (ten, header) in [(false, 4), (true, 8)] {
                let data = ask(kind, ten, ALL, 0).unwrap();
                let told = if ten { usize::from(data[1]) + 2 } else { usize::from(data[0]) + 1 };
                assert_eq!(told, data.len());
                let (mut at, mut pages) = (header, 0);
                while at < data.len() {
                    at += 2 + usize::from(data[at + 1]);
                    pages += 1;
                }
                assert_eq!((at, pages), (data.len(), 3));
            }
        }
    }

    #[test]
    fn the_cache_is_on_and_nothing_can_be_changed() {
        let data = ask(Kind::Disk, false, CACHING, 0).unwrap();
        assert_eq!((data[2], data[4], data[6]), (0x90, CACHING, 4));
        let data = ask(Kind::Disk, false, CACHING, CHANGEABLE).unwrap();
        assert!(data[6..].iter().all(|byte| *byte == 0));
        assert!(ask(Kind::Disk, false, CACHING, SAVED).is_err());
        assert_eq!(ask(Kind::Disk, false, CAPABILITIES, 0), Err(Sense::INVALID_FIELD));
        assert_eq!(ask(Kind::Dvd, true, CACHING, 0), Err(Sense::INVALID_FIELD));
    }
}
