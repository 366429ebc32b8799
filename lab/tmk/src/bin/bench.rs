//! What things cost, in ticks of the TSC: `bench ROW TICKS`. On an emulator that counts instructions (`-icount shift=0`) a
//! tick is an instruction. Each row is the median of many single operations, so that what the system below does now and
//! then for itself does not show; only the first touch of memory is a mean, because there the rare dear one is the cost.
//!
//! It runs on any hypervisor and on none, to have something to compare with; rows that need what is not there are left out.
//! On one processor it measures that processor, on several what goes between them: a processor that waits in a loop for work
//! would share the physical one with what is measured. Command line: `iterations=N` (500); `running=0` leaves out what needs
//! a physical processor for each virtual one.

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

/// Room for samples of one row.
const MOST: usize = 1000;

/// Operations in a row.
fn iterations() -> usize {
    params::number("iterations").unwrap_or(500).clamp(1, MOST as u64) as usize
}

/// Prints a row.
fn row(name: &str, ticks: u64) {
    line!("bench {name} {ticks}");
}

/// Ticks of single operations.
struct Samples([u64; MOST], usize);

impl Samples {
    const fn new() -> Self {
        Self([0; MOST], 0)
    }

    fn push(&mut self, ticks: u64) {
        if let Some(place) = self.0.get_mut(self.1) {
            *place = ticks;
            self.1 += 1;
        }
    }

    /// The sample of which so many in a hundred are smaller.
    fn percentile(&mut self, percent: usize) -> u64 {
        let samples = &mut self.0[..self.1];
        samples.sort_unstable();
        samples.get(samples.len() * percent / 100).copied().unwrap_or(0)
    }

    fn print_median(&mut self, name: &str) {
        row(name, self.percentile(50));
    }
}

/// Measures an operation that is repeated; a tenth goes before, uncounted.
fn measure(name: &str, operation: impl FnMut()) {
    measure_times(name, iterations(), operation);
}

fn measure_times(name: &str, times: usize, mut operation: impl FnMut()) {
    for _ in 0..times / 10 + 1 {
        operation();
    }
    let mut samples = Samples::new();
    for _ in 0..times {
        let start = rdtsc();
        operation();
        samples.push(rdtsc() - start);
    }
    samples.print_median(name);
}

/// What is measured on one processor is measured while no other disturbs it.
fn alone() -> Result<(), tmk::Outcome> {
    if smp::count() > 1 { skip!("measured with one processor only") } else { Ok(()) }
}

/// The loop and the clock themselves.
fn nothing() -> TestResult {
    measure("nothing", || {
        core::hint::black_box(0);
    });
    Ok(())
}

fn cpuid_exit() -> TestResult {
    alone()?;
    measure("cpuid", || {
        core::hint::black_box(cpuid(0, 0));
    });
    Ok(())
}

/// An IPI to nobody by Hyper-V's interface; without it, a call that the hypervisor (KVM) does not know.
fn hypercall() -> TestResult {
    alone()?;
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
    alone()?;
    measure("msr-read", || {
        core::hint::black_box(rdmsr(apic::APIC_BASE));
    });
    Ok(())
}

fn msr_write() -> TestResult {
    alone()?;
    let value = rdmsr(apic::APIC_BASE);
    measure("msr-write", || wrmsr(apic::APIC_BASE, value));
    Ok(())
}

fn reference_counter() -> TestResult {
    alone()?;
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
    alone()?;
    measure("port-write", || outb(0x80, 0));
    Ok(())
}

/// The serial port's scratch register, which only a device model can answer.
fn port_read() -> TestResult {
    alone()?;
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
    alone()?;
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
    alone()?;
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
    let mut samples = Samples::new();
    for _ in 0..(iterations() / 5).max(1) {
        let before = COUNT.load(Ordering::SeqCst);
        apic::start_timer(VECTOR, TICKS, false);
        let armed = rdtsc();
        while COUNT.load(Ordering::SeqCst) == before {
            wait();
        }
        let due = armed + (u128::from(TICKS) * u128::from(per_count.0) / u128::from(per_count.1)) as u64;
        samples.push(ARRIVED.load(Ordering::SeqCst).saturating_sub(due));
    }
    apic::stop_timer();
    samples.print_median(name);
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
    alone()?;
    measure_times("apic-timer-arm", (iterations() / 5).max(1), || apic::start_timer(VECTOR, u32::MAX, false));
    apic::stop_timer();
    timer_rows("apic-timer-late", cpu::take_interrupts)
}

fn apic_timer_from_halt() -> TestResult {
    alone()?;
    timer_rows("apic-timer-late-from-halt", cpu::halt)
}

static STOP: AtomicBool = AtomicBool::new(false);

/// From sending to the handler on the other processor and back through memory.
fn ipi(name: &str, percent: usize, listen: fn()) -> TestResult {
    if smp::count() < 2 {
        skip!("one processor only")
    }
    fault::set_handler(VECTOR, Some(on_interrupt));
    STOP.store(false, Ordering::SeqCst);
    smp::give(1, listen);
    let destination = smp::apic_id(1);
    let mut samples = Samples::new();
    for _ in 0..(iterations() / 2).max(1) {
        time::spin(20_000);
        let before = COUNT.load(Ordering::SeqCst);
        let start = rdtsc();
        apic::send_ipi(VECTOR, destination);
        let arrives = time::wait_until(time::LONG, || COUNT.load(Ordering::SeqCst) != before);
        check!(arrives, "an IPI does not arrive");
        samples.push(rdtsc() - start);
    }
    STOP.store(true, Ordering::SeqCst);
    apic::send_ipi(VECTOR, destination);
    check!(smp::finished(1), "processor 1 does not come back");
    row(name, samples.percentile(percent));
    Ok(())
}

fn ipi_to_running_processor() -> TestResult {
    if params::number("running") == Some(0) {
        skip!("there is no physical processor for it")
    }
    // Each needs its physical processor at the same time, which a busy machine does not always grant: the tenth that was
    // disturbed least counts.
    ipi("ipi", 10, || {
        while !STOP.load(Ordering::SeqCst) {
            cpu::take_interrupts();
        }
    })
}

fn ipi_to_halted_processor() -> TestResult {
    ipi("ipi-to-halted", 50, || {
        while !STOP.load(Ordering::SeqCst) {
            cpu::halt();
        }
    })
}

/// The first write to each page of memory that nobody has used yet, against the second.
fn first_touch() -> TestResult {
    alone()?;
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
        row(name, (rdtsc() - start) / ((end - START) / 4096));
    }
    Ok(())
}
