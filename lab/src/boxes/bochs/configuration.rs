//! A box as Bochs's configuration file describes it, and what it cannot be.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::boxes::BoxSpec;
use crate::boxes::spec::Nic;

/// A Haswell: VMX with EPT, unrestricted guests, VPID and the preemption timer, and x2APIC.
const MODEL: &str = "corei7_haswell_4770";
/// Instructions in a second of the box's time, about what Bochs emulates in a second of ours. The time-stamp counter counts
/// them; while all processors are halted time leaps to the next event.
const INSTRUCTIONS: u32 = 50_000_000;
/// What Bochs's memory can hold of a guest's (version 3.1).
const MOST_MEMORY: u64 = 8192;
/// Two IDE channels of two disks.
const MOST_DISKS: usize = 4;
const MOST_CARDS: usize = 4;
/// The geometry of every disk: its size must be a multiple of a cylinder, and this makes that 256 KiB.
const HEADS: u64 = 16;
const SECTORS: u64 = 32;
const SECTOR: u64 = 512;

/// The files that a box's hardware is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Firmware of 4 MiB, code and variables.
    pub firmware: &'a Path,
    /// The graphics card's ROM.
    pub video: &'a Path,
    /// The disks that are booted.
    pub boot: &'a [std::path::PathBuf],
    /// Where the serial ports' cables end: addresses.
    pub cables: &'a [String],
}

/// Says why a box cannot be had from Bochs.
///
/// # Errors
/// A sentence that names the first impossible thing.
pub fn check(spec: &BoxSpec) -> Result<()> {
    ensure!(
        spec.numa == 1,
        "Intel boxes have no NUMA nodes (Bochs has none); use an AMD box for {}.",
        spec.numa
    );
    ensure!(
        spec.memory <= MOST_MEMORY,
        "An Intel box has at most {MOST_MEMORY}M of memory (Bochs's limit), not {}M.",
        spec.memory
    );
    ensure!(spec.cpus <= 14, "An Intel box has at most 14 processors (Bochs's limit), not {}.", spec.cpus);
    if let Some(nic) = spec.nics.iter().find(|nic| **nic != Nic::E1000) {
        bail!("An Intel box has no network card {}; Bochs has e1000.", nic.name());
    }
    ensure!(spec.nics.len() <= MOST_CARDS, "An Intel box has at most {MOST_CARDS} network cards.");
    let disks = spec.disks.len() + spec.scratch.len();
    ensure!(
        disks < MOST_DISKS,
        "An Intel box has room for {} disks besides the one it boots.",
        MOST_DISKS - 1
    );
    Ok(())
}

/// Writes into `dir` what Bochs reads, and returns the configuration's text.
///
/// # Errors
/// When a disk is not there or has an impossible size.
pub fn write(spec: &BoxSpec, parts: &Parts<'_>, dir: &Path) -> Result<()> {
    check(spec)?;
    let mut lines = machine(spec, parts);
    let disks = parts.boot.iter().enumerate().map(|(n, disk)| (format!("lab-boot{n}"), disk, "flat"));
    let disks = disks
        .chain(spec.disks.iter().enumerate().map(|(n, disk)| (format!("lab-disk{n}"), disk, "flat")))
        .chain(
            spec.scratch.iter().enumerate().map(|(n, disk)| (format!("lab-scratch{n}"), disk, "volatile")),
        );
    for (place, (name, image, mode)) in disks.enumerate() {
        ensure!(place < MOST_DISKS, "An Intel box has at most {MOST_DISKS} disks, also those that it boots.");
        lines.push(disk(place, &name, image, mode, dir)?);
    }
    for (n, _) in spec.nics.iter().enumerate() {
        // Nothing but the emulator is reached.
        lines.push(format!(
            "e1000: card={n}, enabled=1, mac=52:54:00:12:34:{:02x}, ethmod=slirp, script={}",
            0x56 + n,
            quoted(&dir.join("network"))?
        ));
    }
    fs::write(dir.join("network"), "# slirp config\nrestricted = 1\n")?;
    lines.push(String::new());
    fs::write(dir.join("bochsrc"), lines.join("\n")).context("Bochs's configuration cannot be written.")
}

