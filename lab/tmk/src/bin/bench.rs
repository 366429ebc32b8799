//! What things cost, in ticks of the TSC: `bench ROW TICKS_PER_OP`. On an emulator that counts instructions
//! (`-icount shift=0`) a tick is an instruction.
//!
//! It runs on any hypervisor and on none, to have something to compare with; rows that need what is not there are left out.
//! Command line: `iterations=N` (1000).

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use parterre_abi::cpuid::PrivilegeMask;
use parterre_abi::hypercall::HypercallCode;
use parterre_abi::msr;
use tmk::apic::{self, Register};
use tmk::cpu::{self, cpuid, inb, outb, rdmsr, rdtsc, wrmsr};
use tmk::{TestResult, catch, check, fault, hv, line, params, skip, smp, time};

tmk::program!("bench":
    nothing,
    cpuid_exit,
    hypercall,
    msr_read,
    msr_write,
    reference_counter,
    port_write,
    port_read,
    self_ipi,
    halt_with_interrupt_pending,
    apic_timer,
    apic_timer_from_halt,
    ipi_to_running_processor,
    ipi_to_halted_processor,
    first_touch,
);

const VECTOR: u8 = 0x50;

fn iterations() -> u64 {
    params::number("iterations").unwrap_or(1000).max(1)
}

/// Prints a row.
fn row(name: &str, ticks: u64, operations: u64) {
    line!("bench {name} {}", ticks / operations.max(1));
}

/// Measures an operation that is repeated; a tenth goes before, uncounted.
fn measure(name: &str, operation: impl FnMut()) {
    measure_fewer(name, 1, operation);
}

/// The same, with fewer repetitions for what is slow.
fn measure_fewer(name: &str, divisor: u64, mut operation: impl FnMut()) {
    let count = (iterations() / divisor).max(1);
    for _ in 0..count / 10 + 1 {
        operation();
    }
    let start = rdtsc();
    for _ in 0..count {
        operation();
    }
    row(name, rdtsc() - start, count);
}

/// The loop and the clock themselves.
fn nothing() -> TestResult {
    measure("nothing", || {
        core::hint::black_box(0);
    });
    Ok(())
}

fn cpuid_exit() -> TestResult {
    measure("cpuid", || {
        core::hint::black_box(cpuid(0, 0));
    });
    Ok(())
}

/// An IPI to nobody by Hyper-V's interface; without it, a call that the hypervisor (KVM) does not know.
fn hypercall() -> TestResult {
    if hv::enable_hypercalls() {
        measure("hypercall", || {
            hv::call_fast(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI, VECTOR.into(), 0);
        });
        return Ok(());
    }
    if catch(|| hv::vmcall(0xFFFF, 0, 0, 0)).is_err() {
        skip!("no hypervisor to call")
    }
    measure("hypercall", || {
        hv::vmcall(0xFFFF, 0, 0, 0);
    });
    Ok(())
}

fn msr_read() -> TestResult {
    measure("msr-read", || {
        core::hint::black_box(rdmsr(apic::APIC_BASE));
    });
    Ok(())
}

fn msr_write() -> TestResult {
    let value = rdmsr(apic::APIC_BASE);
    measure("msr-write", || wrmsr(apic::APIC_BASE, value));
    Ok(())
}

fn reference_counter() -> TestResult {
    if !hv::privileges().contains(PrivilegeMask::ACCESS_PARTITION_REFERENCE_COUNTER) {
        skip!("no reference counter")
    }
    measure("reference-counter", || {
        core::hint::black_box(rdmsr(msr::TIME_REF_COUNT));
    });
    Ok(())
}

/// To the device model: nothing inside of a hypervisor knows this port.
fn port_write() -> TestResult {
    measure("port-write", || outb(0x80, 0));
    Ok(())
}

/// The serial port's scratch register, which only a device model can answer.
fn port_read() -> TestResult {
    measure("port-read", || {
        core::hint::black_box(inb(0x3FF));
    });
    Ok(())
}

static COUNT: AtomicU32 = AtomicU32::new(0);
static ARRIVED: AtomicU64 = AtomicU64::new(0);

fn on_interrupt() {
    ARRIVED.store(rdtsc(), Ordering::SeqCst);
    COUNT.fetch_add(1, Ordering::SeqCst);
    apic::eoi();
}

fn self_ipi() -> TestResult {
    fault::set_handler(VECTOR, Some(on_interrupt));
    measure("self-ipi", || {
        let before = COUNT.load(Ordering::SeqCst);
        apic::send_self(VECTOR);
        while COUNT.load(Ordering::SeqCst) == before {
            cpu::take_interrupts();
        }
    });
    Ok(())
}

