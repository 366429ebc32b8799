//! Descriptor tables, exceptions that a test expects, and interrupt handlers.
//!
//! [`catch`] runs a closure and answers the exception that ends it. That is a jump over the closure's frames, without
//! unwinding: a closure should hold nothing that has to be dropped.

use crate::{apic, cpu, harness};
use core::cell::UnsafeCell;
use core::fmt;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Processors a program can have besides the boot processor. `boot.s` has stacks for as many.
pub const MAX_PROCESSORS: usize = 80;

/// An exception that ended a closure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The vector.
    pub vector: u8,
    /// The error code, 0 for those without.
    pub error_code: u64,
    /// Where.
    pub rip: u64,
    /// CR2.
    pub address: u64,
}

impl Fault {
    /// Divide error.
    pub const DE: u8 = 0;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// The end of a user mode closure: INT 0x80.
    pub const USER_RETURN: u8 = 0x80;
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exception {} (error code {:#x}) at {:#x}", self.vector, self.error_code, self.rip)?;
        if self.vector == Self::PF { write!(f, ", address {:#x}", self.address) } else { Ok(()) }
    }
}

/// What the stubs have pushed.
#[repr(C)]
struct Frame {
    registers: [u64; 15],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Where [`catch`] goes on after an exception.
#[repr(C)]
struct Recovery {
    rsp: u64,
    rip: u64,
}

#[repr(C, align(16))]
struct Stack([u8; 8192]);

/// A processor's own tables. GS points to it.
#[repr(C, align(16))]
struct Processor {
    this: *mut Processor,
    index: usize,
    recovery: *mut Recovery,
    fault: Fault,
    gdt: [u64; 8],
    tss: Tss,
    /// For exceptions in user mode, and on IST 1 and 2 for NMI and double fault.
    stacks: [Stack; 3],
}

#[repr(C, packed(4))]
struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

struct Processors(UnsafeCell<MaybeUninit<[Processor; MAX_PROCESSORS + 1]>>);
// SAFETY: each processor uses its own element only.
unsafe impl Sync for Processors {}
static PROCESSORS: Processors = Processors(UnsafeCell::new(MaybeUninit::zeroed()));

struct Idt(UnsafeCell<[[u64; 2]; 256]>);
// SAFETY: written by the boot processor before the others start.
unsafe impl Sync for Idt {}
static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 256]));

static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];

/// Interrupts that came without a handler, by vector.
pub static UNEXPECTED: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

unsafe extern "C" {
    static tmk_stubs: u8;
    fn tmk_try(function: extern "C" fn(*mut u8), argument: *mut u8, recovery: *mut Recovery) -> u64;
    fn tmk_try_user(function: extern "C" fn() -> !, stack: u64, recovery: *mut Recovery) -> u64;
}

const KERNEL_CODE: u64 = 0x10;
const KERNEL_DATA: u64 = 0x18;

/// Builds and loads a processor's tables; the boot processor (index 0) builds the IDT too.
pub fn init_processor(index: usize) {
    let index = index.min(MAX_PROCESSORS);
    // SAFETY: the element is this processor's own and nothing refers to it yet; all of its fields may be zero.
    let processor = unsafe { &mut (*(*PROCESSORS.0.get()).as_mut_ptr())[index] };
    processor.this = processor;
    processor.index = index;
    for (number, stack) in processor.stacks.iter().enumerate() {
        let top = core::ptr::from_ref(stack) as u64 + size_of::<Stack>() as u64;
        let mut ist = processor.tss.ist;
        match number {
            0 => processor.tss.rsp = [top, 0, 0],
            _ => ist[number - 1] = top,
        }
        processor.tss.ist = ist;
    }
    processor.tss.io_map_base = size_of::<Tss>() as u16;
    let tss = core::ptr::from_ref(&processor.tss) as u64;
    let tss_low =
        (size_of::<Tss>() as u64 - 1) | (tss & 0xFF_FFFF) << 16 | 0x89 << 40 | (tss >> 24 & 0xFF) << 56;
    // Null, null, kernel code and data, user code and data, the task state in two.
    let (code, data) = (0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF);
    processor.gdt = [0, 0, code, data, code | 3 << 45, data | 3 << 45, tss_low, tss >> 32];
    if index == 0 {
        fill_idt();
    }
    load_tables(processor);
}

fn fill_idt() {
    // SAFETY: only the boot processor is running.
    let idt = unsafe { &mut *IDT.0.get() };
    for (vector, entry) in idt.iter_mut().enumerate() {
        let stub = (&raw const tmk_stubs) as u64 + 16 * vector as u64;
        let ist = match vector {
            2 => 1,
            8 => 2,
            _ => 0,
        };
        let privilege = if vector == usize::from(Fault::USER_RETURN) { 3 } else { 0 };
        let attributes: u64 = ist | (0x8E | privilege << 5) << 8;
        *entry =
            [stub & 0xFFFF | KERNEL_CODE << 16 | attributes << 32 | (stub >> 16 & 0xFFFF) << 48, stub >> 32];
    }
}

