//! The processor that the program runs on: its CPUID and its registers.

use core::arch::x86_64::__cpuid_count;

use parterre_boot::requirements::{Leaf, Processor};
use parterre_hw::cpu::msr;

/// The processor that executes this.
pub struct ThisProcessor;

impl Processor for ThisProcessor {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Leaf {
        let result = __cpuid_count(leaf, subleaf);
        Leaf { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
    }

    fn msr(&self, index: u32) -> Option<u64> {
        // SAFETY: the judgement asks only for registers that CPUID says exist; the firmware runs its applications at
        // privilege level 0.
        Some(unsafe { msr::read(index) })
    }
}

/// Identifier of this processor's local APIC (AMD APM volume 3, CPUID leaves 0000_000B and 0000_0001).
pub fn apic_id() -> u32 {
    let processor = ThisProcessor;
    let max = processor.cpuid(0, 0).eax;
    // The leaf exists when its first level has a number of threads.
    if max >= 0xb && processor.cpuid(0xb, 0).ebx != 0 {
        processor.cpuid(0xb, 0).edx
    } else {
        processor.cpuid(1, 0).ebx >> 24
    }
}
