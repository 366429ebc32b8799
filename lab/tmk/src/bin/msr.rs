//! Synthetic MSRs, and those of the processor that a guest sees through the hypervisor
//! (TLFS "Virtual Processors", "Virtual Interrupt Control").

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};
use parterre_abi::cpuid::{self as leaf, Features, PrivilegeMask};
use parterre_abi::msr::{self, GuestOsId, OverlayPageMsr, Sint};
use tmk::cpu::{self, cpuid, rdmsr, try_rdmsr, try_wrmsr, wrmsr};
use tmk::{Fault, TestResult, check, fault, hv, skip, smp, time};

tmk::program!("msr":
    guest_os_id_is_kept,
    vp_index_of_each_processor,
    vp_runtime_grows,
    frequencies,
    synic_version,
    sints_are_masked_at_reset,
    sints_keep_values,
    sints_refuse_low_vectors,
    scontrol_is_kept,
    message_page_is_an_overlay,
    event_flags_page_is_an_overlay,
    pages_are_of_each_processor,
    assist_page,
    crash_registers,
    msrs_without_privilege_fault,
    parents_msrs_fault,
    unknown_synthetic_msrs_fault,
    processor_msrs_are_kept,
    msrs_are_of_each_processor,
    mtrrs,
);

macro_rules! need {
    ($privilege:ident) => {
        if !hv::privileges().contains(PrivilegeMask::$privilege) {
            skip!("no privilege {}", stringify!($privilege))
        }
    };
}

fn guest_os_id_is_kept() -> TestResult {
    need!(ACCESS_HYPERCALL_REGS);
    let id = GuestOsId::new().with_open_source(true).with_os_type(0x0F).with_version(0x1234_5678);
    wrmsr(msr::GUEST_OS_ID, id.into_bits());
    let now = rdmsr(msr::GUEST_OS_ID);
    check!(now == id.into_bits(), "it was set to {:#x} and reads as {now:#x}", id.into_bits());
    Ok(())
}

fn vp_index_of_each_processor() -> TestResult {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    need!(ACCESS_VP_INDEX);
    SEEN.store(1 << (rdmsr(msr::VP_INDEX) & 63), Ordering::SeqCst);
    for index in 1..smp::count() {
        smp::give(index, || {
            SEEN.fetch_or(1 << (rdmsr(msr::VP_INDEX) & 63), Ordering::SeqCst);
        });
        check!(smp::finished(index), "processor {index} does not come back");
    }
    let different = SEEN.load(Ordering::SeqCst).count_ones() as usize;
    check!(different == smp::count().min(64), "{} processors have {different} VP indices", smp::count());
    Ok(())
}

fn vp_runtime_grows() -> TestResult {
    need!(ACCESS_VP_RUNTIME_REG);
    let before = rdmsr(msr::VP_RUNTIME);
    time::spin(50_000_000);
    let after = rdmsr(msr::VP_RUNTIME);
    check!(after > before, "it stays at {before}");
    Ok(())
}

fn frequencies() -> TestResult {
    need!(ACCESS_FREQUENCY_REGS);
    let (tsc, apic) = (rdmsr(msr::TSC_FREQUENCY), rdmsr(msr::APIC_FREQUENCY));
    tmk::line!("TSC {tsc} Hz, APIC timer {apic} Hz");
    // Emulated processors may be slow.
    check!((10_000_000..100_000_000_000).contains(&tsc), "a TSC of {tsc} Hz");
    check!((1_000_000..100_000_000_000).contains(&apic), "an APIC timer of {apic} Hz");
    Ok(())
}

fn synic_version() -> TestResult {
    need!(ACCESS_SYNIC_REGS);
    let version = rdmsr(msr::SVERSION);
    check!(version == msr::SYNIC_VERSION_1, "version {version}");
    Ok(())
}

fn sints() -> core::ops::RangeInclusive<u32> {
    msr::SINT0..=msr::SINT15
}

