//! The hypercall interface: its page, its statuses, its registers (TLFS "Hypercall Interface").

#![no_std]
#![no_main]

use core::arch::asm;
use parterre_abi::hypercall::{HypercallCode, HypercallInput};
use parterre_abi::msr::{self, HypercallMsr};
use parterre_abi::status::HvStatus;
use parterre_abi::types::PartitionId;
use tmk::fault::catch_user;
use tmk::{Fault, TestResult, apic, catch, check, cpu, fault, hv, paging, skip, smp};

tmk::program!("hypercall":
    page_needs_guest_os_id,
    page_is_an_overlay,
    page_outside_of_memory,
    unknown_codes,
    reserved_bits,
    reps_of_simple_calls,
    rep_start_beyond_count,
    rep_call_without_reps,
    unaligned_input,
    unmapped_input,
    registers_are_preserved,
    from_user_mode,
    fast_call,
    long_spin_wait,
    flush_address_space,
    flush_address_list,
    vp_index_from_apic_id,
    ipi_with_bad_vector,
    post_message_without_connection,
    signal_event_without_connection,
);

/// Skips the test if there are no hypercalls.
macro_rules! need_hypercalls {
    () => {
        if !hv::enable_hypercalls() {
            skip!("no hypercalls")
        }
    };
}

/// Skips the test if the hypervisor does not have a call, or not for this guest.
macro_rules! skip_if_missing {
    ($output:expr) => {
        let status = $output.status();
        if matches!(status, HvStatus::INVALID_HYPERCALL_CODE | HvStatus::ACCESS_DENIED) {
            skip!("the call answers {status:?}")
        }
    };
}

macro_rules! expect_status {
    ($output:expr, $status:ident, $($what:tt)+) => {{
        let status = $output.status();
        check!(status == HvStatus::$status, "{}: {status:?} instead of {}", format_args!($($what)+), stringify!($status));
    }};
}

fn page_needs_guest_os_id() -> TestResult {
    if !hv::present() {
        skip!("no Hv#1 interface")
    }
    let page = HypercallMsr::from_bits(hv::hypercall_page()).with_enabled(true);
    cpu::wrmsr(msr::GUEST_OS_ID, 0);
    let _ = cpu::try_wrmsr(msr::HYPERCALL, page.into_bits());
    let enabled = HypercallMsr::from_bits(cpu::rdmsr(msr::HYPERCALL)).enabled();
    check!(!enabled, "the page can be enabled while the guest OS id is 0");
    Ok(())
}

/// The page covers memory while it is enabled; memory keeps what it holds.
fn page_is_an_overlay() -> TestResult {
    need_hypercalls!();
    let first_word = |address: u64| {
        // SAFETY: the hypercall page is in the program's memory, as an array of words.
        unsafe { core::ptr::read_volatile(address as *const u64) }
    };
    let page = hv::hypercall_page();
    let enabled = cpu::rdmsr(msr::HYPERCALL);
    check!(enabled == page | 1, "the MSR reads as {enabled:#x}");
    check!(first_word(page) != 0, "the page is empty while it is enabled");
    cpu::wrmsr(msr::HYPERCALL, page);
    check!(first_word(page) == 0, "memory below the page has changed");
    cpu::wrmsr(msr::HYPERCALL, page | 1);
    check!(first_word(page) != 0, "the page does not come back");
    Ok(())
}

fn page_outside_of_memory() -> TestResult {
    need_hypercalls!();
    let before = cpu::rdmsr(msr::HYPERCALL);
    let outcome = cpu::try_wrmsr(msr::HYPERCALL, 0x000F_FFFF_FFFF_F001);
    cpu::wrmsr(msr::HYPERCALL, before);
    let refused = matches!(outcome, Err(Fault { vector: Fault::GP, .. }));
    check!(refused, "a page beyond the address space is accepted");
    Ok(())
}

fn unknown_codes() -> TestResult {
    need_hypercalls!();
    for code in [0x0000, 0x003F, 0x01FF, 0x0FFF, 0x7FFF] {
        expect_status!(hv::call(HypercallCode(code)), INVALID_HYPERCALL_CODE, "call {code:#x}");
        expect_status!(
            hv::call_fast(HypercallCode(code), 0, 0),
            INVALID_HYPERCALL_CODE,
            "fast call {code:#x}"
        );
    }
    Ok(())
}

fn reserved_bits() -> TestResult {
    need_hypercalls!();
    for bit in (27..31).chain(44..48).chain(60..64) {
        let control = u64::from(HypercallCode::NOTIFY_LONG_SPIN_WAIT.0) | 1 << 16 | 1 << bit;
        expect_status!(hv::call_with(control.into()), INVALID_HYPERCALL_INPUT, "bit {bit}");
    }
    Ok(())
}

