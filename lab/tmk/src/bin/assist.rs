//! What spares a guest exits and waiting: the end of an interrupt by the VP assist page, idling by a register, the time a
//! virtual processor has run, the invariant time stamp counter (TLFS "Virtual Processor Assist Page", "EOI Assist",
//! "Virtual Processor Idle Sleep State").

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use parterre_abi::cpuid::PrivilegeMask;
use parterre_abi::msr;
use tmk::cpu::{self, cpuid, rdmsr, try_rdmsr, try_wrmsr, wrmsr};
use tmk::{TestResult, apic, check, fault, hv, skip, smp, time};

tmk::program!("assist":
    page_is_an_overlay,
    end_may_be_left_out,
    end_by_register_counts,
    end_is_required_when_another_waits,
    offer_goes_with_the_page,
    idle_ends_with_an_interrupt,
    idle_ends_with_interrupts_off,
    run_time_grows,
    invariant_counter,
);

const HIGH: u8 = 0x70;
const LOW: u8 = 0x58;

static ASSIST: hv::Page = hv::Page::new();
static FIRED: AtomicU32 = AtomicU32::new(0);
static OFFERED: AtomicU32 = AtomicU32::new(0);

/// An interrupt that ends as the TLFS recommends; counts how often the page was enough.
fn end_by_page() {
    FIRED.fetch_add(1, Ordering::SeqCst);
    let word = ASSIST.read(0);
    ASSIST.write(0, word & !1);
    if word & 1 != 0 {
        OFFERED.fetch_add(1, Ordering::SeqCst);
    } else {
        wrmsr(msr::EOI, 0);
    }
}

fn end_by_register() {
    FIRED.fetch_add(1, Ordering::SeqCst);
    wrmsr(msr::EOI, 0);
}

fn fired() -> u32 {
    FIRED.load(Ordering::SeqCst)
}

fn offered() -> u32 {
    OFFERED.load(Ordering::SeqCst)
}

fn begin(handler: fn()) {
    FIRED.store(0, Ordering::SeqCst);
    OFFERED.store(0, Ordering::SeqCst);
    fault::set_handler(HIGH, Some(handler));
    fault::set_handler(LOW, Some(handler));
    wrmsr(msr::VP_ASSIST_PAGE, ASSIST.address() | 1);
}

fn end() {
    wrmsr(msr::VP_ASSIST_PAGE, 0);
}

fn comes(times: u32) -> bool {
    time::wait_until(time::LONG, || {
        cpu::take_interrupts();
        fired() >= times
    })
}

macro_rules! need {
    ($privilege:expr) => {
        if !hv::privileges().contains($privilege) {
            skip!("no privilege for it")
        }
    };
}

fn page_is_an_overlay() -> TestResult {
    need!(PrivilegeMask::ACCESS_INTR_CTRL_REGS);
    ASSIST.fill(0xABCD);
    wrmsr(msr::VP_ASSIST_PAGE, ASSIST.address() | 1);
    let shown = ASSIST.read(0) as u32;
    wrmsr(msr::VP_ASSIST_PAGE, 0);
    let under = ASSIST.read(0);
    check!(shown == 0, "a new page begins with {shown:#x}");
    check!(under == 0xABCD, "under it lies {under:#x}");
    Ok(())
}

/// Whether or not the hypervisor makes the offer, each interrupt comes once and the next one comes.
fn end_may_be_left_out() -> TestResult {
    need!(PrivilegeMask::ACCESS_INTR_CTRL_REGS);
    begin(end_by_page);
    for times in 1..=100 {
        apic::send_self(HIGH);
        check!(comes(times), "interrupt {times} does not come; {} ends were left out", offered());
    }
    end();
    check!(fired() == 100, "{} interrupts", fired());
    tmk::line!("{} of 100 ends left out", offered());
    Ok(())
}

fn end_by_register_counts() -> TestResult {
    need!(PrivilegeMask::ACCESS_INTR_CTRL_REGS);
    begin(end_by_register);
    for times in 1..=10 {
        apic::send_self(if times % 2 == 0 { HIGH } else { LOW });
        check!(comes(times), "interrupt {times} does not come");
    }
    end();
    Ok(())
}

/// Two interrupts at once: the lower one comes after the end of the higher one, which must not be missed.
fn end_is_required_when_another_waits() -> TestResult {
    need!(PrivilegeMask::ACCESS_INTR_CTRL_REGS);
    begin(end_by_page);
    for round in 1..=50 {
        apic::send_self(LOW);
        apic::send_self(HIGH);
        check!(comes(2 * round), "{} of {} interrupts come", fired(), 2 * round);
    }
    end();
    check!(fired() == 100, "{} interrupts", fired());
    Ok(())
}