fn sints_are_masked_at_reset() -> TestResult {
    need!(ACCESS_SYNIC_REGS);
    for number in sints() {
        let value = rdmsr(number);
        check!(Sint::from_bits(value).masked(), "MSR {number:#x} is {value:#x}");
    }
    Ok(())
}

fn sints_keep_values() -> TestResult {
    need!(ACCESS_SYNIC_REGS);
    for number in sints() {
        let value =
            Sint::RESET.with_vector(0x50 + (number & 15) as u8).with_auto_eoi(number & 1 != 0).into_bits();
        wrmsr(number, value);
        let now = rdmsr(number);
        check!(now == value, "MSR {number:#x} was set to {value:#x} and reads as {now:#x}");
        wrmsr(number, Sint::RESET.into_bits());
    }
    Ok(())
}

fn sints_refuse_low_vectors() -> TestResult {
    need!(ACCESS_SYNIC_REGS);
    for vector in [0, 2, 15] {
        let outcome = try_wrmsr(msr::SINT0 + 3, vector);
        wrmsr(msr::SINT0 + 3, Sint::RESET.into_bits());
        let refused = matches!(outcome, Err(Fault { vector: Fault::GP, .. }));
        check!(refused, "an open SINT with vector {vector} does not end in #GP");
    }
    Ok(())
}

fn scontrol_is_kept() -> TestResult {
    need!(ACCESS_SYNIC_REGS);
    for value in [1, 0] {
        wrmsr(msr::SCONTROL, value);
        check!(rdmsr(msr::SCONTROL) & 1 == value, "SCONTROL does not keep {value}");
    }
    Ok(())
}

/// A page that is enabled hides memory; disabled, memory is as it was.
fn overlay(number: u32, name: &str) -> TestResult {
    static PAGE: hv::Page = hv::Page::new();
    const BELOW: u64 = 0x0BE1_0BE1_0BE1_0BE1;
    let before = rdmsr(number);
    PAGE.fill(BELOW);
    wrmsr(number, OverlayPageMsr::from_bits(PAGE.address()).with_enabled(true).into_bits());
    let (now, shown) = (rdmsr(number), PAGE.read(5));
    PAGE.write(6, 0x77);
    wrmsr(number, PAGE.address());
    let (below, written) = (PAGE.read(5), PAGE.read(6));
    wrmsr(number, before);
    check!(now == PAGE.address() | 1, "{name} reads as {now:#x}");
    check!(shown == 0, "{name}: the page is not new, but holds {shown:#x}");
    check!(
        below == BELOW && written == BELOW,
        "{name}: memory below the page has changed to {below:#x}, {written:#x}"
    );
    Ok(())
}

fn message_page_is_an_overlay() -> TestResult {
    need!(ACCESS_SYNIC_REGS);
    overlay(msr::SIMP, "SIMP")
}

fn event_flags_page_is_an_overlay() -> TestResult {
    need!(ACCESS_SYNIC_REGS);
    overlay(msr::SIEFP, "SIEFP")
}

fn pages_are_of_each_processor() -> TestResult {
    static OTHER: AtomicU64 = AtomicU64::new(0);
    static PAGE: hv::Page = hv::Page::new();
    need!(ACCESS_SYNIC_REGS);
    if smp::count() < 2 {
        skip!("one processor only")
    }
    wrmsr(msr::SIMP, PAGE.address());
    smp::give(1, || OTHER.store(rdmsr(msr::SIMP), Ordering::SeqCst));
    check!(smp::finished(1), "processor 1 does not come back");
    wrmsr(msr::SIMP, 0);
    let other = OTHER.load(Ordering::SeqCst);
    check!(other != PAGE.address(), "processor 1 sees the SIMP of processor 0");
    Ok(())
}

