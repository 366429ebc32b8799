//! The local APIC in x2APIC mode (Intel SDM 3A, 11.12). The parent has most of it for itself; the hypervisor has the
//! timer, sends interrupts and looks at requests.

use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::cpu::msr;

const MSR_ID: u32 = 0x802;
const MSR_TASK_PRIORITY: u32 = 0x808;
const MSR_EOI: u32 = 0x80b;
const MSR_SPURIOUS: u32 = 0x80f;
const MSR_IN_SERVICE: u32 = 0x810;
const MSR_REQUEST: u32 = 0x820;
const MSR_ICR: u32 = 0x830;
const MSR_LVT_TIMER: u32 = 0x832;
const MSR_TIMER_INITIAL: u32 = 0x838;
const MSR_TIMER_CURRENT: u32 = 0x839;
const MSR_TIMER_DIVIDE: u32 = 0x83e;
const MSR_SELF_IPI: u32 = 0x83f;

const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const SPURIOUS_ENABLE: u64 = 1 << 8;
const LVT_MASKED: u64 = 1 << 16;
const LVT_DEADLINE: u64 = 2 << 17;

const ICR_NMI: u64 = 4 << 8;
const ICR_INIT: u64 = 5 << 8;
const ICR_STARTUP: u64 = 6 << 8;
const ICR_ASSERT: u64 = 1 << 14;

/// What makes the timer's interrupt, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Timer {
    /// Never.
    Off,
    /// `vector` after `count` ticks of the input clock divided by `1 << divide_shift` (0 to 7).
    Count { vector: u8, count: u32, divide_shift: u32 },
    /// `vector` when the time stamp counter reaches `deadline`.
    Deadline { vector: u8, deadline: u64 },
}

/// Brings this processor's local APIC into x2APIC mode, enabled, with the timer off.
pub fn enable() {
    // SAFETY: the boot program has checked for x2APIC. The MMIO page that this takes away is used by nobody: the
    // firmware is gone and the parent has not started.
    unsafe {
        let base = msr::read(msr::APIC_BASE);
        msr::write(msr::APIC_BASE, base | BASE_ENABLE);
        msr::write(msr::APIC_BASE, base | BASE_ENABLE | BASE_X2APIC);
        msr::write(MSR_SPURIOUS, SPURIOUS_ENABLE | 0xff);
    }
    set_timer(Timer::Off);
    set_task_priority(0);
}

/// This processor's identifier.
pub fn id() -> u32 {
    // SAFETY: x2APIC mode is on (`enable`); reading has no effect.
    unsafe { msr::read(MSR_ID) as u32 }
}

/// Acknowledges the interrupt in service.
pub fn end_of_interrupt() {
    // SAFETY: x2APIC mode is on; an EOI concerns no memory.
    unsafe { msr::write(MSR_EOI, 0) }
}

/// Acknowledges the interrupt in service, whose `vector` is that of spurious interrupts, too. Such a one needs no
/// acknowledgement, and Bochs takes none for it, though it came as an ordinary interrupt; with another vector for spurious
/// ones it does. Whether that is needed is found out the first time.
pub fn end_of_own_interrupt(vector: u8) {
    static HELP: AtomicU8 = AtomicU8::new(UNKNOWN);
    const UNKNOWN: u8 = 0;
    const NOT_NEEDED: u8 = 1;
    const NEEDED: u8 = 2;
    end_of_interrupt();
    if HELP.load(Relaxed) == UNKNOWN {
        HELP.store(if in_service(vector) { NEEDED } else { NOT_NEEDED }, Relaxed);
    }
    if HELP.load(Relaxed) == NEEDED {
        // SAFETY: x2APIC mode is on. Interrupts are off, so none comes while spurious ones have another vector.
        unsafe {
            let spurious = msr::read(MSR_SPURIOUS);
            msr::write(MSR_SPURIOUS, spurious ^ 0x10);
            end_of_interrupt();
            msr::write(MSR_SPURIOUS, spurious);
        }
    }
}

/// Holds back interrupts whose vector's upper half is not above `priority >> 4`.
pub fn set_task_priority(priority: u8) {
    // SAFETY: x2APIC mode is on; the value only holds interrupts back.
    unsafe { msr::write(MSR_TASK_PRIORITY, u64::from(priority)) }
}

/// See [`set_task_priority`].
pub fn task_priority() -> u8 {
    // SAFETY: x2APIC mode is on; reading has no effect.
    unsafe { msr::read(MSR_TASK_PRIORITY) as u8 }
}

fn bit(registers: u32, vector: u8) -> bool {
    // SAFETY: x2APIC mode is on; `registers` is one of the two arrays of eight, reading has no effect.
    let word = unsafe { msr::read(registers + u32::from(vector) / 32) };
    word >> (vector % 32) & 1 != 0
}

/// Whether an interrupt with `vector` waits for this processor.
pub fn requested(vector: u8) -> bool {
    bit(MSR_REQUEST, vector)
}

