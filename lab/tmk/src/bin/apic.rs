//! The local APIC of a processor (Intel SDM volume 3, chapter "APIC").

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};
use tmk::apic::{self, Register};
use tmk::cpu::{self, rdmsr, try_rdmsr, try_wrmsr};
use tmk::{Fault, TestResult, check, fault, skip, time};

tmk::program!("apic":
    version,
    base,
    self_interrupt,
    interrupt_waits_in_irr,
    task_priority_holds_back,
    priorities_nest,
    eoi_clears_in_service,
    higher_vector_comes_first,
    masked_timer_is_silent,
    timer_counts_down,
    timer_one_shot,
    timer_periodic,
    timer_stops_at_zero_count,
    timer_deadline,
    illegal_vector_is_an_error,
    x2apic_reserved_registers_fault,
    x2apic_write_only_and_read_only,
    x2apic_logical_id,
);

const LOW: u8 = 0x41;
const HIGH: u8 = 0x91;

static COUNT: AtomicU32 = AtomicU32::new(0);
static ORDER: AtomicU32 = AtomicU32::new(0);

fn count_it() {
    COUNT.fetch_add(1, Ordering::SeqCst);
    apic::eoi();
}

fn low() {
    ORDER.store(ORDER.load(Ordering::SeqCst) << 8 | u32::from(LOW), Ordering::SeqCst);
    apic::eoi();
}

fn high() {
    ORDER.store(ORDER.load(Ordering::SeqCst) << 8 | u32::from(HIGH), Ordering::SeqCst);
    apic::eoi();
}

fn counted() -> u32 {
    COUNT.swap(0, Ordering::SeqCst)
}

/// Waits with interrupts on until `COUNT` is at least `count`.
fn wait_for(count: u32) -> bool {
    time::wait_until(time::LONG, || {
        cpu::take_interrupts();
        COUNT.load(Ordering::SeqCst) >= count
    })
}

fn version() -> TestResult {
    let version = apic::read(Register::Version);
    check!(version & 0xFF >= 0x10, "version {version:#x} is not that of an integrated APIC");
    check!(version >> 16 & 0xFF >= 3, "only {} LVT entries", (version >> 16 & 0xFF) + 1);
    Ok(())
}

fn base() -> TestResult {
    let base = rdmsr(apic::APIC_BASE);
    check!(base & 1 << 8 != 0, "the boot processor's flag is not set in APIC_BASE {base:#x}");
    check!(base & 1 << 11 != 0, "the APIC is off in APIC_BASE {base:#x}");
    check!(base & 0xF_FFFF_F000 == 0xFEE0_0000, "the APIC is at {:#x}", base & 0xF_FFFF_F000);
    Ok(())
}

fn self_interrupt() -> TestResult {
    fault::set_handler(LOW, Some(count_it));
    for _ in 0..10 {
        apic::send_self(LOW);
        check!(wait_for(1), "no interrupt arrives");
        check!(counted() == 1, "it arrives more than once");
    }
    Ok(())
}

fn interrupt_waits_in_irr() -> TestResult {
    fault::set_handler(LOW, Some(count_it));
    apic::send_self(LOW);
    check!(time::wait_until(time::LONG, || apic::bit(Register::Irr0, LOW)), "the vector is not in IRR");
    check!(counted() == 0, "it is delivered while interrupts are off");
    cpu::take_interrupts();
    check!(counted() == 1, "it is not delivered when interrupts are on");
    check!(!apic::bit(Register::Irr0, LOW), "the vector stays in IRR");
    Ok(())
}

fn task_priority_holds_back() -> TestResult {
    fault::set_handler(LOW, Some(count_it));
    apic::write(Register::Tpr, 0x40);
    apic::send_self(LOW);
    for _ in 0..100 {
        cpu::take_interrupts();
    }
    let early = counted();
    apic::write(Register::Tpr, 0x30);
    cpu::take_interrupts();
    let late = counted();
    apic::write(Register::Tpr, 0);
    check!(early == 0, "vector {LOW:#x} comes through a task priority of 0x40");
    check!(late == 1, "vector {LOW:#x} does not come at a task priority of 0x30");
    Ok(())
}

