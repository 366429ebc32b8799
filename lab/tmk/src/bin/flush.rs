//! TLB flushes of other processors and interrupts to them by hypercall, with masks and with sparse sets of processors (TLFS
//! "Virtual MMU", "Synthetic Cluster IPI"), also sets that name processors that are not there.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use parterre_abi::cpuid::{self as leaf, Enlightenments};
use parterre_abi::hypercall::{FlushFlags, HypercallCode, HypercallInput, HypercallOutput};
use parterre_abi::status::HvStatus;
use tmk::cpu::{self, cpuid};
use tmk::fault::{self, MAX_PROCESSORS};
use tmk::{TestResult, apic, check, hv, paging, params, skip, smp, time};

tmk::program!("flush":
    space_of_the_other,
    space_of_all,
    list_of_the_other,
    space_of_the_other_ex,
    list_of_the_other_ex,
    space_of_all_ex,
    many_in_a_row,
    absurd_sets,
    wrong_forms,
    interrupt_ex,
    interrupt_to_all_ex,
    interrupt_to_absurd_sets,
    interrupt_with_wrong_form,
);

const PRESENT_WRITABLE: u64 = 3;
const SLOT: usize = 5;
const PAGE: u64 = 4096;
const ALL: u64 = FlushFlags::ALL_PROCESSORS.bits() | FlushFlags::ALL_VIRTUAL_ADDRESS_SPACES.bits();
const SPACES: u64 = FlushFlags::ALL_VIRTUAL_ADDRESS_SPACES.bits();

