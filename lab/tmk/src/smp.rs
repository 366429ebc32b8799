//! The other processors: started as the architecture says (INIT, SIPI), they wait for work.

use crate::{acpi, apic, fault, paging, time};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

unsafe extern "C" {
    static tmk_trampoline: u8;
    static tmk_trampoline_cr3: u8;
    static tmk_trampoline_end: u8;
    static tmk_ap_count: AtomicU32;
}

const TRAMPOLINE: u64 = 0x8000;

static APIC_IDS: [AtomicU32; fault::MAX_PROCESSORS + 1] =
    [const { AtomicU32::new(u32::MAX) }; fault::MAX_PROCESSORS + 1];
static READY: AtomicU32 = AtomicU32::new(0);
static WORK: [AtomicUsize; fault::MAX_PROCESSORS + 1] =
    [const { AtomicUsize::new(0) }; fault::MAX_PROCESSORS + 1];

/// Starts all processors that the MADT names.
pub fn init() {
    APIC_IDS[0].store(apic::id(), Ordering::SeqCst);
    copy_trampoline();
    let own = apic::id();
    for id in acpi::apic_ids() {
        if id != own {
            start(id);
        }
    }
}

fn copy_trampoline() {
    let source = &raw const tmk_trampoline;
    // SAFETY: linker symbols around the trampoline; the page at 0x8000 is low RAM that nothing else here uses.
    unsafe {
        let length = (&raw const tmk_trampoline_end).offset_from(source) as usize;
        let cr3_offset = (&raw const tmk_trampoline_cr3).offset_from(source) as usize;
        core::ptr::copy_nonoverlapping(source, TRAMPOLINE as *mut u8, length);
        core::ptr::write_unaligned((TRAMPOLINE as usize + cr3_offset) as *mut u64, paging::cr3());
    }
}

/// INIT, then up to two start-up IPIs. A processor that does not come is left alone: [`count`] tells.
fn start(id: u32) {
    let before = READY.load(Ordering::SeqCst);
    apic::send(0xC500, id);
    time::spin(10_000_000);
    for _ in 0..2 {
        apic::send(0x4600 | (TRAMPOLINE >> 12) as u32, id);
        if time::wait_until(400_000_000, || READY.load(Ordering::SeqCst) != before) {
            return;
        }
    }
}

/// Processors that run, with the boot processor.
pub fn count() -> usize {
    READY.load(Ordering::SeqCst) as usize + 1
}

/// A processor's APIC id.
pub fn apic_id(index: usize) -> u32 {
    APIC_IDS.get(index).map_or(u32::MAX, |id| id.load(Ordering::SeqCst))
}

/// Gives a processor (not the boot processor) something to do, when it has done the last thing.
pub fn give(index: usize, work: fn()) {
    if let Some(slot) = WORK.get(index) {
        time::wait_until(u64::MAX, || slot.load(Ordering::SeqCst) == 0);
        slot.store(work as usize, Ordering::SeqCst);
    }
}

/// Whether a processor has done what it was given; waits for it.
pub fn finished(index: usize) -> bool {
    WORK.get(index).is_some_and(|slot| time::wait_until(20_000_000_000, || slot.load(Ordering::SeqCst) == 0))
}

/// Where application processors arrive, on their own stack.
#[unsafe(no_mangle)]
extern "C" fn tmk_ap_start(index: u32) -> ! {
    let index = index as usize;
    fault::init_processor(index);
    apic::enable();
    let Some((slot, id)) = WORK.get(index).zip(APIC_IDS.get(index)) else { wait_for_ever() };
    id.store(apic::id(), Ordering::SeqCst);
    READY.fetch_add(1, Ordering::SeqCst);
    loop {
        let work = slot.load(Ordering::SeqCst);
        if work == 0 {
            core::hint::spin_loop();
            continue;
        }
        // SAFETY: only `give` stores here, and it stores a `fn()`.
        let function: fn() = unsafe { core::mem::transmute(work) };
        function();
        slot.store(0, Ordering::SeqCst);
    }
}

fn wait_for_ever() -> ! {
    loop {
        // SAFETY: there are more processors than the program has room for; this one rests.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Processors that entered the trampoline, for diagnosis.
pub fn entered() -> u32 {
    // SAFETY: an aligned 32-bit word in .bss that only atomic operations touch.
    unsafe { tmk_ap_count.load(Ordering::SeqCst) }
}
