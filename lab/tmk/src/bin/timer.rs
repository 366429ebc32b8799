//! Synthetic timers, in message mode and in direct mode (TLFS "Timers").

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use parterre_abi::cpuid::{self as leaf, Features, PrivilegeMask};
use parterre_abi::message::{MESSAGE_SIZE, MessageType};
use parterre_abi::msr::{self, Sint, StimerConfig};
use tmk::cpu::{self, cpuid, rdmsr, try_rdmsr, try_wrmsr, wrmsr};
use tmk::{TestResult, apic, check, fault, hv, skip, smp, time};

tmk::program!("timer":
    msrs_fault_without_privilege,
    timers_are_off_at_reset,
    reserved_bits_are_harmless,
    sint_0_is_no_timers_sint,
    direct_one_shot,
    direct_with_time_in_the_past,
    direct_periodic,
    direct_periodic_lazy,
    direct_disabled_is_silent,
    auto_enable,
    one_shot_disables_itself,
    message_one_shot,
    message_periodic,
    message_waits_for_free_slot,
    every_timer_of_every_processor,
    direct_wakes_from_hlt,
);

const VECTOR: u8 = 0x55;
/// The SINT for messages in these tests.
const SINT: u32 = 4;
/// 1 ms in units of 100 ns.
const MILLISECOND: u64 = 10_000;

static FIRED: AtomicU32 = AtomicU32::new(0);
static WHEN: AtomicU64 = AtomicU64::new(0);

fn on_timer() {
    WHEN.store(rdmsr(msr::TIME_REF_COUNT), Ordering::SeqCst);
    FIRED.fetch_add(1, Ordering::SeqCst);
    apic::eoi();
}

fn fired() -> u32 {
    FIRED.load(Ordering::SeqCst)
}

fn now() -> u64 {
    rdmsr(msr::TIME_REF_COUNT)
}

fn config(timer: u32) -> u32 {
    msr::STIMER0_CONFIG + 2 * timer
}

fn count(timer: u32) -> u32 {
    msr::STIMER0_COUNT + 2 * timer
}

fn direct() -> StimerConfig {
    StimerConfig::new().with_enabled(true).with_direct_mode(true).with_apic_vector(VECTOR)
}

fn stop(timer: u32) {
    wrmsr(config(timer), 0);
    wrmsr(count(timer), 0);
}

/// Waits with interrupts on until the handler has run so often.
fn wait_for(times: u32) -> bool {
    time::wait_until(time::LONG, || {
        cpu::take_interrupts();
        fired() >= times
    })
}

/// Lets reference time pass, with interrupts on.
fn pass(duration: u64) {
    let end = now() + duration;
    while now() < end {
        cpu::take_interrupts();
    }
}

macro_rules! need_timers {
    () => {
        if !hv::privileges().contains(
            PrivilegeMask::ACCESS_SYNTHETIC_TIMER_REGS | PrivilegeMask::ACCESS_PARTITION_REFERENCE_COUNTER,
        ) {
            skip!("no synthetic timers")
        }
    };
}

macro_rules! need_direct_mode {
    () => {
        need_timers!();
        if !Features::from_bits_retain(cpuid(leaf::FEATURES, 0).edx)
            .contains(Features::DIRECT_SYNTHETIC_TIMERS)
        {
            skip!("no direct mode")
        }
        fault::set_handler(VECTOR, Some(on_timer));
        FIRED.store(0, Ordering::SeqCst);
    };
}

/// Without the privilege there are no such MSRs.
fn msrs_fault_without_privilege() -> TestResult {
    if hv::privileges().contains(PrivilegeMask::ACCESS_SYNTHETIC_TIMER_REGS) {
        skip!("the guest has the privilege")
    }
    for number in msr::STIMER0_CONFIG..=msr::STIMER3_COUNT {
        check!(try_rdmsr(number).is_err(), "MSR {number:#x} can be read");
        check!(try_wrmsr(number, 0).is_err(), "MSR {number:#x} can be written");
    }
    Ok(())
}

fn timers_are_off_at_reset() -> TestResult {
    need_timers!();
    for timer in 0..4 {
        let (config, count) = (rdmsr(config(timer)), rdmsr(count(timer)));
        check!(
            config & 1 == 0 && count == 0,
            "timer {timer} has configuration {config:#x} and count {count}"
        );
    }
    Ok(())
}

/// Reserved bits fault or are ignored; neither arms the timer.
fn reserved_bits_are_harmless() -> TestResult {
    need_timers!();
    for bit in [13, 20, 63] {
        let _ = try_wrmsr(config(0), 1 << bit);
        let enabled = rdmsr(config(0)) & 1;
        stop(0);
        check!(enabled == 0, "bit {bit} of the configuration enables the timer");
    }
    Ok(())
}