fn assist_page() -> TestResult {
    static PAGE: hv::Page = hv::Page::new();
    need!(ACCESS_INTR_CTRL_REGS);
    let enabled = try_wrmsr(msr::VP_ASSIST_PAGE, PAGE.address() | 1);
    let now = try_rdmsr(msr::VP_ASSIST_PAGE);
    let disabled = try_wrmsr(msr::VP_ASSIST_PAGE, 0);
    check!(
        enabled.is_ok() && disabled.is_ok(),
        "it cannot be enabled ({enabled:?}) and disabled ({disabled:?})"
    );
    check!(now == Ok(PAGE.address() | 1), "it reads as {now:x?}");
    let outcome = try_wrmsr(msr::VP_ASSIST_PAGE, 0x000F_FFFF_FFFF_F001);
    let _ = try_wrmsr(msr::VP_ASSIST_PAGE, 0);
    check!(outcome.is_err(), "a page beyond the address space is accepted");
    Ok(())
}

/// An MSR for which the privilege is missing is not there (TLFS `HV_PARTITION_PRIVILEGE_MASK`).
/// Parameters are kept, and a guest that tells of a crash goes on, whatever it tells.
fn crash_registers() -> TestResult {
    const NOTIFY: u64 = 1 << 63;
    const MESSAGE: u64 = 1 << 62;
    let parameters = msr::CRASH_P0..=msr::CRASH_P4;
    if !Features::from_bits_retain(cpuid(leaf::FEATURES, 0).edx).contains(Features::GUEST_CRASH_REGS) {
        for number in parameters.chain([msr::CRASH_CTL]) {
            check!(try_rdmsr(number).is_err(), "MSR {number:#x} can be read, and no feature tells of it");
        }
        return Ok(());
    }
    let abilities = rdmsr(msr::CRASH_CTL);
    check!(abilities & NOTIFY != 0, "the control register reads {abilities:#x}: no crash can be told");
    for (number, control) in
        parameters.clone().map(u64::from).zip([0, NOTIFY, NOTIFY | MESSAGE, MESSAGE, u64::MAX])
    {
        // The last two are address and length of a message, here of one that is nowhere.
        parameters.clone().for_each(|register| wrmsr(register, u64::MAX - number - u64::from(register)));
        // Some hypervisors refuse bits that mean nothing.
        let _ = try_wrmsr(msr::CRASH_CTL, control);
        for register in parameters.clone() {
            let (value, expected) = (rdmsr(register), u64::MAX - number - u64::from(register));
            check!(value == expected, "MSR {register:#x} is {value:#x} and was set to {expected:#x}");
        }
    }
    let after = rdmsr(msr::CRASH_CTL);
    check!(after == abilities, "the control register read {abilities:#x} and reads {after:#x}");
    Ok(())
}

fn msrs_without_privilege_fault() -> TestResult {
    if !hv::present() {
        skip!("no Hv#1 interface")
    }
    let cases = [
        (PrivilegeMask::ACCESS_VP_RUNTIME_REG, msr::VP_RUNTIME),
        (PrivilegeMask::ACCESS_PARTITION_REFERENCE_COUNTER, msr::TIME_REF_COUNT),
        (PrivilegeMask::ACCESS_SYNIC_REGS, msr::SCONTROL),
        (PrivilegeMask::ACCESS_SYNIC_REGS, msr::SINT15),
        (PrivilegeMask::ACCESS_PARTITION_REFERENCE_TSC, msr::REFERENCE_TSC),
        (PrivilegeMask::ACCESS_GUEST_IDLE_REG, msr::GUEST_IDLE),
        (PrivilegeMask::ACCESS_FREQUENCY_REGS, msr::TSC_FREQUENCY),
        (PrivilegeMask::ACCESS_REENLIGHTENMENT_CONTROLS, msr::REENLIGHTENMENT_CONTROL),
    ];
    for (privilege, number) in
        cases.into_iter().filter(|(privilege, _)| !hv::privileges().contains(*privilege))
    {
        let fails = matches!(try_rdmsr(number), Err(Fault { vector: Fault::GP, .. }));
        check!(fails, "MSR {number:#x} can be read without the privilege {:#x}", privilege.bits());
    }
    Ok(())
}

