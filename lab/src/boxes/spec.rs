//! What a box is made of, and how that is written: `amd,cpus=4,memory=4G,numa=2,net=e1000e,cpu=-x2apic`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Whose processors a box has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// AMD, with SVM.
    Amd,
    /// Intel, with VMX.
    Intel,
}

/// The network cards that a box can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nic {
    /// Intel 82540EM, no MSI. The only one that Intel boxes have.
    E1000,
    /// Intel 82574L, MSI-X.
    E1000e,
    /// Intel 82576, MSI-X, SR-IOV.
    Igb,
    /// virtio-net.
    Virtio,
}

impl Nic {
    /// Every card, by its name on the command line.
    const ALL: [(&str, Nic); 4] =
        [("e1000", Nic::E1000), ("e1000e", Nic::E1000e), ("igb", Nic::Igb), ("virtio", Nic::Virtio)];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        Nic::ALL.iter().find(|(_, nic)| *nic == self).map_or("", |(name, _)| name)
    }
}

/// An emulated machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxSpec {
    /// Whose processors.
    pub vendor: Vendor,
    /// How many processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u64,
    /// NUMA nodes that processors and memory are spread over; 1 is none.
    pub numa: u32,
    /// Disk images (raw), seen by the parent as `/dev/disk/by-id/lab-disk0` and so on.
    pub disks: Vec<PathBuf>,
    /// More of them, `lab-scratch0` and so on: what the box writes there is forgotten when it ends.
    pub scratch: Vec<PathBuf>,
    /// Network cards. They reach nothing but the emulator itself.
    pub nics: Vec<Nic>,
    /// The model of its processors, by the emulator's name for it; none is the usual one.
    pub model: Option<String>,
    /// Processor features to add or take: `+name` or `-name`.
    pub cpu_flags: Vec<String>,
    /// The firmware has switched VMX off, for good (Intel).
    pub vmx_locked: bool,
    /// The clock counts instructions: one processor, repeatable, no good for input and output.
    pub icount: bool,
}

impl Default for BoxSpec {
    fn default() -> BoxSpec {
        BoxSpec {
            vendor: Vendor::Amd,
            cpus: 2,
            memory: 2048,
            numa: 1,
            disks: Vec::new(),
            scratch: Vec::new(),
            nics: Vec::new(),
            model: None,
            cpu_flags: Vec::new(),
            vmx_locked: false,
            icount: false,
        }
    }
}

impl BoxSpec {
    /// How long its parent may take to come up.
    pub fn boot_limit(&self) -> Duration {
        match self.vendor {
            Vendor::Amd => Duration::from_secs(180),
            Vendor::Intel => Duration::from_secs(900),
        }
    }

    /// How many times longer than usual its programs may take.
    pub fn patience(&self) -> u32 {
        match self.vendor {
            Vendor::Amd => 1,
            Vendor::Intel => 10,
        }
    }

    /// Says what is impossible about it.
    ///
    /// # Errors
    /// A sentence that names the first impossible thing.
    pub fn check(&self) -> Result<()> {
        ensure!((1..=255).contains(&self.cpus), "A box has 1 to 255 processors, not {}.", self.cpus);
        ensure!(self.memory >= 512, "A box needs at least 512M of memory, not {}M.", self.memory);
        ensure!(
            (1..=self.cpus).contains(&self.numa),
            "A box of {} processors has 1 to {} NUMA nodes, not {}.",
            self.cpus,
            self.cpus,
            self.numa
        );
        ensure!(!self.icount || self.cpus == 1, "With --icount a box has one processor; add --cpus 1.");
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if let Some(model) = &self.model {
            ensure!(is_name(model), "'{model}' is no model of processor, as in corei7_skylake_x.");
        }
        ensure!(
            !self.vmx_locked || self.vendor == Vendor::Intel,
            "Only an Intel box has VMX; write cpu=-svm for an AMD box without SVM."
        );
        for flag in &self.cpu_flags {
            let valid = is_name(flag.strip_prefix(['+', '-']).unwrap_or_default());
            ensure!(valid, "'{flag}' is no processor feature; write +name or -name, as in -svm.");
        }
        for disk in self.disks.iter().chain(&self.scratch) {
            ensure!(disk.is_file(), "The disk image {} is not there (or no file).", disk.display());
        }
        Ok(())
    }
}

