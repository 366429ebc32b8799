//! Reference time: the counter, the page, the TSC, and that all processors agree (TLFS "Timers").

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use parterre_abi::cpuid::PrivilegeMask;
use parterre_abi::{msr, timer};
use tmk::cpu::{rdmsr, rdtsc, wrmsr};
use tmk::{TestResult, check, hv, line, skip, smp, time};

tmk::program!("time":
    tsc_grows,
    tsc_agrees_between_processors,
    counter_grows,
    counter_agrees_between_processors,
    page_is_valid,
    page_agrees_with_counter,
    page_grows_on_all_processors,
    page_can_be_disabled,
    page_can_be_moved,
    tsc_frequency_is_that_of_the_counter,
    page_scale_is_that_of_the_frequency,
);

macro_rules! need {
    ($privilege:ident) => {
        if !hv::privileges().contains(PrivilegeMask::$privilege) {
            skip!("no privilege {}", stringify!($privilege))
        }
    };
}

static PAGE: hv::Page = hv::Page::new();

/// The highest time any processor has seen, and how often one saw a lower one afterwards.
static LATEST: AtomicU64 = AtomicU64::new(0);
static BACKWARDS: AtomicU32 = AtomicU32::new(0);
static CLOCK: AtomicU32 = AtomicU32::new(0);

fn counter() -> u64 {
    rdmsr(msr::TIME_REF_COUNT)
}

fn enable_page() {
    wrmsr(msr::REFERENCE_TSC, PAGE.address() | 1);
}

/// Sequence, scale and offset.
fn page() -> (u32, u64, i64) {
    (PAGE.read(0) as u32, PAGE.read(1), PAGE.read(2) as i64)
}

fn page_time() -> u64 {
    let (_, scale, offset) = page();
    timer::reference_time(rdtsc(), scale, offset)
}

fn clock(which: u32) -> u64 {
    match which {
        0 => rdtsc(),
        1 => counter(),
        _ => page_time(),
    }
}

/// Reads a clock again and again; a time before one that was seen before reading began is wrong.
fn watch() {
    let which = CLOCK.load(Ordering::SeqCst);
    for _ in 0..2000 {
        let seen = LATEST.load(Ordering::SeqCst);
        let now = clock(which);
        if now < seen {
            BACKWARDS.fetch_add(1, Ordering::SeqCst);
        }
        LATEST.fetch_max(now, Ordering::SeqCst);
    }
}

fn agrees(which: u32) -> TestResult {
    if smp::count() < 2 {
        skip!("one processor only")
    }
    LATEST.store(0, Ordering::SeqCst);
    BACKWARDS.store(0, Ordering::SeqCst);
    CLOCK.store(which, Ordering::SeqCst);
    for index in 1..smp::count() {
        smp::give(index, watch);
    }
    watch();
    for index in 1..smp::count() {
        check!(smp::finished(index), "processor {index} does not come back");
    }
    let backwards = BACKWARDS.load(Ordering::SeqCst);
    check!(backwards == 0, "time went backwards {backwards} times");
    Ok(())
}

fn grows(which: u32) -> TestResult {
    let mut last = clock(which);
    let first = last;
    for _ in 0..500 {
        let now = clock(which);
        check!(now >= last, "it goes back from {last} to {now}");
        last = now;
    }
    time::spin(1_000_000);
    check!(clock(which) > first, "it stays at {first}");
    Ok(())
}

fn tsc_grows() -> TestResult {
    grows(0)
}

fn tsc_agrees_between_processors() -> TestResult {
    agrees(0)
}

fn counter_grows() -> TestResult {
    need!(ACCESS_PARTITION_REFERENCE_COUNTER);
    grows(1)
}

fn counter_agrees_between_processors() -> TestResult {
    need!(ACCESS_PARTITION_REFERENCE_COUNTER);
    agrees(1)
}

fn page_is_valid() -> TestResult {
    need!(ACCESS_PARTITION_REFERENCE_TSC);
    enable_page();
    let (sequence, scale, offset) = page();
    line!("sequence {sequence}, scale {scale:#x}, offset {offset}");
    check!(
        rdmsr(msr::REFERENCE_TSC) == PAGE.address() | 1,
        "the MSR reads as {:#x}",
        rdmsr(msr::REFERENCE_TSC)
    );
    check!(sequence != 0, "the sequence is 0: the page is not to be used");
    check!(scale != 0, "the scale is 0");
    Ok(())
}

