//! What a DVD drive answers beyond a disk (MMC-6): table of contents, features, events, disc information.
//!
//! The medium is one data track over one session, as an ISO image is.

use super::Sense;

/// Length of a block.
pub const BLOCK: u32 = 2048;
/// The profile of a DVD-ROM.
const DVD_ROM: u16 = 0x10;
/// The profile of a CD-ROM.
const CD_ROM: u16 = 0x08;
/// What fits on a CD; larger media are DVDs.
const CD_BLOCKS: u32 = 400_000;

/// The profile of a medium with this many blocks; 0 without one.
fn profile(blocks: Option<u32>) -> u16 {
    match blocks {
        None => 0,
        Some(blocks) if blocks <= CD_BLOCKS => CD_ROM,
        Some(_) => DVD_ROM,
    }
}

/// A block address, or minutes, seconds and frames (MMC-6, 4.2.5.2).
fn address(lba: u32, msf: bool) -> [u8; 4] {
    if !msf {
        return lba.to_be_bytes();
    }
    let frames = lba.saturating_add(150);
    [0, (frames / 75 / 60).min(255) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

/// READ TOC (MMC-6, 6.26): the tracks (format 0) or the sessions (format 1).
pub fn table_of_contents(blocks: u32, msf: bool, format: u8, track: u8) -> Result<Vec<u8>, Sense> {
    // First and last track, or first and last session.
    let mut data = vec![0, 0, 1, 1];
    let entry = |number: u8, lba: u32| {
        let mut entry = vec![0, 0x14, number, 0];
        entry.extend(address(lba, msf));
        entry
    };
    match format {
        0 if track <= 1 => {
            data.extend(entry(1, 0));
            data.extend(entry(0xAA, blocks));
        }
        0 if track == 0xAA => data.extend(entry(0xAA, blocks)),
        1 => data.extend(entry(1, 0)),
        _ => return Err(Sense::INVALID_FIELD),
    }
    let length = (data.len() - 2) as u16;
    data[..2].copy_from_slice(&length.to_be_bytes());
    Ok(data)
}

/// GET CONFIGURATION (MMC-6, 6.5): all features from `first` on, those that are current (kind 1), or `first` alone (kind 2).
pub fn configuration(blocks: Option<u32>, kind: u8, first: u16) -> Result<Vec<u8>, Sense> {
    let current = profile(blocks);
    let is = |present: bool| u8::from(present);
    let [dvd_high, dvd_low] = DVD_ROM.to_be_bytes();
    let [cd_high, cd_low] = CD_ROM.to_be_bytes();
    let dvd_now = is(current == DVD_ROM);
    let cd_now = is(current == CD_ROM);
    // Code, flags (version, persistent, current), data.
    let features: [(u16, u8, Vec<u8>); 6] = [
        (0x000, 0x03, vec![dvd_high, dvd_low, dvd_now, 0, cd_high, cd_low, cd_now, 0]),
        // Core: SCSI.
        (0x001, 0x0B, vec![0, 0, 0, 1, 1, 0, 0, 0]),
        // Removable: a tray that can be locked and ejects.
        (0x003, 0x03, vec![0x29, 0, 0, 0]),
        // Random reads in blocks of 2048.
        (0x010, is(blocks.is_some()), vec![0, 0, 8, 0, 0, 1, 0, 0]),
        (0x01E, 0x08 | cd_now, vec![0, 0, 0, 0]),
        (0x01F, 0x08 | dvd_now, vec![1, 0, 0, 0]),
    ];
    let wanted = features.iter().filter(|(code, flags, _)| match kind {
        0 => *code >= first,
        1 => *code >= first && flags & 1 != 0,
        _ => *code == first,
    });
    if kind > 2 {
        return Err(Sense::INVALID_FIELD);
    }
    let mut body = vec![0, 0];
    body.extend(current.to_be_bytes());
    for (code, flags, data) in wanted {
        body.extend(code.to_be_bytes());
        body.extend([*flags, data.len() as u8]);
        body.extend(data);
    }
    let mut data = (body.len() as u32).to_be_bytes().to_vec();
    data.extend(body);
    Ok(data)
}

/// What happened to a drive since it was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaEvent {
    /// Nothing.
    None,
    /// Somebody pressed the button by which the medium comes out.
    EjectRequest,
    /// A medium was put in.
    New,
    /// The medium was taken out.
    Removed,
}

/// GET EVENT STATUS NOTIFICATION (MMC-6, 6.7), polled: media events are the only class there is.
pub fn event_status(classes: u8, event: MediaEvent, loaded: bool) -> Vec<u8> {
    const MEDIA: u8 = 4;
    const SUPPORTED: u8 = 1 << MEDIA;
    if classes & SUPPORTED == 0 {
        // No event available.
        return vec![0, 2, 0x80, SUPPORTED];
    }
    let code = match event {
        MediaEvent::None => 0,
        MediaEvent::EjectRequest => 1,
        MediaEvent::New => 2,
        MediaEvent::Removed => 3,
    };
    vec![0, 6, MEDIA, SUPPORTED, code, u8::from(loaded) << 1, 0, 0]
}

/// READ DISC INFORMATION (MMC-6, 6.21): a finished disc with one track.
pub fn disc_information() -> Vec<u8> {
    let mut data = vec![0; 34];
    data[1] = 32;
    // Complete session, complete disc.
    data[2] = 0x0E;
    (data[3], data[4], data[5], data[6]) = (1, 1, 1, 1);
    // Not for restricted use.
    data[7] = 0x20;
    data
}

/// READ TRACK INFORMATION (MMC-6, 6.27) of the only track.
pub fn track_information(blocks: u32) -> Vec<u8> {
    let mut data = vec![0; 36];
    data[1] = 34;
    (data[2], data[3]) = (1, 1);
    // A data track, of which mode 1 is read.
    (data[5], data[6]) = (4, 1);
    data[24..28].copy_from_slice(&blocks.to_be_bytes());
    data
}

/// READ DVD STRUCTURE (MMC-6, 6.22): the physical format (0) and "no copyright" (1).
pub fn dvd_structure(blocks: u32, format: u8) -> Result<Vec<u8>, Sense> {
    let mut data = match format {
        0 => {
            let mut data = vec![0; 4 + 2048];
            // DVD-ROM, version 1; 120 mm, any rate; one layer.
            (data[4], data[5], data[6]) = (0x01, 0x0F, 0x01);
            // The data area begins at 30000h.
            let first = 0x3_0000u32;
            data[8..12].copy_from_slice(&first.to_be_bytes());
            let last = first.saturating_add(blocks.saturating_sub(1)) & 0xFF_FFFF;
            data[12..16].copy_from_slice(&last.to_be_bytes());
            data
        }
        1 => vec![0; 8],
        _ => return Err(Sense::INVALID_FIELD),
    };
    let length = (data.len() - 2) as u16;
    data[..2].copy_from_slice(&length.to_be_bytes());
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_what_follows() {
        for format in [0, 1] {
            let data = table_of_contents(1000, true, format, 0).unwrap();
            assert_eq!(usize::from(data[1]) + 2, data.len());
            let data = dvd_structure(1000, format).unwrap();
            assert_eq!(usize::from(u16::from_be_bytes([data[0], data[1]])) + 2, data.len());
        }
        for (kind, first) in [(0, 0), (1, 0), (2, 0x1F), (2, 0x77)] {
            let data = configuration(Some(5), kind, first).unwrap();
            let told = u32::from_be_bytes(data[..4].try_into().unwrap());
            assert_eq!(told as usize + 4, data.len());
        }
        assert_eq!(usize::from(disc_information()[1]) + 2, disc_information().len());
        assert_eq!(usize::from(track_information(1)[1]) + 2, track_information(1).len());
        for classes in [0x10, 0x02] {
            let data = event_status(classes, MediaEvent::New, true);
            assert_eq!(usize::from(data[1]) + 2, data.len());
        }
    }

    #[test]
    fn addresses_in_minutes_and_seconds() {
        assert_eq!(address(0, true), [0, 0, 2, 0]);
        assert_eq!(address(75 * 60, true), [0, 1, 2, 0]);
        assert_eq!(address(u32::MAX, true)[1], 255);
        assert_eq!(table_of_contents(7, false, 0, 0xAA).unwrap()[4..], [0, 0x14, 0xAA, 0, 0, 0, 0, 7]);
        assert!(table_of_contents(7, false, 0, 9).is_err());
        assert!(table_of_contents(7, false, 5, 0).is_err());
    }
}
