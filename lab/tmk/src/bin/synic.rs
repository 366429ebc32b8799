//! The synthetic interrupt controller: its registers, its pages, and how its interrupts come and end (TLFS "Inter-Partition
//! Communication"). Messages are those of synthetic timers, the only ones that a guest can send itself.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};
use parterre_abi::hypercall::{HypercallCode, HypercallInput};
use parterre_abi::message::{MESSAGE_SIZE, MessageType};
use parterre_abi::msr::{self, Sint, StimerConfig};
use parterre_abi::status::HvStatus;
use parterre_abi::{
    cpuid::{self as leaf, Features, PrivilegeMask},
    synic::EVENT_FLAGS_COUNT,
};
use tmk::cpu::{self, cpuid, rdmsr, try_rdmsr, try_wrmsr, wrmsr};
use tmk::{TestResult, apic, check, fault, hv, skip, time};

tmk::program!("synic":
    registers_at_reset,
    registers_keep_what_is_written,
    registers_refuse_bad_values,
    pages_are_overlays,
    pages_beyond_memory,
    message_and_interrupt,
    interrupt_ends_by_itself,
    interrupt_waits_for_its_end,
    masked_source_stores_its_message,
    polled_source_makes_no_interrupt,
    disabled_synic_keeps_its_messages,
    disabled_page_keeps_its_messages,
    end_of_message_delivers_the_next,
    end_of_interrupt_delivers_the_next,
    every_source_has_its_slot,
    bad_messages_are_refused,
    bad_events_are_refused,
);

const VECTOR: u8 = 0x56;
const SINT: u32 = 3;
const SOURCES: u32 = 16;

static MESSAGES: hv::Page = hv::Page::new();
static EVENTS: hv::Page = hv::Page::new();
static FIRED: AtomicU32 = AtomicU32::new(0);

fn sint(index: u32) -> u32 {
    msr::SINT0 + index
}

fn fired() -> u32 {
    FIRED.load(Ordering::SeqCst)
}

fn count_and_end() {
    FIRED.fetch_add(1, Ordering::SeqCst);
    apic::eoi();
}

fn count_only() {
    FIRED.fetch_add(1, Ordering::SeqCst);
}

macro_rules! need_synic {
    () => {
        if !hv::privileges().contains(PrivilegeMask::ACCESS_SYNIC_REGS) {
            skip!("no SynIC")
        }
    };
}

/// A SynIC with empty pages, source [`SINT`] open, and a handler that ends its interrupts.
macro_rules! need_messages {
    () => {
        need_synic!();
        if !hv::privileges().contains(
            PrivilegeMask::ACCESS_SYNTHETIC_TIMER_REGS | PrivilegeMask::ACCESS_PARTITION_REFERENCE_COUNTER,
        ) {
            skip!("no synthetic timers")
        }
        let _off = Off::begin();
    };
}

/// Turns everything off when it goes.
struct Off;

impl Off {
    fn begin() -> Self {
        FIRED.store(0, Ordering::SeqCst);
        fault::set_handler(VECTOR, Some(count_and_end));
        wrmsr(msr::SIMP, MESSAGES.address() | 1);
        MESSAGES.fill(0);
        wrmsr(msr::SCONTROL, 1);
        wrmsr(sint(SINT), VECTOR.into());
        Self
    }
}

impl Drop for Off {
    fn drop(&mut self) {
        for timer in 0..4 {
            wrmsr(msr::STIMER0_CONFIG + 2 * timer, 0);
        }
        for source in 0..SOURCES {
            wrmsr(sint(source), Sint::RESET.into());
        }
        // An interrupt that is still in service ends.
        pass();
        apic::eoi();
        wrmsr(msr::SCONTROL, 0);
        wrmsr(msr::SIMP, 0);
    }
}

/// Has a timer send its message to a source at once.
fn send(timer: u32, source: u32) {
    wrmsr(msr::STIMER0_CONFIG + 2 * timer, 0);
    wrmsr(msr::STIMER0_COUNT + 2 * timer, 1);
    let config = StimerConfig::new().with_enabled(true).with_sintx(source as u8);
    wrmsr(msr::STIMER0_CONFIG + 2 * timer, config.into());
}

