//! Sets of more than 64 virtual processors: interrupts and flushes that go beyond the first bank of a sparse set (TLFS "Sparse
//! Virtual Processor Set").

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use parterre_abi::cpuid::{self as leaf, Enlightenments};
use parterre_abi::hypercall::{FlushFlags, HypercallCode as C, HypercallInput};
use parterre_abi::status::HvStatus;
use tmk::cpu::{self, cpuid};
use tmk::fault::{self, MAX_PROCESSORS};
use tmk::{TestResult, apic, check, hv, line, paging, params, skip, smp, time};

tmk::program!("many":
    all_processors_start,
    each_answers,
    each_of_the_edges,
    several_banks,
    all_by_one_call,
    banks_behind_the_last_processor,
    flush_beyond_the_first_bank,
    list_beyond_the_first_bank,
);

const VECTOR: u8 = 0x63;
const PRESENT_WRITABLE: u64 = 3;
const SLOT: usize = 5;
const PAGE: u64 = 4096;
/// Virtual processors of a bank.
const BANK: u32 = 64;

/// A wait that is long also for the last of that many processors on a machine with two.
const PATIENCE: u64 = 20 * time::LONG;

static RECEIVED: [AtomicU32; MAX_PROCESSORS + 1] = [const { AtomicU32::new(0) }; MAX_PROCESSORS + 1];
/// The processor that shall read a page; nobody if it is 0.
static WATCHER: AtomicUsize = AtomicUsize::new(0);

fn receive() {
    RECEIVED[fault::processor_index()].fetch_add(1, Ordering::SeqCst);
    apic::eoi();
}

fn received(index: usize) -> u32 {
    RECEIVED[index].load(Ordering::SeqCst)
}

fn forget_received() {
    RECEIVED.iter().for_each(|count| count.store(0, Ordering::SeqCst));
}

/// The virtual processor of a processor: here each has the number of its APIC.
fn vp(index: usize) -> u32 {
    smp::apic_id(index)
}

/// What all others do from the first test to the end: as many as they are, they must not spin.
fn listen() {
    loop {
        cpu::halt();
        while WATCHER.load(Ordering::SeqCst) == fault::processor_index() {
            read_watched();
        }
    }
}

macro_rules! need {
    () => {
        if smp::count() <= BANK as usize {
            skip!("{} processors are one bank", smp::count())
        }
        let hints = Enlightenments::from_bits_retain(cpuid(leaf::ENLIGHTENMENTS, 0).eax);
        if !hv::enable_hypercalls() || !hints.contains(Enlightenments::USE_EX_PROCESSOR_MASKS) {
            skip!("no sparse sets here")
        }
    };
}

/// Makes a call whose set follows `head`; says whether that went well.
fn call(code: C, head: &[u64], banks: &[u64], tail: &[u64]) -> HvStatus {
    let reps = tail.len() as u16;
    let words = head.iter().chain(banks).chain(tail);
    words.enumerate().for_each(|(index, word)| hv::INPUT.write(index, *word));
    let control = HypercallInput::new().with_call_code(code.0);
    // The first word of a set says which banks there are; it is of the fixed part.
    hv::call_with(control.with_variable_header_size(banks.len() as u16 - 1).with_rep_count(reps)).status()
}

fn interrupt(banks: &[u64]) -> HvStatus {
    call(C::SEND_SYNTHETIC_CLUSTER_IPI_EX, &[VECTOR.into(), 0], banks, &[])
}

/// Sends one interrupt to a set, which these shall receive and no other.
fn reaches(banks: &[u64], expected: impl Fn(u32) -> bool) -> TestResult {
    forget_received();
    let status = interrupt(banks);
    check!(status.is_success(), "{banks:x?}: {status:?}");
    let due = |index: usize| u32::from(expected(vp(index)));
    let arrive = time::wait_until(PATIENCE, || {
        cpu::take_interrupts();
        (0..smp::count()).all(|index| received(index) >= due(index))
    });
    // What goes to a wrong processor may be slower.
    time::spin(20_000_000);
    cpu::take_interrupts();
    for index in (0..smp::count()).filter(|index| received(*index) != due(*index)) {
        line!("{banks:x?}: VP {} receives {}, not {}", vp(index), received(index), due(index));
    }
    let right = (0..smp::count()).all(|index| received(index) == due(index));
    check!(arrive && right, "{banks:x?} does not reach whom it shall (see above)");
    Ok(())
}

/// The highest virtual processor.
fn last() -> u32 {
    (0..smp::count()).map(vp).max().unwrap_or(0)
}

fn all_processors_start() -> TestResult {
    let named = tmk::acpi::apic_ids().len().max(1);
    time::wait_until(PATIENCE, || smp::count() == named);
    line!("{} of {named} processors run", smp::count());
    check!(smp::count() == named, "{} of {named} processors run; {} came", smp::count(), smp::entered() + 1);
    fault::set_handler(VECTOR, Some(receive));
    (1..smp::count()).for_each(|index| smp::give(index, listen));
    Ok(())
}

