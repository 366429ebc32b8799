//! Hypercalls whose parameters are in XMM registers (TLFS "XMM Fast Hypercall Input", "XMM Fast Hypercall Output").

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use parterre_abi::cpuid::{self as leaf, Features, PrivilegeMask};
use parterre_abi::hypercall::{FlushFlags, HypercallCode, HypercallInput, HypercallOutput};
use parterre_abi::msr;
use parterre_abi::status::HvStatus;
use parterre_abi::types::PartitionId;
use tmk::cpu::{self, cpuid};
use tmk::fault::{self, Fault};
use tmk::{TestResult, apic, catch, check, hv, paging, params, skip, smp, time};

tmk::program!("xmm":
    flush_space,
    flush_list,
    flush_with_sparse_set,
    interrupt_with_sparse_set,
    interrupt_to_the_other,
    wrong_forms,
    registers_stay,
    index_of_apic_id,
    output_needs_to_be_told,
);

const PRESENT_WRITABLE: u64 = 3;
const SLOT: usize = 9;
const VECTOR: u8 = 0x61;
const ALL: u64 = FlushFlags::ALL_PROCESSORS.bits() | FlushFlags::ALL_VIRTUAL_ADDRESS_SPACES.bits();
const SPACES: u64 = FlushFlags::ALL_VIRTUAL_ADDRESS_SPACES.bits();
/// What registers hold that no parameter is in.
const FILL: u64 = 0x5E5E_0000_0000_0000;

/// RDX, R8, XMM0 to XMM5.
type Block = [u64; 14];

fn features() -> Features {
    Features::from_bits_retain(cpuid(leaf::FEATURES, 0).edx)
}

macro_rules! need {
    () => {
        if !hv::enable_hypercalls() || !features().contains(Features::XMM_HYPERCALL_INPUT) {
            skip!("no input in XMM registers here")
        }
        enable_sse();
    };
}

/// Sets CR4.OSFXSR, without which XMM registers cannot be used.
fn enable_sse() {
    // SAFETY: the program itself uses no such registers; CR0 has neither EM nor TS set.
    unsafe { asm!("mov cr4, {}", in(reg) cpu::cr4() | 3 << 9, options(nostack)) };
}

/// Words of input, and other things behind them.
fn block(words: &[u64]) -> Block {
    core::array::from_fn(|index| words.get(index).copied().unwrap_or(FILL | index as u64))
}