fn slot(source: u32) -> usize {
    source as usize * MESSAGE_SIZE / 8
}

fn message(source: u32) -> MessageType {
    MessageType(MESSAGES.read(slot(source)) as u32)
}

/// Which timer's message lies in a slot, and whether it says that another waits.
fn timer_and_pending(source: u32) -> (u32, bool) {
    (MESSAGES.read(slot(source) + 2) as u32, MESSAGES.read(slot(source)) >> 40 & 1 != 0)
}

fn empty(source: u32) {
    MESSAGES.write(slot(source), 0);
}

fn arrives(source: u32) -> bool {
    time::wait_until(time::LONG, || {
        cpu::take_interrupts();
        message(source) == MessageType::TIMER_EXPIRED
    })
}

/// Lets time pass with interrupts on: what was to come has come then.
fn pass() {
    let end = rdmsr(msr::TIME_REF_COUNT) + 20_000;
    while rdmsr(msr::TIME_REF_COUNT) < end {
        cpu::take_interrupts();
    }
}

fn registers_at_reset() -> TestResult {
    need_synic!();
    check!(rdmsr(msr::SVERSION) == 1, "SVERSION is {:#x}", rdmsr(msr::SVERSION));
    check!(rdmsr(msr::EOM) == 0, "EOM reads {:#x}", rdmsr(msr::EOM));
    for register in [msr::SCONTROL, msr::SIMP, msr::SIEFP] {
        check!(rdmsr(register) & 1 == 0, "MSR {register:#x} is enabled");
    }
    for source in 0..SOURCES {
        let value = rdmsr(sint(source));
        check!(value == Sint::RESET.into(), "SINT{source} is {value:#x}");
    }
    Ok(())
}

fn registers_keep_what_is_written() -> TestResult {
    need_synic!();
    for value in [VECTOR.into(), 0x1_0000 | u64::from(VECTOR), 0x2_00F0, 0xFF] {
        wrmsr(sint(SINT), value);
        let read = rdmsr(sint(SINT));
        check!(read & 0x7_00FF == value, "SINT{SINT} is {read:#x} after {value:#x} was written");
    }
    wrmsr(sint(SINT), Sint::RESET.into());
    wrmsr(msr::SCONTROL, 1);
    let control = rdmsr(msr::SCONTROL);
    wrmsr(msr::SCONTROL, 0);
    check!(control & 1 == 1, "SCONTROL is {control:#x}");
    wrmsr(msr::SIEFP, EVENTS.address() | 1);
    let page = rdmsr(msr::SIEFP);
    wrmsr(msr::SIEFP, 0);
    check!(page & !0xFFE == EVENTS.address() | 1, "SIEFP is {page:#x}");
    Ok(())
}

fn registers_refuse_bad_values() -> TestResult {
    need_synic!();
    check!(try_wrmsr(msr::SVERSION, 1).is_err(), "SVERSION can be written");
    for vector in [0, 1, 15] {
        check!(try_wrmsr(sint(SINT), vector).is_err(), "SINT{SINT} takes vector {vector}");
    }
    let value = rdmsr(sint(SINT));
    check!(value == Sint::RESET.into(), "a refused value changes SINT{SINT} to {value:#x}");
    check!(try_rdmsr(sint(SOURCES)).is_err(), "there is a SINT16");
    check!(try_wrmsr(sint(SOURCES), Sint::RESET.into()).is_err(), "SINT16 can be written");
    Ok(())
}

/// What lay under a page is there again when the page goes, and the page is zero when it comes first.
fn pages_are_overlays() -> TestResult {
    need_synic!();
    for (register, page) in [(msr::SIMP, &MESSAGES), (msr::SIEFP, &EVENTS)] {
        page.fill(0x5A5A_0000);
        wrmsr(register, page.address() | 1);
        let shown = page.read(100);
        page.write(101, 77);
        let kept = page.read(101);
        wrmsr(register, 0);
        let (under, other) = (page.read(100), page.read(101));
        check!(shown == 0, "MSR {register:#x}: a new page holds {shown:#x}");
        check!(kept == 77, "MSR {register:#x}: the page does not keep what is written");
        check!(
            under == 0x5A5A_0000 && other == under,
            "MSR {register:#x}: under it lies {under:#x}, {other:#x}"
        );
    }
    Ok(())
}

