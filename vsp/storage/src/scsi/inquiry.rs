//! INQUIRY: what a unit is, and its vital product data (SPC-5, 6.6 and 7.7; SBC-4, 6.6).
//!
//! A unit's designators come from its identity in the virtual machine's definition, so a guest finds the same name below
//! `/dev/disk/by-id` after every restart, on every host, and whatever controller and place the disk is at.

use uuid::Uuid;

use super::Sense;
use super::mode::Kind;

/// Vendor and products, as Hyper-V's units say them: drivers know their abilities by them.
const VENDOR: &[u8; 8] = b"Msft    ";
const DISK: &[u8; 16] = b"Virtual Disk    ";
const DVD: &[u8; 16] = b"Virtual DVD-ROM ";
const REVISION: &[u8; 4] = b"1.0 ";
/// Longest serial number.
pub const MAX_SERIAL: usize = 32;

/// Who a unit is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Unique among all units everywhere.
    pub id: Uuid,
    /// Serial number: 1 to [`MAX_SERIAL`] printable ASCII characters.
    pub serial: String,
}

impl Identity {
    /// An identity; `serial` if the owner wants one of its own, else it is made from the id.
    pub fn new(id: Uuid, serial: Option<&str>) -> Identity {
        let chosen = serial.map(|serial| {
            serial.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(MAX_SERIAL).collect::<String>()
        });
        let serial = match chosen {
            Some(serial) if !serial.trim().is_empty() => serial,
            _ => id.simple().to_string(),
        };
        Identity { id, serial }
    }

    /// A locally assigned NAA identifier: type 3 and 60 bits of the id (SPC-5, 7.7.6.6.4). The id's bits are folded, since
    /// some of a UUID's are the same in all of them.
    pub fn naa(&self) -> u64 {
        let bits = self.id.as_u128();
        let folded = (bits >> 64) as u64 ^ (bits as u64).rotate_left(29);
        3 << 60 | folded & (u64::MAX >> 4)
    }
}

/// What of a disk INQUIRY tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest transfer in blocks.
    pub transfer: u32,
    /// Longest WRITE SAME in blocks.
    pub write_same: u32,
    /// Most blocks of an UNMAP.
    pub unmap: u32,
    /// Most ranges of an UNMAP.
    pub unmap_ranges: u32,
    /// Best unit of an UNMAP in blocks.
    pub unmap_granularity: u32,
    /// UNMAP does something.
    pub can_unmap: bool,
    /// Unmapped blocks read as zeroes.
    pub unmapped_zero: bool,
}

/// The answer for a place where there is no unit.
pub fn nobody() -> Vec<u8> {
    let mut data = vec![0; 36];
    // Qualifier 3: not capable of having a device here; type unknown.
    data[0] = 0x7F;
    data[2] = 6;
    data[3] = 2;
    data[4] = 31;
    data
}

/// The standard answer.
pub fn standard(kind: Kind) -> Vec<u8> {
    let mut data = vec![0; 36];
    let (device, removable, product) = match kind {
        Kind::Disk => (0x00, 0x00, DISK),
        Kind::Dvd => (0x05, 0x80, DVD),
    };
    (data[0], data[1]) = (device, removable);
    // Conforms to SPC-4; response format 2, the only one.
    (data[2], data[3], data[4]) = (6, 2, 31);
    // Many commands at a time.
    data[7] = 2;
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(product);
    data[32..36].copy_from_slice(REVISION);
    data
}

/// A page of vital product data.
///
/// # Errors
/// [`Sense::INVALID_FIELD`] if there is no such page.
pub fn vital(kind: Kind, page: u8, identity: &Identity, limits: &Limits) -> Result<Vec<u8>, Sense> {
    let body = match (page, kind) {
        (0x00, Kind::Disk) => vec![0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2],
        (0x00, Kind::Dvd) => vec![0x00, 0x80, 0x83],
        (0x80, _) => identity.serial.clone().into_bytes(),
        (0x83, _) => designators(kind, identity),
        (0xB0, Kind::Disk) => block_limits(limits),
        (0xB1, Kind::Disk) => characteristics(),
        (0xB2, Kind::Disk) => provisioning(limits),
        _ => return Err(Sense::INVALID_FIELD),
    };
    let device = if kind == Kind::Dvd { 0x05 } else { 0x00 };
    let mut data = vec![device, page];
    data.extend((body.len() as u16).to_be_bytes());
    data.extend(body);
    Ok(data)
}

/// An NAA identifier and a T10 vendor identification, both of the logical unit.
fn designators(kind: Kind, identity: &Identity) -> Vec<u8> {
    // Binary; of the logical unit; NAA; eight bytes.
    let mut data = vec![0x01, 0x03, 0, 8];
    data.extend(identity.naa().to_be_bytes());
    let mut name = VENDOR.to_vec();
    if kind == Kind::Dvd {
        name.extend(b"DVD ");
    }
    name.extend(identity.serial.bytes());
    // ASCII; of the logical unit; T10 vendor identification.
    data.extend([0x02, 0x01, 0, name.len() as u8]);
    data.extend(name);
    data
}