/// What only the root partition has.
fn parents_msrs_fault() -> TestResult {
    if !hv::present() {
        skip!("no Hv#1 interface")
    }
    let fails = matches!(try_wrmsr(msr::SIRBP, 1), Err(Fault { vector: Fault::GP, .. }));
    check!(fails, "SIRBP can be written");
    Ok(())
}

fn unknown_synthetic_msrs_fault() -> TestResult {
    if !hv::present() {
        skip!("no Hv#1 interface")
    }
    for number in [0x4000_0004, 0x4000_00A0, 0x4000_0FFF, 0x4000_FFFF] {
        let fails = matches!(try_rdmsr(number), Err(Fault { vector: Fault::GP, .. }));
        check!(fails, "MSR {number:#x} can be read");
    }
    Ok(())
}

/// The guest's own: written values come back.
fn processor_msrs_are_kept() -> TestResult {
    let cases = [
        ("STAR", 0xC000_0081, 0x0023_0010_0000_0000),
        ("LSTAR", 0xC000_0082, 0xFFFF_8000_0012_3456),
        ("CSTAR", 0xC000_0083, 0x0000_7FFF_FFFF_F000),
        ("SFMASK", 0xC000_0084, 0x4_7700),
        ("FS_BASE", 0xC000_0100, 0x1234_5678),
        ("KERNEL_GS_BASE", 0xC000_0102, 0xFFFF_8880_0000_1000),
        ("SYSENTER_CS", 0x174, 0x10),
        ("SYSENTER_ESP", 0x175, 0x1234_5000),
        ("SYSENTER_EIP", 0x176, 0x1234_6000),
        ("PAT", 0x277, 0x0007_0106_0007_0406),
    ];
    for (name, number, value) in cases {
        let before = rdmsr(number);
        wrmsr(number, value);
        let now = rdmsr(number);
        wrmsr(number, before);
        check!(now == value, "{name} was set to {value:#x} and reads as {now:#x}");
    }
    Ok(())
}

fn msrs_are_of_each_processor() -> TestResult {
    static WRONG: AtomicU64 = AtomicU64::new(0);
    const LSTAR: u32 = 0xC000_0082;
    if smp::count() < 2 {
        skip!("one processor only")
    }
    WRONG.store(0, Ordering::SeqCst);
    fn keep_own() {
        let own = 0x1000 * (fault::processor_index() as u64 + 1);
        for _ in 0..200 {
            wrmsr(LSTAR, own);
            core::hint::spin_loop();
            if rdmsr(LSTAR) != own {
                WRONG.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
    for index in 1..smp::count() {
        smp::give(index, keep_own);
    }
    keep_own();
    for index in 1..smp::count() {
        check!(smp::finished(index), "processor {index} does not come back");
    }
    let wrong = WRONG.load(Ordering::SeqCst);
    check!(wrong == 0, "LSTAR held another processor's value {wrong} times");
    Ok(())
}

fn mtrrs() -> TestResult {
    if cpu::cpuid(1, 0).edx & 1 << 12 == 0 {
        skip!("no MTRRs")
    }
    let capabilities = rdmsr(0xFE);
    check!(capabilities & 0xFF <= 32, "{} variable ranges", capabilities & 0xFF);
    let default = rdmsr(0x2FF);
    check!(matches!(default & 0xFF, 0 | 1 | 4 | 5 | 6), "the default memory type is {}", default & 0xFF);
    for index in 0..(capabilities & 0xFF) as u32 {
        check!(try_rdmsr(0x200 + 2 * index).is_ok(), "the base of range {index} cannot be read");
        check!(try_rdmsr(0x201 + 2 * index).is_ok(), "the mask of range {index} cannot be read");
    }
    Ok(())
}
