//! Tests of `parterre.efi` as a file: its size, and that it holds no instruction that would touch the guest's
//! vector state.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::Tally;
use crate::{build, tool};

/// The budget for the whole image, in bytes.
const SIZE: u64 = 400 << 10;

/// Builds the image and looks at it.
///
/// # Errors
/// When the image does not build.
pub fn run() -> Result<Tally> {
    let image = build::hypervisor()?.image;
    let mut tally = Tally::default();
    for (name, check) in [
        ("image::it-is-small", small as fn(&Path) -> Result<()>),
        ("image::it-leaves-vector-registers-alone", no_vectors),
    ] {
        let begun = Instant::now();
        tally.count(name, begun.elapsed(), &check(&image));
    }
    Ok(tally)
}

fn small(image: &Path) -> Result<()> {
    let size = std::fs::metadata(image)?.len();
    ensure!(size < SIZE, "The image has {} KiB, the budget is {} KiB.", size / 1024, SIZE / 1024);
    Ok(())
}

fn no_vectors(image: &Path) -> Result<()> {
    let listing =
        tool::output(Command::new("objdump").args(["--disassemble", "--no-show-raw-insn"]).arg(image))?;
    ensure!(listing.lines().count() > 1000, "objdump found no code in {}.", image.display());
    let found: Vec<&str> = listing.lines().filter(|line| uses_vectors(line)).take(5).collect();
    ensure!(found.is_empty(), "The image holds instructions on vector registers:\n{}", found.join("\n"));
    Ok(())
}

fn uses_vectors(line: &str) -> bool {
    ["%xmm", "%ymm", "%zmm", "%mm"].iter().any(|register| line.contains(register))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_registers_are_recognized() {
        assert!(uses_vectors("  10: movups (%rsi),%xmm0"));
        assert!(uses_vectors("  10: movq %mm0,%rax"));
        assert!(!uses_vectors("  10: mov (%rsi),%rax"));
        assert!(!uses_vectors("  10: call 140001000 <memmove>"));
    }
}
