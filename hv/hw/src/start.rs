//! The way from the firmware's machine to the hypervisor's own: page tables, stacks, descriptor tables, local APICs and
//! clocks, on all processors. What then runs on them is made in [`crate::partition`].

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use spin::Once;

use crate::ap::{self, Trampoline};
use crate::cpu::registers;
use crate::cpu::tables::{self, INTERRUPT_STACKS, Idt, Tables};
use crate::heap::BootHeap;
use crate::launch::{LaunchInfo, PhysicalRange, ResetRegister};
use crate::paging::host::{HostTables, Rights};
use crate::panic::{Knowledge, STACK_END};
use crate::physical::{self, PAGE_SIZE};
use crate::processor::{Shared, VENDOR_PAGES};
use crate::symbols::Symbols;
use crate::timer::Clock;
use crate::{apic, calibrate, layout, panic, serial};

/// Pages of the stack that hypervisor code runs on.
const STACK_PAGES: usize = 8;
/// Pages of each stack for exceptions and interrupts. A panic report is written on one of them.
const INTERRUPT_STACK_PAGES: usize = 4;

/// What a processor has before its first instruction of ours.
pub struct Unit {
    /// What others see of it.
    pub shared: &'static Shared,
    /// See [`crate::processor::LogicalProcessor::vendor_area`].
    pub vendor_area: u64,
    tables: &'static Tables,
    idt: &'static Idt,
    stack: u64,
    arrived: AtomicBool,
    work: Once<(&'static dyn Work, usize)>,
}

/// What all processors do once everything is prepared.
pub trait Work: Sync {
    /// Runs on the processor with this index and unit, for ever.
    fn run(&'static self, index: usize, unit: &'static Unit) -> !;
}

/// The machine in the hypervisor's hands.
pub struct Ready {
    /// What the boot program told.
    pub info: LaunchInfo,
    /// What is left of the region.
    pub heap: BootHeap,
    /// The clocks.
    pub clock: Clock,
    /// The processors that run, the boot processor first.
    pub units: &'static [&'static Unit],
}

/// What goes from the firmware's stack to our own.
struct Takeover {
    info: LaunchInfo,
    heap: BootHeap,
    root: u64,
    units: &'static [Unit],
    trampoline: Trampoline<Unit>,
    next: fn(Ready) -> !,
}

/// Takes over the machine, then calls `next` on a stack of the hypervisor's.
pub fn take_over(info: LaunchInfo, next: fn(Ready) -> !) -> ! {
    serial::start(info.serial);
    // SAFETY: the boot program says that nobody uses this memory; the firmware has mapped it.
    let mut heap = unsafe { BootHeap::new(info.free) };
    let root = info.trampoline + PAGE_SIZE as u64;
    // SAFETY: the boot program has set the page aside for this; the firmware has mapped it.
    unsafe { physical::pointer(root).write_bytes(0, PAGE_SIZE) };
    // SAFETY: the root is used here only, once; it is zeroed. `map_all` maps what the hypervisor uses.
    let mut host = unsafe { HostTables::new(root, registers::has_gigabyte_pages()) };
    map_all(&mut host, &mut heap, &info);
    let idt = Idt::new(&mut heap);
    let idt = heap.place(idt);
    let units = make_units(&mut heap, &mut host, &info, idt);
    // SAFETY: the boot program has set the page aside; the firmware has mapped it writable, `map_all` executable.
    let trampoline = unsafe { Trampoline::new(info.trampoline, host.root(), arrive, &mut heap) };
    let stack = units[0].stack;
    let place = heap.place(None);
    *place = Some(Takeover { info, heap, root: host.root(), units, trampoline, next });
    // SAFETY: the stack is new, and this function's own is not used any more.
    unsafe {
        asm!(
            "mov rsp, {stack}", "xor ebp, ebp", "call {continue_on}", "ud2",
            stack = in(reg) stack, continue_on = sym on_own_stack, in("rdi") place, options(noreturn),
        )
    }
}

/// The host tables' ranges: RAM, the image by sections, the trampoline, and a reset register that lies in memory.
fn map_all(host: &mut HostTables, heap: &mut BootHeap, info: &LaunchInfo) {
    for range in info.memory.iter().filter(|range| layout::is_mapped_for_hypervisor(range.kind)) {
        host.map(heap, range.range(), Rights::ReadWrite);
    }
    host.map(heap, info.image.range, Rights::Read);
    for section in info.image.sections {
        let rights = match (section.write, section.execute) {
            (true, _) => Rights::ReadWrite,
            (false, true) => Rights::ReadExecute,
            (false, false) => Rights::Read,
        };
        host.map(heap, section.range, rights);
    }
    host.map(heap, PhysicalRange::new(info.trampoline, PAGE_SIZE as u64), Rights::ReadExecute);
    if let Some(ResetRegister::Memory { address, .. }) = info.power.reset {
        let page = PhysicalRange::new(address & !(PAGE_SIZE as u64 - 1), PAGE_SIZE as u64);
        host.map(heap, page, Rights::Device);
    }
}

