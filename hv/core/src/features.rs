//! The processor features that the interface has names for, and where CPUID tells them.
//!
//! The table serves both directions: what the machine has (partition properties 0x6000A and 0x6000B of the parent) and what
//! the parent takes away from a child when it creates it.

use crate::machine::Machine;
use parterre_abi::processor_features::{ProcessorFeatures0 as F0, ProcessorFeatures1 as F1};

/// A CPUID register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax = 0,
    Ebx = 1,
    Ecx = 2,
    Edx = 3,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// Where CPUID tells a feature: leaf (subleaf 0), register, bit.
type Place = (u32, Register, u32);

const BANK0: [(F0, Place); 46] = [
    (F0::SSE3, (1, Ecx, 0)),
    (F0::LAHF_SAHF, (0x8000_0001, Ecx, 0)),
    (F0::SSSE3, (1, Ecx, 9)),
    (F0::SSE4_1, (1, Ecx, 19)),
    (F0::SSE4_2, (1, Ecx, 20)),
    (F0::SSE4A, (0x8000_0001, Ecx, 6)),
    (F0::XOP, (0x8000_0001, Ecx, 11)),
    (F0::POP_CNT, (1, Ecx, 23)),
    (F0::CMPXCHG16B, (1, Ecx, 13)),
    (F0::ALTMOVCR8, (0x8000_0001, Ecx, 4)),
    (F0::LZCNT, (0x8000_0001, Ecx, 5)),
    (F0::MIS_ALIGN_SSE, (0x8000_0001, Ecx, 7)),
    (F0::MMX_EXT, (0x8000_0001, Edx, 22)),
    (F0::AMD3DNOW, (0x8000_0001, Edx, 31)),
    (F0::EXTENDED_AMD3DNOW, (0x8000_0001, Edx, 30)),
    (F0::PAGE_1GB, (0x8000_0001, Edx, 26)),
    (F0::AES, (1, Ecx, 25)),
    (F0::PCLMULQDQ, (1, Ecx, 1)),
    (F0::PCID, (1, Ecx, 17)),
    (F0::FMA4, (0x8000_0001, Ecx, 16)),
    (F0::F16C, (1, Ecx, 29)),
    (F0::RD_RAND, (1, Ecx, 30)),
    (F0::RD_WR_FS_GS, (7, Ebx, 0)),
    (F0::SMEP, (7, Ebx, 7)),
    (F0::ENHANCED_FAST_STRING, (7, Ebx, 9)),
    (F0::BMI1, (7, Ebx, 3)),
    (F0::BMI2, (7, Ebx, 8)),
    (F0::MOVBE, (1, Ecx, 22)),
    (F0::DEP_X87_FPU_SAVE, (7, Ebx, 13)),
    (F0::RD_SEED, (7, Ebx, 18)),
    (F0::ADX, (7, Ebx, 19)),
    (F0::INTEL_PREFETCH, (0x8000_0001, Ecx, 8)),
    (F0::SMAP, (7, Ebx, 20)),
    (F0::HLE, (7, Ebx, 4)),
    (F0::RTM, (7, Ebx, 11)),
    (F0::RDTSCP, (0x8000_0001, Edx, 27)),
    (F0::CLFLUSHOPT, (7, Ebx, 23)),
    (F0::CLWB, (7, Ebx, 24)),
    (F0::SHA, (7, Ebx, 29)),
    (F0::INVPCID, (7, Ebx, 10)),
    (F0::IBRS, (0x8000_0008, Ebx, 14)),
    (F0::STIBP, (0x8000_0008, Ebx, 15)),
    (F0::IBPB, (0x8000_0008, Ebx, 12)),
    (F0::FAST_SHORT_REP_MOV, (7, Edx, 4)),
    (F0::RD_PID, (7, Ecx, 22)),
    (F0::UMIP, (7, Ecx, 2)),
];

const BANK1: [(F1, Place); 6] = [
    (F1::TSC_INVARIANT, (0x8000_0007, Edx, 8)),
    (F1::CL_ZERO, (0x8000_0008, Ebx, 0)),
    (F1::MOVDIRI, (7, Ecx, 27)),
    (F1::MOVDIR64B, (7, Ecx, 28)),
    (F1::SERIALIZE, (7, Edx, 14)),
    (F1::TSC_DEADLINE_TMR, (1, Ecx, 24)),
];

/// The features that this machine has and children can use, bank 0 and 1.
pub(crate) fn of_machine<M: Machine>(machine: &M) -> (F0, F1) {
    let has = |(leaf, register, bit): Place| {
        // The TSC-deadline timer of children is the hypervisor's own.
        (leaf, register, bit) == (1, Ecx, 24) || machine.cpuid(leaf, 0)[register as usize] & 1 << bit != 0
    };
    let bank0 = BANK0.iter().filter(|(_, place)| has(*place)).map(|(feature, _)| *feature).collect();
    let bank1 = BANK1.iter().filter(|(_, place)| has(*place)).map(|(feature, _)| *feature).collect();
    (bank0, bank1)
}

/// Takes `disabled` features out of the answer to CPUID `leaf`, subleaf 0.
#[inline(always)]
pub(crate) fn take_away(leaf: u32, answer: &mut [u32; 4], disabled: (F0, F1)) {
    // Most leaves tell none.
    if matches!(leaf, 1 | 7 | 0x8000_0001..=0x8000_0008) {
        take_away_from(leaf, answer, disabled);
    }
}

#[inline(never)]
fn take_away_from(leaf: u32, answer: &mut [u32; 4], disabled: (F0, F1)) {
    let bank0 = BANK0.iter().filter(|(feature, _)| disabled.0.contains(*feature)).map(|(_, place)| *place);
    let bank1 = BANK1.iter().filter(|(feature, _)| disabled.1.contains(*feature)).map(|(_, place)| *place);
    for (_, register, bit) in bank0.chain(bank1).filter(|place| place.0 == leaf) {
        answer[register as usize] &= !(1 << bit);
    }
}

const _: () = assert!(Eax as usize == 0);
