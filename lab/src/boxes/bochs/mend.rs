//! A copy of Bochs's program with two defects of version 3.1 mended. Both functions are exported symbols, so the copy gets
//! other bodies for them.
//!
//! **64-bit IDIV.**
//! Bochs divides signed numbers of 128 bits by handing them to the unsigned division as another type. Compilers that
//! assume strict aliasing drop the copy of the dividend's low half (Debian's build of 3.1 does): the quotient is that of
//! whatever lay on the stack, and Linux divides by zero when it registers its first clock source. The new body
//! is correct whatever the compiler did.
//!
//! **Faults with several processors.** An instruction that faults leads back to the last place that was noted as reached. After an
//! exception or a VM entry that injects an event Bochs's loop of one processor notes the handler's first instruction, the one of
//! several does not. If that instruction cannot be fetched (an EPT violation, a page fault), or a VM exit comes before it, the
//! guest finds itself at the interrupted instruction, with the stack and the rights of the handler. Linux as a guest ended so
//! in a recursion on its entry stack. The new body notes the place whenever it begins.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
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

/// `BX_CPU_C::cpu_run_trace()`, which runs one of several processors for a while.
const TRACE: &str = "_ZN8BX_CPU_C13cpu_run_traceEv";
/// What [`fingerprint`] says of it in version 3.1: only where it is this one the offsets in the new body are right.
const TRACE_FINGERPRINT: &str = "c2b66c3ea9f389bd";
/// Where the distances of its calls are: of events, of decoded instructions, of a hook that does nothing.
const TRACE_CALLS: [usize; 3] = [0x1b, 0x2c, 0x3b];
/// Where the first two of these are in its new body.
const TRACE_NEW_CALLS: [usize; 2] = [0x29, 0x35];

/// Its new body, with the distances of its calls left open.
///
/// ```text
///    endbr64
///    push rbx
///    push rbp
///    push rax
///    mov  rbx, rdi           ; the processor
///    mov  rax, [rdi + 0xe8]  ; RIP
///    mov  [rdi + 0x120], rax ; is where a fault leads back to: this is what was missing
///    mov  byte [rdi + 0x138], 0 ; and so is RSP
///    cmp  dword [rdi + 0x91e8], 0
///    je   1f                 ; no events
///    call handleAsyncEvent
///    test al, al
///    jne  3f
/// 1: mov  rdi, rbx
///    call getICacheEntry
///    mov  rbp, [rax + 0x10]  ; the first instruction
///    movzx eax, byte [rbp + 0x22] ; its length
///    mov  rdi, [rbp + 8]     ; a pointer to a member function: the object's offset
///    add  [rbx + 0xe8], rax
///    mov  rax, [rbp]         ; and its address or place in the table
///    add  rdi, rbx
///    test al, 1
///    je   2f
///    mov  rdx, [rdi]
///    mov  rax, [rdx + rax - 1]
/// 2: mov  rsi, rbp
///    call rax
///    and  dword [rbx + 0x91e8], 0x7fffffff ; the end of a trace is no event
/// 3: pop  rax
///    pop  rbp
///    pop  rbx
///    ret
/// ```
const TRACE_BODY: [u8; 114] = [
    0xf3, 0x0f, 0x1e, 0xfa, 0x53, 0x55, 0x50, 0x48, 0x89, 0xfb, 0x48, 0x8b, 0x87, 0xe8, 0x00, 0x00, 0x00,
    0x48, 0x89, 0x87, 0x20, 0x01, 0x00, 0x00, 0xc6, 0x87, 0x38, 0x01, 0x00, 0x00, 0x00, 0x83, 0xbf, 0xe8,
    0x91, 0x00, 0x00, 0x00, 0x74, 0x09, 0xe8, 0x00, 0x00, 0x00, 0x00, 0x84, 0xc0, 0x75, 0x3d, 0x48, 0x89,
    0xdf, 0xe8, 0x00, 0x00, 0x00, 0x00, 0x48, 0x8b, 0x68, 0x10, 0x0f, 0xb6, 0x45, 0x22, 0x48, 0x8b, 0x7d,
    0x08, 0x48, 0x01, 0x83, 0xe8, 0x00, 0x00, 0x00, 0x48, 0x8b, 0x45, 0x00, 0x48, 0x01, 0xdf, 0xa8, 0x01,
    0x74, 0x08, 0x48, 0x8b, 0x17, 0x48, 0x8b, 0x44, 0x02, 0xff, 0x48, 0x89, 0xee, 0xff, 0xd0, 0x81, 0xa3,
    0xe8, 0x91, 0x00, 0x00, 0xff, 0xff, 0xff, 0x7f, 0x58, 0x5d, 0x5b, 0xc3,
];

/// The path in the bundle of a mended Bochs, made if it is not there. A function that cannot be found is left as it is, and
/// the user is told.
///
/// # Errors
/// When the program cannot be read or its copy not written.
pub fn program(bundle: &Bundle) -> Result<String> {
    let mended = format!("{PROGRAM}-mended-2");
    let _lock = cache::Lock::take("bochs-mended")?;
    let copy = bundle.root().join(&mended);
    if !copy.exists() {
        let original = bundle.file(PROGRAM)?;
        let mut bytes =
            fs::read(&original).with_context(|| format!("{} cannot be read.", original.display()))?;
        if !mend_division(&mut bytes) {
            eprintln!(
                "Bochs's signed division is not where it was in version 3.1 (see lab/src/boxes/bochs/mend.rs). If it is \
                 still wrong, Linux ends with \"divide error\" in an Intel box."
            );
        }
        if !mend_traces(&mut bytes) {
            eprintln!(
                "Bochs's loop of several processors is another one than in version 3.1 (see lab/src/boxes/bochs/mend.rs). \
                 If it is still wrong, guests crash now and then in an Intel box of more than one processor."
            );
        }
        write_program(&copy, &bytes).with_context(|| format!("{} cannot be written.", copy.display()))?;
    }
    Ok(mended)
}