fn pages_beyond_memory() -> TestResult {
    need_synic!();
    let beyond = 1u64 << 51 | 1;
    for register in [msr::SIMP, msr::SIEFP] {
        let written = try_wrmsr(register, beyond);
        let read = rdmsr(register);
        wrmsr(register, 0);
        check!(written.is_err() || read == beyond, "MSR {register:#x} is {read:#x}");
    }
    Ok(())
}

fn message_and_interrupt() -> TestResult {
    need_messages!();
    send(0, SINT);
    check!(arrives(SINT), "no message comes");
    pass();
    check!(fired() == 1, "{} interrupts for one message", fired());
    let size = MESSAGES.read(slot(SINT)) >> 32 & 0xFF;
    check!(size == 24, "the payload has {size} bytes");
    Ok(())
}

/// With auto-EOI nothing is in service in the handler, and the next interrupt comes though none was ended.
fn interrupt_ends_by_itself() -> TestResult {
    need_messages!();
    fault::set_handler(VECTOR, Some(count_only));
    wrmsr(sint(SINT), Sint::new().with_vector(VECTOR).with_auto_eoi(true).into());
    for times in 1..=3 {
        send(0, SINT);
        check!(arrives(SINT), "message {times} does not come");
        pass();
        empty(SINT);
        check!(fired() == times, "{} interrupts for {times} messages", fired());
        check!(!apic::bit(apic::Register::Isr0, VECTOR), "the interrupt is in service");
    }
    Ok(())
}

fn interrupt_waits_for_its_end() -> TestResult {
    need_messages!();
    fault::set_handler(VECTOR, Some(count_only));
    send(0, SINT);
    check!(arrives(SINT), "no message comes");
    pass();
    empty(SINT);
    send(1, SINT);
    check!(arrives(SINT), "the second message does not come");
    pass();
    check!(fired() == 1, "an interrupt comes while its vector is in service");
    apic::eoi();
    pass();
    check!(fired() == 2, "no interrupt comes after the end of the one before");
    Ok(())
}

fn masked_source_stores_its_message() -> TestResult {
    need_messages!();
    wrmsr(sint(SINT), Sint::new().with_vector(VECTOR).with_masked(true).into());
    send(0, SINT);
    check!(arrives(SINT), "no message comes");
    pass();
    check!(fired() == 0, "a masked source makes an interrupt");
    Ok(())
}

fn polled_source_makes_no_interrupt() -> TestResult {
    need_messages!();
    if !Features::from_bits_retain(cpuid(leaf::FEATURES, 0).edx).contains(Features::SINT_POLLING_MODE) {
        skip!("no polling")
    }
    wrmsr(sint(SINT), Sint::new().with_vector(VECTOR).with_polling(true).into());
    send(0, SINT);
    check!(arrives(SINT), "no message comes");
    pass();
    check!(fired() == 0, "a polled source makes an interrupt");
    Ok(())
}

fn disabled_synic_keeps_its_messages() -> TestResult {
    need_messages!();
    wrmsr(msr::SCONTROL, 0);
    send(0, SINT);
    pass();
    check!(message(SINT) == MessageType::NONE && fired() == 0, "a disabled SynIC delivers");
    wrmsr(msr::SCONTROL, 1);
    wrmsr(msr::EOM, 0);
    check!(arrives(SINT), "the message does not come when the SynIC is enabled");
    Ok(())
}

fn disabled_page_keeps_its_messages() -> TestResult {
    need_messages!();
    wrmsr(msr::SIMP, MESSAGES.address());
    send(0, SINT);
    pass();
    check!(fired() == 0, "an interrupt comes for a message that has no page");
    wrmsr(msr::SIMP, MESSAGES.address() | 1);
    wrmsr(msr::EOM, 0);
    check!(arrives(SINT), "the message does not come when the page is enabled");
    Ok(())
}

