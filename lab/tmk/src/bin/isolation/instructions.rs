//! Instructions that are not for guests.

use core::arch::asm;
use tmk::cpu::{self, cpuid, try_rdmsr, try_wrmsr};
use tmk::fault::catch_user;
use tmk::{Fault, TestResult, catch, check, hv, line, paging, skip};

const EFER: u32 = 0xC000_0080;
const VM_CR: u32 = 0xC001_0114;
const VM_HSAVE_PA: u32 = 0xC001_0117;
const FEATURE_CONTROL: u32 = 0x3A;

/// Checks that each instruction ends in #UD or #GP.
macro_rules! refused {
    ($($text:literal),* $(,)?) => { $(
        // SAFETY: the instruction has to fault; operands name a page set apart.
        let outcome = catch(|| unsafe {
            asm!(
                $text,
                inout("rax") hv::INPUT.address() => _, inout("rcx") 0u64 => _, inout("rdx") 0u64 => _,
                in("rdi") hv::INPUT.address(),
            )
        });
        match outcome {
            Err(Fault { vector: Fault::UD | Fault::GP, .. }) => {}
            Err(fault) => return tmk::harness::fail(format_args!("{}: {fault}", $text)),
            Ok(()) => return tmk::harness::fail(format_args!("{} was executed", $text)),
        }
    )* };
}

pub fn svm_instructions_fault() -> TestResult {
    refused!("vmrun rax", "vmload rax", "vmsave rax", "stgi", "clgi", "invlpga rax, ecx", "skinit eax");
    Ok(())
}

pub fn vmx_instructions_fault() -> TestResult {
    refused!(
        "vmxon [rdi]",
        "vmxoff",
        "vmclear [rdi]",
        "vmptrld [rdi]",
        "vmptrst [rdi]",
        "vmread rax, rcx",
        "vmwrite rax, rcx",
        "vmlaunch",
        "vmresume",
        "invept rax, [rdi]",
        "invvpid rax, [rdi]",
        "vmfunc",
    );
    Ok(())
}

/// EFER.SVME is a reserved bit for a guest whose CPUID has no SVM.
pub fn svm_cannot_be_enabled() -> TestResult {
    if cpuid(0x8000_0001, 0).ecx & 1 << 2 != 0 {
        skip!("the guest was given SVM")
    }
    let efer = cpu::rdmsr(EFER);
    if try_wrmsr(EFER, efer | 1 << 12).is_ok() {
        let now = cpu::rdmsr(EFER);
        cpu::wrmsr(EFER, efer);
        check!(now & 1 << 12 == 0, "EFER.SVME can be set");
    }
    for msr in [VM_CR, VM_HSAVE_PA] {
        let before = try_rdmsr(msr);
        let _ = try_wrmsr(msr, 0x1000);
        check!(try_rdmsr(msr).ok() == before.ok(), "MSR {msr:#x} can be changed");
    }
    Ok(())
}

/// What firmware says about VMX. (That CR4.VMXE is refused, see [`reserved_bits_of_cr4_fault`].)
pub fn vmx_cannot_be_enabled() -> TestResult {
    const ALLOWED: u64 = 1 << 2;
    if cpuid(1, 0).ecx & 1 << 5 != 0 {
        skip!("the guest was given VMX")
    }
    if let Ok(before) = try_rdmsr(FEATURE_CONTROL) {
        check!(before & ALLOWED == 0, "IA32_FEATURE_CONTROL allows VMX: {before:#x}");
        let _ = try_wrmsr(FEATURE_CONTROL, before | ALLOWED | 1);
        let now = try_rdmsr(FEATURE_CONTROL).unwrap_or(0);
        check!(now & ALLOWED == 0, "IA32_FEATURE_CONTROL can be made to allow VMX: {now:#x}");
    }
    Ok(())
}

/// Where CPUID tells of no performance monitoring, there is no counter to read.
pub fn performance_counters_fault() -> TestResult {
    if !hv::present() || cpuid(0, 0).eax >= 0xA && cpuid(0xA, 0).eax & 0xFF != 0 {
        skip!("the guest was given performance counters")
    }
    for counter in [0u32, 5, 1 << 30, u32::MAX] {
        // SAFETY: has to fault.
        let outcome = catch(|| unsafe { asm!("rdpmc", in("ecx") counter, out("eax") _, out("edx") _) });
        let refused = matches!(outcome, Err(Fault { vector: Fault::GP, .. }));
        check!(refused, "RDPMC of counter {counter:#x} does not end in #GP");
    }
    Ok(())
}

pub fn system_management_instructions_fault() -> TestResult {
    refused!("rsm", "getsec", "pconfig", "encls");
    Ok(())
}

/// MONITOR and MWAIT fault, or do nothing, but the processor goes on.
pub fn monitor_and_mwait_do_not_hang() -> TestResult {
    if cpuid(1, 0).ecx & 1 << 3 != 0 {
        skip!("the guest was given MONITOR")
    }
    // SAFETY: watches a page set apart; changes nothing.
    let monitor = catch(|| unsafe {
        asm!("monitor", "mwait", in("rax") hv::INPUT.address(), in("rcx") 0u64, in("rdx") 0u64);
    });
    if let Err(fault) = monitor {
        check!(fault.vector == Fault::UD || fault.vector == Fault::GP, "MONITOR: {fault}");
    }
    Ok(())
}