/// Makes a call with all registers; they are in `words` afterwards.
fn raw(control: HypercallInput, words: &mut Block) -> HypercallOutput {
    let result: u64;
    // SAFETY: calls the hypercall page, which changes no registers but those named; XMM registers are nobody's here, and are
    // loaded from `words` and stored there.
    unsafe {
        asm!(
            "movups xmm0, [r12 + 16]", "movups xmm1, [r12 + 32]", "movups xmm2, [r12 + 48]",
            "movups xmm3, [r12 + 64]", "movups xmm4, [r12 + 80]", "movups xmm5, [r12 + 96]",
            "mov rdx, [r12]", "mov r8, [r12 + 8]",
            "call r13",
            "mov [r12], rdx", "mov [r12 + 8], r8",
            "movups [r12 + 16], xmm0", "movups [r12 + 32], xmm1", "movups [r12 + 48], xmm2",
            "movups [r12 + 64], xmm3", "movups [r12 + 80], xmm4", "movups [r12 + 96], xmm5",
            in("r12") words.as_mut_ptr(), in("r13") hv::hypercall_page(),
            inlateout("rcx") control.into_bits() => _, lateout("rax") result,
            out("rdx") _, out("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    HypercallOutput::from_bits(result)
}

fn control(code: HypercallCode, header: u16, reps: u16) -> HypercallInput {
    let control = HypercallInput::new().with_call_code(code.0).with_fast(true);
    control.with_variable_header_size(header).with_rep_count(reps)
}

fn call(code: HypercallCode, header: u16, reps: u16, words: &[u64]) -> HypercallOutput {
    raw(control(code, header, reps), &mut block(words))
}

/// The own translation of a page changes, and a flush makes the new one seen.
fn shows_the_new_mapping(flush: impl Fn(u64) -> HypercallOutput) -> TestResult {
    let pages = [params::spare_ram().start, params::spare_ram().start + 4096];
    for (page, value) in pages.into_iter().zip([111u64, 222]) {
        let address = paging::show(SLOT, page, PRESENT_WRITABLE) as *mut u64;
        // SAFETY: the slot shows a page of spare RAM.
        unsafe { core::ptr::write_volatile(address, value) };
    }
    let address = paging::show(SLOT, pages[0], PRESENT_WRITABLE) as *const u64;
    // SAFETY: as above.
    let before = unsafe { core::ptr::read_volatile(address) };
    paging::change_without_flush(SLOT, pages[1], PRESENT_WRITABLE);
    let output = flush(address as u64 & !0xFFF);
    // SAFETY: as above.
    let after = unsafe { core::ptr::read_volatile(address) };
    check!(output.status() == HvStatus::SUCCESS, "the flush: {:?}", output.status());
    check!((before, after) == (111, 222), "read {before}, and after the flush {after}");
    Ok(())
}

fn flush_space() -> TestResult {
    need!();
    shows_the_new_mapping(|_| call(HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE, 0, 0, &[0, SPACES, 1]))?;
    shows_the_new_mapping(|_| call(HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE, 0, 0, &[0, ALL, 0]))
}

fn flush_list() -> TestResult {
    need!();
    let code = HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST;
    shows_the_new_mapping(|address| call(code, 0, 1, &[0, SPACES, 1, address]))?;
    // As many as there is room for, the one that counts at the end.
    shows_the_new_mapping(|address| {
        let mut words = [address + 4096; 14];
        (words[0], words[1], words[2], words[13]) = (0, SPACES, 1, address);
        let output = raw(control(code, 0, 11), &mut words);
        if output.reps_completed() == 11 { output } else { HypercallOutput::from_bits(1) }
    })
}

fn flush_with_sparse_set() -> TestResult {
    need!();
    let space = HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE_EX;
    shows_the_new_mapping(|_| call(space, 1, 0, &[0, SPACES, 0, 1, 1]))?;
    shows_the_new_mapping(|_| call(space, 0, 0, &[0, SPACES, 1, 0]))?;
    let list = HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST_EX;
    shows_the_new_mapping(|address| call(list, 2, 1, &[0, SPACES, 0, 0b11, 1, 0, address]))
}

static RECEIVED: AtomicU32 = AtomicU32::new(0);

fn receive() {
    RECEIVED.fetch_add(1, Ordering::SeqCst);
    apic::eoi();
}

fn arrives(count: u32) -> bool {
    time::wait_until(time::LONG, || {
        cpu::take_interrupts();
        RECEIVED.load(Ordering::SeqCst) == count
    })
}

fn interrupt_with_sparse_set() -> TestResult {
    need!();
    fault::set_handler(VECTOR, Some(receive));
    RECEIVED.store(0, Ordering::SeqCst);
    let code = HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX;
    // Banks of processors that are not there, as many as there is room for.
    let mut words = [0; 14];
    (words[0], words[2], words[3], words[13]) = (VECTOR.into(), 0x7FF, 1, u64::MAX);
    let status = raw(control(code, 11, 0), &mut words).status();
    check!(status == HvStatus::SUCCESS, "an interrupt to itself: {status:?}");
    check!(arrives(1), "{} interrupts have arrived", RECEIVED.load(Ordering::SeqCst));
    Ok(())
}

fn interrupt_to_the_other() -> TestResult {
    need!();
    if smp::count() < 2 {
        skip!("one processor only")
    }
    fault::set_handler(VECTOR, Some(receive));
    RECEIVED.store(0, Ordering::SeqCst);
    smp::give(1, || {
        arrives(1);
    });
    let words = [u64::from(VECTOR), 0, 1, 1 << smp::apic_id(1)];
    let status = call(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX, 1, 0, &words).status();
    check!(status == HvStatus::SUCCESS, "an interrupt to the other processor: {status:?}");
    check!(smp::finished(1) && RECEIVED.load(Ordering::SeqCst) == 1, "it does not arrive");
    Ok(())
}

fn wrong_forms() -> TestResult {
    need!();
    use HypercallCode as C;
    let forms: [(C, u16, u16, &[u64]); 7] = [
        (C::FLUSH_VIRTUAL_ADDRESS_LIST, 0, 12, &[0, SPACES, 1]),
        (C::FLUSH_VIRTUAL_ADDRESS_LIST, 0, 0xFFF, &[0, SPACES, 1]),
        (C::FLUSH_VIRTUAL_ADDRESS_SPACE, 0, 1, &[0, SPACES, 1]),
        (C::FLUSH_VIRTUAL_ADDRESS_SPACE, 0, 0, &[0, 1 << 40, 1]),
        (C::FLUSH_VIRTUAL_ADDRESS_SPACE_EX, 11, 0, &[0, SPACES, 0, 0x7FF]),
        (C::SEND_SYNTHETIC_CLUSTER_IPI_EX, 12, 0, &[VECTOR as u64, 0, 0xFFF]),
        (C::SEND_SYNTHETIC_CLUSTER_IPI_EX, 1, 0, &[3, 0, 1, 1]),
    ];
    for (number, (code, header, reps, words)) in forms.into_iter().enumerate() {
        let status = call(code, header, reps, words).status();
        check!(status != HvStatus::SUCCESS, "form {number} of {code:?} is taken");
    }
    Ok(())
}

fn registers_stay() -> TestResult {
    need!();
    let mut words = block(&[0, SPACES, 0, 1, 1]);
    let before = words;
    let status = raw(control(HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE_EX, 1, 0), &mut words).status();
    check!(status == HvStatus::SUCCESS, "the flush: {status:?}");
    for (index, (word, before)) in words.into_iter().zip(before).enumerate() {
        check!(word == before, "word {index} was {before:#x} and is {word:#x}");
    }
    Ok(())
}

fn index_of_apic_id() -> TestResult {
    need!();
    if !features().contains(Features::XMM_HYPERCALL_OUTPUT) {
        skip!("no output in XMM registers here")
    }
    let own = u64::from(apic::id());
    // Three ids: the input ends in the middle of XMM0's successor, so the answer begins in XMM1's.
    let mut words = block(&[PartitionId::SELF.0, 0, own | own << 32, own]);
    let before = words;
    let output = raw(control(HypercallCode::GET_VP_INDEX_FROM_APIC_ID, 0, 3), &mut words);
    check!(output.status() == HvStatus::SUCCESS, "the own APIC id: {:?}", output.status());
    check!(output.reps_completed() == 3, "{} of 3 are answered", output.reps_completed());
    let index = u64::from(cpu::rdmsr(msr::VP_INDEX) as u32);
    check!(words[..4] == before[..4], "the input has changed");
    check!(words[4] == index | index << 32, "the first two are {:#x}, not {index}", words[4]);
    check!(u64::from(words[5] as u32) == index, "the third is {:#x}, not {index}", words[5]);
    words = block(&[PartitionId::SELF.0, 0, 0xFFFF_FF00]);
    let status = raw(control(HypercallCode::GET_VP_INDEX_FROM_APIC_ID, 0, 1), &mut words).status();
    check!(status != HvStatus::SUCCESS, "an APIC id that is not there is found");
    Ok(())
}

/// Without the feature the form is an undefined instruction; the privilege and the feature come together.
fn output_needs_to_be_told() -> TestResult {
    need!();
    let told = features().contains(Features::XMM_HYPERCALL_OUTPUT);
    let may = hv::privileges().contains(PrivilegeMask::FAST_HYPERCALL_OUTPUT);
    check!(told == may, "feature {told}, privilege {may}");
    if told {
        skip!("there is output in XMM registers")
    }
    let mut words = block(&[PartitionId::SELF.0, 0, u64::from(apic::id())]);
    match catch(|| raw(control(HypercallCode::GET_VP_INDEX_FROM_APIC_ID, 0, 1), &mut words)) {
        Err(fault) => check!(fault.vector == Fault::UD, "vector {} instead of #UD", fault.vector),
        Ok(output) => check!(output.status() != HvStatus::SUCCESS, "the call is answered"),
    }
    Ok(())
}
