//! Writes initramfs archives: the "newc" cpio format that Linux unpacks
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const DEVICE: u32 = 0o020_000;

/// An archive being written. Everything in it belongs to root; parent directories come by themselves.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Archive {
        Archive::default()
    }

    /// Adds a directory (and its parents). Paths are relative to the root and have no leading slash.
    pub fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return;
        }
        self.parents(path);
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a regular file with these contents and permissions.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.parents(path);
        self.entry(path, REGULAR | (mode & 0o7777), (0, 0), contents);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, DEVICE | (mode & 0o7777), (major, minor), &[]);
    }

    /// Adds a whole directory tree below `to`, leaving out what `skip` says by its path in the tree.
    ///
    /// # Errors
    /// When something cannot be read, or is neither file, directory nor symbolic link.
    pub fn tree(&mut self, from: &Path, to: &str, skip: &dyn Fn(&str) -> bool) -> Result<()> {
        let mut entries = fs::read_dir(from)
            .with_context(|| format!("The directory {} cannot be read.", from.display()))?
            .collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let name = name
                .to_str()
                .with_context(|| format!("{} has a name that is not UTF-8.", entry.path().display()))?;
            let path = if to.is_empty() { name.to_owned() } else { format!("{to}/{name}") };
            if !skip(&path) {
                self.add(&entry.path(), &path, skip)
                    .with_context(|| format!("{} cannot be read.", entry.path().display()))?;
            }
        }
        Ok(())
    }

    fn add(&mut self, from: &Path, path: &str, skip: &dyn Fn(&str) -> bool) -> Result<()> {
        let metadata = fs::symlink_metadata(from)?;
        if metadata.is_dir() {
            self.directory(path);
            self.tree(from, path, skip)
        } else if metadata.is_symlink() {
            let target = fs::read_link(from)?;
            self.parents(path);
            self.entry(path, SYMLINK | 0o777, (0, 0), target.as_os_str().as_bytes());
            Ok(())
        } else if metadata.is_file() {
            self.file(path, metadata.permissions().mode(), &fs::read(from)?);
            Ok(())
        } else {
            bail!("It is of a kind that an archive does not take (mode {:o}).", metadata.mode())
        }
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Ends the archive and returns its bytes. Archives can be laid one after the other; later ones win.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn a_real_cpio_reads_what_was_written() {
        let mut archive = Archive::new();
        archive.file("a/b/hello", 0o640, b"hi");
        archive.symlink("a/link", "b/hello");
        archive.device("dev/console", 0o600, 5, 1);
        archive.directory("a");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        let mut cpio = Command::new("busybox");
        cpio.args(["cpio", "-tv"]);
        if !crate::tool::found("busybox") {
            cpio = Command::new("cpio");
            cpio.arg("-tv");
        }
        let mut child =
            cpio.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        assert_eq!(listing.lines().count(), 6, "{listing}");
        assert!(listing.contains("-rw-r-----") && listing.contains("a/b/hello"), "{listing}");
        assert!(listing.contains("a/link -> b/hello"), "{listing}");
        assert!(listing.lines().any(|l| l.starts_with("crw-------")), "{listing}");
    }

    #[test]
    fn trees_can_leave_things_out() {
        let base = std::env::temp_dir().join(format!("parterre-lab-cpio-{}", std::process::id()));
        fs::create_dir_all(base.join("keep")).unwrap();
        fs::write(base.join("keep/file"), "x").unwrap();
        fs::write(base.join("drop"), "y").unwrap();
        let mut archive = Archive::new();
        archive.tree(&base, "", &|path| path == "drop").unwrap();
        let text = String::from_utf8_lossy(&archive.finish()).into_owned();
        fs::remove_dir_all(&base).unwrap();
        assert!(text.contains("keep/file") && !text.contains("drop"));
        assert!(Archive::new().tree(Path::new("/no/such"), "", &|_| false).is_err());
    }
}