/// The counter, read between two readings of the page, lies between them, but for a tick of rounding.
fn page_agrees_with_counter() -> TestResult {
    need!(ACCESS_PARTITION_REFERENCE_TSC);
    need!(ACCESS_PARTITION_REFERENCE_COUNTER);
    enable_page();
    for _ in 0..200 {
        let before = page_time();
        let now = counter();
        let after = page_time();
        check!(
            before <= now + 1 && now <= after + 1,
            "the page says {before}, then the counter {now}, then the page {after}"
        );
    }
    Ok(())
}

fn page_grows_on_all_processors() -> TestResult {
    need!(ACCESS_PARTITION_REFERENCE_TSC);
    enable_page();
    grows(2)?;
    agrees(2)
}

fn page_can_be_disabled() -> TestResult {
    need!(ACCESS_PARTITION_REFERENCE_TSC);
    wrmsr(msr::REFERENCE_TSC, 0);
    PAGE.fill(0x1111_1111_1111_1111);
    enable_page();
    let shown = PAGE.read(1);
    wrmsr(msr::REFERENCE_TSC, PAGE.address());
    let below = PAGE.read(1);
    check!(shown != 0x1111_1111_1111_1111, "the page does not cover memory");
    check!(below == 0x1111_1111_1111_1111, "memory below the page has changed to {below:#x}");
    Ok(())
}

/// What it covered comes back, and what it covers now is not seen; nobody writes either.
fn page_can_be_moved() -> TestResult {
    need!(ACCESS_PARTITION_REFERENCE_TSC);
    static OTHER: hv::Page = hv::Page::new();
    const BELOW: u64 = 0x2222_2222_2222_2222;
    wrmsr(msr::REFERENCE_TSC, 0);
    PAGE.fill(BELOW);
    OTHER.fill(BELOW);
    for _ in 0..10 {
        wrmsr(msr::REFERENCE_TSC, OTHER.address() | 1);
        let (first, second) = (PAGE.read(1), OTHER.read(1));
        check!(first == BELOW && second != BELOW, "moved there: {first:#x} and {second:#x}");
        wrmsr(msr::REFERENCE_TSC, PAGE.address() | 1);
        let (first, second) = (PAGE.read(1), OTHER.read(1));
        check!(first != BELOW && second == BELOW, "moved back: {first:#x} and {second:#x}");
    }
    wrmsr(msr::REFERENCE_TSC, 0);
    check!(PAGE.read(1) == BELOW && OTHER.read(1) == BELOW, "memory below the page has changed");
    Ok(())
}

/// TSC ticks in a second of reference time, measured over about a tenth of a second.
fn measured_frequency() -> u64 {
    let (tsc, start) = (rdtsc(), counter());
    while counter() < start + timer::REFERENCE_TIME_HZ / 10 {
        core::hint::spin_loop();
    }
    let (tsc, time) = (rdtsc() - tsc, counter() - start);
    (u128::from(tsc) * u128::from(timer::REFERENCE_TIME_HZ) / u128::from(time.max(1))) as u64
}

fn tsc_frequency_is_that_of_the_counter() -> TestResult {
    need!(ACCESS_FREQUENCY_REGS);
    need!(ACCESS_PARTITION_REFERENCE_COUNTER);
    let (said, measured) = (rdmsr(msr::TSC_FREQUENCY), measured_frequency());
    line!("TSC: {said} Hz said, {measured} Hz measured");
    check!(said.abs_diff(measured) < said / 50, "the MSR says {said} Hz, the counter {measured} Hz");
    Ok(())
}

fn page_scale_is_that_of_the_frequency() -> TestResult {
    need!(ACCESS_FREQUENCY_REGS);
    need!(ACCESS_PARTITION_REFERENCE_TSC);
    enable_page();
    let Some(expected) = timer::tsc_scale(rdmsr(msr::TSC_FREQUENCY)) else { skip!("a slow TSC") };
    let (_, scale, _) = page();
    check!(scale.abs_diff(expected) < expected / 1000, "the scale is {scale:#x} instead of {expected:#x}");
    Ok(())
}
