//! MSRs with values that have to be refused.

use parterre_abi::msr;
use tmk::cpu::{self, try_rdmsr, try_wrmsr};
use tmk::{Fault, TestResult, check, hv, line, params, skip};

/// Values that the architecture refuses with #GP, of MSRs that a hypervisor has to look at. (Of those that it may leave
/// to the guest, such as LSTAR, the processor checks the values; emulated ones do not.)
pub fn bad_values_of_processor_msrs_fault() -> TestResult {
    let efer = cpu::rdmsr(0xC000_0080);
    let apic_base = cpu::rdmsr(0x1B);
    let cases = [
        ("EFER, reserved bit", 0xC000_0080, efer | 1 << 63),
        ("EFER, long mode off", 0xC000_0080, efer & !(1 << 8)),
        ("MTRR_DEF_TYPE, reserved type", 0x2FF, 0xC02),
        ("APIC_BASE, reserved bits", 0x1B, apic_base | 0xFF),
        ("APIC_BASE, address too wide", 0x1B, apic_base | 1 << 62),
    ];
    for (name, number, value) in cases {
        let Ok(before) = try_rdmsr(number) else { continue };
        match try_wrmsr(number, value) {
            Err(Fault { vector: Fault::GP, .. }) => {}
            Err(fault) => return tmk::harness::fail(format_args!("{name}: {fault}")),
            Ok(()) => {
                let _ = try_wrmsr(number, before);
                return tmk::harness::fail(format_args!("{name}: {value:#x} is accepted"));
            }
        }
    }
    Ok(())
}

/// MSRs that can only be read, and numbers at which there is none.
pub fn read_only_msrs_fault() -> TestResult {
    let mut numbers = arrayvec::ArrayVec::<u32, 16>::from_iter([0xFE, 0x0BAD_0BAD]);
    if hv::present() {
        let synthetic =
            [msr::VP_INDEX, msr::TIME_REF_COUNT, msr::TSC_FREQUENCY, msr::APIC_FREQUENCY, msr::SVERSION];
        numbers.extend(synthetic.into_iter().filter(|&number| try_rdmsr(number).is_ok()));
    }
    for number in numbers {
        let outcome = try_wrmsr(number, 0x1234);
        let refused = matches!(outcome, Err(Fault { vector: Fault::GP, .. }));
        check!(refused, "a write to the read-only MSR {number:#x} does not end in #GP");
    }
    let nowhere = matches!(try_rdmsr(0x0BAD_0BAD), Err(Fault { vector: Fault::GP, .. }));
    check!(nowhere, "MSR 0xbad0bad can be read");
    Ok(())
}

/// MSRs that do what a test cannot survive, by their very purpose.
fn is_left_out(number: u32) -> bool {
    const GS_BASE: u32 = 0xC000_0101;
    const X2APIC_COMMANDS: [u32; 3] = [0x830, 0x83F, 0x80B];
    const SYNTHETIC_COMMANDS: [u32; 6] =
        [msr::RESET, msr::EOI, msr::ICR, msr::GUEST_IDLE, msr::CRASH_CTL, msr::EOM];
    number == GS_BASE || X2APIC_COMMANDS.contains(&number) || SYNTHETIC_COMMANDS.contains(&number)
}

/// Numbers of all ranges in use: with `msr-step=N` on the command line every N-th only.
fn all_numbers() -> impl Iterator<Item = u32> {
    let step = params::number("msr-step").unwrap_or(1).max(1) as usize;
    let dense = (0x0..0x1000).chain(0xC000_0000..0xC000_0200).chain(0xC001_0000..0xC001_0200).step_by(step);
    let sparse =
        (0x1000..0x2000).chain(0xC000_0200..0xC000_2000).chain(0xC001_0200..0xC001_2000).step_by(step * 97);
    let synthetic = (0x4000_0000..0x4000_0120).chain(0x4000_1080..0x4000_10A0);
    dense.chain(sparse).chain(synthetic).filter(|&number| !is_left_out(number))
}

/// Every MSR: what can be written is put back. Nothing may stop the machine.
pub fn every_msr_survives_bad_values() -> TestResult {
    let (mut there, mut refused, mut accepted) = (0, 0, 0);
    for number in all_numbers() {
        let Ok(before) = try_rdmsr(number) else {
            // One that cannot be read may still not take just anything.
            if try_wrmsr(number, u64::MAX).is_ok() {
                accepted += 1;
            }
            continue;
        };
        there += 1;
        // Bit 1 would lock the hypercall page, bits of page numbers name pages far away.
        for value in [!2u64, 0xFFFF_FFFF_FFFF_F001, 1 << 63] {
            match try_wrmsr(number, value) {
                Err(_) => refused += 1,
                Ok(()) => {
                    accepted += 1;
                    let _ = try_wrmsr(number, before);
                }
            }
        }
    }
    line!("{there} MSRs can be read; of bad writes {refused} were refused and {accepted} accepted");
    if there == 0 {
        skip!("no MSR can be read")
    }
    let gs = cpu::rdmsr(0xC000_0101);
    check!(gs != 0, "the GS base is lost");
    Ok(())
}