static WATCHED: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// What the other processor does: it reads the page again and again, without a flush of its own.
fn watch() {
    let address = WATCHED.load(Ordering::SeqCst) as *const u64;
    while !STOP.load(Ordering::SeqCst) {
        // SAFETY: the window's slot shows one of two pages of spare RAM, which only hold numbers.
        let value = unsafe { core::ptr::read_volatile(address) };
        SEEN.store(value, Ordering::SeqCst);
        ROUNDS.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits until the other processor has read again, twice: one reading may have begun before.
fn read_again() -> bool {
    let before = ROUNDS.load(Ordering::SeqCst);
    time::wait_until(time::LONG, || ROUNDS.load(Ordering::SeqCst) >= before + 2)
}

fn set(page: u64, value: u64) {
    let address = paging::show(SLOT + 1, page, PRESENT_WRITABLE) as *mut u64;
    // SAFETY: the slot shows a page of spare RAM.
    unsafe { core::ptr::write_volatile(address, value) };
}

fn hints() -> Enlightenments {
    Enlightenments::from_bits_retain(cpuid(leaf::ENLIGHTENMENTS, 0).eax)
}

macro_rules! need {
    ($hint:expr) => {
        if smp::count() < 2 {
            skip!("one processor only")
        }
        if !hv::enable_hypercalls() || !hints().contains($hint) {
            skip!("not recommended here")
        }
    };
}

/// A call with these words of input.
fn call(code: HypercallCode, header: u16, reps: u16, input: &[u64]) -> HypercallOutput {
    for (index, word) in input.iter().enumerate() {
        hv::INPUT.write(index, *word);
    }
    let control =
        HypercallInput::new().with_call_code(code.0).with_variable_header_size(header).with_rep_count(reps);
    hv::call_with(control)
}

/// Has the other processor read a page while its translation changes, and flushes.
fn reaches_the_other(times: u64, flush: impl Fn(u64) -> HypercallOutput) -> TestResult {
    let pages = [params::spare_ram().start, params::spare_ram().start + PAGE];
    set(pages[0], 100);
    let address = paging::show(SLOT, pages[0], PRESENT_WRITABLE) as u64;
    WATCHED.store(address, Ordering::SeqCst);
    STOP.store(false, Ordering::SeqCst);
    smp::give(1, watch);
    let result = (|| {
        for round in 1..=times {
            let page = pages[round as usize % 2];
            set(page, 100 + round);
            paging::change_without_flush(SLOT, page, PRESENT_WRITABLE);
            let output = flush(address);
            check!(output.status().is_success(), "round {round}: {:?}", output.status());
            // From here on nobody reads through the old translation.
            set(pages[(round as usize + 1) % 2], 0xBAD);
            check!(read_again(), "the other processor stands still");
            let seen = SEEN.load(Ordering::SeqCst);
            check!(seen == 100 + round, "round {round}: the other processor reads {seen:#x}");
        }
        Ok(())
    })();
    STOP.store(true, Ordering::SeqCst);
    check!(smp::finished(1), "processor 1 does not come back");
    result
}

const REMOTE: Enlightenments = Enlightenments::USE_HYPERCALL_FOR_REMOTE_FLUSH;
const REMOTE_EX: Enlightenments = REMOTE.union(Enlightenments::USE_EX_PROCESSOR_MASKS);
const IPI_EX: Enlightenments =
    Enlightenments::USE_SYNTHETIC_CLUSTER_IPI.union(Enlightenments::USE_EX_PROCESSOR_MASKS);

use HypercallCode as C;

fn space_of_the_other() -> TestResult {
    need!(REMOTE);
    reaches_the_other(4, |_| call(C::FLUSH_VIRTUAL_ADDRESS_SPACE, 0, 0, &[paging::cr3(), 0, 2]))
}

fn space_of_all() -> TestResult {
    need!(REMOTE);
    reaches_the_other(4, |_| call(C::FLUSH_VIRTUAL_ADDRESS_SPACE, 0, 0, &[0, ALL, 0]))
}

fn list_of_the_other() -> TestResult {
    need!(REMOTE);
    reaches_the_other(4, |address| {
        call(C::FLUSH_VIRTUAL_ADDRESS_LIST, 0, 2, &[paging::cr3(), 0, 2, 0x7000, address])
    })
}

fn space_of_the_other_ex() -> TestResult {
    need!(REMOTE_EX);
    reaches_the_other(4, |_| call(C::FLUSH_VIRTUAL_ADDRESS_SPACE_EX, 1, 0, &[paging::cr3(), 0, 0, 1, 2]))
}

fn list_of_the_other_ex() -> TestResult {
    need!(REMOTE_EX);
    reaches_the_other(4, |address| {
        let input = [paging::cr3(), 0, 0, 0b101, 2, 0, address];
        call(C::FLUSH_VIRTUAL_ADDRESS_LIST_EX, 2, 1, &input)
    })
}

fn space_of_all_ex() -> TestResult {
    need!(REMOTE_EX);
    reaches_the_other(4, |_| call(C::FLUSH_VIRTUAL_ADDRESS_SPACE_EX, 0, 0, &[0, SPACES, 1, 0]))
}

fn many_in_a_row() -> TestResult {
    need!(REMOTE);
    reaches_the_other(200, |_| call(C::FLUSH_VIRTUAL_ADDRESS_SPACE, 0, 0, &[0, SPACES, u64::MAX]))
}

/// Sets with processors that are not there, in banks that cannot be: answered, and nothing else happens.
fn absurd_sets() -> TestResult {
    need!(REMOTE_EX);
    hv::INPUT.fill(u64::MAX);
    let output = call(C::FLUSH_VIRTUAL_ADDRESS_SPACE_EX, 64, 0, &[0, SPACES, 0, u64::MAX]);
    check!(output.status().is_success(), "all banks: {:?}", output.status());
    for bank in [4, 31, 63] {
        let output = call(C::FLUSH_VIRTUAL_ADDRESS_SPACE_EX, 1, 0, &[0, SPACES, 0, 1 << bank, u64::MAX]);
        let answered = matches!(output.status(), HvStatus::SUCCESS | HvStatus::INVALID_PARAMETER);
        check!(answered, "bank {bank}: {:?}", output.status());
    }
    let output = call(C::FLUSH_VIRTUAL_ADDRESS_SPACE, 0, 0, &[0, SPACES, 1 << 63]);
    check!(output.status().is_success(), "VP 63: {:?}", output.status());
    Ok(())
}

fn wrong_forms() -> TestResult {
    need!(REMOTE_EX);
    let calls: [(C, u16, u16, &[u64]); 9] = [
        (C::FLUSH_VIRTUAL_ADDRESS_SPACE, 0, 0, &[0, 1 << 40, 1]),
        (C::FLUSH_VIRTUAL_ADDRESS_SPACE, 0, 1, &[0, SPACES, 1]),
        (C::FLUSH_VIRTUAL_ADDRESS_LIST, 0, 0, &[0, SPACES, 1]),
        (C::FLUSH_VIRTUAL_ADDRESS_LIST, 0, 0xFFF, &[0, SPACES, 1]),
        (C::FLUSH_VIRTUAL_ADDRESS_LIST, 0, 1, &[0, FlushFlags::NON_GLOBAL_MAPPINGS_ONLY.bits(), 1, 0x1000]),
        (C::FLUSH_VIRTUAL_ADDRESS_SPACE_EX, 0, 0, &[0, SPACES, 0, 1, 1]),
        (C::FLUSH_VIRTUAL_ADDRESS_SPACE_EX, 3, 0, &[0, SPACES, 0, 1, 1]),
        (C::FLUSH_VIRTUAL_ADDRESS_SPACE_EX, 1, 0, &[0, SPACES, 2, 1, 1]),
        (C::FLUSH_VIRTUAL_ADDRESS_LIST_EX, 1, 511, &[0, SPACES, 0, 1, 1]),
    ];
    for (index, (code, header, reps, input)) in calls.into_iter().enumerate() {
        let status = call(code, header, reps, input).status();
        check!(!status.is_success(), "wrong form {index} of {code:?} succeeds");
    }
    Ok(())
}

const VECTOR: u8 = 0x62;
static RECEIVED: [AtomicU32; MAX_PROCESSORS + 1] = [const { AtomicU32::new(0) }; MAX_PROCESSORS + 1];

fn receive() {
    RECEIVED[fault::processor_index()].fetch_add(1, Ordering::SeqCst);
    apic::eoi();
}

fn received(index: usize) -> u32 {
    RECEIVED[index].load(Ordering::SeqCst)
}

fn listen() {
    while !STOP.load(Ordering::SeqCst) {
        cpu::take_interrupts();
    }
}

/// Runs `test` while processor 1 takes interrupts.
fn with_listener(test: impl FnOnce() -> TestResult) -> TestResult {
    RECEIVED.iter().for_each(|count| count.store(0, Ordering::SeqCst));
    fault::set_handler(VECTOR, Some(receive));
    STOP.store(false, Ordering::SeqCst);
    smp::give(1, listen);
    let result = test();
    STOP.store(true, Ordering::SeqCst);
    check!(smp::finished(1), "processor 1 does not come back");
    result
}

fn interrupt(header: u16, input: &[u64]) -> HvStatus {
    call(C::SEND_SYNTHETIC_CLUSTER_IPI_EX, header, 0, input).status()
}

fn interrupt_ex() -> TestResult {
    need!(IPI_EX);
    with_listener(|| {
        for times in 1..=3 {
            let status = interrupt(1, &[VECTOR.into(), 0, 1, 2]);
            check!(status.is_success(), "{status:?}");
            check!(time::wait_until(time::LONG, || received(1) == times), "interrupt {times} does not come");
        }
        cpu::take_interrupts();
        check!(received(0) == 0, "the sender receives what is not for it");
        Ok(())
    })
}

fn interrupt_to_all_ex() -> TestResult {
    need!(IPI_EX);
    with_listener(|| {
        let status = interrupt(0, &[VECTOR.into(), 1, 0]);
        check!(status.is_success(), "{status:?}");
        let both = time::wait_until(time::LONG, || {
            cpu::take_interrupts();
            received(0) == 1 && received(1) == 1
        });
        check!(both, "received {} and {}", received(0), received(1));
        Ok(())
    })
}

fn interrupt_to_absurd_sets() -> TestResult {
    need!(IPI_EX);
    with_listener(|| {
        for bank in [4, 31, 63] {
            let status = interrupt(1, &[VECTOR.into(), 0, 1 << bank, u64::MAX]);
            let answered = matches!(status, HvStatus::SUCCESS | HvStatus::INVALID_PARAMETER);
            check!(answered, "bank {bank}: {status:?}");
        }
        time::spin(10_000_000);
        cpu::take_interrupts();
        check!(received(0) == 0 && received(1) == 0, "an interrupt for nobody is received");
        hv::INPUT.fill(u64::MAX);
        let status = interrupt(64, &[VECTOR.into(), 0, u64::MAX]);
        check!(status.is_success(), "all banks: {status:?}");
        check!(time::wait_until(time::LONG, || received(1) == 1), "it does not come");
        cpu::take_interrupts();
        Ok(())
    })
}

fn interrupt_with_wrong_form() -> TestResult {
    need!(IPI_EX);
    with_listener(|| {
        let calls: [(u16, [u64; 4]); 6] = [
            (1, [15, 0, 1, 2]),
            (1, [256, 0, 1, 2]),
            (1, [u64::from(VECTOR) | 0x11 << 32, 0, 1, 2]),
            (0, [VECTOR.into(), 0, 1, 2]),
            (2, [VECTOR.into(), 0, 1, 2]),
            (1, [VECTOR.into(), 9, 1, 2]),
        ];
        for (index, (header, input)) in calls.iter().enumerate() {
            check!(!interrupt(*header, input).is_success(), "wrong form {index} succeeds");
        }
        time::spin(10_000_000);
        check!(received(1) == 0, "a refused call sends an interrupt");
        Ok(())
    })
}
