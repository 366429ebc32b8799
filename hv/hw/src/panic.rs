//! The hypervisor's end: what it says before it stops the machine.
//!
//! A panic or an exception in hypervisor code is a defect of the hypervisor. It is told on the serial port with the
//! registers and a symbolized backtrace; all processors stop, and no partition runs again.

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use spin::Once;

use crate::cpu::interrupts::Frame;
use crate::cpu::registers;
use crate::launch::PhysicalRange;
use crate::processor::Shared;
use crate::serial::LastWords;
use crate::symbols::Symbols;
use crate::{apic, physical};

static HAPPENED: AtomicBool = AtomicBool::new(false);
static OTHERS_RUN: AtomicBool = AtomicBool::new(false);
static KNOWLEDGE: Once<Knowledge> = Once::new();

/// How many callers a backtrace shows at most, and how many words of the stack it looks at.
const DEPTH: usize = 40;
const STACK_WORDS: u64 = 4096;
/// The last word of every stack ([`crate::start`] puts it there): a backtrace ends at it.
pub const STACK_END: u64 = 0x5041_5254_4552_5245;

/// What a backtrace needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Knowledge {
    /// The image.
    pub image: PhysicalRange,
    /// The part of the image that holds code.
    pub code: PhysicalRange,
    /// The region: stacks lie here.
    pub region: PhysicalRange,
    /// Names of functions.
    pub symbols: Symbols<'static>,
}

/// From now on panics show backtraces. All stacks lie in `knowledge.region`.
pub fn prepare(knowledge: Knowledge) {
    KNOWLEDGE.call_once(|| knowledge);
}

/// From now on a panic stops the other processors, which have handlers for NMIs.
pub fn stop_others_from_now_on() {
    OTHERS_RUN.store(true, SeqCst);
}

/// Whether the hypervisor has ended; then a processor that gets an NMI stops.
pub fn happened() -> bool {
    HAPPENED.load(SeqCst)
}

/// The end by a panic, for the program's `#[panic_handler]`.
pub fn report(info: &PanicInfo<'_>) -> ! {
    let stack: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) };
    end(|out| {
        writeln!(out, "panic: {}", info.message())?;
        if let Some(location) = info.location() {
            writeln!(out, "  at {}:{}", location.file(), location.line())?;
        }
        write_control_registers(out)?;
        write_backtrace(out, None, stack)
    })
}

/// The end by an exception in hypervisor code.
pub fn exception(frame: &Frame, shared: &Shared) -> ! {
    end(|out| {
        let name = exception_name(frame.vector);
        writeln!(out, "panic: exception {} ({name}), error code {:#x}", frame.vector, frame.error)?;
        writeln!(out, "  on the processor with local APIC id {:#x}", shared.apic_id)?;
        write_general_registers(out, frame)?;
        write_control_registers(out)?;
        write_backtrace(out, Some(frame.rip), frame.rsp)
    })
}

/// Stops the other processors, says the last words, and stops. The first processor that comes here speaks.
fn end(words: impl FnOnce(&mut LastWords) -> fmt::Result) -> ! {
    if HAPPENED.swap(true, SeqCst) {
        registers::halt();
    }
    if OTHERS_RUN.load(SeqCst) {
        apic::send_nmi_to_others();
    }
    let mut out = LastWords;
    // Writing to the port cannot fail.
    let _ = out.write_str("\nparterre: ");
    let _ = words(&mut out);
    let _ = out
        .write_str("parterre: all processors are stopped; no partition runs any more. Reset the machine.\n");
    registers::halt();
}

fn write_general_registers(out: &mut LastWords, frame: &Frame) -> fmt::Result {
    let registers = [
        ("rip", frame.rip),
        ("rsp", frame.rsp),
        ("rbp", frame.rbp),
        ("rflags", frame.rflags),
        ("rax", frame.rax),
        ("rbx", frame.rbx),
        ("rcx", frame.rcx),
        ("rdx", frame.rdx),
        ("rsi", frame.rsi),
        ("rdi", frame.rdi),
        ("r8", frame.r8),
        ("r9", frame.r9),
        ("r10", frame.r10),
        ("r11", frame.r11),
        ("r12", frame.r12),
        ("r13", frame.r13),
        ("r14", frame.r14),
        ("r15", frame.r15),
        ("cs", frame.cs),
        ("ss", frame.ss),
    ];
    write_registers(out, &registers)
}