pub fn bad_xsetbv_faults() -> TestResult {
    if cpuid(1, 0).ecx & 1 << 26 == 0 {
        skip!("no XSAVE")
    }
    let cr4 = cpu::cr4();
    // SAFETY: the processor has XSAVE.
    unsafe { asm!("mov cr4, {}", in(reg) cr4 | 1 << 18) };
    for (register, value) in
        [(0u32, 0u64), (0, 0xFFFF_FFFF_FFFF_FFFF), (0, 1 << 63 | 3), (0, 4 | 1), (7, 3), (0xFFFF_FFFF, 3)]
    {
        // SAFETY: has to fault; no vector state is in use.
        let outcome = catch(|| unsafe {
            asm!("xsetbv", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32);
        });
        let refused = matches!(outcome, Err(Fault { vector: Fault::GP, .. }));
        check!(refused, "XSETBV of register {register:#x} with {value:#x} does not end in #GP");
    }
    Ok(())
}

/// VMXE, where there is no VMX, and reserved bits of CR4. (QEMU's TCG raises no exception for them by itself: it ends the
/// hypervisor's run of the guest, or without a hypervisor the machine.)
pub fn reserved_bits_of_cr4_fault() -> TestResult {
    if !hv::present() {
        skip!("an emulated processor may not survive it without a hypervisor")
    }
    let vmxe = if cpuid(1, 0).ecx & 1 << 5 == 0 { 13 } else { 15 };
    for bit in [vmxe, 15, 28, 31] {
        let value = cpu::cr4() | 1 << bit;
        // SAFETY: has to fault.
        let outcome = catch(|| unsafe { asm!("mov cr4, {}", in(reg) value) });
        let refused = matches!(outcome, Err(Fault { vector: Fault::GP, .. }));
        check!(refused, "setting bit {bit} of CR4 does not end in #GP");
    }
    Ok(())
}

/// An address in CR3 that is wider than the processor's.
pub fn reserved_bits_of_cr3_fault() -> TestResult {
    if !hv::present() {
        skip!("an emulated processor may not survive it without a hypervisor")
    }
    let bits = cpu::physical_address_bits();
    if bits > 51 {
        skip!("all 52 address bits are implemented")
    }
    let value = paging::cr3() | 1 << 51;
    // SAFETY: has to fault.
    let outcome = catch(|| unsafe { asm!("mov cr3, {}", in(reg) value) });
    paging::load();
    check!(
        matches!(outcome, Err(Fault { vector: Fault::GP, .. })),
        "bit 51 of CR3 can be set with {bits} address bits"
    );
    Ok(())
}

/// In user mode all of these end in #GP or #UD.
pub fn privileged_instructions_fault_in_user_mode() -> TestResult {
    macro_rules! user {
        ($($text:literal),* $(,)?) => { $({
            extern "C" fn attempt() -> ! {
                // SAFETY: has to fault; if not, INT 0x80 tells so.
                unsafe { asm!($text, "int 0x80", in("rax") 0, in("rcx") 0x1B, in("rdx") 0, options(noreturn)) }
            }
            let fault = catch_user(attempt);
            check!(matches!(fault.vector, Fault::GP | Fault::UD), "{} in user mode: {fault}", $text);
        })* };
    }
    user!(
        "hlt",
        "cli",
        "in al, dx",
        "out dx, al",
        "rdmsr",
        "wrmsr",
        "mov cr3, rax",
        "mov rax, cr0",
        "invlpg [rax]",
        "lgdt [rax]",
        "lidt [rax]",
        "ltr ax",
        "clts",
        "mov dr0, rax",
        "vmrun rax",
        "vmxoff",
        "xsetbv",
    );
    Ok(())
}

/// VMCALL and VMMCALL without the hypercall page, with any registers: an answer or #UD, but never a dead machine.
pub fn hypervisor_calls_by_instruction_are_harmless() -> TestResult {
    let mut answered = 0;
    for value in [0, 1, 0x46, 0x40, 0xFFFF, 0x8001, u64::MAX] {
        for rcx in [0, 0x46, 0x1_0040, u64::MAX] {
            // SAFETY: whatever it answers, it may not write memory for codes a guest is denied.
            let other = catch(|| unsafe {
                if cpu::is_amd() {
                    asm!("vmcall", inout("rax") value => _, in("rcx") rcx, in("rdx") 0u64, in("r8") 0u64);
                } else {
                    asm!("vmmcall", inout("rax") value => _, in("rcx") rcx, in("rdx") 0u64, in("r8") 0u64);
                }
            });
            let own = catch(|| hv::vmcall(value, rcx, 0, 0));
            answered += usize::from(other.is_ok()) + usize::from(own.is_ok());
        }
    }
    line!("{answered} of 56 calls by instruction were answered");
    check!(cpuid(0, 0).eax != 0, "CPUID does not answer any more");
    Ok(())
}
