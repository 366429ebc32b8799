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

/// How many callers a backtrace shows.
const DEPTH: usize = 48;

/// What a backtrace needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Knowledge {
    /// The image: return addresses lie here.
    pub image: PhysicalRange,
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
    let frame_pointer: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame_pointer, options(nomem, nostack, preserves_flags)) };
    end(|out| {
        writeln!(out, "panic: {}", info.message())?;
        if let Some(location) = info.location() {
            writeln!(out, "  at {}:{}", location.file(), location.line())?;
        }
        write_control_registers(out)?;
        write_backtrace(out, None, frame_pointer)
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
        write_backtrace(out, Some(frame.rip), frame.rbp)
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
    let _ = out.write_str("parterre: all processors are stopped; no partition runs any more. Reset the machine.\n");
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

fn write_backtrace(out: &mut LastWords, rip: Option<u64>, mut frame_pointer: u64) -> fmt::Result {
    let Some(knowledge) = KNOWLEDGE.get() else { return Ok(()) };
    writeln!(out, "  backtrace (offsets in the image):")?;
    if let Some(rip) = rip {
        write_place(out, knowledge, rip)?;
    }
    for _ in 0..DEPTH {
        let Some((return_address, next)) = caller(knowledge, frame_pointer) else { break };
        // A return address is behind the call, which may be the last instruction of its function.
        write_place(out, knowledge, return_address - 1)?;
        frame_pointer = next;
    }
    Ok(())
}

/// The return address and the frame pointer that are stored at `frame_pointer`, if they make sense.
fn caller(knowledge: &Knowledge, frame_pointer: u64) -> Option<(u64, u64)> {
    let end = frame_pointer.checked_add(16)?;
    if frame_pointer % 8 != 0 || !knowledge.region.contains(frame_pointer) || !knowledge.region.contains(end) {
        return None;
    }
    let words = physical::pointer(frame_pointer).cast::<u64>();
    // SAFETY: the address is aligned and lies in the region, which is mapped but for guard pages. A frame pointer into one
    // of those would fault again; then `exception` finds that the end has begun, and stops.
    let (next, return_address) = unsafe { (words.read_volatile(), words.add(1).read_volatile()) };
    (knowledge.image.contains(return_address) && next > frame_pointer).then_some((return_address, next))
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