fn end_of_message_delivers_the_next() -> TestResult {
    need_messages!();
    send(0, SINT);
    check!(arrives(SINT), "no message comes");
    send(1, SINT);
    pass();
    let (timer, pending) = timer_and_pending(SINT);
    check!(timer == 0 && pending, "slot of timer {timer}, another waits: {pending}");
    empty(SINT);
    wrmsr(msr::EOM, 0);
    check!(arrives(SINT), "the second message does not come");
    let (timer, pending) = timer_and_pending(SINT);
    check!(timer == 1 && !pending, "slot of timer {timer}, another waits: {pending}");
    pass();
    check!(fired() == 2, "{} interrupts for two messages", fired());
    Ok(())
}

fn end_of_interrupt_delivers_the_next() -> TestResult {
    need_messages!();
    fault::set_handler(VECTOR, Some(count_only));
    send(0, SINT);
    check!(arrives(SINT), "no message comes");
    send(1, SINT);
    pass();
    empty(SINT);
    apic::eoi();
    check!(arrives(SINT), "the second message does not come after the end of the interrupt");
    Ok(())
}

fn every_source_has_its_slot() -> TestResult {
    need_messages!();
    for source in 1..SOURCES {
        wrmsr(sint(source), VECTOR.into());
        send(source % 4, source);
        check!(arrives(source), "no message comes to SINT{source}");
        let taken = (0..SOURCES).filter(|other| message(*other) != MessageType::NONE).count();
        check!(taken == 1, "{taken} slots are taken by a message to SINT{source}");
        empty(source);
    }
    Ok(())
}

macro_rules! need_calls {
    ($privilege:expr) => {
        if !hv::privileges().contains($privilege) || !hv::enable_hypercalls() {
            skip!("no privilege for it")
        }
    };
}

/// Posts what [`hv::INPUT`] holds.
fn post(connection: u64, kind: u64, size: u64) -> HvStatus {
    hv::INPUT.fill(0);
    hv::INPUT.write(0, connection);
    hv::INPUT.write(1, kind | size << 32);
    hv::call(HypercallCode::POST_MESSAGE).status()
}

fn bad_messages_are_refused() -> TestResult {
    need_calls!(PrivilegeMask::POST_MESSAGES);
    let unknown = 0xFF_FFFF;
    for (kind, size) in [(0, 8), (0x8000_0000, 8), (0x8000_0010, 8), (1, 241), (1, 0xFFFF_FFFF)] {
        let status = post(unknown, kind, size);
        let refused = matches!(status, HvStatus::INVALID_PARAMETER | HvStatus::INVALID_CONNECTION_ID);
        check!(refused, "type {kind:#x} with {size} bytes: {status:?}");
    }
    let status = post(unknown, 1, 8);
    let refused = matches!(status, HvStatus::INVALID_CONNECTION_ID | HvStatus::INVALID_PORT_ID);
    check!(refused, "to an unknown connection: {status:?}");
    let status = post(0xFFFF_FFFF, 1, 8);
    check!(!status.is_success(), "to a connection that cannot be: {status:?}");
    // A message that would leave its page.
    let control = HypercallInput::new().with_call_code(HypercallCode::POST_MESSAGE.0);
    let output = hv::raw(control.into_bits(), hv::INPUT.address() + 4088, 0);
    check!(output as u16 != HvStatus::SUCCESS.0, "input across a page: {output:#x}");
    Ok(())
}

fn bad_events_are_refused() -> TestResult {
    need_calls!(PrivilegeMask::SIGNAL_EVENTS);
    for first in [0xFF_FFFF, 0xFFFF_FFFF, (EVENT_FLAGS_COUNT as u64) << 32 | 0xFF_FFFF, u64::MAX] {
        let status = hv::call_fast(HypercallCode::SIGNAL_EVENT, first, 0).status();
        check!(!status.is_success(), "{first:#x}: {status:?}");
    }
    let status = hv::call_fast(HypercallCode::SIGNAL_EVENT, 0xFF_FFFF, 0).status();
    let refused = matches!(status, HvStatus::INVALID_CONNECTION_ID | HvStatus::INVALID_PORT_ID);
    check!(refused, "an unknown connection: {status:?}");
    Ok(())
}
