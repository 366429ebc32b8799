//! CPUID: what the hypervisor says about itself, and that its answers fit together (TLFS "Feature and Interface Discovery").

#![no_std]
#![no_main]

use parterre_abi::cpuid::{self as leaf, Enlightenments, Features, PrivilegeMask};
use tmk::cpu::{self, cpuid};
use tmk::{TestResult, apic, check, fault, hv, line, skip, smp};

tmk::program!("cpuid":
    hypervisor_present, vendor_and_interface, version, privileges, features, enlightenments, limits, leaves_above_maximum,
    virtualization_hidden, apic_id, topology_of_all_processors, xsave_sizes, physical_address_width,
);

fn hypervisor_present() -> TestResult {
    check!(cpuid(1, 0).ecx & leaf::HYPERVISOR_PRESENT != 0, "CPUID.1:ECX[31] is 0");
    Ok(())
}

fn vendor_and_interface() -> TestResult {
    if !hv::present() {
        skip!("no Hv#1 interface")
    }
    let vendor = cpuid(leaf::VENDOR_AND_MAX_FUNCTION, 0);
    check!(
        vendor.eax >= leaf::IMPLEMENTATION_LIMITS,
        "the largest leaf {:#x} is below 0x40000005",
        vendor.eax
    );
    check!(vendor.eax <= leaf::LAST, "the largest leaf {:#x} is above 0x4000ffff", vendor.eax);
    check!([vendor.ebx, vendor.ecx, vendor.edx] == leaf::VENDOR, "the vendor is not \"Microsoft Hv\"");
    Ok(())
}

fn version() -> TestResult {
    if !hv::present() {
        skip!("no Hv#1 interface")
    }
    let version = cpuid(leaf::VERSION, 0);
    line!("version {}.{}.{}", version.ebx >> 16, version.ebx & 0xFFFF, version.eax);
    check!(version.eax != 0 && version.ebx != 0, "build or version is 0");
    Ok(())
}

fn privileges() -> TestResult {
    if !hv::present() {
        skip!("no Hv#1 interface")
    }
    let mask = hv::privileges();
    let basic = PrivilegeMask::ACCESS_HYPERCALL_REGS | PrivilegeMask::ACCESS_VP_INDEX;
    check!(mask.contains(basic), "hypercalls or the VP index are missing: {:#x}", mask.bits());
    for forbidden in
        [PrivilegeMask::CREATE_PARTITIONS, PrivilegeMask::CPU_MANAGEMENT, PrivilegeMask::ACCESS_MEMORY_POOL]
    {
        check!(!mask.contains(forbidden), "a guest has the privilege {:#x}", forbidden.bits());
    }
    Ok(())
}

fn features() -> TestResult {
    if !hv::present() {
        skip!("no Hv#1 interface")
    }
    let features = Features::from_bits_retain(cpuid(leaf::FEATURES, 0).edx);
    if features.contains(Features::DIRECT_SYNTHETIC_TIMERS) {
        check!(
            hv::privileges().contains(PrivilegeMask::ACCESS_SYNTHETIC_TIMER_REGS),
            "direct timers, but no timers"
        );
    }
    Ok(())
}

fn enlightenments() -> TestResult {
    if !hv::present() {
        skip!("no Hv#1 interface")
    }
    let hints = Enlightenments::from_bits_retain(cpuid(leaf::ENLIGHTENMENTS, 0).eax);
    if hints.contains(Enlightenments::USE_APIC_MSRS) {
        check!(
            hv::privileges().contains(PrivilegeMask::ACCESS_INTR_CTRL_REGS),
            "APIC MSRs recommended, not allowed"
        );
    }
    check!(
        !hints.contains(Enlightenments::NESTED),
        "a first-level guest is told that its hypervisor is nested"
    );
    Ok(())
}

fn limits() -> TestResult {
    if !hv::present() {
        skip!("no Hv#1 interface")
    }
    let limits = cpuid(leaf::IMPLEMENTATION_LIMITS, 0);
    check!(limits.eax as usize >= smp::count(), "at most {} VPs, but {} run", limits.eax, smp::count());
    Ok(())
}

fn leaves_above_maximum() -> TestResult {
    if !hv::present() {
        skip!("no Hv#1 interface")
    }
    let maximum = cpuid(leaf::VENDOR_AND_MAX_FUNCTION, 0).eax;
    for number in [maximum + 1, 0x4000_00FF] {
        if (leaf::VIRT_STACK_VENDOR..=leaf::VIRT_STACK_PROPERTIES).contains(&number) {
            continue;
        }
        let answer = cpuid(number, 0);
        let zero = answer.eax | answer.ebx | answer.ecx | answer.edx == 0;
        check!(zero, "leaf {number:#x} is above the maximum and answers {:#x}", answer.eax);
    }
    Ok(())
}

/// A guest that was not given nested virtualization must not see it.
fn virtualization_hidden() -> TestResult {
    check!(cpuid(1, 0).ecx & 1 << 5 == 0, "CPUID shows VMX");
    check!(cpuid(0x8000_0001, 0).ecx & 1 << 2 == 0, "CPUID shows SVM");
    Ok(())
}

fn apic_id() -> TestResult {
    let (initial, actual) = (cpuid(1, 0).ebx >> 24, apic::id());
    check!(initial == actual & 0xFF, "CPUID.1 says APIC id {initial}, the APIC says {actual}");
    if cpuid(0, 0).eax >= 0xB && cpuid(0xB, 0).ebx != 0 {
        check!(
            cpuid(0xB, 0).edx == actual,
            "leaf 0xB says x2APIC id {}, the APIC says {actual}",
            cpuid(0xB, 0).edx
        );
    }
    Ok(())
}

fn topology_of_all_processors() -> TestResult {
    use core::sync::atomic::{AtomicU32, Ordering};
    static WRONG: AtomicU32 = AtomicU32::new(0);
    if smp::count() < 2 {
        skip!("one processor only")
    }
    for index in 1..smp::count() {
        smp::give(index, || {
            if cpuid(1, 0).ebx >> 24 != smp::apic_id(fault::processor_index()) & 0xFF {
                WRONG.fetch_add(1, Ordering::SeqCst);
            }
        });
        check!(smp::finished(index), "processor {index} does not answer");
    }
    let wrong = WRONG.load(Ordering::SeqCst);
    check!(wrong == 0, "{wrong} processors see another's APIC id in CPUID.1");
    Ok(())
}

/// The size that leaf 0xD reports for the enabled state has to be that of the standard layout at least.
fn xsave_sizes() -> TestResult {
    if cpuid(1, 0).ecx & 1 << 26 == 0 {
        skip!("no XSAVE")
    }
    let sizes = cpuid(0xD, 0);
    check!(sizes.eax & 3 == 3, "x87 or SSE state is missing in XCR0's bits {:#x}", sizes.eax);
    check!(sizes.ebx >= 576 && sizes.ecx >= 576, "XSAVE areas of {} and {} bytes", sizes.ebx, sizes.ecx);
    Ok(())
}

fn physical_address_width() -> TestResult {
    let bits = cpu::physical_address_bits();
    check!((32..=52).contains(&bits), "physical addresses of {bits} bits");
    Ok(())
}
