//! The memory type range registers (Intel SDM volume 3A, 12.11): what type the firmware gave which physical memory.
//!
//! Accesses by EPT do without them, so the parent's address space has to have their types in its leaves. Pure, but for what
//! reads the registers.

/// Memory types, by their numbers in registers and page tables (SDM table 12-2).
pub mod kind {
    /// Uncacheable.
    pub const UNCACHED: u8 = 0;
    /// Write-through.
    pub const WRITE_THROUGH: u8 = 4;
    /// Write-back.
    pub const WRITE_BACK: u8 = 6;
}

use kind::{UNCACHED, WRITE_BACK, WRITE_THROUGH};

const CAPABILITIES: u32 = 0xfe;
const DEFAULT: u32 = 0x2ff;
const FIRST_BASE: u32 = 0x200;
/// Registers of fixed ranges: one for eight pieces of 64 KiB, two for pieces of 16 KiB, eight for pages.
const FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const FIXED_END: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    end: u64,
    kind: u8,
}

/// The types of all physical memory. They are looked up in the registers each time: that is for once.
#[derive(Clone, Copy, Debug)]
pub struct MemoryTypes {
    read: fn(u32) -> u64,
    address_bits: u32,
    default: u8,
    fixed: bool,
    ranges: u32,
}

impl MemoryTypes {
    /// Those of a processor that has the registers, which `read` reads, and whose addresses have `address_bits`.
    pub fn new(read: fn(u32) -> u64, address_bits: u32) -> Self {
        const ENABLED: u64 = 1 << 11;
        const FIXED_ENABLED: u64 = 1 << 10;
        let (capabilities, default) = (read(CAPABILITIES), read(DEFAULT));
        let enabled = default & ENABLED != 0;
        Self {
            read,
            address_bits,
            default: if enabled { valid(default as u8) } else { UNCACHED },
            fixed: enabled && capabilities & 1 << 8 != 0 && default & FIXED_ENABLED != 0,
            ranges: if enabled { capabilities as u32 & 0xff } else { 0 },
        }
    }

    /// The type at `address`, and up to where it is surely the same.
    #[inline(never)]
    pub fn at(&self, address: u64) -> (u8, u64) {
        if self.fixed && address < FIXED_END {
            return self.in_fixed(address);
        }
        let (mut kind, mut end) = (None, u64::MAX);
        for register in (FIRST_BASE..).step_by(2).take(self.ranges as usize) {
            let (base, mask) = ((self.read)(register), (self.read)(register + 1));
            let Some(range) = range(base, mask, self.address_bits) else { continue };
            if address < range.first {
                end = end.min(range.first);
            } else if address < range.end {
                end = end.min(range.end);
                kind = Some(kind.map_or(range.kind, |kind| overlap(kind, range.kind)));
            }
        }
        (kind.unwrap_or(self.default), end)
    }

    fn in_fixed(&self, address: u64) -> (u8, u64) {
        let (first, shift, register) = match address {
            0..0x8_0000 => (0, 16, 0),
            0x8_0000..0xc_0000 => (0x8_0000, 14, 1),
            _ => (0xc_0000, 12, 3),
        };
        let piece = (address - first) >> shift;
        let kinds = (self.read)(FIXED[register + piece as usize / 8]);
        (valid((kinds >> (piece % 8 * 8)) as u8), first + ((piece + 1) << shift))
    }

    /// At how many addresses the type can change, the fixed ranges' not counted, which are all below 1 MiB.
    pub fn changes(&self) -> u64 {
        2 * u64::from(self.ranges) + 1
    }

    /// In how many pieces the fixed ranges can fall.
    pub const FIXED_PIECES: u64 = 8 * FIXED.len() as u64;
}