fn reps_of_simple_calls() -> TestResult {
    need_hypercalls!();
    let control =
        HypercallInput::new().with_call_code(HypercallCode::NOTIFY_LONG_SPIN_WAIT.0).with_rep_count(1);
    hv::INPUT.fill(0);
    expect_status!(hv::call_with(control), INVALID_HYPERCALL_INPUT, "a simple call with a rep count");
    Ok(())
}

fn rep_start_beyond_count() -> TestResult {
    need_hypercalls!();
    hv::INPUT.fill(0);
    for (count, start) in [(1, 1), (2, 4095)] {
        let control = HypercallInput::new()
            .with_call_code(HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST.0)
            .with_rep_count(count)
            .with_rep_start(start);
        expect_status!(hv::call_with(control), INVALID_HYPERCALL_INPUT, "start {start} of {count}");
    }
    Ok(())
}

fn rep_call_without_reps() -> TestResult {
    need_hypercalls!();
    hv::INPUT.fill(0);
    let output = hv::call(HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST);
    skip_if_missing!(output);
    expect_status!(output, INVALID_HYPERCALL_INPUT, "a rep call without a rep count");
    Ok(())
}

fn unaligned_input() -> TestResult {
    need_hypercalls!();
    let control = HypercallInput::new().with_call_code(HypercallCode::NOTIFY_LONG_SPIN_WAIT.0);
    for offset in [1, 4, 7] {
        let result = hv::raw(control.into_bits(), hv::INPUT.address() + offset, 0);
        let status = HvStatus(result as u16);
        check!(status == HvStatus::INVALID_ALIGNMENT, "input at offset {offset}: {status:?}");
    }
    Ok(())
}

/// Input where there is no memory is refused (TLFS: as an intercept, or with a status).
fn unmapped_input() -> TestResult {
    need_hypercalls!();
    let control = HypercallInput::new().with_call_code(HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE.0);
    if let Ok(result) = catch(|| hv::raw(control.into_bits(), paging::highest_page(), 0)) {
        check!(result as u16 != 0, "a call with its input outside of memory succeeds");
    }
    Ok(())
}

/// All registers but those of the interface keep their values.
fn registers_are_preserved() -> TestResult {
    need_hypercalls!();
    const MARK: u64 = 0x1357_9BDF_0246_8AC0;
    let mut kept = [MARK, MARK + 1, MARK + 2, MARK + 3, MARK + 4, MARK + 5];
    let [rsi, rdi, r12, r13, r14, r15] = &mut kept;
    let mut rbx = MARK + 6;
    // SAFETY: calls the hypercall page with a fast call that touches no memory; RBX is kept by hand.
    unsafe {
        asm!(
            "push rbx", "mov rbx, rax", "call r9", "mov rax, rbx", "pop rbx",
            inout("rax") rbx, inout("r9") hv::hypercall_page() => _, inout("rcx") 0x1_0008u64 => _,
            inout("rdx") 1u64 => _, inout("r8") 0u64 => _, out("r10") _, out("r11") _,
            inout("rsi") *rsi, inout("rdi") *rdi, inout("r12") *r12, inout("r13") *r13, inout("r14") *r14,
            inout("r15") *r15,
        );
    }
    check!(rbx == MARK + 6, "RBX has changed to {rbx:#x}");
    for (value, expected) in kept.into_iter().zip(MARK..) {
        check!(value == expected, "a register has changed from {expected:#x} to {value:#x}");
    }
    Ok(())
}

fn from_user_mode() -> TestResult {
    need_hypercalls!();
    extern "C" fn attempt() -> ! {
        // SAFETY: has to fault in the hypercall page; if not, INT 0x80 tells so.
        unsafe {
            asm!("call {}", "int 0x80", in(reg) hv::hypercall_page(), in("rcx") 0x1_0008, in("rdx") 1, in("r8") 0,
                 options(noreturn))
        }
    }
    let fault = catch_user(attempt);
    check!(matches!(fault.vector, Fault::UD | Fault::GP), "it ends in {fault}");
    Ok(())
}

fn fast_call() -> TestResult {
    need_hypercalls!();
    // To no processor: all is well, nothing happens.
    let output = hv::call_fast(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI, 0x40, 0);
    skip_if_missing!(output);
    expect_status!(output, SUCCESS, "an IPI to nobody");
    Ok(())
}

fn long_spin_wait() -> TestResult {
    need_hypercalls!();
    let status = hv::call_fast(HypercallCode::NOTIFY_LONG_SPIN_WAIT, 1000, 0).status();
    check!(status == HvStatus::SUCCESS, "{status:?}");
    Ok(())
}

const ALL_PROCESSORS: u64 = 1;
const ALL_ADDRESS_SPACES: u64 = 2;

