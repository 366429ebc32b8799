//! Descriptor tables: each processor's GDT and task state segment, and the IDT that all share.
//!
//! Every exception and NMI switches to a stack of its own kind (interrupt stack table, AMD APM 2, 8.9.4), so an overflown
//! stack is reported like any other fault. The top of each such stack holds the address of the processor's [`Shared`],
//! which is how a handler knows where it is.

use core::arch::asm;

use super::interrupts;
use crate::heap::BootHeap;
use crate::physical::{self, PAGE_SIZE};
use crate::processor::Shared;

/// Selector of hypervisor code.
pub const CODE: u16 = 0x08;
/// Selector of hypervisor data and stacks.
pub const DATA: u16 = 0x10;
/// Selector of the task state segment.
pub const TASK: u16 = 0x18;

const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;

/// Which stack of the interrupt stack table a vector uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum InterruptStack {
    /// Non-maskable interrupts.
    Nmi = 1,
    /// The double fault.
    DoubleFault = 2,
    /// The machine check.
    MachineCheck = 3,
    /// All other exceptions.
    Exception = 4,
    /// Interrupts.
    Interrupt = 5,
}

/// How many stacks [`InterruptStack`] names.
pub const INTERRUPT_STACKS: usize = 5;

/// The task state segment (AMD APM 2, 12.2.5).
#[derive(Debug)]
#[repr(C, packed(4))]
pub struct TaskState {
    reserved: u32,
    rsp: [u64; 3],
    ist: [u64; 8],
    reserved2: u64,
    io_map: u32,
}

const _: () = assert!(size_of::<TaskState>() == 104);

/// A processor's own tables.
#[derive(Debug)]
#[repr(C)]
pub struct Tables {
    gdt: [u64; 5],
    task: TaskState,
}

impl Tables {
    /// Empty tables, not to be loaded before [`Tables::fill`].
    pub fn new() -> Self {
        let task = TaskState {
            reserved: 0,
            rsp: [0; 3],
            ist: [0; 8],
            reserved2: 0,
            io_map: size_of::<TaskState>() as u32,
        };
        Self { gdt: [0; 5], task }
    }

    /// Fills in the descriptors and `tops`, the ends of the stacks in the order of [`InterruptStack`].
    pub fn fill(&mut self, tops: [u64; INTERRUPT_STACKS]) {
        let task = physical::address(&raw const self.task);
        let limit = size_of::<TaskState>() as u64 - 1;
        let available_task = 0x89_u64 << 40;
        let low = limit | (task & 0xff_ffff) << 16 | available_task | (task >> 24 & 0xff) << 56;
        self.gdt = [0, CODE_DESCRIPTOR, DATA_DESCRIPTOR, low, task >> 32];
        let mut ist = [0; 8];
        ist[1..=INTERRUPT_STACKS].copy_from_slice(&tops);
        self.task.ist = ist;
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

/// Prepares the stack that ends at `end`: writes who it belongs to, and gives the address to start pushing at.
///
/// # Safety
/// The page below `end` is mapped and used by nobody else, for ever.
pub unsafe fn prepare_interrupt_stack(end: u64, shared: &'static Shared) -> u64 {
    let top = end - 16;
    // SAFETY: the caller owns the memory; `top` is aligned to 16.
    unsafe { physical::pointer(top).cast::<*const Shared>().write(shared) };
    top
}

/// A gate of the IDT (AMD APM 2, 4.8.4).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Gate(u64, u64);

impl Gate {
    fn interrupt(handler: u64, stack: InterruptStack) -> Self {
        let present_interrupt_gate = 0x8e_u64 << 40;
        let low = handler & 0xffff
            | u64::from(CODE) << 16
            | (stack as u64) << 32
            | present_interrupt_gate
            | (handler >> 16 & 0xffff) << 48;
        Self(low, handler >> 32)
    }
}

/// The interrupt descriptor table.
#[derive(Debug)]
pub struct Idt(&'static [Gate]);

impl Idt {
    /// Makes the table.
    pub fn new(heap: &mut BootHeap) -> Self {
        Self(heap.slice(PAGE_SIZE / size_of::<Gate>(), |vector| {
            let vector = vector as u8;
            let stack = match vector {
                2 => InterruptStack::Nmi,
                8 => InterruptStack::DoubleFault,
                18 => InterruptStack::MachineCheck,
                0..32 => InterruptStack::Exception,
                _ => InterruptStack::Interrupt,
            };
            Gate::interrupt(interrupts::stub(vector), stack)
        }))
    }

    /// The table's page.
    pub fn address(&self) -> u64 {
        physical::address(self.0.as_ptr())
    }
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Loads a processor's tables: GDT, segment registers, task register and IDT.
///
/// # Safety
/// `tables` has been filled with stacks that [`prepare_interrupt_stack`] prepared. It may be loaded once.
pub unsafe fn load(tables: &'static Tables, idt: &Idt) {
    let gdt = Pointer {
        limit: size_of_val(&tables.gdt) as u16 - 1,
        base: physical::address(&raw const tables.gdt),
    };
    let idt = Pointer { limit: PAGE_SIZE as u16 - 1, base: idt.address() };
    // SAFETY: both tables stay where they are for ever. The code selector's descriptor is the same kind of segment as the
    // current one (64-bit, level 0), so reloading CS changes nothing else.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "mov ss, {data:e}",
            "xor {scratch:e}, {scratch:e}",
            "mov fs, {scratch:e}",
            "mov gs, {scratch:e}",
            "lldt {scratch:x}",
            "ltr {task:x}",
            "lidt [{idt}]",
            gdt = in(reg) &raw const gdt,
            idt = in(reg) &raw const idt,
            code = in(reg) u64::from(CODE),
            data = in(reg) u32::from(DATA),
            task = in(reg) u32::from(TASK),
            scratch = out(reg) _,
        );
    }
}

/// The bases of this processor's GDT, IDT and task state segment, as [`load`] loaded them.
pub fn bases() -> (u64, u64, u64) {
    let (mut gdt, mut idt) = (Pointer { limit: 0, base: 0 }, Pointer { limit: 0, base: 0 });
    // SAFETY: the instructions store into the two values. The descriptors of the task state segment lie where `Tables` has
    // put them, in a table that stays where it is.
    unsafe {
        asm!("sgdt [{}]", "sidt [{}]", in(reg) &raw mut gdt, in(reg) &raw mut idt, options(nostack));
        let task = physical::pointer(gdt.base + u64::from(TASK)).cast::<u64>();
        (gdt.base, idt.base, task_base(task.read(), task.add(1).read()))
    }
}

/// The base in the descriptor of a task state segment.
fn task_base(low: u64, high: u64) -> u64 {
    low >> 16 & 0xff_ffff | low >> 56 << 24 | high << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_and_descriptors_have_the_layout_of_the_manual() {
        let gate = Gate::interrupt(0x1122_3344_5566_7788, InterruptStack::DoubleFault);
        assert_eq!((gate.0, gate.1), (0x5566_8e02_0008_7788, 0x1122_3344));
        let mut tables = Tables::new();
        tables.fill([1, 2, 3, 4, 5]);
        assert_eq!(task_base(tables.gdt[3], tables.gdt[4]), physical::address(&raw const tables.task));
        assert_eq!(tables.gdt[3] & 0xffff, 103);
        assert_eq!({ tables.task.ist }, [0, 1, 2, 3, 4, 5, 0, 0]);
    }
}