/// `BX_CPU_C::allowVmxForFirmware()`, in which Bochs does to `IA32_FEATURE_CONTROL` what firmware does: sets the lock and that VMX can
/// be used (Intel SDM volume 3C, 24.7).
const FIRMWARE: &str = "_ZN8BX_CPU_C19allowVmxForFirmwareEv";
/// The end of its body: OR DWORD [RDI + n], 5; RET. What is or-ed comes right before RET.
const FIRMWARE_END: (u8, u8) = (0b101, 0xc3);
const LOCK_ONLY: u8 = 0b001;

/// The path in the bundle of a Bochs, mended as [`program`] says, whose firmware switches VMX off and locks it.
///
/// # Errors
/// When it cannot be read or written, or this Bochs has no place for that.
pub fn program_without_vmx(bundle: &Bundle) -> Result<String> {
    let mended = program(bundle)?;
    let locked = format!("{mended}-vmx-locked");
    let _lock = cache::Lock::take("bochs-mended")?;
    let copy = bundle.root().join(&locked);
    if !copy.exists() {
        let original = bundle.root().join(&mended);
        let mut bytes =
            fs::read(&original).with_context(|| format!("{} cannot be read.", original.display()))?;
        ensure!(
            lock_vmx(&mut bytes),
            "Bochs does not set IA32_FEATURE_CONTROL where version 3.1 does (see lab/src/boxes/bochs/mend.rs), so it cannot have \
             VMX locked."
        );
        write_program(&copy, &bytes).with_context(|| format!("{} cannot be written.", copy.display()))?;
    }
    Ok(locked)
}

fn lock_vmx(program: &mut [u8]) -> bool {
    let Some(place) = function(program, FIRMWARE) else { return false };
    match &mut program[place] {
        [.., value, end] if (*value, *end) == FIRMWARE_END => {
            *value = LOCK_ONLY;
            true
        }
        _ => false,
    }
}

fn mend_division(program: &mut [u8]) -> bool {
    let place = function(program, SYMBOL).filter(|place| place.len() >= BODY.len());
    place.map(|place| program[place.start..][..BODY.len()].copy_from_slice(&BODY)).is_some()
}

fn mend_traces(program: &mut [u8]) -> bool {
    let Some(place) = function(program, TRACE) else { return false };
    let old = &mut program[place];
    if fingerprint(old).as_deref() != Some(TRACE_FINGERPRINT) {
        return false;
    }
    let mut body = TRACE_BODY;
    for (from, to) in TRACE_CALLS.into_iter().zip(TRACE_NEW_CALLS) {
        let (mut distance, moved) = ([0; 4], from as i32 - to as i32);
        distance.copy_from_slice(&old[from..from + 4]);
        let distance = i32::from_le_bytes(distance).wrapping_add(moved);
        body[to..to + 4].copy_from_slice(&distance.to_le_bytes());
    }
    old[..body.len()].copy_from_slice(&body);
    true
}

/// What tells the function from other versions of it, wherever it and what it calls lie.
fn fingerprint(function: &[u8]) -> Option<String> {
    let mut bytes = function.to_vec();
    for call in TRACE_CALLS {
        bytes.get_mut(call..call + 4)?.fill(0);
    }
    Some(cache::key([bytes.as_slice()]))
}

/// Where a function lies in the file, if it is there.
fn function(program: &[u8], name: &str) -> Option<Range<usize>> {
    let elf = Elf::parse(program).ok()?;
    let symbol = elf.dynsyms.iter().find(|symbol| elf.dynstrtab.get_at(symbol.st_name) == Some(name))?;
    let in_segment =
        |at: u64, start: u64, length: u64| at.checked_sub(start).filter(|offset| *offset < length);
    let start = elf.program_headers.iter().find_map(|segment| {
        let offset = in_segment(symbol.st_value, segment.p_vaddr, segment.p_filesz)?;
        usize::try_from(segment.p_offset.checked_add(offset)?).ok()
    })?;
    let end = start.checked_add(usize::try_from(symbol.st_size).ok()?)?;
    (end <= program.len()).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_such_program_is_left_alone() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        for program in [Vec::new(), vec![0x7f; 4096], own] {
            let mut mended = program.clone();
            assert!(!mend_division(&mut mended) && !mend_traces(&mut mended) && !lock_vmx(&mut mended));
            assert!(mended == program);
        }
    }

    #[test]
    fn calls_of_the_new_body_are_where_it_is_told() {
        for call in TRACE_NEW_CALLS {
            assert_eq!(TRACE_BODY[call - 1..call + 4], [0xe8, 0, 0, 0, 0]);
        }
        assert_eq!(fingerprint(&[0; 10]), None);
        let function: Vec<u8> = (0..159).collect();
        let mut moved = function.clone();
        TRACE_CALLS.into_iter().for_each(|call| moved[call] ^= 0xff);
        assert_eq!(fingerprint(&function), fingerprint(&moved));
    }
}
