//! A copy of Bochs's program in which 64-bit IDIV divides.
//!
//! Bochs divides signed numbers of 128 bits by handing them to the unsigned division as another type. Compilers that
//! assume strict aliasing drop the copy of the dividend's low half (Debian's build of 3.1 does): the quotient is that of
//! whatever lay on the stack, and Linux divides by zero when it registers its first clock source. The function is an
//! exported symbol, so the copy gets another body for it, which is correct whatever the compiler did.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result};
use goblin::elf::Elf;

use super::PROGRAM;
use crate::boxes::mend::write_program;
use crate::bundle::Bundle;
use crate::cache;

/// `long_idiv(Bit128s *quotient, Bit64s *remainder, const Bit128s *dividend, Bit64s divisor)`, as C++ mangles it.
const SYMBOL: &str = "_Z9long_idivP7Bit128sPlPKS_l";

/// Its new body. The caller has made sure that the divisor is not zero, so neither DIV can fault: the second one's high half is
/// the remainder of the first.
///
/// ```text
///    endbr64
///    mov  r9, rcx            ; the divisor with its sign
///    mov  r11, [rdx]         ; the dividend: low half
///    mov  rax, [rdx + 8]     ;               high half
///    mov  r10, rax           ; its sign
///    test rax, rax
///    jns  1f
///    neg  r11                ; its absolute value
///    adc  rax, 0
///    neg  rax
/// 1: neg  rcx                ; the divisor's
///    cmovs rcx, r9
///    xor  edx, edx
///    div  rcx                ; the quotient's high half
///    mov  r8, rax
///    mov  rax, r11
///    div  rcx                ; its low half, and the remainder
///    test r10, r10
///    jns  2f
///    neg  rdx                ; a remainder has the dividend's sign
/// 2: mov  [rsi], rdx
///    xor  r9, r10
///    jns  3f
///    neg  rax                ; the signs differ
///    adc  r8, 0
///    neg  r8
/// 3: mov  [rdi], rax
///    mov  [rdi + 8], r8
///    ret
/// ```
const BODY: [u8; 87] = [
    0xf3, 0x0f, 0x1e, 0xfa, 0x49, 0x89, 0xc9, 0x4c, 0x8b, 0x1a, 0x48, 0x8b, 0x42, 0x08, 0x49, 0x89, 0xc2,
    0x48, 0x85, 0xc0, 0x79, 0x0a, 0x49, 0xf7, 0xdb, 0x48, 0x83, 0xd0, 0x00, 0x48, 0xf7, 0xd8, 0x48, 0xf7,
    0xd9, 0x49, 0x0f, 0x48, 0xc9, 0x31, 0xd2, 0x48, 0xf7, 0xf1, 0x49, 0x89, 0xc0, 0x4c, 0x89, 0xd8, 0x48,
    0xf7, 0xf1, 0x4d, 0x85, 0xd2, 0x79, 0x03, 0x48, 0xf7, 0xda, 0x48, 0x89, 0x16, 0x4d, 0x31, 0xd1, 0x79,
    0x0a, 0x48, 0xf7, 0xd8, 0x49, 0x83, 0xd0, 0x00, 0x49, 0xf7, 0xd8, 0x48, 0x89, 0x07, 0x4c, 0x89, 0x47,
    0x08, 0xc3,
];

/// The path in the bundle of a Bochs that divides, made if it is not there. A program in which the function cannot be found
/// is used as it is, and the user is told.
///
/// # Errors
/// When the program cannot be read or its copy not written.
pub fn program(bundle: &Bundle) -> Result<String> {
    let mended = format!("{PROGRAM}-mended");
    let _lock = cache::Lock::take("bochs-mended")?;
    let copy = bundle.root().join(&mended);
    if !copy.exists() {
        let original = bundle.file(PROGRAM)?;
        let mut bytes =
            fs::read(&original).with_context(|| format!("{} cannot be read.", original.display()))?;
        if let Some(place) = function(&bytes) {
            bytes[place].copy_from_slice(&BODY);
        } else {
            eprintln!(
                "Bochs's signed division is not where it was in version 3.1 (see lab/src/boxes/bochs/mend.rs). If it is \
                 still wrong, Linux ends with \"divide error\" in an Intel box."
            );
        }
        write_program(&copy, &bytes).with_context(|| format!("{} cannot be written.", copy.display()))?;
    }
    Ok(mended)
}

/// Where the function's first bytes lie in the file, if it is there and has the room.
fn function(program: &[u8]) -> Option<Range<usize>> {
    let elf = Elf::parse(program).ok()?;
    let symbol = elf.dynsyms.iter().find(|symbol| elf.dynstrtab.get_at(symbol.st_name) == Some(SYMBOL))?;
    let in_segment =
        |at: u64, start: u64, length: u64| at.checked_sub(start).filter(|offset| *offset < length);
    let start = elf.program_headers.iter().find_map(|segment| {
        let offset = in_segment(symbol.st_value, segment.p_vaddr, segment.p_filesz)?;
        usize::try_from(segment.p_offset.checked_add(offset)?).ok()
    })?;
    let end = start.checked_add(BODY.len())?;
    (symbol.st_size >= BODY.len() as u64 && end <= program.len()).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_such_program_is_left_alone() {
        assert_eq!(function(b""), None);
        assert_eq!(function(&[0x7f; 4096]), None);
        // A program without the function: this one.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(function(&own), None);
    }
}