fn write_control_registers(out: &mut LastWords) -> fmt::Result {
    use registers::{cr0, cr2, cr3, cr4};
    write_registers(out, &[("cr0", cr0()), ("cr2", cr2()), ("cr3", cr3()), ("cr4", cr4())])
}

fn write_registers(out: &mut LastWords, registers: &[(&str, u64)]) -> fmt::Result {
    registers.chunks(4).try_for_each(|line| {
        line.iter().try_for_each(|(name, value)| write!(out, "  {name:>6} {value:016x}"))?;
        out.write_char('\n')
    })
}

/// Shows the calls that are on the stack. The target's frame pointers do not lead from frame to frame, and unwind tables
/// would be a tenth of the image; so every word of the stack counts that points behind a call instruction. A few of them
/// may be left from calls that have returned.
fn write_backtrace(out: &mut LastWords, rip: Option<u64>, stack: u64) -> fmt::Result {
    let Some(knowledge) = KNOWLEDGE.get() else { return Ok(()) };
    writeln!(out, "  calls on the stack, innermost first (offset in the image, function):")?;
    if let Some(rip) = rip {
        write_place(out, knowledge, rip)?;
    }
    let words = (0..STACK_WORDS).map(|index| (stack & !7) + index * 8);
    let words = words.map_while(|address| stack_word(knowledge, address));
    for return_address in words.filter(|word| is_behind_call(knowledge, *word)).take(DEPTH) {
        write_place(out, knowledge, return_address)?;
    }
    Ok(())
}

/// A word of a stack, up to the stack's end.
fn stack_word(knowledge: &Knowledge, address: u64) -> Option<u64> {
    if !knowledge.region.contains(address) {
        return None;
    }
    // SAFETY: the address is aligned and lies in the region, which is mapped but for the guard pages below stacks. A stack
    // pointer into one of those would fault again; then `exception` finds that the end has begun, and stops.
    let word = unsafe { physical::pointer(address).cast::<u64>().read_volatile() };
    (word != STACK_END).then_some(word)
}

/// Whether `address` lies in the image right behind a call instruction (AMD APM 3, CALL near).
fn is_behind_call(knowledge: &Knowledge, address: u64) -> bool {
    if !knowledge.code.contains(address) || !knowledge.code.contains(address - 7) {
        return false;
    }
    let mut before = [0; 7];
    // SAFETY: code is mapped readable and never changes.
    unsafe { physical::read(address - 7, &mut before) };
    ends_with_call(before)
}

fn ends_with_call(before: [u8; 7]) -> bool {
    let is_indirect = |at: usize| before[at] == 0xff && before[at + 1] >> 3 & 7 == 2;
    before[2] == 0xe8 || [0, 1, 4, 5].into_iter().any(is_indirect)
}

fn write_place(out: &mut LastWords, knowledge: &Knowledge, address: u64) -> fmt::Result {
    if !knowledge.image.contains(address) {
        return writeln!(out, "    {address:016x} outside the image");
    }
    let rva = address - knowledge.image.base;
    match knowledge.symbols.find(rva) {
        Some((name, offset)) => writeln!(out, "    {rva:8x} {name}+{offset:#x}"),
        None => writeln!(out, "    {rva:8x}"),
    }
}

fn exception_name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        3 => "breakpoint",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        17 => "alignment check",
        18 => "machine check",
        _ => "see the manual",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_instructions_are_recognized() {
        assert!(ends_with_call([0x90, 0x90, 0xe8, 1, 2, 3, 4]), "call relative");
        assert!(ends_with_call([0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0xd0]), "call rax");
        assert!(ends_with_call([0x90, 0x90, 0x90, 0x90, 0x41, 0xff, 0xd7]), "call r15");
        assert!(ends_with_call([0x90, 0x90, 0x90, 0x90, 0xff, 0x50, 0x18]), "call [rax + 0x18]");
        assert!(ends_with_call([0x90, 0xff, 0x15, 1, 2, 3, 4]), "call [rip + ...]");
        assert!(!ends_with_call([0x90; 7]));
        assert!(!ends_with_call([0x90, 0x90, 0xe9, 1, 2, 3, 4]), "a jump");
    }
}
