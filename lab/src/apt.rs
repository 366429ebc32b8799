//! Packages of newer (or older) suites than the machine's own, without touching the machine.
//!
//! For each suite there is a private apt state in the cache. Its one source is the archive that the machine's own
//! apt configuration names for the machine's own release, with another suite in its place; apt itself verifies the
//! signatures. Packages are downloaded and unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::{cache, tool};

/// How old a suite's package lists may be before they are fetched again.
const LISTS_FRESH: Duration = Duration::from_secs(24 * 3600);

/// What the machine runs, from `/etc/os-release`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// `debian` or `ubuntu`.
    pub id: String,
    /// The release's code name, as it is named in the archive.
    pub codename: String,
}

impl Distribution {
    /// The machine's own.
    ///
    /// # Errors
    /// When the machine is neither Debian nor Ubuntu, nor one of their kin.
    pub fn of_this_machine() -> Result<Distribution> {
        let text = fs::read_to_string("/etc/os-release").context("/etc/os-release cannot be read.")?;
        Distribution::parse(&text).context(
            "This machine is neither Debian nor Ubuntu (see /etc/os-release). The lab takes its tools from their \
             packages; run it on such a machine or in such a container.",
        )
    }

    fn parse(os_release: &str) -> Option<Distribution> {
        let field = |name: &str| {
            let line = os_release.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='))?;
            Some(line.trim_matches('"').to_owned())
        };
        let id = field("ID")?;
        let codename = field("VERSION_CODENAME").unwrap_or_else(|| "sid".into());
        matches!(id.as_str(), "debian" | "ubuntu").then_some(Distribution { id, codename })
    }

    /// The suite that holds the newest packages.
    pub fn newest(&self) -> &'static str {
        if self.id == "ubuntu" { "devel" } else { "sid" }
    }

    /// The suite of the present stable release.
    pub fn stable(&self) -> &'static str {
        if self.id == "ubuntu" { "noble" } else { "trixie" }
    }

    /// The suite of the oldest guest that is supported.
    pub fn oldest(&self) -> &'static str {
        if self.id == "ubuntu" { "jammy" } else { "bookworm" }
    }
}

/// The archive among the machine's sources that carries the machine's own release. `uris` is what
/// `apt-get update --print-uris` prints; third parties also name their suites after the release, so the one that
/// carries its updates too is preferred.
fn archive(uris: &str, distribution: &Distribution) -> Option<String> {
    let sources: Vec<(&str, &str)> = uris
        .lines()
        .filter_map(|line| line.strip_prefix('\'')?.split('\'').next())
        .filter_map(|uri| uri.strip_suffix("/InRelease")?.rsplit_once("/dists/"))
        .collect();
    let carries = |base: &str, suite: &str| sources.iter().any(|(b, s)| *b == base && *s == suite);
    let updates = format!("{}-updates", distribution.codename);
    let mut own = sources.iter().filter(|(_, suite)| *suite == distribution.codename).map(|(base, _)| *base);
    let rest: Vec<&str> = own.by_ref().collect();
    rest.iter()
        .find(|base| carries(base, &updates))
        .or_else(|| rest.iter().find(|base| base.trim_end_matches('/').ends_with(&distribution.id)))
        .or_else(|| rest.first())
        .map(|base| (*base).to_owned())
}

/// The private apt state for one suite.
#[derive(Debug)]
pub struct Suite {
    name: String,
    home: PathBuf,
}

