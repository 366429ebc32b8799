//! Disks and DVD drives of a virtual machine.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// SCSI controllers of a virtual machine.
pub const MAX_CONTROLLERS: u8 = 4;
/// Places of a controller.
pub const MAX_LUNS: u8 = 64;
/// Longest serial number.
const MAX_SERIAL: usize = 32;

/// How the bytes of a disk lie in its file. It is settled when the disk is added and never guessed from the contents
/// afterwards: a guest could write there what makes one format look like another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// As they are: a plain file or a block device.
    #[default]
    Raw,
    /// A qcow2 image.
    Qcow2,
}

impl DiskFormat {
    /// The name that commands use.
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }
}

impl std::str::FromStr for DiskFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskFormat, String> {
        match text {
            "raw" => Ok(DiskFormat::Raw),
            "qcow2" => Ok(DiskFormat::Qcow2),
            "vhd" | "vhdx" | "vmdk" => Err(format!(
                "{text} images cannot be used; `qemu-img convert -O qcow2` makes a qcow2 image of one"
            )),
            _ => Err(format!("there is no disk format '{text}'; there are raw and qcow2")),
        }
    }
}

/// Whether the parent's page cache is used for a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskCache {
    /// Past it, where the file system allows.
    #[default]
    None,
    /// Through it.
    Host,
}

impl std::str::FromStr for DiskCache {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskCache, String> {
        match text {
            "none" => Ok(DiskCache::None),
            "host" => Ok(DiskCache::Host),
            _ => Err(format!("'{text}' is no way to cache a disk; there are none and host")),
        }
    }
}

/// A disk or a DVD drive with its medium.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSettings {
    /// Who it is: the guest's name for it comes from here.
    pub id: Uuid,
    /// Number of the controller.
    pub controller: u8,
    /// Place at the controller.
    pub lun: u8,
    /// Absolute path of the file or block device; only a DVD drive can be without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Format of the file.
    #[serde(default)]
    pub format: DiskFormat,
    /// The guest cannot write.
    #[serde(default)]
    pub read_only: bool,
    /// A DVD drive with the file as its disc.
    #[serde(default)]
    pub dvd: bool,
    /// Serial number, if not the one that comes from the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Use of the parent's page cache.
    #[serde(default)]
    pub cache: DiskCache,
}

/// A disk to be added. What is absent is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRequest {
    /// Absolute path of the file or block device; only a DVD drive can be without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Number of the controller; 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<u8>,
    /// Place at the controller; the first free one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lun: Option<u8>,
    /// Format of the file; by its name and contents if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// The guest cannot write.
    #[serde(default)]
    pub read_only: bool,
    /// A DVD drive.
    #[serde(default)]
    pub dvd: bool,
    /// Serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Use of the parent's page cache.
    #[serde(default)]
    pub cache: DiskCache,
}

impl DiskSettings {
    /// Its file for people to read.
    pub fn file_name(&self) -> String {
        self.file.as_ref().map_or_else(|| "-".into(), |file| file.display().to_string())
    }

    /// Whether the guest cannot write.
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.dvd
    }

    /// Whether requests are to go past the parent's page cache. What nobody writes is shared by all that read it.
    pub fn bypasses_cache(&self) -> bool {
        self.cache == DiskCache::None && self.format == DiskFormat::Raw && !self.is_read_only()
    }

    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub fn check(&self) -> Result<(), String> {
        if self.controller >= MAX_CONTROLLERS {
            return Err(format!(
                "there is no controller {}: a virtual machine has the controllers 0 to {}",
                self.controller,
                MAX_CONTROLLERS - 1
            ));
        }
        if self.lun >= MAX_LUNS {
            return Err(format!(
                "there is no place {}: a controller has the places 0 to {}",
                self.lun,
                MAX_LUNS - 1
            ));
        }
        match &self.file {
            Some(file) if !file.is_absolute() => {
                return Err(format!("'{}' is not an absolute path", file.display()));
            }
            None if !self.dvd => return Err("a disk needs a file; only a DVD drive can be empty".into()),
            _ => {}
        }
        if let Some(serial) = &self.serial {
            let good = |c: char| c.is_ascii_graphic() || c == ' ';
            if serial.trim().is_empty() || serial.len() > MAX_SERIAL || !serial.chars().all(good) {
                return Err(format!(
                    "'{}' cannot be a serial number: use 1 to {MAX_SERIAL} printable ASCII characters",
                    serial.escape_default()
                ));
            }
        }
        Ok(())
    }
}