/// A variable range, if it is valid. A mask with gaps, which no firmware makes, counts as one without.
fn range(base: u64, mask: u64, address_bits: u32) -> Option<Range> {
    const VALID: u64 = 1 << 11;
    let addresses = (1_u64 << address_bits.clamp(32, 52)) - 4096;
    let (first, mask) = (base & addresses, mask & addresses | mask & VALID);
    let length = 1_u64.checked_shl((mask & !VALID).trailing_zeros())?;
    (mask & VALID != 0).then(|| Range { first, end: first + length, kind: valid(base as u8) })
}

/// Types that do not exist are taken for the safe one.
fn valid(kind: u8) -> u8 {
    if matches!(kind, 0 | 1 | 4..=6) { kind } else { UNCACHED }
}

/// The type where two ranges overlap (SDM 12.11.4.1); what is not defined is uncached.
fn overlap(one: u8, other: u8) -> u8 {
    match (one, other) {
        _ if one == other => one,
        (WRITE_BACK, WRITE_THROUGH) | (WRITE_THROUGH, WRITE_BACK) => WRITE_THROUGH,
        _ => UNCACHED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As OVMF sets them: memory is write-back but for the legacy video memory and the hole below 4 GiB.
    fn firmware(register: u32) -> u64 {
        match register {
            CAPABILITIES => 1 << 8 | 3,
            DEFAULT => 1 << 11 | 1 << 10 | 6,
            0x250 | 0x258 => 0x0606_0606_0606_0606,
            0x200 => 0x8000_0000,
            0x201 => 0xff_8000_0800,
            0x202 => 0x8000_0000 | 1,
            0x203 => 0xff_f000_0000 | 0x800,
            _ => 0,
        }
    }

    #[test]
    fn each_address_has_the_type_of_its_range() {
        let types = MemoryTypes::new(firmware, 40);
        assert_eq!(types.at(0), (6, 0x1_0000));
        assert_eq!(types.at(0x9_ffff), (6, 0xa_0000));
        assert_eq!(types.at(0xa_0000), (0, 0xa_4000));
        assert_eq!(types.at(0xf_f123), (0, 0x10_0000));
        assert_eq!(types.at(0x10_0000), (6, 0x8000_0000));
        assert_eq!(types.at(0x8000_0000), (0, 0x9000_0000), "uncached wins");
        assert_eq!(types.at(0x9000_0000), (0, 1 << 32));
        assert_eq!(types.at(1 << 32), (6, u64::MAX));
        assert_eq!(types.changes(), 7);
    }

    #[test]
    fn without_fixed_ranges_the_others_hold_below_1_mib() {
        let types = |default: fn(u32) -> u64| MemoryTypes::new(default, 40);
        let other = types(|register| if register == DEFAULT { 1 << 11 | 4 } else { firmware(register) });
        assert_eq!(other.at(0xa_0000), (4, 0x8000_0000));
        let off = types(|register| if register == DEFAULT { 6 } else { firmware(register) });
        assert_eq!(off.at(0), (0, u64::MAX), "switched off: all uncached");
    }

    #[test]
    fn overlaps_are_the_manuals() {
        assert_eq!([overlap(6, 4), overlap(4, 6), overlap(6, 6)], [4, 4, 6]);
        assert_eq!([overlap(6, 0), overlap(1, 6), overlap(5, 1)], [0, 0, 0]);
        assert_eq!([valid(2), valid(3), valid(7), valid(5)], [0, 0, 0, 5]);
    }

    #[test]
    fn no_content_of_the_registers_is_too_much() {
        let words: [fn(u32) -> u64; 5] =
            [|_| 0, |_| u64::MAX, |_| 0x0800, |_| 1 << 63 | 0x800, |_| 0xffff_ffff_ffff_0800];
        for (word, bits) in words.into_iter().flat_map(|word| [0, 36, 52, 64].map(|bits| (word, bits))) {
            let types = MemoryTypes::new(word, bits);
            for address in [0, 0xfffff, 1 << 20, 1 << 32, (1 << 48) - 1] {
                let (kind, end) = types.at(address);
                assert!(valid(kind) == kind && end > address);
            }
        }
    }
}