/// A handler of low priority is interrupted by a higher vector, not by its own class.
fn priorities_nest() -> TestResult {
    fn outer() {
        ORDER.store(1, Ordering::SeqCst);
        apic::send_self(LOW - 1);
        apic::send_self(HIGH);
        cpu::take_interrupts();
        ORDER.store(ORDER.load(Ordering::SeqCst) << 8 | 2, Ordering::SeqCst);
        apic::eoi();
    }
    fn same_class() {
        ORDER.store(ORDER.load(Ordering::SeqCst) << 8 | 3, Ordering::SeqCst);
        apic::eoi();
    }
    fault::set_handler(LOW, Some(outer));
    fault::set_handler(LOW - 1, Some(same_class));
    fault::set_handler(HIGH, Some(high));
    apic::send_self(LOW);
    cpu::take_interrupts();
    cpu::take_interrupts();
    let order = ORDER.swap(0, Ordering::SeqCst);
    check!(order == 0x0191_0203, "handlers ran in the order {order:#x}");
    Ok(())
}

fn eoi_clears_in_service() -> TestResult {
    static IN_SERVICE: AtomicU32 = AtomicU32::new(0);
    fn look() {
        IN_SERVICE.store(u32::from(apic::bit(Register::Isr0, LOW)), Ordering::SeqCst);
        apic::eoi();
    }
    fault::set_handler(LOW, Some(look));
    apic::send_self(LOW);
    cpu::take_interrupts();
    check!(IN_SERVICE.load(Ordering::SeqCst) == 1, "the vector is not in ISR while its handler runs");
    check!(!apic::bit(Register::Isr0, LOW), "the vector stays in ISR after EOI");
    Ok(())
}

fn higher_vector_comes_first() -> TestResult {
    fault::set_handler(LOW, Some(low));
    fault::set_handler(HIGH, Some(high));
    ORDER.store(0, Ordering::SeqCst);
    apic::send_self(LOW);
    apic::send_self(HIGH);
    for _ in 0..4 {
        cpu::take_interrupts();
    }
    let order = ORDER.swap(0, Ordering::SeqCst);
    check!(order == u32::from(HIGH) << 8 | u32::from(LOW), "vectors came in the order {order:#x}");
    Ok(())
}

fn masked_timer_is_silent() -> TestResult {
    fault::set_handler(LOW, Some(count_it));
    apic::write(Register::Divide, 0xB);
    apic::write(Register::LvtTimer, 1 << 16 | u64::from(LOW));
    apic::write(Register::InitialCount, 1000);
    check!(
        time::wait_until(time::LONG, || apic::read(Register::CurrentCount) == 0),
        "it does not count to zero"
    );
    cpu::take_interrupts();
    check!(counted() == 0, "an interrupt comes although the entry is masked");
    Ok(())
}

fn timer_counts_down() -> TestResult {
    apic::write(Register::Divide, 0xB);
    apic::write(Register::LvtTimer, 1 << 16);
    apic::write(Register::InitialCount, 0xFFFF_FFFF);
    let mut last = apic::read(Register::CurrentCount);
    let first = last;
    for _ in 0..20 {
        time::spin(100_000);
        let now = apic::read(Register::CurrentCount);
        check!(now <= last, "the count goes up from {last} to {now}");
        last = now;
    }
    apic::stop_timer();
    check!(last < first, "the count stays at {last}");
    Ok(())
}

fn timer_one_shot() -> TestResult {
    fault::set_handler(LOW, Some(count_it));
    for _ in 0..5 {
        apic::start_timer(LOW, 10_000, false);
        check!(wait_for(1), "it does not fire");
        for _ in 0..50 {
            cpu::take_interrupts();
            time::spin(10_000);
        }
        check!(counted() == 1, "it fires more than once");
    }
    apic::stop_timer();
    Ok(())
}