impl Suite {
    /// Opens the suite's state, making it and fetching its package lists when it is new or older than a day.
    ///
    /// # Errors
    /// When the machine's apt configuration names no archive of its release, or the lists cannot be fetched and
    /// there are no older ones.
    pub fn open(distribution: &Distribution, suite: &str) -> Result<Suite> {
        let _lock = cache::Lock::take(&format!("apt-{suite}"))?;
        let this = Suite { name: suite.to_owned(), home: cache::sub(&format!("apt/{suite}"))? };
        this.write_configuration(distribution)?;
        let stamp = this.home.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|t| SystemTime::now().duration_since(t).ok());
        if age.is_none_or(|age| age > LISTS_FRESH) {
            match this.run("apt-get", &["update", "--quiet"]) {
                Ok(_) => fs::write(&stamp, "")?,
                Err(e) if age.is_none() => {
                    return Err(e.context(format!("The package lists of '{suite}' cannot be fetched.")));
                }
                Err(_) => {} // Yesterday's lists do when there is no network today.
            }
        }
        Ok(this)
    }

    /// The suite's name in the archive.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that names the suite's archive for apt.
    pub fn sources(&self) -> PathBuf {
        self.home.join("lab.sources")
    }

    fn write_configuration(&self, distribution: &Distribution) -> Result<()> {
        for dir in ["none", "state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.home.join(dir))?;
        }
        let uris = tool::output(Command::new("apt-get").args(["update", "--print-uris"]))?;
        let archive = archive(&uris, distribution).with_context(|| {
            format!(
                "The machine's apt configuration names no archive for '{}'. Add the distribution's archive to \
                 /etc/apt/sources.list.",
                distribution.codename
            )
        })?;
        let keyring = format!("/usr/share/keyrings/{}-archive-keyring.gpg", distribution.id);
        let signed =
            if Path::new(&keyring).exists() { format!("Signed-By: {keyring}\n") } else { String::new() };
        let source =
            format!("Types: deb\nURIs: {archive}\nSuites: {}\nComponents: main\n{signed}", self.name);
        fs::write(self.home.join("lab.sources"), source)?;
        let home = self.home.display();
        let configuration = format!(
            "Dir::State \"{home}/state\";\nDir::State::status \"{home}/state/status\";\nDir::Cache \"{home}/cache\";\n\
             Dir::Etc::sourcelist \"{home}/lab.sources\";\nDir::Etc::sourceparts \"{home}/none\";\n\
             Dir::Etc::preferences \"{home}/none/preferences\";\nDir::Etc::preferencesparts \"{home}/none\";\n\
             APT::Install-Recommends \"false\";\nAPT::Sandbox::User \"\";\nAcquire::Languages \"none\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
        );
        fs::write(self.home.join("apt.conf"), configuration)?;
        let status = self.home.join("state/status");
        if !status.exists() {
            fs::write(status, "")?;
        }
        Ok(())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        tool::output(
            Command::new(program)
                .env("APT_CONFIG", self.home.join("apt.conf"))
                .env("LC_ALL", "C")
                .args(arguments),
        )
    }

    /// The names of the packages that match a regular expression, in apt's order.
    ///
    /// # Errors
    /// When apt fails.
    pub fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let found = self.run("apt-cache", &["search", "--names-only", pattern])?;
        Ok(found.lines().filter_map(|line| line.split(" - ").next()).map(str::to_owned).collect())
    }

    /// The version that would be fetched of a package.
    ///
    /// # Errors
    /// When the suite has no such package.
    pub fn version(&self, package: &str) -> Result<String> {
        let shown = self.run("apt-cache", &["show", "--no-all-versions", package])?;
        let version = shown.lines().find_map(|line| line.strip_prefix("Version: "));
        version
            .map(str::to_owned)
            .with_context(|| format!("The suite '{}' has no package '{package}'.", self.name))
    }

    /// Downloads packages and unpacks them into `to`; with `all`, also everything that they depend on.
    ///
    /// # Errors
    /// When a package is not in the suite or cannot be fetched or unpacked.
    pub fn unpack(&self, packages: &[&str], all: bool, to: &Path) -> Result<()> {
        let archives = to.with_extension("archives");
        let _ = fs::remove_dir_all(&archives);
        fs::create_dir_all(archives.join("partial"))?;
        let result = self.fetch(packages, all, &archives).and_then(|()| unpack_all(&archives, to));
        let _ = fs::remove_dir_all(&archives);
        result.with_context(|| format!("Fetching {} from '{}' failed.", packages.join(", "), self.name))
    }

    fn fetch(&self, packages: &[&str], all: bool, archives: &Path) -> Result<()> {
        if all {
            let place = format!("Dir::Cache::archives={}", archives.display());
            let mut arguments = vec!["install", "--yes", "--quiet", "--download-only", "-o", &place];
            arguments.extend(packages);
            return self.run("apt-get", &arguments).map(drop);
        }
        let mut arguments = vec!["download", "--quiet"];
        arguments.extend(packages);
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", self.home.join("apt.conf")).current_dir(archives).args(arguments);
        tool::output(&mut command).map(drop)
    }
}

/// Whether this machine's apt refuses what an archive signed too long ago: some mirrors lag behind, on purpose.
///
/// # Errors
/// When apt cannot be run.
pub fn checks_age() -> Result<bool> {
    let said =
        tool::output(Command::new("apt-config").args(["shell", "CHECKS", "Acquire::Check-Valid-Until/b"]))?;
    Ok(said.trim() != "CHECKS='false'")
}

fn unpack_all(archives: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut packages = 0;
    for entry in fs::read_dir(archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            tool::output(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(to))?;
            packages += 1;
        }
    }
    if packages == 0 {
        bail!("apt downloaded no package.");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian() -> Distribution {
        Distribution { id: "debian".into(), codename: "bookworm".into() }
    }

    #[test]
    fn distributions_are_recognized() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(Distribution::parse(text), Some(debian()));
        assert_eq!(Distribution::parse("ID=\"ubuntu\"\nVERSION_CODENAME=noble").unwrap().newest(), "devel");
        assert_eq!(Distribution::parse("ID=fedora\nVERSION_CODENAME=x"), None);
        assert_eq!(Distribution::parse(""), None);
    }

    #[test]
    fn the_releases_own_archive_is_found_among_third_parties() {
        let uris = "\
'https://third.example/linux/debian/dists/bookworm/InRelease' third 0 
'http://archive.example/debian/dists/bookworm/InRelease' archive 0 
'http://archive.example/debian/dists/bookworm-updates/InRelease' archive 0 
'http://archive.example/debian-security/dists/bookworm-security/InRelease' archive 0 
";
        assert_eq!(archive(uris, &debian()).as_deref(), Some("http://archive.example/debian"));
    }

    #[test]
    fn an_archive_without_updates_will_do() {
        let uris = "'http://other.example/x/dists/bookworm/InRelease' a 0 \n\
                    'http://archive.example/debian/dists/bookworm/InRelease' a 0 \n";
        assert_eq!(archive(uris, &debian()).as_deref(), Some("http://archive.example/debian"));
        assert_eq!(archive("'http://x.example/d/dists/trixie/InRelease' a 0", &debian()), None);
        assert_eq!(archive("nonsense\n'", &debian()), None);
    }
}