fn machine(spec: &BoxSpec, parts: &Parts<'_>) -> Vec<String> {
    let ports = parts.cables.iter().enumerate();
    let ports = ports.map(|(n, to)| format!("com{}: enabled=1, mode=socket-client, dev={to}", n + 1));
    let features = features(spec);
    let words = [
        "config_interface: textconfig".to_owned(),
        "display_library: term".to_owned(),
        "plugin_ctrl: parallel=0, gameport=0, speaker=0, iodebug=0".to_owned(),
        // A triple fault stops Bochs, which then says what the processor held. A quantum of 32 instructions is the largest.
        format!(
            "cpu: model={}, count={}, ips={INSTRUCTIONS}, quantum=32, reset_on_triple_fault=0, cpuid_freq=ips{features}",
            spec.model.as_deref().unwrap_or(MODEL),
            spec.cpus
        ),
        format!("memory: guest={0}, host={0}", spec.memory),
        format!("romimage: file=\"{}\", address=0xffc00000", parts.firmware.display()),
        "fw_cfg: enabled=1".to_owned(),
        format!("vgaromimage: file=\"{}\"", parts.video.display()),
        "vga: extension=vbe, update_freq=1".to_owned(),
        "pci: enabled=1, chipset=i440fx, advopts=nofdc".to_owned(),
        "floppya: type=none".to_owned(),
        "boot: disk".to_owned(),
        "clock: sync=none, time0=utc".to_owned(),
        "panic: action=fatal".to_owned(),
        "error: action=report".to_owned(),
        "info: action=report".to_owned(),
        "log: /dev/stdout".to_owned(),
    ];
    words.into_iter().chain(ports).collect()
}

/// Processor features added and taken, by Bochs's names for them.
fn features(spec: &BoxSpec) -> String {
    let with = |sign: char| {
        let names: Vec<&str> = spec.cpu_flags.iter().filter_map(|flag| flag.strip_prefix(sign)).collect();
        names.join(" ")
    };
    let option = |name: &str, list: String| {
        if list.is_empty() { String::new() } else { format!(", {name}=\"{list}\"") }
    };
    option("add_features", with('+')) + &option("exclude_features", with('-'))
}

fn disk(place: usize, name: &str, image: &Path, mode: &str, dir: &Path) -> Result<String> {
    let size = fs::metadata(image).with_context(|| format!("{} cannot be read.", image.display()))?.len();
    let cylinder = HEADS * SECTORS * SECTOR;
    ensure!(
        size > 0 && size.is_multiple_of(cylinder),
        "{} has {size} bytes; a disk of an Intel box has a multiple of {} KiB. Make it longer with truncate.",
        image.display(),
        cylinder >> 10
    );
    let unit = if place.is_multiple_of(2) { "master" } else { "slave" };
    let redo = if mode == "volatile" {
        format!(", journal={}", quoted(&dir.join(format!("{name}.redo")))?)
    } else {
        String::new()
    };
    Ok(format!(
        "ata{}-{unit}: type=disk, mode={mode}, path={}, cylinders={}, heads={HEADS}, spt={SECTORS}, model=\"{name}\"{redo}",
        place / 2,
        quoted(image)?,
        size / cylinder
    ))
}

/// A file's name as the configuration takes it.
fn quoted(path: &Path) -> Result<String> {
    let path = path.to_str().filter(|path| !path.contains('"'));
    Ok(format!(
        "\"{}\"",
        path.context("Bochs takes no file name with quotation marks in it, or that is not UTF-8.")?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn intel(rest: &str) -> BoxSpec {
        format!("intel,{rest}").parse().unwrap()
    }

    #[test]
    fn what_bochs_has_not_is_refused_in_a_sentence() {
        check(&intel("cpus=2,net=e1000")).unwrap();
        for (spec, word) in [
            ("cpus=2,numa=2", "NUMA"),
            ("net=igb", "igb"),
            ("memory=16G", "8192M"),
            ("cpus=64", "14 processors"),
            ("disk=a,disk=b,scratch=c,scratch=d", "disks"),
        ] {
            let error = check(&intel(spec)).unwrap_err().to_string();
            assert!(error.contains(word), "{spec}: {error}");
        }
    }

    #[test]
    fn the_configuration_describes_the_box() {
        let dir = std::env::temp_dir().join(format!("parterre-lab-bochs-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let image = dir.join("boot0.img");
        fs::File::create(&image).unwrap().set_len(3 << 20).unwrap();
        let boot = [image.clone()];
        let parts = Parts {
            firmware: Path::new("/f"),
            video: Path::new("/v"),
            boot: &boot,
            cables: &["127.0.0.1:1".into(), "127.0.0.1:2".into()],
        };
        let spec =
            BoxSpec { scratch: vec![image.clone()], ..intel("cpus=2,cpu=-nx,cpu=-vmx,cpu=+smap,net=e1000") };
        write(&spec, &parts, &dir).unwrap();
        let text = fs::read_to_string(dir.join("bochsrc")).unwrap();
        for line in [
            "exclude_features=\"nx vmx\"",
            "add_features=\"smap\"",
            "count=2",
            "com2: enabled=1, mode=socket-client, dev=127.0.0.1:2",
            "cylinders=12, heads=16, spt=32, model=\"lab-boot0\"",
            "ata0-slave: type=disk, mode=volatile",
            "e1000: card=0",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        fs::File::create(&image).unwrap().set_len(1000).unwrap();
        assert!(write(&spec, &parts, &dir).unwrap_err().to_string().contains("1000 bytes"));
        let missing = BoxSpec { disks: vec![PathBuf::from("/no/such/disk")], ..spec };
        assert!(write(&missing, &parts, &dir).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