/// Checks the disks of a virtual machine together.
///
/// # Errors
/// A sentence that says what is wrong and what to do.
pub fn check_disks(disks: &[DiskSettings]) -> Result<(), String> {
    for (number, disk) in disks.iter().enumerate() {
        disk.check()?;
        for other in disks.iter().take(number) {
            if (disk.controller, disk.lun) == (other.controller, other.lun) {
                return Err(format!(
                    "place {} of controller {} is taken by {}; choose another",
                    disk.lun,
                    disk.controller,
                    other.file_name()
                ));
            }
            if disk.id == other.id {
                return Err(format!("two disks have the id {}", disk.id));
            }
            if disk.file.is_some()
                && disk.file == other.file
                && !(disk.is_read_only() && other.is_read_only())
            {
                return Err(format!("{} is a disk of this virtual machine already", disk.file_name()));
            }
        }
    }
    Ok(())
}

/// The format of a file that is about to become a disk: what its owner says, else what its name says, which its first bytes
/// must agree with.
///
/// # Errors
/// A sentence, when the two do not agree or the format cannot be used.
pub fn settle_format(
    file: &Path,
    wanted: Option<DiskFormat>,
    first_bytes: &[u8],
) -> Result<DiskFormat, String> {
    const QCOW2: &[u8] = b"QFI\xfb";
    const OTHERS: [(&[u8], &str); 3] = [(b"vhdxfile", "VHDX"), (b"conectix", "VHD"), (b"KDMV", "VMDK")];
    if let Some(format) = wanted {
        return Ok(format);
    }
    let name = file.display();
    let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or("");
    let named_qcow2 = extension.eq_ignore_ascii_case("qcow2");
    let is_qcow2 = first_bytes.starts_with(QCOW2);
    if named_qcow2 && is_qcow2 {
        return Ok(DiskFormat::Qcow2);
    }
    if named_qcow2 || is_qcow2 {
        let what = if is_qcow2 { "begins like a qcow2 image" } else { "is no qcow2 image" };
        return Err(format!(
            "{name} {what}, and its name says otherwise; say which it is: --format raw or --format qcow2"
        ));
    }
    match OTHERS.iter().find(|(magic, _)| first_bytes.starts_with(magic)) {
        Some((_, kind)) => Err(format!(
            "{name} is a {kind} image, which cannot be used; `qemu-img convert -O qcow2` makes a qcow2 image of it; \
             if it is meant to be a plain disk, say --format raw"
        )),
        None => Ok(DiskFormat::Raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(lun: u8) -> DiskSettings {
        DiskSettings {
            id: Uuid::from_u128(lun.into()),
            controller: 0,
            lun,
            file: Some(format!("/d{lun}").into()),
            format: DiskFormat::Raw,
            read_only: false,
            dvd: false,
            serial: None,
            cache: DiskCache::None,
        }
    }

    #[test]
    fn good_disks_pass_and_bad_ones_say_why() {
        assert_eq!(check_disks(&[disk(0), disk(63)]), Ok(()));
        type Change = fn(&mut DiskSettings);
        let changes: [(Change, &str); 9] = [
            (|d| d.lun = 64, "no place 64"),
            (|d| d.controller = 4, "no controller 4"),
            (|d| d.file = Some("relative".into()), "absolute"),
            (|d| d.file = None, "DVD drive"),
            (|d| d.serial = Some(" ".into()), "serial"),
            (|d| d.serial = Some("x".repeat(33)), "serial"),
            (|d| d.lun = 0, "taken by /d0"),
            (|d| d.id = Uuid::from_u128(0), "the id"),
            (|d| d.file = Some("/d0".into()), "already"),
        ];
        for (change, word) in changes {
            let mut changed = disk(1);
            change(&mut changed);
            let error = check_disks(&[disk(0), changed]).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let shared = |lun| DiskSettings { read_only: true, file: Some("/iso".into()), ..disk(lun) };
        assert_eq!(check_disks(&[shared(0), shared(1)]), Ok(()));
        let empty = |lun| DiskSettings { dvd: true, file: None, ..disk(lun) };
        assert_eq!(check_disks(&[empty(0), empty(1)]), Ok(()));
    }

    #[test]
    fn formats_are_not_guessed_against_the_name() {
        let settle = |name: &str, wanted, bytes: &[u8]| settle_format(Path::new(name), wanted, bytes);
        assert_eq!(settle("/a.img", None, b"\0\0\0\0"), Ok(DiskFormat::Raw));
        assert_eq!(settle("/a.qcow2", None, b"QFI\xfb\0"), Ok(DiskFormat::Qcow2));
        assert_eq!(settle("/a.img", Some(DiskFormat::Raw), b"QFI\xfb\0"), Ok(DiskFormat::Raw));
        for (name, bytes) in
            [("/a.img", &b"QFI\xfb"[..]), ("/a.qcow2", b""), ("/a", b"vhdxfile"), ("/a.vhd", b"conectix")]
        {
            assert!(settle(name, None, bytes).is_err(), "{name}");
        }
    }
}
