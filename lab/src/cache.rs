//! Where the lab keeps what is dear to make: kernels, unpacked packages, and the directories of running boxes.
//!
//! Everything lies under `$XDG_CACHE_HOME/parterre` (or `~/.cache/parterre`) and can be deleted at any time when
//! no lab runs; the next run makes it again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::cleanup::Guard;

/// The cache directory, made if it is not there.
///
/// # Errors
/// When neither `XDG_CACHE_HOME` nor `HOME` says where it belongs, or it cannot be made.
pub fn root() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context(
            "Neither XDG_CACHE_HOME nor HOME is set; set one so that the lab knows where to keep its cache.",
        )?;
    directory(base.join("parterre"))
}

/// A directory of that name in the cache, made if it is not there.
///
/// # Errors
/// As [`root`].
pub fn sub(name: &str) -> Result<PathBuf> {
    directory(root()?.join(name))
}

fn directory(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| format!("The directory {} cannot be made.", path.display()))?;
    Ok(path)
}

/// A lock that keeps two labs from making the same thing at once; released when dropped or when the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of that name, waiting for whoever holds it.
    ///
    /// # Errors
    /// When the lock's file cannot be made.
    pub fn take(name: &str) -> Result<Lock> {
        let path = root()?.join(format!("{name}.lock"));
        let file =
            File::create(&path).with_context(|| format!("The lock {} cannot be made.", path.display()))?;
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("The lock {} cannot be taken.", path.display()))?;
        Ok(Lock { _file: file })
    }
}

/// The directory of one running box: sockets, logs, media. It goes when dropped; one that a killed lab left behind
/// is removed by the next lab that makes a directory, because nobody holds its lock any more.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: File,
    _guard: Guard,
}

impl RunDir {
    /// Makes a new directory, and removes those of labs that are no more.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn create() -> Result<RunDir> {
        let all = sub("run")?;
        let _one_at_a_time = Lock::take("run")?;
        remove_stale(&all);
        let path = (0u32..)
            .map(|n| all.join(format!("{}-{n}", std::process::id())))
            .find(|p| !p.exists())
            .context("No name is left for a run directory.")?;
        let path = directory(path)?;
        let lock = File::create(path.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let guard = Guard::directory(path.clone());
        Ok(RunDir { path, _lock: lock, _guard: guard })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn remove_stale(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let stale = match File::open(entry.path().join("lock")) {
            Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        };
        if stale {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A short name for exactly these contents: 16 hexadecimal digits of their SHA-256.
pub fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the directory `path` by letting `make` fill a neighbour of it, which gets the name only when complete; so
/// an interrupted run leaves nothing that looks finished. Does nothing when the directory is there.
///
/// # Errors
/// Those of `make` and of the file system.
pub fn complete(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    if part.exists() {
        fs::remove_dir_all(&part).with_context(|| format!("{} cannot be removed.", part.display()))?;
    }
    directory(part.clone())?;
    make(&part)?;
    fs::rename(&part, path).with_context(|| format!("{} cannot be put in place.", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_contents_apart() {
        assert_eq!(key([b"a".as_slice(), b"b"]), key([b"a".as_slice(), b"b"]));
        assert_ne!(key([b"ab".as_slice(), b""]), key([b"a".as_slice(), b"b"]));
        assert_eq!(key([]).len(), 16);
    }

    #[test]
    fn an_interrupted_directory_is_made_anew() {
        let base = std::env::temp_dir().join(format!("parterre-lab-cache-{}", std::process::id()));
        let path = base.join("thing");
        fs::create_dir_all(&base).unwrap();
        let failed = complete(&path, |p| {
            fs::write(p.join("half"), "").unwrap();
            anyhow::bail!("interrupted")
        });
        assert!(failed.is_err() && !path.exists());
        complete(&path, |p| Ok(fs::write(p.join("whole"), "")?)).unwrap();
        assert!(path.join("whole").exists() && !path.join("half").exists());
        complete(&path, |_| anyhow::bail!("must not be called")).unwrap();
        fs::remove_dir_all(&base).unwrap();
    }
}
