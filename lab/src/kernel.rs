//! The parent's kernel: upstream Linux from the newest `linux-source-*` package, with the configuration in
//! `lab/kernel/parent.config`. Built once per version and configuration, then kept in the cache.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail};

use crate::progress::Step;
use crate::{bundle, cache, progress, tool};

const CONFIGURATION: &str = include_str!("../kernel/parent.config");
/// The first version whose root partition driver has all that Parterre's stack uses.
const OLDEST: (u32, u32) = (6, 18);
/// Without these there is no point in going on.
const REQUIRED: [&str; 5] = [
    "CONFIG_MSHV_ROOT=y",
    "CONFIG_SMP=y",
    "CONFIG_EFI_STUB=y",
    "CONFIG_VIRTIO_CONSOLE=y",
    "CONFIG_BLK_DEV_NVME=y",
];

/// A kernel that is ready to boot.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// Its version, as the package names it.
    pub version: String,
}

/// The parent's kernel, built if the cache has none of this configuration.
///
/// # Errors
/// When the source cannot be fetched or built.
pub fn parent() -> Result<Kernel> {
    let key = cache::key([CONFIGURATION.as_bytes()]);
    let kernels = cache::sub("kernels")?;
    // Not behind a lab that builds another one.
    if let Some(kernel) = newest_built(&kernels, &key) {
        return Ok(kernel);
    }
    let _lock = cache::Lock::take("kernel")?;
    if let Some(kernel) = newest_built(&kernels, &key) {
        return Ok(kernel);
    }
    progress::step("Building the parent's kernel (once; minutes)", |step| {
        step.at("fetching the source");
        let suite = bundle::From::Newest.open()?;
        let package = newest_source(&suite.names("^linux-source-[0-9.]+$")?)?;
        let version = suite.version(&package)?;
        let place = kernels.join(format!("{version}-{key}"));
        cache::complete(&place, |part| {
            suite.unpack(&[&package], false, &part.join("package"))?;
            build(&part.join("package"), part, step)
        })?;
        newest_built(&kernels, &key).context("The kernel was built, but its image is not in the cache.")
    })
}

/// Forgets all kernels, so that the next use builds the newest.
///
/// # Errors
/// When a directory cannot be removed.
pub fn refresh() -> Result<()> {
    let all = cache::sub("kernels")?;
    fs::remove_dir_all(&all).with_context(|| format!("{} cannot be removed.", all.display()))
}

fn newest_built(kernels: &Path, key: &str) -> Option<Kernel> {
    let suffix = format!("-{key}");
    let mut found: Vec<(Vec<u32>, Kernel)> = fs::read_dir(kernels)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_suffix(&suffix)?.to_owned();
            let image = entry.path().join("vmlinuz");
            image.exists().then(|| (numbers(&version), Kernel { image, version }))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.pop().map(|(_, kernel)| kernel)
}

/// The numbers in a version, for comparing: `7.2.13-1` is `[7, 2, 13, 1]`.
fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

fn newest_source(packages: &[String]) -> Result<String> {
    let version = |p: &String| numbers(p.trim_start_matches("linux-source-"));
    let newest = packages.iter().max_by_key(|p| version(p)).context(
        "The newest suite of the distribution has no linux-source package; check the machine's apt configuration.",
    )?;
    if version(newest) < vec![OLDEST.0, OLDEST.1] {
        bail!(
            "The newest kernel source is {newest}, but the parent needs Linux {}.{} or newer.",
            OLDEST.0,
            OLDEST.1
        );
    }
    Ok(newest.clone())
}