fn block_limits(limits: &Limits) -> Vec<u8> {
    let mut data = vec![0; 60];
    // WRITE SAME with a count of zero is not possible; no COMPARE AND WRITE.
    data[0] = 1;
    let mut word = |at: usize, value: u32| data[at - 4..at].copy_from_slice(&value.to_be_bytes());
    word(8, limits.transfer);
    if limits.can_unmap {
        word(20, limits.unmap);
        word(24, limits.unmap_ranges);
        word(28, limits.unmap_granularity);
    }
    let write_same = u64::from(limits.write_same);
    data[32..40].copy_from_slice(&write_same.to_be_bytes());
    data
}

fn characteristics() -> Vec<u8> {
    let mut data = vec![0; 60];
    // Not rotating: the guest shall not sort its requests, the parent does that.
    data[1] = 1;
    data
}

fn provisioning(limits: &Limits) -> Vec<u8> {
    if !limits.can_unmap {
        return vec![0; 4];
    }
    // UNMAP, WRITE SAME (16) and (10) with the UNMAP bit; thin provisioned.
    let zero = if limits.unmapped_zero { 0x04 } else { 0 };
    vec![0, 0xE0 | zero, 0x02, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity::new(Uuid::from_u128(0x1234_5678_9ABC_4DEF_8123_4567_89AB_CDEF), None)
    }

    const LIMITS: Limits = Limits {
        transfer: 2048,
        write_same: 0xFFFF,
        unmap: 0x40_0000,
        unmap_ranges: 256,
        unmap_granularity: 8,
        can_unmap: true,
        unmapped_zero: true,
    };

    #[test]
    fn lengths_are_told_and_every_listed_page_is_there() {
        for kind in [Kind::Disk, Kind::Dvd] {
            let data = standard(kind);
            assert_eq!(usize::from(data[4]) + 5, data.len());
            let list = vital(kind, 0, &identity(), &LIMITS).unwrap();
            for page in &list[4..] {
                let data = vital(kind, *page, &identity(), &LIMITS).unwrap();
                assert_eq!((data[0], data[1]), (standard(kind)[0], *page));
                assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])) + 4, data.len());
            }
            let absent = (0..=255).filter(|page| !list[4..].contains(page));
            for page in absent {
                assert_eq!(vital(kind, page, &identity(), &LIMITS), Err(Sense::INVALID_FIELD));
            }
        }
    }

    #[test]
    fn designators_are_well_formed_and_differ() {
        let data = vital(Kind::Disk, 0x83, &identity(), &LIMITS).unwrap();
        let (mut at, mut found) = (4, Vec::new());
        while at < data.len() {
            let length = usize::from(data[at + 3]);
            found.push((data[at + 1] & 0xF, data[at + 4..at + 4 + length].to_vec()));
            at += 4 + length;
        }
        assert_eq!(at, data.len());
        assert_eq!(found[0], (3, identity().naa().to_be_bytes().to_vec()));
        assert_eq!(found[0].1[0] >> 4, 3);
        assert_eq!(found[1], (1, [VENDOR.as_slice(), identity().serial.as_bytes()].concat()));
        let other = Identity::new(Uuid::from_u128(identity().id.as_u128() + 1), None);
        assert_ne!(identity().naa(), other.naa());
    }

    #[test]
    fn serial_numbers_are_clean() {
        let id = identity().id;
        assert_eq!(Identity::new(id, Some("WD-42")).serial, "WD-42");
        assert_eq!(Identity::new(id, Some("a\nb\u{e9}")).serial, "ab");
        assert_eq!(Identity::new(id, Some("  ")).serial, id.simple().to_string());
        assert_eq!(Identity::new(id, Some(&"x".repeat(99))).serial.len(), MAX_SERIAL);
    }

    #[test]
    fn limits_stand_where_the_standard_puts_them() {
        let data = vital(Kind::Disk, 0xB0, &identity(), &LIMITS).unwrap();
        let word = |at: usize| u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
        assert_eq!((word(8), word(20), word(24), word(28)), (2048, 0x40_0000, 256, 8));
        assert_eq!((word(36), word(40)), (0, 0xFFFF));
        let none = Limits { can_unmap: false, ..LIMITS };
        assert_eq!(vital(Kind::Disk, 0xB2, &identity(), &none).unwrap()[4..], [0; 4]);
        assert_eq!(vital(Kind::Disk, 0xB2, &identity(), &LIMITS).unwrap()[5], 0xE4);
    }
}
