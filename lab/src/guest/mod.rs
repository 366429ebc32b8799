//! Guests for child partitions: Debian's stock cloud kernels, and a small initramfs of busybox with the kernel's modules
//! for the devices that a guest may have, and whole Debian systems.

mod initrd;
mod kernel;
mod modules;
mod system;

pub use initrd::initrd;
pub use kernel::kernel;
pub use system::system;

use std::path::PathBuf;

use anyhow::{Result, ensure};

fn existing(file: &str) -> Result<PathBuf> {
    let path = PathBuf::from(file);
    ensure!(path.is_file(), "The file {file} is not there.");
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_must_be_there() {
        assert!(kernel("/no/such/kernel").is_err());
        assert!(initrd("/no/such/initrd", "newest").is_err());
    }
}