/// Maps another page behind a cached translation, flushes by `flush`, and looks which page is seen.
fn flush_shows_new_mapping(flush: impl FnOnce(u64) -> HvStatus) -> TestResult {
    static PAGES: [hv::Page; 2] = [const { hv::Page::new() }; 2];
    PAGES[0].write(0, 1);
    PAGES[1].write(0, 2);
    // SAFETY: the window shows one of the two pages.
    let look = |pointer: *const u64| unsafe { core::ptr::read_volatile(pointer) };
    let pointer = paging::show(7, PAGES[0].address(), paging::RIGHTS).cast::<u64>();
    check!(look(pointer) == 1, "the window shows the wrong page");
    paging::change_without_flush(7, PAGES[1].address(), paging::RIGHTS);
    let status = flush(pointer as u64);
    check!(status == HvStatus::SUCCESS, "{status:?}");
    check!(look(pointer) == 2, "the old translation is still used");
    Ok(())
}

fn flush_address_space() -> TestResult {
    need_hypercalls!();
    hv::INPUT.fill(0);
    skip_if_missing!(hv::call(HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE));
    flush_shows_new_mapping(|_| {
        hv::INPUT.write(0, 0);
        hv::INPUT.write(1, ALL_PROCESSORS | ALL_ADDRESS_SPACES);
        hv::INPUT.write(2, 0);
        hv::call(HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE).status()
    })?;
    flush_shows_new_mapping(|_| {
        hv::INPUT.write(0, paging::cr3());
        hv::INPUT.write(1, 0);
        hv::INPUT.write(2, 1);
        hv::call(HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE).status()
    })
}

fn flush_address_list() -> TestResult {
    need_hypercalls!();
    hv::INPUT.fill(0);
    skip_if_missing!(hv::call(HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE));
    flush_shows_new_mapping(|address| {
        hv::INPUT.write(0, paging::cr3());
        hv::INPUT.write(1, 0);
        hv::INPUT.write(2, 1);
        hv::INPUT.write(3, address & !0xFFF);
        let control = HypercallInput::new()
            .with_call_code(HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST.0)
            .with_rep_count(1);
        let output = hv::call_with(control);
        if output.reps_completed() == 1 { output.status() } else { HvStatus::NO_DATA }
    })
}

fn vp_index_from_apic_id() -> TestResult {
    need_hypercalls!();
    hv::INPUT.fill(0);
    hv::INPUT.write(0, PartitionId::SELF.0);
    hv::INPUT.write(2, u64::from(apic::id()));
    let control =
        HypercallInput::new().with_call_code(HypercallCode::GET_VP_INDEX_FROM_APIC_ID.0).with_rep_count(1);
    let output = hv::call_with(control);
    skip_if_missing!(output);
    expect_status!(output, SUCCESS, "the own APIC id");
    let (found, own) = (hv::OUTPUT.read(0) as u32, cpu::rdmsr(msr::VP_INDEX) as u32);
    check!(found == own, "VP index {found}, but the MSR says {own}");
    hv::INPUT.write(2, 0xFFFF_FF00);
    check!(hv::call_with(control).status() != HvStatus::SUCCESS, "an APIC id that is not there is found");
    Ok(())
}

fn ipi_with_bad_vector() -> TestResult {
    need_hypercalls!();
    for vector in [0, 15, 256] {
        let status = hv::call_fast(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI, vector, 1).status();
        check!(status != HvStatus::SUCCESS, "vector {vector} is accepted");
    }
    check!(fault::processor_index() == 0 && smp::count() > 0, "the processor's own data are lost");
    Ok(())
}

fn post_message_without_connection() -> TestResult {
    need_hypercalls!();
    hv::INPUT.fill(0);
    hv::INPUT.write(0, 0x00AB_CDEF);
    hv::INPUT.write(1, 1 | 8 << 32);
    let output = hv::call(HypercallCode::POST_MESSAGE);
    skip_if_missing!(output);
    let status = output.status();
    check!(status == HvStatus::INVALID_CONNECTION_ID, "a message to an unknown connection: {status:?}");
    hv::INPUT.write(1, 1 | 241 << 32);
    let status = hv::call(HypercallCode::POST_MESSAGE).status();
    check!(status != HvStatus::SUCCESS, "a message of 241 bytes is taken");
    Ok(())
}

fn signal_event_without_connection() -> TestResult {
    need_hypercalls!();
    let output = hv::call_fast(HypercallCode::SIGNAL_EVENT, 0x00AB_CDEF, 0);
    skip_if_missing!(output);
    let status = output.status();
    check!(status == HvStatus::INVALID_CONNECTION_ID, "an event for an unknown connection: {status:?}");
    Ok(())
}