/// Builds in `place` and leaves `vmlinuz`, `config` and `System.map` there, nothing else.
fn build(package: &Path, place: &Path, step: &Step) -> Result<()> {
    step.at("unpacking the source");
    let archive = fs::read_dir(package.join("usr/src"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "xz"))
        .context("The kernel's source package holds no archive.")?;
    let source = place.join("source");
    fs::create_dir_all(&source)?;
    tool::output(
        Command::new("tar").args(["-x", "--strip-components=1", "-f"]).arg(&archive).arg("-C").arg(&source),
    )?;
    fs::remove_dir_all(package)?;

    step.at("configuring");
    let fragment = place.join("parent.config");
    fs::write(&fragment, CONFIGURATION)?;
    tool::output(make(&source).arg(format!("KCONFIG_ALLCONFIG={}", fragment.display())).arg("allnoconfig"))?;
    let config = fs::read_to_string(source.join(".config"))?;
    check(&config)?;

    compile(&source, step)?;
    fs::rename(source.join("arch/x86/boot/bzImage"), place.join("vmlinuz"))?;
    fs::rename(source.join("System.map"), place.join("System.map"))?;
    fs::write(place.join("config"), config)?;
    fs::remove_dir_all(&source)?;
    Ok(())
}

fn make(source: &Path) -> Command {
    let mut command = Command::new("nice");
    command.args(["make", "--silent", "-C"]).arg(source);
    // An image of the same source and configuration is the same, whoever builds it.
    command.env("KBUILD_BUILD_USER", "lab").env("KBUILD_BUILD_HOST", "parterre").env("LC_ALL", "C");
    command
}

fn compile(source: &Path, step: &Step) -> Result<()> {
    let log = source.join("build.log");
    let jobs = available_parallelism().map_or(1, usize::from);
    let mut child = Command::new("nice")
        .args(["make", "-C"])
        .arg(source)
        .arg(format!("-j{jobs}"))
        .arg("bzImage")
        .env("KBUILD_BUILD_USER", "lab")
        .env("KBUILD_BUILD_HOST", "parterre")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&log)?)
        .spawn()
        .context("'make' cannot be run.")?;
    let lines = BufReader::new(child.stdout.take().context("The output of 'make' cannot be read.")?).lines();
    for (count, line) in lines.map_while(Result::ok).enumerate() {
        step.at(&format!("{count} files, {}", line.trim()));
    }
    if !child.wait()?.success() {
        let said = fs::read_to_string(&log).unwrap_or_default();
        bail!("The kernel does not build. The compiler said:\n{}", tool::tail(&said, 20));
    }
    Ok(())
}

/// Fails when something indispensable is off; names what else of the fragment the kernel did not take.
fn check(config: &str) -> Result<()> {
    let missing = dropped(config);
    if let Some(required) = REQUIRED.iter().find(|r| missing.contains(r)) {
        bail!(
            "The kernel's configuration did not take {required}; lab/kernel/parent.config needs an update."
        );
    }
    if !missing.is_empty() {
        eprintln!("note: this kernel does not know (or allow) {}", missing.join(", "));
    }
    Ok(())
}

/// The settings of the fragment that are not so in the finished configuration.
fn dropped(config: &str) -> Vec<&'static str> {
    let on: std::collections::HashSet<&str> = config.lines().collect();
    CONFIGURATION
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|line| match line.strip_suffix("=n") {
            Some(name) => on.contains(format!("{name}=y").as_str()),
            None => !on.contains(line),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_source_is_taken_by_number() {
        let names = ["linux-source-6.12", "linux-source-7.2", "linux-source-6.9"].map(String::from);
        assert_eq!(newest_source(&names).unwrap(), "linux-source-7.2");
        assert_eq!(numbers("6.18.4~rc1-1"), [6, 18, 4, 1, 1]);
        assert!(newest_source(&[]).is_err());
        let error = newest_source(&["linux-source-6.12".into()]).unwrap_err();
        assert!(format!("{error}").contains("6.18"));
    }

    #[test]
    fn settings_that_were_not_taken_are_named() {
        let whole: String =
            CONFIGURATION.lines().filter(|l| !l.ends_with("=n")).map(|l| format!("{l}\n")).collect();
        assert_eq!(dropped(&whole), Vec::<&str>::new());
        let without = whole.replace("CONFIG_MSHV_ROOT=y\n", "");
        assert_eq!(dropped(&without), ["CONFIG_MSHV_ROOT=y"]);
        assert!(check(&without).is_err());
        assert!(dropped(&format!("{whole}CONFIG_HYPERV_VMBUS=y\n")).contains(&"CONFIG_HYPERV_VMBUS=n"));
    }
}
