//! Control registers: reading them, and the setting that hypervisor code runs with.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

use super::msr;

const CR0_MONITOR: u64 = 1 << 1;
const CR0_EMULATE_FPU: u64 = 1 << 2;
const CR0_TASK_SWITCHED: u64 = 1 << 3;
const CR0_NUMERIC_ERROR: u64 = 1 << 5;
const CR0_WRITE_PROTECT: u64 = 1 << 16;
const CR0_CACHE: u64 = 3 << 29;

const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const CR4_MACHINE_CHECK: u64 = 1 << 6;
const CR4_OS_FXSR: u64 = 1 << 9;
const CR4_OS_XMM_EXCEPTIONS: u64 = 1 << 10;
const CR4_UMIP: u64 = 1 << 11;
const CR4_OS_XSAVE: u64 = 1 << 18;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;

const EFER_SYSCALL: u64 = 1 << 0;
const EFER_NO_EXECUTE: u64 = 1 << 11;

/// CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = __cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// Whether page tables of the processor itself may have entries of 1 GiB (AMD APM 3, Fn8000_0001_EDX).
pub fn has_gigabyte_pages() -> bool {
    cpuid(0x8000_0001, 0)[3] >> 26 & 1 != 0
}

/// How many bits physical addresses have (AMD APM 3, Fn8000_0008_EAX).
pub fn physical_address_bits() -> u32 {
    cpuid(0x8000_0008, 0)[0] & 0xff
}

macro_rules! control_register {
    ($name:ident, $register:literal) => {
        #[doc = concat!("Reads ", $register, ".")]
        pub fn $name() -> u64 {
            let value;
            // SAFETY: reading a control register at privilege level 0 has no effect.
            unsafe {
                asm!(concat!("mov {}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags));
            }
            value
        }
    };
}

control_register!(cr0, "cr0");
control_register!(cr2, "cr2");
control_register!(cr3, "cr3");
control_register!(cr4, "cr4");

/// Sets CR0, CR4 and EFER to what hypervisor code runs with: write protection, no execution of data, and what the
/// processor has of SMEP, SMAP and UMIP; the FPU and XSAVE usable, for partitions' state is moved with them.
pub fn set_protection() {
    let features = if cpuid(0, 0)[0] >= 7 { cpuid(7, 0) } else { [0; 4] };
    let mut cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION | CR4_MACHINE_CHECK | CR4_OS_FXSR | CR4_OS_XMM_EXCEPTIONS;
    let optional = [
        (cpuid(1, 0)[2] >> 26 & 1, CR4_OS_XSAVE),
        (features[1] >> 7 & 1, CR4_SMEP),
        (features[1] >> 20 & 1, CR4_SMAP),
        (features[2] >> 2 & 1, CR4_UMIP),
    ];
    for (present, bit) in optional {
        cr4 |= if present != 0 { bit } else { 0 };
    }
    let off = CR0_EMULATE_FPU | CR0_TASK_SWITCHED | CR0_CACHE;
    let cr0 = cr0() & !off | CR0_MONITOR | CR0_NUMERIC_ERROR | CR0_WRITE_PROTECT;
    // SAFETY: paging stays on and its form stays the same (PAE, four levels); all bits set are there by CPUID. The page
    // tables have no user pages, so SMEP and SMAP deny nothing; what W^X denies is what they are for.
    unsafe {
        msr::write(msr::EFER, msr::read(msr::EFER) | EFER_NO_EXECUTE | EFER_SYSCALL);
        asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
        asm!("mov cr0, {}", in(reg) cr0, options(nostack, preserves_flags));
    }
}

/// Changes to other page tables.
///
/// # Safety
/// They map all code, stacks and data that hypervisor code uses, onto itself.
pub unsafe fn set_cr3(value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags)) }
}

/// Stops this processor for ever.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off nothing but an NMI ends the halt, and then it halts again.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