/// In message mode SINT 0 means none: such a timer cannot be enabled.
fn sint_0_is_no_timers_sint() -> TestResult {
    need_timers!();
    wrmsr(count(0), now() + MILLISECOND);
    let _ = try_wrmsr(config(0), 1);
    let enabled = rdmsr(config(0)) & 1;
    stop(0);
    check!(enabled == 0, "a timer with SINT 0 is enabled");
    Ok(())
}

fn direct_one_shot() -> TestResult {
    need_direct_mode!();
    for delay in [1, 100, MILLISECOND, 20 * MILLISECOND] {
        FIRED.store(0, Ordering::SeqCst);
        let deadline = now() + delay;
        // In this order: a timer that is enabled with a count of the past expires at once.
        wrmsr(count(0), deadline);
        wrmsr(config(0), direct().into_bits());
        check!(wait_for(1), "it does not fire after {delay} x 100 ns");
        let when = WHEN.load(Ordering::SeqCst);
        check!(when >= deadline, "it fires {} x 100 ns early", deadline - when);
        pass(MILLISECOND);
        check!(fired() == 1, "it fires {} times", fired());
    }
    stop(0);
    Ok(())
}

fn direct_with_time_in_the_past() -> TestResult {
    need_direct_mode!();
    wrmsr(config(0), direct().into_bits());
    wrmsr(count(0), 1);
    let arrives = wait_for(1);
    stop(0);
    check!(arrives, "it does not fire at once");
    Ok(())
}

fn direct_periodic() -> TestResult {
    periodic(direct())
}

/// Lazy says what becomes of periods in which the processor did not run; the others are as always.
fn direct_periodic_lazy() -> TestResult {
    periodic(direct().with_lazy(true))
}

fn periodic(kind: StimerConfig) -> TestResult {
    need_direct_mode!();
    let start = now();
    wrmsr(config(1), kind.with_periodic(true).into_bits());
    wrmsr(count(1), 5 * MILLISECOND);
    let arrives = wait_for(6);
    let duration = now() - start;
    stop(1);
    check!(arrives, "it fires {} times only", fired());
    check!(duration >= 29 * MILLISECOND, "6 periods of 5 ms took {duration} x 100 ns");
    Ok(())
}

fn direct_disabled_is_silent() -> TestResult {
    need_direct_mode!();
    wrmsr(config(0), direct().into_bits());
    // Long enough for a processor that is not run for a while.
    wrmsr(count(0), now() + 300 * MILLISECOND);
    stop(0);
    pass(350 * MILLISECOND);
    check!(fired() == 0, "it fires although it was disabled");
    Ok(())
}

/// With auto-enable, writing a count enables the timer; writing 0 disables it.
fn auto_enable() -> TestResult {
    need_direct_mode!();
    wrmsr(config(2), direct().with_enabled(false).with_auto_enable(true).into_bits());
    check!(rdmsr(config(2)) & 1 == 0, "it is enabled before a count is written");
    wrmsr(count(2), now() + 50 * MILLISECOND);
    let enabled = rdmsr(config(2)) & 1;
    wrmsr(count(2), 0);
    let disabled = rdmsr(config(2)) & 1;
    wrmsr(count(2), now() + MILLISECOND);
    let arrives = wait_for(1);
    stop(2);
    check!(enabled == 1, "writing a count does not enable it");
    check!(disabled == 0, "writing 0 does not disable it");
    check!(arrives, "it does not fire");
    Ok(())
}

fn one_shot_disables_itself() -> TestResult {
    need_direct_mode!();
    wrmsr(config(0), direct().into_bits());
    wrmsr(count(0), now() + MILLISECOND);
    let arrives = wait_for(1);
    let enabled = rdmsr(config(0)) & 1;
    stop(0);
    check!(arrives && enabled == 0, "it is still enabled after it has fired");
    Ok(())
}

static MESSAGES: hv::Page = hv::Page::new();
const SLOT: usize = SINT as usize * MESSAGE_SIZE / 8;

fn enable_messages() {
    wrmsr(msr::SIMP, MESSAGES.address() | 1);
    wrmsr(msr::SINT0 + SINT, Sint::new().with_vector(VECTOR).into_bits());
    wrmsr(msr::SCONTROL, 1);
    free_slot();
}

fn disable_messages() {
    stop(0);
    free_slot();
    wrmsr(msr::SINT0 + SINT, Sint::RESET.into_bits());
    wrmsr(msr::SCONTROL, 0);
    wrmsr(msr::SIMP, 0);
}

fn free_slot() {
    MESSAGES.write(SLOT, 0);
    wrmsr(msr::EOM, 0);
}

fn message_type() -> MessageType {
    MessageType(MESSAGES.read(SLOT) as u32)
}