fn halt_with_interrupt_pending() -> TestResult {
    fault::set_handler(VECTOR, Some(on_interrupt));
    measure("halt-pending", || {
        apic::send_self(VECTOR);
        cpu::halt();
    });
    Ok(())
}

/// How long after its time the timer's interrupt arrives; arming it is a row of its own.
fn timer_rows(name: &str, wait: fn()) -> TestResult {
    const TICKS: u32 = 50_000;
    fault::set_handler(VECTOR, Some(on_interrupt));
    let per_count = tsc_ticks_per_timer_count();
    check!(per_count.0 != 0, "the APIC timer does not count");
    let rounds = (iterations() / 10).max(1);
    let mut late = 0;
    for _ in 0..rounds {
        let before = COUNT.load(Ordering::SeqCst);
        apic::start_timer(VECTOR, TICKS, false);
        let armed = rdtsc();
        while COUNT.load(Ordering::SeqCst) == before {
            wait();
        }
        let due = armed + (u128::from(TICKS) * u128::from(per_count.0) / u128::from(per_count.1)) as u64;
        late += ARRIVED.load(Ordering::SeqCst).saturating_sub(due);
    }
    apic::stop_timer();
    row(name, late, rounds);
    Ok(())
}

/// TSC ticks in so many counts of the timer, divided by 1.
fn tsc_ticks_per_timer_count() -> (u64, u64) {
    apic::write(Register::Divide, 0xB);
    apic::write(Register::LvtTimer, 1 << 16);
    apic::write(Register::InitialCount, u32::MAX.into());
    let (first, start) = (apic::read(Register::CurrentCount), rdtsc());
    time::spin(20_000_000);
    let (last, end) = (apic::read(Register::CurrentCount), rdtsc());
    apic::stop_timer();
    (end - start, first.saturating_sub(last).max(1))
}

fn apic_timer() -> TestResult {
    measure_fewer("apic-timer-arm", 10, || apic::start_timer(VECTOR, u32::MAX, false));
    apic::stop_timer();
    timer_rows("apic-timer-late", cpu::take_interrupts)
}

fn apic_timer_from_halt() -> TestResult {
    timer_rows("apic-timer-late-from-halt", cpu::halt)
}

static STOP: AtomicBool = AtomicBool::new(false);

/// From sending to the handler on the other processor and back through memory.
fn ipi(name: &str, listen: fn()) -> TestResult {
    if smp::count() < 2 {
        skip!("one processor only")
    }
    fault::set_handler(VECTOR, Some(on_interrupt));
    STOP.store(false, Ordering::SeqCst);
    smp::give(1, listen);
    let destination = smp::apic_id(1);
    let rounds = (iterations() / 4).max(1);
    let mut ticks = 0;
    for _ in 0..rounds {
        time::spin(20_000);
        let before = COUNT.load(Ordering::SeqCst);
        let start = rdtsc();
        apic::send_ipi(VECTOR, destination);
        let arrives = time::wait_until(time::LONG, || COUNT.load(Ordering::SeqCst) != before);
        check!(arrives, "an IPI does not arrive");
        ticks += rdtsc() - start;
    }
    STOP.store(true, Ordering::SeqCst);
    apic::send_ipi(VECTOR, destination);
    check!(smp::finished(1), "processor 1 does not come back");
    row(name, ticks, rounds);
    Ok(())
}

fn ipi_to_running_processor() -> TestResult {
    ipi("ipi", || {
        while !STOP.load(Ordering::SeqCst) {
            cpu::take_interrupts();
        }
    })
}

fn ipi_to_halted_processor() -> TestResult {
    ipi("ipi-to-halted", || {
        while !STOP.load(Ordering::SeqCst) {
            cpu::halt();
        }
    })
}

/// The first write to each page of memory that nobody has used yet, against the second.
fn first_touch() -> TestResult {
    const START: u64 = 64 << 20;
    let end = params::low_ram_end().min(START + (32 << 20)) & !0xFFF;
    if end <= START + (1 << 20) {
        skip!("too little memory")
    }
    for name in ["touch-first", "touch-again"] {
        let start = rdtsc();
        for address in (START..end).step_by(4096) {
            // SAFETY: RAM by the memory map, away from the program, which uses the first few MiB.
            unsafe { core::ptr::write_volatile(address as *mut u64, address) };
        }
        row(name, rdtsc() - start, (end - START) / 4096);
    }
    Ok(())
}