impl FromStr for BoxSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<BoxSpec> {
        let mut spec = BoxSpec::default();
        if text.split(',').any(|part| part == "intel") {
            // One thread emulates all of them, so more are slower.
            spec.cpus = 1;
        }
        for part in text.split(',').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                None => spec.vendor = vendor(part)?,
                Some(("cpus", n)) => spec.cpus = number(part, n)?,
                Some(("memory", size)) => spec.memory = memory(size)?,
                Some(("numa", n)) => spec.numa = number(part, n)?,
                Some(("disk", path)) => spec.disks.push(path.into()),
                Some(("scratch", path)) => spec.scratch.push(path.into()),
                Some(("net", name)) => spec.nics.push(nic(name)?),
                Some(("model", name)) => spec.model = Some(name.to_owned()),
                Some(("cpu", flag)) => spec.cpu_flags.push(flag.to_owned()),
                Some(("vmx", "locked")) => spec.vmx_locked = true,
                Some((key, _)) => bail!(
                    "A box has no '{key}'. It is written as in \
                     amd,cpus=4,memory=4G,numa=2,disk=FILE,scratch=FILE,net=e1000e,cpu=-svm \
                     or intel,cpus=2,model=NAME,vmx=locked."
                ),
            }
        }
        Ok(spec)
    }
}

fn number(part: &str, digits: &str) -> Result<u32> {
    digits.parse().with_context(|| format!("'{part}' lacks a number after the equals sign."))
}

fn vendor(name: &str) -> Result<Vendor> {
    match name {
        "amd" => Ok(Vendor::Amd),
        "intel" => Ok(Vendor::Intel),
        _ => bail!("'{name}' is no processor vendor; there are amd and intel."),
    }
}

/// Reads the name of a network card.
///
/// # Errors
/// When there is no such card.
pub fn nic(name: &str) -> Result<Nic> {
    let found = Nic::ALL.iter().find(|(known, _)| *known == name);
    found
        .map(|(_, nic)| *nic)
        .with_context(|| format!("'{name}' is no network card; there are e1000, e1000e, igb and virtio."))
}

/// Reads a size as `512M` or `4G` and returns MiB; a bare number is MiB.
///
/// # Errors
/// When it is no such size.
pub fn memory(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..].to_ascii_uppercase()[..] {
        "" | "M" | "MB" | "MIB" => 1,
        "G" | "GB" | "GIB" => 1024,
        "T" | "TB" | "TIB" => 1024 * 1024,
        unit => bail!("'{unit}' is no unit of memory; write a size as in 512M or 4G."),
    };
    let number: u64 =
        digits.parse().with_context(|| format!("'{text}' is no size; write one as in 512M or 4G."))?;
    number.checked_mul(factor).with_context(|| format!("'{text}' is more memory than there can be."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_are_read() {
        let spec: BoxSpec = "amd,cpus=4,memory=4G,numa=2,net=e1000e,net=virtio,cpu=-svm".parse().unwrap();
        assert_eq!((spec.cpus, spec.memory, spec.numa), (4, 4096, 2));
        assert_eq!(spec.nics, [Nic::E1000e, Nic::Virtio]);
        assert_eq!(spec.cpu_flags, ["-svm"]);
        assert_eq!("".parse::<BoxSpec>().unwrap(), BoxSpec::default());
        let spec: BoxSpec = "intel,vmx=locked".parse().unwrap();
        assert!(spec.vmx_locked && spec.check().is_ok());
        assert!(BoxSpec { vendor: Vendor::Amd, ..spec }.check().is_err());
        let spec: BoxSpec = "intel,model=corei7_skylake_x".parse().unwrap();
        assert_eq!(
            (spec.vendor, spec.cpus, spec.model.as_deref()),
            (Vendor::Intel, 1, Some("corei7_skylake_x"))
        );
        assert_eq!("intel,cpus=2".parse::<BoxSpec>().unwrap().cpus, 2);
        spec.check().unwrap();
    }

    #[test]
    fn mistakes_are_explained() {
        for bad in ["arm", "cpus=x", "memory=4Q", "memory=", "net=token-ring", "colour=red", "numa=-1"] {
            let error = format!("{:#}", bad.parse::<BoxSpec>().unwrap_err());
            assert!(error.contains('\''), "{bad}: {error}");
        }
        assert!(memory("99999999999999999999G").is_err());
        assert!(memory("18446744073709551615T").is_err());
    }

    #[test]
    fn impossible_boxes_are_refused() {
        let with = |change: fn(&mut BoxSpec)| {
            let mut spec = BoxSpec::default();
            change(&mut spec);
            spec.check()
        };
        assert!(with(|_| {}).is_ok());
        assert!(with(|s| s.cpus = 0).is_err());
        assert!(with(|s| s.memory = 16).is_err());
        assert!(with(|s| s.numa = 3).is_err());
        assert!(with(|s| s.icount = true).is_err());
        assert!(with(|s| s.model = Some("x, count=9".into())).is_err());
        assert!(with(|s| s.cpu_flags = vec!["svm".into()]).is_err());
        assert!(with(|s| s.cpu_flags = vec!["-svm,hv=on".into()]).is_err());
        assert!(with(|s| s.disks = vec!["/no/such/file".into()]).is_err());
    }
}