fn load_tables(processor: &Processor) {
    let gdt = TablePointer { limit: 63, base: processor.gdt.as_ptr() as u64 };
    let idt = TablePointer { limit: 4095, base: IDT.0.get() as u64 };
    // SAFETY: the tables are filled and stay where they are; all selectors are loaded anew.
    unsafe {
        core::arch::asm!(
            "lgdt [{gdt}]", "lidt [{idt}]",
            "mov ds, {data:e}", "mov es, {data:e}", "mov ss, {data:e}",
            "mov fs, {null:e}", "mov gs, {null:e}",
            "ltr {task:x}",
            "push {code}", "lea {code}, [rip + 2f]", "push {code}", "retfq", "2:",
            gdt = in(reg) &gdt, idt = in(reg) &idt, data = in(reg) KERNEL_DATA, null = in(reg) 0u64, task = in(reg) 0x30u64,
            code = inout(reg) KERNEL_CODE => _,
        );
    }
    cpu::wrmsr(0xC000_0101, core::ptr::from_ref(processor) as u64);
}

fn this_processor() -> *mut Processor {
    let this: *mut Processor;
    // SAFETY: GS points to the processor's own element, whose first field is its address.
    unsafe { core::arch::asm!("mov {}, gs:[0]", out(reg) this, options(nostack, readonly)) };
    this
}

/// This processor's index: 0 is the boot processor.
pub fn processor_index() -> usize {
    // SAFETY: the element is initialized before anything can ask.
    unsafe { (*this_processor()).index }
}

/// Sets or removes the function that an interrupt calls. It has to end the interrupt itself ([`apic::eoi`]).
pub fn set_handler(vector: u8, handler: Option<fn()>) {
    HANDLERS[usize::from(vector)].store(handler.map_or(0, |function| function as usize), Ordering::SeqCst);
}

/// Runs a closure; an exception ends it and is the error.
pub fn catch<T, F: FnOnce() -> T>(closure: F) -> Result<T, Fault> {
    struct Call<T, F> {
        closure: Option<F>,
        result: MaybeUninit<T>,
    }
    extern "C" fn call<T, F: FnOnce() -> T>(argument: *mut u8) {
        // SAFETY: `catch` passes its `Call` of the same types, and nobody else has it meanwhile.
        let call = unsafe { &mut *argument.cast::<Call<T, F>>() };
        if let Some(closure) = call.closure.take() {
            call.result.write(closure());
        }
    }
    let mut call_data = Call { closure: Some(closure), result: MaybeUninit::uninit() };
    let argument = (&raw mut call_data).cast();
    // SAFETY: `call` gets what it expects; the recovery point is removed before this frame ends.
    let fault = with_recovery(|recovery| unsafe { tmk_try(call::<T, F>, argument, recovery) });
    match fault {
        Some(fault) => Err(fault),
        // SAFETY: without an exception `call` has written the result.
        None => Ok(unsafe { call_data.result.assume_init() }),
    }
}

/// Runs a function at CPL 3, on a small stack of its own; what ends it is answered. The function ends itself by INT 0x80.
pub fn catch_user(function: extern "C" fn() -> !) -> Fault {
    let mut stack = MaybeUninit::<Stack>::uninit();
    let top = stack.as_mut_ptr() as u64 + size_of::<Stack>() as u64 - 8;
    // SAFETY: the stack lives until the function has ended; all memory is mapped for user mode as well.
    let fault = with_recovery(|recovery| unsafe { tmk_try_user(function, top, recovery) });
    fault.unwrap_or(Fault { vector: 0, error_code: 0, rip: 0, address: 0 })
}

/// Makes a recovery point for `attempt`, which answers non-zero if an exception ended it.
fn with_recovery(attempt: impl FnOnce(*mut Recovery) -> u64) -> Option<Fault> {
    let mut recovery = Recovery { rsp: 0, rip: 0 };
    let processor = this_processor();
    // SAFETY: the element is this processor's own; interrupt handlers do not touch `recovery`.
    let before = unsafe { core::ptr::replace(&raw mut (*processor).recovery, &raw mut recovery) };
    let interrupted = attempt(&raw mut recovery) != 0;
    // SAFETY: as above.
    unsafe {
        (*processor).recovery = before;
        interrupted.then(|| core::ptr::read_volatile(&raw const (*processor).fault))
    }
}

/// Called by the stubs, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn tmk_interrupt(frame: &mut Frame) {
    let vector = frame.vector as u8;
    if vector >= 32 && vector != Fault::USER_RETURN {
        return interrupt(vector);
    }
    let fault = Fault { vector, error_code: frame.error_code, rip: frame.rip, address: cpu::cr2() };
    let processor = this_processor();
    // SAFETY: the element is this processor's own.
    let recovery = unsafe { (*processor).recovery };
    if recovery.is_null() {
        harness::abort(format_args!("unexpected {fault}"));
    }
    // SAFETY: a recovery point that is set is that of a frame that is still there.
    unsafe {
        core::ptr::write_volatile(&raw mut (*processor).fault, fault);
        frame.rip = (*recovery).rip;
        frame.rsp = (*recovery).rsp;
    }
    frame.cs = KERNEL_CODE;
    frame.ss = KERNEL_DATA;
    frame.rflags = 2;
}

fn interrupt(vector: u8) {
    let handler = HANDLERS[usize::from(vector)].load(Ordering::SeqCst);
    if handler == 0 {
        UNEXPECTED[usize::from(vector)].fetch_add(1, Ordering::SeqCst);
        apic::eoi();
        return;
    }
    // SAFETY: only `set_handler` stores here, and it stores a `fn()`.
    let handler: fn() = unsafe { core::mem::transmute(handler) };
    handler();
}