/// By the local APIC: each of them is there and listens.
fn each_answers() -> TestResult {
    forget_received();
    for index in 1..smp::count() {
        apic::send_ipi(VECTOR, smp::apic_id(index));
        check!(time::wait_until(PATIENCE, || received(index) == 1), "VP {} receives nothing", vp(index));
    }
    Ok(())
}

fn each_of_the_edges() -> TestResult {
    need!();
    for target in [0, 1, BANK - 1, BANK, BANK + 1, last()] {
        reaches(&[1 << (target / BANK), 1 << (target % BANK)], |vp| vp == target)?;
    }
    Ok(())
}

fn several_banks() -> TestResult {
    need!();
    reaches(&[0b11, 1 << 63 | 0b100, 0b10], |vp| [2, 63, 65].contains(&vp))?;
    // A bank that is left out in between.
    reaches(&[0b1010, 0b1, u64::MAX], |vp| vp == 64)
}

fn all_by_one_call() -> TestResult {
    need!();
    reaches(&[0b11, u64::MAX, u64::MAX], |_| true)
}

fn banks_behind_the_last_processor() -> TestResult {
    need!();
    let behind = !0 << (last() % BANK) << 1;
    reaches(&[0b10, behind], |_| false)?;
    for bank in [4, 63] {
        let status = interrupt(&[1 << bank, u64::MAX]);
        let answered = matches!(status, HvStatus::SUCCESS | HvStatus::INVALID_PARAMETER);
        check!(answered, "bank {bank}: {status:?}");
    }
    Ok(())
}

static WATCHED: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// Reads the page, without a flush of its own.
fn read_watched() {
    let address = WATCHED.load(Ordering::SeqCst) as *const u64;
    // SAFETY: the window's slot shows one of two pages of spare RAM, which only hold numbers.
    let value = unsafe { core::ptr::read_volatile(address) };
    SEEN.store(value, Ordering::SeqCst);
    ROUNDS.fetch_add(1, Ordering::SeqCst);
}

/// Waits until it has read again, twice: one reading may have begun before.
fn read_again() -> bool {
    let before = ROUNDS.load(Ordering::SeqCst);
    time::wait_until(PATIENCE, || ROUNDS.load(Ordering::SeqCst) >= before + 2)
}

fn set(page: u64, value: u64) {
    let address = paging::show(SLOT + 1, page, PRESENT_WRITABLE) as *mut u64;
    // SAFETY: the slot shows a page of spare RAM.
    unsafe { core::ptr::write_volatile(address, value) };
}

/// Has the last processor read a page while its translation changes and `flush` is called with its address and banks.
fn reaches_the_last(flush: impl Fn(u64, &[u64]) -> HvStatus) -> TestResult {
    let Some(index) = (1..smp::count()).find(|index| vp(*index) == last()) else {
        skip!("one processor only")
    };
    let target = vp(index);
    let banks = [1 << (target / BANK), 1 << (target % BANK)];
    let pages = [params::spare_ram().start, params::spare_ram().start + PAGE];
    set(pages[0], 100);
    let address = paging::show(SLOT, pages[0], PRESENT_WRITABLE) as u64;
    WATCHED.store(address, Ordering::SeqCst);
    WATCHER.store(index, Ordering::SeqCst);
    apic::send_ipi(VECTOR, target);
    let result = rounds(target, address, pages, |address| flush(address, &banks));
    WATCHER.store(0, Ordering::SeqCst);
    result
}

/// Changes the translation again and again; `target` must see each change.
fn rounds(target: u32, address: u64, pages: [u64; 2], flush: impl Fn(u64) -> HvStatus) -> TestResult {
    check!(read_again(), "VP {target} does not begin to read");
    for round in 1..=8 {
        let [page, other] = [pages[round as usize % 2], pages[(round as usize + 1) % 2]];
        set(page, 100 + round);
        paging::change_without_flush(SLOT, page, PRESENT_WRITABLE);
        let status = flush(address);
        check!(status.is_success(), "round {round}: {status:?}");
        // From here on nobody reads through the old translation.
        set(other, 0xBAD);
        check!(read_again(), "VP {target} stands still");
        let seen = SEEN.load(Ordering::SeqCst);
        check!(seen == 100 + round, "round {round}: VP {target} reads {seen:#x}");
    }
    Ok(())
}

fn flush_beyond_the_first_bank() -> TestResult {
    need!();
    let spaces = FlushFlags::ALL_VIRTUAL_ADDRESS_SPACES.bits();
    reaches_the_last(|_, banks| call(C::FLUSH_VIRTUAL_ADDRESS_SPACE_EX, &[0, spaces, 0], banks, &[]))
}

fn list_beyond_the_first_bank() -> TestResult {
    need!();
    reaches_the_last(|address, banks| {
        call(C::FLUSH_VIRTUAL_ADDRESS_LIST_EX, &[paging::cr3(), 0, 0], banks, &[address])
    })
}