fn message_one_shot() -> TestResult {
    need_timers!();
    fault::set_handler(VECTOR, Some(on_timer));
    FIRED.store(0, Ordering::SeqCst);
    enable_messages();
    let deadline = now() + 2 * MILLISECOND;
    wrmsr(count(0), deadline);
    wrmsr(config(0), StimerConfig::new().with_enabled(true).with_sintx(SINT as u8).into_bits());
    let arrives = wait_for(1);
    let (kind, size) = (message_type(), MESSAGES.read(SLOT) >> 32 & 0xFF);
    let [timer, expired, delivered] = [2, 3, 4].map(|word| MESSAGES.read(SLOT + word));
    disable_messages();
    check!(arrives, "no interrupt comes");
    check!(kind == MessageType::TIMER_EXPIRED, "the message is {kind:?}");
    check!(size == 24 && timer == 0, "a payload of {size} bytes for timer {timer}");
    check!(expired == deadline, "it says that it expired at {expired} instead of {deadline}");
    check!(delivered >= deadline, "it was delivered at {delivered}, before {deadline}");
    Ok(())
}

/// Each message tells of an expiration that is a whole number of periods behind the one before, and none is told twice.
fn message_periodic() -> TestResult {
    need_timers!();
    const PERIOD: u64 = 5 * MILLISECOND;
    fault::set_handler(VECTOR, Some(on_timer));
    FIRED.store(0, Ordering::SeqCst);
    enable_messages();
    let kind = StimerConfig::new().with_enabled(true).with_periodic(true).with_sintx(SINT as u8);
    wrmsr(count(0), PERIOD);
    wrmsr(config(0), kind.into_bits());
    let mut expired = [0; 5];
    let mut came = 0;
    for (before, expiration) in (0..).zip(&mut expired) {
        if !wait_for(before + 1) {
            break;
        }
        (*expiration, came) = (MESSAGES.read(SLOT + 3), before + 1);
        free_slot();
    }
    stop(0);
    disable_messages();
    check!(came == 5, "{came} of 5 messages come");
    for pair in expired.windows(2) {
        let apart = pair[1].wrapping_sub(pair[0]);
        check!(
            apart != 0 && apart.is_multiple_of(PERIOD),
            "expirations are told at {} and {}",
            pair[0],
            pair[1]
        );
    }
    Ok(())
}

/// A message waits while the slot is full, says so by the pending flag, and comes after the end-of-message.
fn message_waits_for_free_slot() -> TestResult {
    need_timers!();
    fault::set_handler(VECTOR, Some(on_timer));
    FIRED.store(0, Ordering::SeqCst);
    enable_messages();
    for timer in [0, 1] {
        wrmsr(count(timer), now() + (1 + u64::from(timer)) * MILLISECOND);
        wrmsr(config(timer), StimerConfig::new().with_enabled(true).with_sintx(SINT as u8).into_bits());
    }
    let first = wait_for(1);
    pass(6 * MILLISECOND);
    let (meanwhile, pending) = (fired(), MESSAGES.read(SLOT) >> 40 & 1);
    let first_timer = MESSAGES.read(SLOT + 2);
    free_slot();
    let second = wait_for(meanwhile + 1);
    let second_timer = MESSAGES.read(SLOT + 2);
    stop(1);
    disable_messages();
    check!(first && first_timer == 0, "the first message does not come");
    check!(meanwhile == 1, "{meanwhile} interrupts came while the slot was full");
    check!(pending == 1, "the message in the slot does not say that another waits");
    check!(second && second_timer == 1, "the message that waited does not come");
    Ok(())
}

fn every_timer_of_every_processor() -> TestResult {
    need_direct_mode!();
    fn fire_all() {
        for timer in 0..4 {
            let before = fired();
            wrmsr(config(timer), direct().into_bits());
            wrmsr(count(timer), now() + MILLISECOND / 2);
            wait_for(before + 1);
            stop(timer);
        }
    }
    for index in 0..smp::count() {
        FIRED.store(0, Ordering::SeqCst);
        if index == 0 {
            fire_all();
        } else {
            smp::give(index, fire_all);
            check!(smp::finished(index), "processor {index} does not come back");
        }
        check!(fired() == 4, "of processor {index}'s timers {} fire", fired());
    }
    Ok(())
}

fn direct_wakes_from_hlt() -> TestResult {
    need_direct_mode!();
    for round in 0..50u64 {
        FIRED.store(0, Ordering::SeqCst);
        wrmsr(config(0), direct().into_bits());
        wrmsr(count(0), now() + 1 + round * round * 7 % 5000);
        while fired() == 0 {
            cpu::halt();
        }
    }
    stop(0);
    Ok(())
}