/// Everything that each processor has of its own.
fn make_units(
    heap: &mut BootHeap,
    host: &mut HostTables,
    info: &LaunchInfo,
    idt: &'static Idt,
) -> &'static [Unit] {
    let units: &'static mut [Option<Unit>] = heap.slice(info.processors.len(), |_| None);
    for (unit, processor) in units.iter_mut().zip(info.processors) {
        *unit = Some(make_unit(heap, host, processor.apic_id, idt));
    }
    heap.slice(units.len(), |index| units[index].take().expect("just made"))
}

fn make_unit(heap: &mut BootHeap, host: &mut HostTables, apic_id: u32, idt: &'static Idt) -> Unit {
    let (shared, tables) = heap.place((Shared::new(apic_id), Tables::new()));
    let shared: &'static Shared = shared;
    let mut tops = [0; INTERRUPT_STACKS];
    for top in &mut tops {
        let end = make_stack(heap, host, INTERRUPT_STACK_PAGES);
        // SAFETY: the stack is new and for this alone.
        *top = unsafe { tables::prepare_interrupt_stack(end, shared) };
    }
    tables.fill(tops);
    Unit {
        shared,
        vendor_area: heap.pages(VENDOR_PAGES),
        tables,
        idt,
        stack: make_stack(heap, host, STACK_PAGES),
        arrived: AtomicBool::new(false),
        work: Once::new(),
    }
}

/// Makes a stack with a hole below it and [`STACK_END`] at its top; gives the address behind its usable part.
fn make_stack(heap: &mut BootHeap, host: &mut HostTables, pages: usize) -> u64 {
    let guard = heap.pages(1);
    let stack = heap.pages(pages);
    host.map(heap, PhysicalRange::new(guard, PAGE_SIZE as u64), Rights::None);
    let top = stack + (pages * PAGE_SIZE) as u64 - 16;
    // SAFETY: the pages are new.
    unsafe { physical::pointer(top + 8).cast::<u64>().write(STACK_END) };
    top
}

extern "sysv64" fn on_own_stack(takeover: &'static mut Option<Takeover>) -> ! {
    let Takeover { info, mut heap, root, units, mut trampoline, next } =
        takeover.take().expect("`take_over` has put it there");
    // SAFETY: `map_all` has mapped all that hypervisor code uses.
    unsafe { registers::set_cr3(root) };
    let symbols = Symbols::new(info.symbols);
    let code = info
        .image
        .sections
        .iter()
        .find(|section| section.execute)
        .map(|section| section.range)
        .unwrap_or_default();
    panic::prepare(Knowledge { image: info.image.range, code, region: info.region, symbols });
    settle(&units[0]);
    units[0].arrived.store(true, SeqCst);
    let clock = calibrate::clock();
    let others = start_others(&units[1..], &mut trampoline, &clock);
    panic::stop_others_from_now_on();
    log::info!("{} of {} processors run", others + 1, units.len());
    let running = heap.slice(others + 1, {
        let mut running = units.iter().filter(|unit| unit.arrived.load(SeqCst));
        move |_| running.next().expect("they have been counted")
    });
    next(Ready { info, heap, clock, units: running })
}

/// Makes the processor that this runs on the hypervisor's: protection, descriptor tables, local APIC.
fn settle(unit: &'static Unit) {
    registers::set_protection();
    // SAFETY: `make_unit` has filled the tables, and each processor comes here once.
    unsafe { tables::load(unit.tables, unit.idt) };
    apic::enable();
}

/// Starts the processors; those that do not come are left behind. Says how many came.
fn start_others(units: &'static [Unit], trampoline: &mut Trampoline<Unit>, clock: &Clock) -> usize {
    ap::send_init(units.iter().map(|unit| unit.shared.apic_id), clock);
    let mut came = 0;
    for unit in units {
        if trampoline.start(unit.shared.apic_id, unit.stack, unit, &unit.arrived, clock) {
            came += 1;
        } else {
            log::warn!(
                "the processor with local APIC id {:#x} does not start; it stays unused",
                unit.shared.apic_id
            );
        }
    }
    came
}

/// Where a started processor begins.
extern "sysv64" fn arrive(unit: &'static Unit) -> ! {
    settle(unit);
    if apic::id() != unit.shared.apic_id {
        // It was given up, and came so late that it took another one's place.
        registers::halt();
    }
    unit.arrived.store(true, SeqCst);
    loop {
        if let Some((work, index)) = unit.work.get() {
            work.run(*index, unit);
        }
        core::hint::spin_loop();
    }
}

/// Gives all processors the work; this one, the boot processor, does its part.
pub fn distribute(units: &'static [&'static Unit], work: &'static dyn Work) -> ! {
    for (index, unit) in units.iter().enumerate().rev() {
        unit.work.call_once(|| (work, index));
    }
    work.run(0, units[0])
}
