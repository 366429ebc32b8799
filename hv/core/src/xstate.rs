//! Extended processor state (XSAVE; Intel SDM 1 chapter 13): which of it partitions may use.
//!
//! A virtual processor's state is kept in one page, in the standard format. So what does not fit a page there (AMX tiles)
//! is not offered, nor is supervisor state.

use crate::machine::Machine;
use parterre_abi::processor_features::XsaveFeatures;

/// Where a virtual processor's XSAVE area ends.
const AREA: u32 = 4096;
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const MPX: u64 = 3 << 3;
const AVX512: u64 = 7 << 5;
/// Where the XSAVE header's XSTATE_BV is.
const HEADER: usize = 512;

/// The user state components that this machine has and that fit.
pub(crate) fn supported<M: Machine>(machine: &M) -> u64 {
    let r = machine.cpuid(0xD, 0);
    let physical = u64::from(r[0]) | u64::from(r[3]) << 32;
    (0..63)
        .map(|bit| 1 << bit)
        .filter(|component| physical & component != 0 && fits(machine, *component))
        .sum()
}

fn fits<M: Machine>(machine: &M, component: u64) -> bool {
    if component & (X87 | SSE) != 0 {
        return true;
    }
    let r = machine.cpuid(0xD, component.trailing_zeros());
    r[0] != 0 && r[2] & 1 == 0 && r[0].saturating_add(r[1]) <= AREA
}

/// Whether XCR0 can hold `value`.
pub(crate) fn is_valid_xcr0<M: Machine>(machine: &M, value: u64) -> bool {
    is_consistent(value) && value & !supported(machine) == 0
}

fn is_consistent(value: u64) -> bool {
    let all_or_none = |set: u64| value & set == 0 || value & set == set;
    value & X87 != 0
        && (value & AVX == 0 || value & SSE != 0)
        && (value & AVX512 == 0 || value & AVX != 0)
        && all_or_none(AVX512)
        && all_or_none(MPX)
}

/// How long an XSAVE area with the components `xcr0` is (CPUID.D.0 EBX).
pub(crate) fn size<M: Machine>(machine: &M, xcr0: u64) -> u32 {
    let ends = (2..63).filter(|bit| xcr0 & 1 << bit != 0).map(|bit| {
        let r = machine.cpuid(0xD, bit);
        r[0].saturating_add(r[1])
    });
    ends.max().unwrap_or(0).max(576)
}

/// The features of XSAVE, by the interface's names.
pub(crate) fn features<M: Machine>(machine: &M) -> XsaveFeatures {
    let instructions = machine.cpuid(0xD, 1)[0];
    let structured = machine.cpuid(7, 0)[1];
    let components = supported(machine);
    let mut features = XsaveFeatures::empty();
    features.set(XsaveFeatures::XSAVE, machine.cpuid(1, 0)[2] & 1 << 26 != 0);
    features.set(XsaveFeatures::XSAVEOPT, instructions & 1 != 0);
    features.set(XsaveFeatures::AVX, components & AVX != 0);
    features.set(XsaveFeatures::AVX2, components & AVX != 0 && structured & 1 << 5 != 0);
    features.set(XsaveFeatures::FMA, machine.cpuid(1, 0)[2] & 1 << 12 != 0);
    features.set(XsaveFeatures::MPX, components & MPX == MPX);
    features.set(XsaveFeatures::AVX512, components & AVX512 == AVX512);
    features
}

/// Says in the area's header that x87 and SSE state is there.
pub(crate) fn mark_legacy(area: &mut [u8; 4096]) {
    area[HEADER] |= (X87 | SSE) as u8;
}

/// Replaces an area's content by one from the parent, which may be anything.
///
/// Returns `false`, and changes nothing, if the processor would refuse it: components that are not supported, reserved bits
/// of the header or of MXCSR, or the compacted format.
pub(crate) fn import<M: Machine>(machine: &M, area: &mut [u8; 4096], from: &[u8; 4096]) -> bool {
    let components = word(from, HEADER);
    let reserved = (1..8).any(|index| word(from, HEADER + 8 * index) != 0);
    let mxcsr = u32::from_le_bytes([from[24], from[25], from[26], from[27]]);
    if components & !supported(machine) != 0 || reserved || mxcsr & !0xFFFF != 0 {
        return false;
    }
    *area = *from;
    true
}

fn word(area: &[u8; 4096], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&area[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xcr0_obeys_the_manual() {
        assert!(is_consistent(1) && is_consistent(3) && is_consistent(7) && is_consistent(0xE7));
        for bad in [0, 2, 5, 0x27, 0xE3, 0x0F] {
            assert!(!is_consistent(bad), "{bad:#x}");
        }
    }
}