fn timer_periodic() -> TestResult {
    fault::set_handler(LOW, Some(count_it));
    apic::start_timer(LOW, 2_000_000, true);
    let fired = wait_for(5);
    apic::stop_timer();
    cpu::take_interrupts();
    let count = counted();
    check!(fired, "it fires {count} times instead of again and again");
    Ok(())
}

fn timer_stops_at_zero_count() -> TestResult {
    fault::set_handler(LOW, Some(count_it));
    apic::start_timer(LOW, 100_000_000, true);
    apic::write(Register::InitialCount, 0);
    counted();
    for _ in 0..50 {
        cpu::take_interrupts();
        time::spin(1_000_000);
    }
    let (count, left) = (counted(), apic::read(Register::CurrentCount));
    apic::stop_timer();
    check!(count == 0 && left == 0, "it fires {count} times, and {left} is left, after a count of 0");
    Ok(())
}

fn timer_deadline() -> TestResult {
    const TSC_DEADLINE: u32 = 0x6E0;
    if cpu::cpuid(1, 0).ecx & 1 << 24 == 0 {
        skip!("no TSC deadline mode")
    }
    fault::set_handler(LOW, Some(count_it));
    apic::write(Register::LvtTimer, u64::from(LOW) | 2 << 17);
    let deadline = cpu::rdtsc() + 1_000_000;
    cpu::wrmsr(TSC_DEADLINE, deadline);
    let fired = wait_for(1);
    let now = cpu::rdtsc();
    let left = rdmsr(TSC_DEADLINE);
    apic::stop_timer();
    check!(fired, "it does not fire");
    check!(now >= deadline, "it fires {} ticks early", deadline - now);
    check!(counted() == 1 && left == 0, "the deadline is still {left:#x} after it has passed");
    Ok(())
}

fn illegal_vector_is_an_error() -> TestResult {
    apic::write(Register::Esr, 0);
    apic::write(Register::Esr, 0);
    if apic::in_x2apic_mode() {
        // The self IPI register takes it as well; use the command register.
        apic::send(1 << 14 | 0x03, apic::id());
    } else {
        apic::send(1 << 18 | 1 << 14 | 0x03, 0);
    }
    apic::write(Register::Esr, 0);
    let errors = apic::read(Register::Esr);
    apic::write(Register::Esr, 0);
    check!(errors & 0x60 != 0, "an IPI with vector 3 leaves the error status at {errors:#x}");
    Ok(())
}

fn x2apic_reserved_registers_fault() -> TestResult {
    if !apic::in_x2apic_mode() {
        skip!("not in the x2APIC mode")
    }
    // The destination format, ICR high, and numbers without a register.
    for number in [0x80E, 0x831, 0x800, 0x801, 0x804, 0x83A, 0x8FF] {
        let refused = matches!(try_rdmsr(number), Err(Fault { vector: Fault::GP, .. }));
        check!(refused, "MSR {number:#x} can be read");
    }
    Ok(())
}

fn x2apic_write_only_and_read_only() -> TestResult {
    if !apic::in_x2apic_mode() {
        skip!("not in the x2APIC mode")
    }
    for number in [0x80B, 0x83F] {
        check!(try_rdmsr(number).is_err(), "the write-only MSR {number:#x} can be read");
    }
    for number in [0x802, 0x803, 0x80A, 0x80D, 0x810, 0x839] {
        check!(try_wrmsr(number, 0).is_err(), "the read-only MSR {number:#x} can be written");
    }
    check!(try_wrmsr(0x80B, 1).is_err(), "EOI takes another value than 0");
    check!(try_wrmsr(0x808, 0x100).is_err(), "TPR takes reserved bits");
    Ok(())
}

fn x2apic_logical_id() -> TestResult {
    if !apic::in_x2apic_mode() {
        skip!("not in the x2APIC mode")
    }
    let id = apic::id();
    let expected = u64::from((id >> 4) << 16 | 1 << (id & 15));
    let logical = apic::read(Register::Ldr);
    check!(logical == expected, "the logical id of APIC {id} is {logical:#x} instead of {expected:#x}");
    Ok(())
}