fn offer_goes_with_the_page() -> TestResult {
    need!(PrivilegeMask::ACCESS_INTR_CTRL_REGS);
    static TAKEN: AtomicBool = AtomicBool::new(false);
    begin(|| {
        FIRED.fetch_add(1, Ordering::SeqCst);
        if !TAKEN.swap(true, Ordering::SeqCst) {
            wrmsr(msr::VP_ASSIST_PAGE, 0);
        }
        wrmsr(msr::EOI, 0);
    });
    TAKEN.store(false, Ordering::SeqCst);
    for times in 1..=3 {
        apic::send_self(HIGH);
        check!(comes(times), "interrupt {times} does not come after the page was taken away");
    }
    end();
    Ok(())
}

static IDLE: AtomicU32 = AtomicU32::new(0);
const BEFORE: u32 = 1;
const AFTER: u32 = 2;

/// Processor 1 idles; processor 0 sends it an interrupt after a while. Says whether it was still idle then.
fn idles(work: fn()) -> TestResult {
    if smp::count() < 2 {
        skip!("one processor only")
    }
    begin(end_by_register);
    end();
    IDLE.store(0, Ordering::SeqCst);
    smp::give(1, work);
    check!(
        time::wait_until(time::LONG, || IDLE.load(Ordering::SeqCst) == BEFORE),
        "processor 1 does not start"
    );
    time::spin(50_000_000);
    let early = IDLE.load(Ordering::SeqCst) != BEFORE;
    apic::send_ipi(HIGH, smp::apic_id(1));
    check!(smp::finished(1), "an interrupt does not wake it");
    check!(!early, "it goes on without an interrupt");
    check!(IDLE.load(Ordering::SeqCst) == AFTER, "processor 1 is lost");
    Ok(())
}

fn idle_ends_with_an_interrupt() -> TestResult {
    need!(PrivilegeMask::ACCESS_GUEST_IDLE_REG);
    idles(|| {
        cpu::enable_interrupts();
        IDLE.store(BEFORE, Ordering::SeqCst);
        rdmsr(msr::GUEST_IDLE);
        cpu::take_interrupts();
        IDLE.store(AFTER, Ordering::SeqCst);
    })?;
    check!(fired() == 1, "{} interrupts", fired());
    Ok(())
}

fn idle_ends_with_interrupts_off() -> TestResult {
    need!(PrivilegeMask::ACCESS_GUEST_IDLE_REG);
    static FIRED_IN_IDLE: AtomicU32 = AtomicU32::new(0);
    idles(|| {
        cpu::disable_interrupts();
        IDLE.store(BEFORE, Ordering::SeqCst);
        rdmsr(msr::GUEST_IDLE);
        FIRED_IN_IDLE.store(fired(), Ordering::SeqCst);
        cpu::take_interrupts();
        IDLE.store(AFTER, Ordering::SeqCst);
    })?;
    check!(FIRED_IN_IDLE.load(Ordering::SeqCst) == 0, "the interrupt is taken though interrupts are off");
    check!(fired() == 1, "{} interrupts", fired());
    Ok(())
}

fn run_time_grows() -> TestResult {
    need!(PrivilegeMask::ACCESS_VP_RUNTIME_REG | PrivilegeMask::ACCESS_PARTITION_REFERENCE_COUNTER);
    let (time, run) = (rdmsr(msr::TIME_REF_COUNT), rdmsr(msr::VP_RUNTIME));
    time::spin(50_000_000);
    let (time, run) = (rdmsr(msr::TIME_REF_COUNT) - time, rdmsr(msr::VP_RUNTIME).wrapping_sub(run));
    check!(run > 0, "it stands still");
    check!(run <= time + 1000, "{run} in a time of {time}");
    check!(try_wrmsr(msr::VP_RUNTIME, 0).is_err(), "it can be written");
    Ok(())
}

fn invariant_counter() -> TestResult {
    if !hv::privileges().contains(PrivilegeMask::ACCESS_TSC_INVARIANT_CONTROLS) {
        check!(try_rdmsr(msr::TSC_INVARIANT_CONTROL).is_err(), "the control is there without the privilege");
        skip!("no privilege for it")
    }
    check!(try_wrmsr(msr::TSC_INVARIANT_CONTROL, 2).is_err(), "a reserved bit can be set");
    wrmsr(msr::TSC_INVARIANT_CONTROL, 1);
    let (control, edx) = (rdmsr(msr::TSC_INVARIANT_CONTROL), cpuid(0x8000_0007, 0).edx);
    check!(control & 1 == 1 && edx & 1 << 8 != 0, "control {control:#x}, CPUID {edx:#x}");
    Ok(())
}
