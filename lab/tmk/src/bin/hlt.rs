//! Halting, and all that wakes.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};
use parterre_abi::cpuid::PrivilegeMask;
use parterre_abi::msr;
use tmk::{TestResult, apic, check, cpu, fault, hv, skip, smp, time};

tmk::program!("hlt":
    pending_interrupt_wakes_at_once,
    timer_wakes,
    timer_wakes_many_times,
    all_processors_halt_and_wake,
    nmi_wakes_with_interrupts_off,
    guest_idle_wakes,
);

const VECTOR: u8 = 0x70;

static COUNT: AtomicU32 = AtomicU32::new(0);

fn count_it() {
    COUNT.fetch_add(1, Ordering::SeqCst);
    apic::eoi();
}

fn pending_interrupt_wakes_at_once() -> TestResult {
    fault::set_handler(VECTOR, Some(count_it));
    COUNT.store(0, Ordering::SeqCst);
    apic::send_self(VECTOR);
    cpu::halt();
    check!(COUNT.load(Ordering::SeqCst) == 1, "the interrupt that waited did not come");
    Ok(())
}

fn timer_wakes() -> TestResult {
    fault::set_handler(VECTOR, Some(count_it));
    COUNT.store(0, Ordering::SeqCst);
    apic::start_timer(VECTOR, 1_000_000, false);
    cpu::halt();
    apic::stop_timer();
    check!(COUNT.load(Ordering::SeqCst) == 1, "HLT ended without the timer's interrupt");
    Ok(())
}

/// With times of all lengths, so that the timer also fires around the HLT itself: no wake-up may be lost.
fn timer_wakes_many_times() -> TestResult {
    fault::set_handler(VECTOR, Some(count_it));
    for round in 0..300u32 {
        COUNT.store(0, Ordering::SeqCst);
        apic::start_timer(VECTOR, 1 + round * round % 20_011, false);
        while COUNT.load(Ordering::SeqCst) == 0 {
            cpu::halt();
        }
    }
    apic::stop_timer();
    Ok(())
}

fn all_processors_halt_and_wake() -> TestResult {
    if smp::count() < 2 {
        skip!("one processor only")
    }
    fault::set_handler(VECTOR, Some(count_it));
    COUNT.store(0, Ordering::SeqCst);
    for index in 1..smp::count() {
        smp::give(index, || {
            for _ in 0..50 {
                apic::start_timer(VECTOR, 200_000, false);
                cpu::halt();
            }
            apic::stop_timer();
        });
    }
    for index in 1..smp::count() {
        check!(smp::finished(index), "processor {index} does not wake");
    }
    let (count, expected) = (COUNT.load(Ordering::SeqCst), 50 * (smp::count() as u32 - 1));
    check!(count == expected, "{count} interrupts instead of {expected}");
    Ok(())
}

fn nmi_wakes_with_interrupts_off() -> TestResult {
    if smp::count() < 2 {
        skip!("one processor only")
    }
    static STATE: AtomicU32 = AtomicU32::new(0);
    STATE.store(0, Ordering::SeqCst);
    smp::give(1, || {
        let outcome = tmk::catch(|| {
            STATE.store(1, Ordering::SeqCst);
            // SAFETY: an NMI comes, and ends the closure.
            unsafe { core::arch::asm!("cli", "2: hlt", "jmp 2b") };
        });
        STATE.store(if matches!(outcome, Err(fault) if fault.vector == 2) { 2 } else { 3 }, Ordering::SeqCst);
    });
    check!(time::wait_until(time::LONG, || STATE.load(Ordering::SeqCst) == 1), "processor 1 does not start");
    time::spin(5_000_000);
    apic::send(4 << 8 | 1 << 14, smp::apic_id(1));
    check!(smp::finished(1), "the NMI does not wake processor 1");
    check!(STATE.load(Ordering::SeqCst) == 2, "processor 1 woke, but not by the NMI");
    Ok(())
}

/// Reading the MSR halts, with interrupts off too (TLFS "Virtual Processor Idle Sleep State").
fn guest_idle_wakes() -> TestResult {
    if !hv::privileges().contains(PrivilegeMask::ACCESS_GUEST_IDLE_REG) {
        skip!("no guest idle MSR")
    }
    fault::set_handler(VECTOR, Some(count_it));
    for _ in 0..20 {
        COUNT.store(0, Ordering::SeqCst);
        apic::start_timer(VECTOR, 200_000, false);
        cpu::rdmsr(msr::GUEST_IDLE);
        check!(COUNT.load(Ordering::SeqCst) == 0, "an interrupt is taken although interrupts are off");
        let arrives = time::wait_until(time::LONG, || {
            cpu::take_interrupts();
            COUNT.load(Ordering::SeqCst) == 1
        });
        check!(arrives, "the timer's interrupt is lost");
    }
    apic::stop_timer();
    Ok(())
}
