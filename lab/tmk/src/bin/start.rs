//! Starting a processor by hypercall with a context of one's own (TLFS `HvCallStartVirtualProcessor`), and what is refused.
//! The last processor is used: the architecture's INIT makes it wait to be started again.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use parterre_abi::cpuid::PrivilegeMask;
use parterre_abi::hypercall::{HypercallCode, HypercallInput, InitialVpContext, StartVirtualProcessorInput};
use parterre_abi::registers::{SegmentRegister, TableRegister};
use parterre_abi::status::HvStatus;
use parterre_abi::types::{InputVtl, PartitionId, VpIndex};
use tmk::{TestResult, apic, check, cpu, hv, paging, skip, smp, time};
use zerocopy::IntoBytes;

tmk::program!("start":
    running_processors_are_not_started,
    wrong_input,
    impossible_contexts,
    begins_with_the_context,
    begins_once,
);

/// Edge-triggered INIT, asserted.
const INIT: u32 = 0xC500;
const EFER: u32 = 0xC000_0080;
const PAT: u32 = 0x277;
/// What a processor tells of itself: how often it began, and registers.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static SEEN: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];
static STACK: hv::Page = hv::Page::new();

/// Where the processor begins; it rests afterwards.
extern "C" fn begin() -> ! {
    let (stack, cr0, cr3, flags): (u64, u64, u64, u64);
    // SAFETY: reads registers, and flags through the stack that the context names.
    unsafe {
        asm!("mov {}, rsp", "mov {}, cr0", "mov {}, cr3", "pushfq", "pop {}",
            out(reg) stack, out(reg) cr0, out(reg) cr3, out(reg) flags);
    }
    let seen = [stack, cr0, cr3, flags, cpu::rdmsr(EFER), cpu::rdmsr(PAT)];
    SEEN.iter().zip(seen).for_each(|(place, value)| place.store(value, Ordering::SeqCst));
    BEGUN.fetch_add(1, Ordering::SeqCst);
    loop {
        // SAFETY: an INIT ends this.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

fn code(attributes: u16) -> SegmentRegister {
    SegmentRegister { base: 0, limit: u32::MAX, selector: 0x10, attributes: attributes.into() }
}

fn cr0() -> u64 {
    let value: u64;
    // SAFETY: reads only.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack)) };
    value
}

fn stack() -> u64 {
    STACK.address() + 4096 - 8
}

/// 64-bit code at [`begin`], with this processor's address space and no interrupts.
fn context() -> InitialVpContext {
    let data = SegmentRegister { selector: 0x18, ..code(0xC093) };
    InitialVpContext {
        rip: begin as *const () as u64,
        rsp: stack(),
        rflags: 2,
        cs: code(0xA09B),
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        tr: SegmentRegister { base: 0, limit: 0x67, selector: 0x40, attributes: 0x8B.into() },
        ldtr: SegmentRegister { attributes: 0x82.into(), ..Default::default() },
        idtr: TableRegister::default(),
        gdtr: TableRegister::default(),
        efer: cpu::rdmsr(EFER),
        cr0: cr0(),
        cr3: paging::cr3(),
        cr4: cpu::cr4(),
        msr_cr_pat: cpu::rdmsr(PAT),
    }
}

fn input(vp: u32, vp_context: InitialVpContext) -> StartVirtualProcessorInput {
    StartVirtualProcessorInput {
        partition_id: PartitionId::SELF,
        vp_index: VpIndex(vp),
        target_vtl: InputVtl::new(),
        reserved: [0; 3],
        vp_context,
    }
}

fn start(input: &StartVirtualProcessorInput) -> HvStatus {
    for (index, bytes) in input.as_bytes().chunks_exact(8).enumerate() {
        let word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        hv::INPUT.write(index, word);
    }
    hv::call(HypercallCode::START_VIRTUAL_PROCESSOR).status()
}

/// The APIC id of a processor that no test gives work to.
fn last_id() -> u32 {
    smp::apic_id(smp::count() - 1)
}

/// Its index.
fn last() -> u32 {
    hv::INPUT.write(0, PartitionId::SELF.0);
    hv::INPUT.write(1, 0);
    hv::INPUT.write(2, last_id().into());
    let code = HypercallCode::GET_VP_INDEX_FROM_APIC_ID.0;
    let output = hv::call_with(HypercallInput::new().with_call_code(code).with_rep_count(1));
    if output.status() == HvStatus::SUCCESS { hv::OUTPUT.read(0) as u32 } else { u32::MAX }
}

macro_rules! need {
    () => {
        if smp::count() < 2 {
            skip!("one processor only")
        }
        if !hv::enable_hypercalls() || !hv::privileges().contains(PrivilegeMask::START_VIRTUAL_PROCESSOR) {
            skip!("processors cannot be started by hypercall")
        }
    };
}

macro_rules! expect {
    ($input:expr, $status:ident, $what:expr) => {
        let status = start(&$input);
        check!(status == HvStatus::$status, "{}: {:?}", $what, status);
    };
}

fn running_processors_are_not_started() -> TestResult {
    need!();
    expect!(input(0, context()), INVALID_VP_STATE, "the caller itself");
    expect!(input(last(), context()), INVALID_VP_STATE, "a processor that runs");
    check!(BEGUN.load(Ordering::SeqCst) == 0, "it began nevertheless");
    Ok(())
}

/// Makes the processor wait to be started. When it has taken the INIT it does not tell.
fn wait_for_startup() {
    apic::send(INIT, last_id());
}

/// Starts it as soon as it waits.
fn start_when_waiting(input: &StartVirtualProcessorInput) -> HvStatus {
    let mut status = HvStatus::INVALID_VP_STATE;
    time::wait_until(time::LONG, || {
        status = start(input);
        status != HvStatus::INVALID_VP_STATE
    });
    status
}

fn wrong_input() -> TestResult {
    need!();
    wait_for_startup();
    let good = input(last(), context());
    let foreign = StartVirtualProcessorInput { partition_id: PartitionId(1), ..good };
    let status = start(&foreign);
    let refused = matches!(status, HvStatus::ACCESS_DENIED | HvStatus::INVALID_PARTITION_ID);
    check!(refused, "another partition's processor: {status:?}");
    expect!(input(0xFFFF, context()), INVALID_VP_INDEX, "a processor that is not there");
    let vtl = StartVirtualProcessorInput { target_vtl: 1.into(), ..good };
    check!(start(&vtl) != HvStatus::SUCCESS, "a trust level that is not there");
    let fast = hv::call_fast(HypercallCode::START_VIRTUAL_PROCESSOR, u64::MAX, 1).status();
    check!(fast != HvStatus::SUCCESS, "in registers");
    check!(BEGUN.load(Ordering::SeqCst) == 0, "it began nevertheless");
    Ok(())
}

fn impossible_contexts() -> TestResult {
    need!();
    type Change = (&'static str, fn(&mut InitialVpContext));
    let changes: [Change; 7] = [
        ("reserved bits of CR0", |c| c.cr0 |= 1 << 63),
        ("paging without protection", |c| c.cr0 &= !1),
        ("VMX enabled", |c| c.cr4 |= 1 << 13),
        ("long mode without PAE", |c| c.cr4 &= !(1 << 5)),
        ("reserved bits of EFER", |c| c.efer |= 1 << 63),
        ("a memory type that is not there", |c| c.msr_cr_pat = 2),
        ("code of 64 and 32 bits", |c| c.cs.attributes = 0xE09B.into()),
    ];
    wait_for_startup();
    for (what, change) in changes {
        let mut context = context();
        change(&mut context);
        expect!(input(last(), context), INVALID_REGISTER_VALUE, what);
    }
    time::spin(10_000_000);
    check!(BEGUN.load(Ordering::SeqCst) == 0, "it began nevertheless");
    Ok(())
}

fn begins(before: u64) -> bool {
    time::wait_until(time::LONG, || BEGUN.load(Ordering::SeqCst) == before + 1)
}

fn begins_with_the_context() -> TestResult {
    need!();
    let expected = context();
    for round in 0..3 {
        wait_for_startup();
        let status = start_when_waiting(&input(last(), context()));
        check!(status == HvStatus::SUCCESS, "round {round}: a processor that waits: {status:?}");
        check!(begins(round), "round {round}: the processor does not begin");
        let seen: [u64; 6] = core::array::from_fn(|index| SEEN[index].load(Ordering::SeqCst));
        let [rsp, cr0, cr3, flags, efer, pat] = seen;
        check!(rsp <= stack() && rsp > stack() - 2048, "RSP {rsp:#x}");
        check!(cr0 == expected.cr0 | 0x10 && cr3 == expected.cr3, "CR0 {cr0:#x}, CR3 {cr3:#x}");
        check!(flags & 0x200 == 0 && efer == expected.efer, "RFLAGS {flags:#x}, EFER {efer:#x}");
        check!(pat == expected.msr_cr_pat, "PAT {pat:#x}");
    }
    Ok(())
}

fn begins_once() -> TestResult {
    need!();
    wait_for_startup();
    let before = BEGUN.load(Ordering::SeqCst);
    let input = input(last(), context());
    let status = start_when_waiting(&input);
    check!(status == HvStatus::SUCCESS, "a processor that waits: {status:?}");
    for _ in 0..100 {
        expect!(input, INVALID_VP_STATE, "a second start");
    }
    check!(begins(before), "the processor does not begin");
    time::spin(10_000_000);
    check!(BEGUN.load(Ordering::SeqCst) == before + 1, "it began more than once");
    Ok(())
}
