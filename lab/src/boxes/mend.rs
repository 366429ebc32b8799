//! A copy of QEMU's program without a defect that resets boxes with several processors.
//!
//! Wherever any emulated processor loads x87 state (FXRSTOR, XRSTOR), QEMU's `cpu_clear_ignne` clears a flag of the *first*
//! processor in the word that also says whether nested paging is on (`hflags2`). It does so without a lock, so the word may
//! be put back to what it was before a #VMEXIT on that processor: nested paging stays on in the hypervisor, whose next
//! fetch then fails. Found in QEMU 10.0 and 11.1 with a log of the word's values around each #VMEXIT. The flag itself
//! (IGNNE#) only has a meaning for software that handles x87 errors as the first PCs did, so the copy leaves it alone.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::bundle::Bundle;
use crate::cache;

/// The instruction's address: CALL (of the cast to the processor's type) has five bytes and gives a pointer in RAX.
const CALL: u8 = 0xe8;
const CALL_BYTES: usize = 5;
/// `and dword ptr [rax + displacement], ~0x80`: 0x80 is QEMU's `HF2_IGNNE_MASK`.
const AND: [u8; 2] = [0x81, 0xa0];
const MASK: [u8; 4] = (!0x80_u32).to_le_bytes();
const AND_BYTES: usize = 10;
/// A no-operation of the same length (Intel SDM 2, NOP; the prefixes make it longer).
const NOTHING: [u8; AND_BYTES] = [0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0];

/// The path in the bundle of a program that is like `program` without the defect, made if it is not there. A program in
/// which the defect cannot be found is used as it is, and the user is told.
///
/// # Errors
/// When the program cannot be read or its copy not written.
pub fn program(bundle: &Bundle, program: &str) -> Result<String> {
    let mended = format!("{program}-mended");
    let _lock = cache::Lock::take("qemu-mended")?;
    let copy = bundle.root().join(&mended);
    if !copy.exists() {
        let original = bundle.file(program)?;
        let mut bytes =
            fs::read(&original).with_context(|| format!("{} cannot be read.", original.display()))?;
        if let Some(place) = defect(&bytes) {
            bytes[place].copy_from_slice(&NOTHING);
        } else {
            eprintln!(
                "QEMU's known defect is not where it was in earlier versions (see lab/src/boxes/mend.rs). If it is \
                 still in this one, boxes with several processors may reset by themselves."
            );
        }
        write_program(&copy, &bytes).with_context(|| format!("{} cannot be written.", copy.display()))?;
    }
    Ok(mended)
}

/// Writes a program so that it is there whole or not at all.
///
/// # Errors
/// Those of the file system.
pub fn write_program(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, bytes)?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(&part, path)?)
}

/// Where the instruction lies, if there is just one that looks like it.
fn defect(program: &[u8]) -> Option<Range<usize>> {
    let length = CALL_BYTES + AND_BYTES;
    let mut found = program.windows(length).enumerate().filter(|(_, window)| {
        let (call, and) = window.split_at(CALL_BYTES);
        call[0] == CALL && and.starts_with(&AND) && and.ends_with(&MASK)
    });
    let (at, _) = found.next()?;
    found.next().is_none().then_some(at + CALL_BYTES..at + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLED: [u8; 15] = [0xe8, 1, 2, 3, 4, 0x81, 0xa0, 0xa4, 0x41, 0, 0, 0x7f, 0xff, 0xff, 0xff];

    #[test]
    fn the_instruction_is_found_behind_a_call_only() {
        let mut program = vec![0x90; 100];
        assert_eq!(defect(&program), None);
        program[40..55].copy_from_slice(&CALLED);
        assert_eq!(defect(&program), Some(45..55));
        program[40] = 0x90;
        assert_eq!(defect(&program), None);
    }

    #[test]
    fn nothing_is_replaced_when_there_are_two() {
        assert_eq!(defect(&[CALLED, CALLED].concat()), None);
    }
}
