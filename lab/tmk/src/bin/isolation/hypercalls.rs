//! Hypercalls of every number, with bad input of every kind.

use core::arch::asm;
use parterre_abi::hypercall::{HypercallCode, HypercallInput, HypercallOutput};
use parterre_abi::msr;
use parterre_abi::status::HvStatus;
use tmk::fault::catch_user;
use tmk::{Fault, TestResult, catch, check, cpu, hv, line, paging, params, skip};

/// The numbers that are tried.
const CODES: core::ops::Range<u16> = 0..0x200;
/// What the output page holds before a call.
const UNTOUCHED: u64 = 0x7E57_7E57_7E57_7E57;

/// Calls that a guest may make, and that may succeed even with such input.
fn may_succeed(code: HypercallCode) -> bool {
    matches!(
        code,
        HypercallCode::SWITCH_VIRTUAL_ADDRESS_SPACE
            | HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE
            | HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST
            | HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE_EX
            | HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST_EX
            | HypercallCode::NOTIFY_LONG_SPIN_WAIT
            | HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI
            | HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX
            | HypercallCode::GET_VP_REGISTERS
            | HypercallCode::SET_VP_REGISTERS
            | HypercallCode::GET_VP_INDEX_FROM_APIC_ID
    )
}

/// Makes one call; it has to be refused without a trace in the output page.
fn must_be_refused(control: HypercallInput, input: u64, output: u64) -> TestResult {
    hv::OUTPUT.fill(UNTOUCHED);
    let code = control.code();
    let Ok(result) = catch(|| HypercallOutput::from_bits(hv::raw(control.into_bits(), input, output))) else {
        return Ok(());
    };
    if may_succeed(code) {
        return Ok(());
    }
    check!(
        result.status() != HvStatus::SUCCESS,
        "hypercall {:#x} succeeds (control {:#x})",
        code.0,
        control.into_bits()
    );
    for index in 0..512 {
        let word = hv::OUTPUT.read(index);
        check!(word == UNTOUCHED, "hypercall {:#x} was refused, but wrote {word:#x}", code.0);
    }
    Ok(())
}

/// A control word for a code.
fn simple(code: u16) -> HypercallInput {
    HypercallInput::new().with_call_code(code)
}

fn for_every_code(mut attempt: impl FnMut(u16) -> TestResult) -> TestResult {
    if !hv::enable_hypercalls() {
        skip!("no hypercalls")
    }
    CODES.chain(0x8000..0x8010).chain([0xC001, 0xFFFF]).try_for_each(&mut attempt)
}

/// Without a guest OS id there are no hypercalls (TLFS "Establishing the Hypercall Interface").
pub fn hypercalls_need_an_identity() -> TestResult {
    if !hv::enable_hypercalls() {
        skip!("no hypercalls")
    }
    let (identity, page) = (cpu::rdmsr(msr::GUEST_OS_ID), cpu::rdmsr(msr::HYPERCALL));
    cpu::wrmsr(msr::GUEST_OS_ID, 0);
    let enabled = cpu::rdmsr(msr::HYPERCALL) & 1;
    let outcome = catch(|| hv::vmcall(0, 0x46, hv::INPUT.address(), hv::OUTPUT.address()));
    cpu::wrmsr(msr::GUEST_OS_ID, identity);
    cpu::wrmsr(msr::HYPERCALL, page);
    check!(enabled == 0, "the hypercall page stays enabled without a guest OS id");
    if let Ok(result) = outcome {
        check!(result & 0xFFFF != 0, "a hypercall without a guest OS id succeeds");
    }
    Ok(())
}

/// What only the parent may do is denied with exactly that status, if the hypervisor knows the call at all.
pub fn hypercalls_for_the_parent_are_denied() -> TestResult {
    if !hv::enable_hypercalls() {
        skip!("no hypercalls")
    }
    hv::INPUT.fill(0);
    for code in [
        HypercallCode::CREATE_PARTITION,
        HypercallCode::ADD_LOGICAL_PROCESSOR,
        HypercallCode::GET_PARTITION_ID,
    ] {
        let status = hv::call(code).status();
        let denied = matches!(status, HvStatus::ACCESS_DENIED | HvStatus::INVALID_HYPERCALL_CODE);
        check!(denied, "{code:?} answers {status:?} instead of ACCESS_DENIED");
    }
    Ok(())
}

pub fn every_hypercall_with_zeroes() -> TestResult {
    hv::INPUT.fill(0);
    for_every_code(|code| must_be_refused(simple(code), hv::INPUT.address(), hv::OUTPUT.address()))
}

/// The first word names the guest's own partition.
pub fn every_hypercall_about_itself() -> TestResult {
    hv::INPUT.fill(0);
    hv::INPUT.write(0, u64::MAX);
    for_every_code(|code| must_be_refused(simple(code), hv::INPUT.address(), hv::OUTPUT.address()))
}

pub fn every_hypercall_with_ones() -> TestResult {
    hv::INPUT.fill(u64::MAX);
    for_every_code(|code| must_be_refused(simple(code), hv::INPUT.address(), hv::OUTPUT.address()))
}

pub fn every_hypercall_fast() -> TestResult {
    for_every_code(|code| {
        for (first, second) in
            [(0, 0), (u64::MAX, 0), (u64::MAX, u64::MAX), (hv::INPUT.address(), hv::OUTPUT.address())]
        {
            must_be_refused(simple(code).with_fast(true), first, second)?;
        }
        Ok(())
    })
}

/// Input and output beyond RAM, at no alignment, over the end of a page, and at the top of the address space.
pub fn every_hypercall_with_bad_addresses() -> TestResult {
    hv::INPUT.fill(0);
    let (input, output) = (hv::INPUT.address(), hv::OUTPUT.address());
    let top = paging::highest_page();
    let hypervisor = params::number("hypervisor").unwrap_or(0xDEAD_0000);
    for_every_code(|code| {
        for (from, to) in [
            (hypervisor, hypervisor),
            (input + 1, output),
            (input + 4088, output),
            (top, top),
            (u64::MAX, u64::MAX),
        ] {
            must_be_refused(simple(code), from, to)?;
        }
        Ok(())
    })
}

/// Counts and starts of all kinds, and a header that would not fit.
pub fn every_hypercall_as_rep() -> TestResult {
    hv::INPUT.fill(0);
    let (input, output) = (hv::INPUT.address(), hv::OUTPUT.address());
    let mut calls = 0;
    for_every_code(|code| {
        for (count, start, header) in
            [(1, 0, 0), (4095, 0, 0), (4095, 4094, 0), (1, 1, 0), (0, 5, 0), (4095, 0, 1023)]
        {
            let control =
                simple(code).with_rep_count(count).with_rep_start(start).with_variable_header_size(header);
            calls += 1;
            must_be_refused(control, input, output)?;
        }
        Ok(())
    })?;
    line!("{calls} rep calls");
    Ok(())
}

/// Only the guest's kernel may call (TLFS "Hypercall Interface").
pub fn hypercalls_fault_in_user_mode() -> TestResult {
    if !hv::enable_hypercalls() {
        skip!("no hypercalls")
    }
    extern "C" fn attempt() -> ! {
        // SAFETY: has to fault in the hypercall page; if not, INT 0x80 tells so.
        unsafe {
            asm!("call {}", "int 0x80", in(reg) hv::hypercall_page(), in("rcx") 0x1_0008, in("rdx") 1, in("r8") 0,
                 options(noreturn))
        }
    }
    let fault = catch_user(attempt);
    check!(matches!(fault.vector, Fault::UD | Fault::GP), "a hypercall in user mode: {fault}");
    Ok(())
}
