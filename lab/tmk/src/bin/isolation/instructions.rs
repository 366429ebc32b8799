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

/// What firmware says about VMX. (That CR4.VMXE is refused, see [`bits_of_cr4_that_cpuid_does_not_tell_of_fault`].)
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

/// The bits of CR4 from UMIP on that CPUID tells of; 57-bit addresses (12) cannot be switched on in 64-bit mode.
fn bits_of_cr4() -> u64 {
    let (basic, structured) = (cpuid(1, 0), cpuid(7, 0));
    let more = if structured.eax > 0 { cpuid(7, 1).eax } else { 0 };
    let places = [
        (11, structured.ecx, 2),
        (13, basic.ecx, 5),
        (14, basic.ecx, 6),
        (16, structured.ebx, 0),
        (17, basic.ecx, 17),
        (18, basic.ecx, 26),
        (19, structured.ecx, 23),
        (20, structured.ebx, 7),
        (21, structured.ebx, 20),
        (22, structured.ecx, 3),
        (23, structured.ecx, 7),
        (23, structured.edx, 20),
        (24, structured.ecx, 31),
        (25, structured.edx, 5),
        (27, more, 6),
        (28, more, 26),
        (32, more, 17),
    ];
    places
        .into_iter()
        .filter(|(_, word, bit)| word >> bit & 1 != 0)
        .fold(0, |bits, (bit, ..)| bits | 1 << bit)
}

fn set_cr4(value: u64) -> Result<(), Fault> {
    // SAFETY: callers set what changes nothing for this program, or has to fault.
    catch(|| unsafe { asm!("mov cr4, {}", in(reg) value) })
}

/// Bits of CR4 that CPUID does not tell of, VMXE among them, whether the processor has them or not. (QEMU's TCG raises no
/// exception for reserved bits by itself: it ends the hypervisor's run of the guest, or without a hypervisor the machine.)
pub fn bits_of_cr4_that_cpuid_does_not_tell_of_fault() -> TestResult {
    if !hv::present() {
        skip!("an emulated processor may not survive it without a hypervisor")
    }
    // QEMU's TCG takes PCIDE even where it has none.
    const PCIDE: u64 = 1 << 17;
    let (before, told) = (cpu::cr4(), bits_of_cr4() | PCIDE);
    for bit in (11..64).filter(|bit| (told | before) >> bit & 1 == 0) {
        let refused = matches!(set_cr4(before | 1 << bit), Err(Fault { vector: Fault::GP, .. }));
        check!(refused, "setting bit {bit} of CR4, which CPUID does not tell of, does not end in #GP");
        check!(cpu::cr4() == before, "CR4 is {:#x} after a refused write, and was {before:#x}", cpu::cr4());
    }
    Ok(())
}

/// What CPUID tells of can be set, is read back, and can be cleared: also TSD and PGE, which need no word of it.
pub fn bits_of_cr4_that_cpuid_tells_of_can_be_set() -> TestResult {
    const TSD: u64 = 1 << 2;
    const PGE: u64 = 1 << 7;
    // UMIP, FSGSBASE, OSXSAVE, PKE: they change nothing for this program.
    const HARMLESS: u64 = 1 << 11 | 1 << 16 | 1 << 18 | 1 << 22;
    let (before, told) = (cpu::cr4(), bits_of_cr4() & HARMLESS | TSD | PGE);
    for bit in (0..64).map(|bit| 1 << bit).filter(|bit| told & bit != 0) {
        for value in [before | bit, before & !bit, before] {
            check!(set_cr4(value).is_ok(), "CR4 cannot be made {value:#x}");
            check!(cpu::cr4() == value, "CR4 is {:#x}, and was made {value:#x}", cpu::cr4());
        }
    }
    // Out of another register than the first, and one with a prefix.
    // SAFETY: as before.
    let by_r12 = catch(|| unsafe { asm!("mov cr4, r12", in("r12") before | PGE) });
    check!(by_r12.is_ok() && cpu::cr4() == before | PGE, "MOV CR4, R12 makes it {:#x}", cpu::cr4());
    check!(set_cr4(before).is_ok(), "CR4 cannot be put back");
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