/// Whether an interrupt with `vector` has been taken and not yet acknowledged.
pub fn in_service(vector: u8) -> bool {
    bit(MSR_IN_SERVICE, vector)
}

/// Whether any interrupt other than `vector` waits for this processor.
pub fn other_requested(vector: u8) -> bool {
    (0..8).any(|index| {
        // SAFETY: x2APIC mode is on; these are the eight request registers, reading has no effect.
        let word = unsafe { msr::read(MSR_REQUEST + index) } as u32;
        let own = if u32::from(vector) / 32 == index { 1 << (vector % 32) } else { 0 };
        word & !own != 0
    })
}

/// Whether any interrupt waits for this processor.
pub fn any_requested() -> bool {
    // SAFETY: x2APIC mode is on; these are the eight request registers, reading has no effect.
    (0..8).any(|index| unsafe { msr::read(MSR_REQUEST + index) } != 0)
}

/// Sends this processor an interrupt.
pub fn send_self(vector: u8) {
    // SAFETY: x2APIC mode is on. Interrupts reach the hypervisor's handlers or a partition's, never memory.
    unsafe { msr::write(MSR_SELF_IPI, u64::from(vector)) }
}

/// Sends processor `apic_id` an interrupt.
pub fn send(apic_id: u32, vector: u8) {
    command(u64::from(apic_id) << 32 | ICR_ASSERT | u64::from(vector));
}

/// Sends processor `apic_id` an NMI.
pub fn send_nmi(apic_id: u32) {
    command(u64::from(apic_id) << 32 | ICR_ASSERT | ICR_NMI);
}

/// Sends an NMI to all processors but this one.
pub fn send_nmi_to_others() {
    command(3 << 18 | ICR_ASSERT | ICR_NMI);
}

/// Resets processor `apic_id`, which then waits for [`send_startup`].
pub fn send_init(apic_id: u32) {
    command(u64::from(apic_id) << 32 | ICR_ASSERT | ICR_INIT);
}

/// Starts processor `apic_id` in real mode at physical address `page << 12`.
pub fn send_startup(apic_id: u32, page: u8) {
    command(u64::from(apic_id) << 32 | ICR_ASSERT | ICR_STARTUP | u64::from(page));
}

/// Writes the interrupt command register.
pub fn command(value: u64) {
    // SAFETY: x2APIC mode is on. The fence makes earlier writes visible to the receiver (Intel SDM 3A, 11.12.3). What
    // callers send starts processors in the trampoline or reaches interrupt handlers. `Machine::write_icr` passes the
    // parent's own interrupts, without INIT and SIPI.
    unsafe {
        core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
        msr::write(MSR_ICR, value);
    }
}

/// Sets this processor's timer. Whatever it was set to before is forgotten.
pub fn set_timer(timer: Timer) {
    // SAFETY: x2APIC mode is on; the timer raises interrupts, nothing else. TSC-deadline mode is used only where CPUID
    // tells that it is there (`timer::Clock`).
    unsafe {
        match timer {
            Timer::Off => {
                msr::write(MSR_LVT_TIMER, LVT_MASKED);
                msr::write(MSR_TIMER_INITIAL, 0);
            }
            Timer::Count { vector, count, divide_shift } => {
                msr::write(MSR_TIMER_DIVIDE, divide_configuration(divide_shift));
                msr::write(MSR_LVT_TIMER, u64::from(vector));
                msr::write(MSR_TIMER_INITIAL, u64::from(count));
            }
            Timer::Deadline { vector, deadline } => {
                msr::write(MSR_LVT_TIMER, LVT_DEADLINE | u64::from(vector));
                core::arch::asm!("mfence", options(nostack, preserves_flags));
                msr::write(msr::TSC_DEADLINE, deadline);
            }
        }
    }
}

/// What is left of the timer's count.
pub fn timer_count() -> u32 {
    let count: u32;
    // SAFETY: x2APIC mode is on; reading has no effect, and SS stays what it is. Loading it has QEMU translate the next
    // instruction by itself: only so may that look at the clock where the clock counts instructions (`-icount`).
    unsafe {
        core::arch::asm!(
            "mov {ss:e}, ss", "mov ss, {ss:e}", "rdmsr",
            ss = out(reg) _, in("ecx") MSR_TIMER_CURRENT, out("eax") count, out("edx") _,
            options(nomem, nostack, preserves_flags),
        );
    }
    count
}

/// The divide configuration register's value for division by `1 << shift` (Intel SDM 3A, figure 11-10).
fn divide_configuration(shift: u32) -> u64 {
    let code = if shift == 0 { 7 } else { u64::from(shift.min(7)) - 1 };
    (code & 4) << 1 | code & 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisions_are_encoded_as_the_manual_says() {
        assert_eq!(divide_configuration(0), 0b1011);
        assert_eq!(divide_configuration(1), 0b0000);
        assert_eq!(divide_configuration(4), 0b0011);
        assert_eq!(divide_configuration(5), 0b1000);
        assert_eq!(divide_configuration(7), 0b1010);
    }
}
