//! State that no entry into a partition switches: FPU and vector registers, XCR0, debug address registers, and three
//! MSRs. It stays in the machine between the exits of a loaded virtual processor.
//!
//! While no virtual processor is loaded XCR0 has all of the states on ([`begin`]): writing it is slow, and where partitions
//! use all of them nothing has to.

use core::arch::asm;

use super::features::{Features, SpecCtrl};
use crate::cpu::msr;

const TSC_AUX: u32 = 0xc000_0103;
const XSS: u32 = 0xda0;
/// `SPEC_CTRL`.
pub const SPEC_CTRL: u32 = 0x48;

/// Where things are in an XSAVE image: MXCSR, XMM registers, header.
const MXCSR: usize = 24;
const XMM: usize = 160;
const HEADER: usize = 512;
/// First byte of the header: XMM registers are not in their initial state.
const SSE: u8 = 1 << 1;

/// The registers; meaningful while the virtual processor is not loaded, except those that exit on every write (`XCR0`, and
/// a child's `TSC_AUX`, `XSS`, `SPEC_CTRL`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// XCR0; 0 on a machine without XSAVE.
    pub xcr0: u64,
    /// DR0 to DR3.
    pub debug: [u64; 4],
    /// `TSC_AUX`.
    pub tsc_aux: u64,
    /// `XSS`.
    pub xss: u64,
    /// `SPEC_CTRL` where the control block does not hold it.
    pub spec_ctrl: u64,
}

impl Registers {
    /// Puts the state into the machine.
    ///
    /// # Safety
    /// `features` are this processor's, `area` is a valid XSAVE area of a page, and the registers hold values that the
    /// machine takes (it gave them out before, or core checked them).
    pub unsafe fn load(&self, area: *const u8, features: &Features) {
        // SAFETY: the caller's promise. The hypervisor itself uses none of these registers: its image has no vector
        // instructions, DR7 is clear in host mode.
        unsafe {
            restore_states(area, features, features.xcr0);
            put_back_xcr0(self.xcr0, features);
            self.load_debug();
            self.load_msrs(features);
        }
    }

    /// Takes the state out of the machine, but for what lies in an XSAVE area. `all` says that the MSRs, too, may have
    /// changed without an exit.
    ///
    /// # Safety
    /// As for [`Registers::load`], which came before on this processor.
    pub unsafe fn unload(&mut self, features: &Features, all: bool) {
        // SAFETY: the caller's promise.
        unsafe {
            self.debug = debug();
            if all {
                self.unload_msrs(features);
            }
            turn_on(self.xcr0, features);
        }
    }

    /// # Safety
    /// As for [`Registers::load`].
    pub unsafe fn load_debug(&self) {
        let [dr0, dr1, dr2, dr3] = self.debug;
        // SAFETY: breakpoints are off in host mode, so the addresses have no effect before the next entry.
        unsafe {
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
                in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3, options(nostack));
        }
    }

    /// # Safety
    /// As for [`Registers::load`].
    pub unsafe fn load_msrs(&self, features: &Features) {
        // SAFETY: each exists by `features`; the values are the caller's promise.
        unsafe {
            if features.tsc_aux {
                msr::write(TSC_AUX, self.tsc_aux);
            }
            if features.xss {
                msr::write(XSS, self.xss);
            }
            if features.spec_ctrl == SpecCtrl::Switched {
                msr::write(SPEC_CTRL, self.spec_ctrl);
            }
        }
    }

    /// # Safety
    /// `features` are this processor's.
    pub unsafe fn unload_msrs(&mut self, features: &Features) {
        // SAFETY: each exists by `features`.
        unsafe {
            if features.tsc_aux {
                self.tsc_aux = msr::read(TSC_AUX);
            }
            if features.xss {
                self.xss = msr::read(XSS);
            }
            if features.spec_ctrl == SpecCtrl::Switched {
                self.spec_ctrl = msr::read(SPEC_CTRL);
            }
        }
    }
}

/// DR0 to DR3 of the machine.
pub fn debug() -> [u64; 4] {
    let (dr0, dr1, dr2, dr3): (u64, u64, u64, u64);
    // SAFETY: reading them in ring 0 changes nothing; DR7.GD is clear in host mode.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) dr0, out(reg) dr1, out(reg) dr2, out(reg) dr3, options(nomem, nostack));
    }
    [dr0, dr1, dr2, dr3]
}

/// Makes a processor ready for the first virtual processor.
///
/// # Safety
/// `features` are this processor's; CR4.OSXSAVE is set if it has XSAVE.
pub unsafe fn begin(features: &Features) {
    // SAFETY: the caller's promise.
    unsafe { write_xcr0(features.xcr0, features) };
}

/// Turns all states on in XCR0 of the machine, which is `xcr0`.
///
/// # Safety
/// As for [`put_back_xcr0`].
unsafe fn turn_on(xcr0: u64, features: &Features) {
    if xcr0 != features.xcr0 {
        // SAFETY: the caller's promise; the machine has all of these states.
        unsafe { write_xcr0(features.xcr0, features) };
    }
}

/// Sets XCR0 of the machine, if it has one, after [`save_states`] or [`restore_states`]. These leave all its states on,
/// and the instruction is slow.
///
/// # Safety
/// `features` are this processor's, CR4.OSXSAVE is set if it has XSAVE, and `value` is one that the machine takes.
pub unsafe fn put_back_xcr0(value: u64, features: &Features) {
    if value != features.xcr0 {
        // SAFETY: the caller's promise.
        unsafe { set_xcr0(value) };
    }
}

/// Sets XCR0 of the machine, if it has one.
///
/// # Safety
/// As for [`put_back_xcr0`].
pub unsafe fn write_xcr0(value: u64, features: &Features) {
    if features.xcr0 != 0 {
        // SAFETY: the caller's promise.
        unsafe { set_xcr0(value) };
    }
}

/// # Safety
/// The machine has XSAVE and takes the value; CR4.OSXSAVE is set.
unsafe fn set_xcr0(value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Stores all extended states (even those that the guest has turned off: they keep their content) to `area`.
///
/// # Safety
/// `area` is a page for that alone; CR4.OSXSAVE is set if the machine has XSAVE. XCR0 is `xcr0`; afterwards it has all states.
pub unsafe fn save_states(area: *mut u8, features: &Features, xcr0: u64) {
    let (low, high) = (features.xcr0 as u32, (features.xcr0 >> 32) as u32);
    // SAFETY: the caller's promise; all states in `features.xcr0` fit the page.
    unsafe {
        if features.xcr0 == 0 {
            asm!("fxsave64 [{}]", in(reg) area, options(nostack));
            // As XSAVE would say it: x87 and XMM registers are not in their initial state.
            area.add(HEADER).cast::<u64>().write(3);
        } else {
            turn_on(xcr0, features);
            asm!("xsave64 [{}]", in(reg) area, in("eax") low, in("edx") high, options(nostack));
        }
    }
}

/// Loads all extended states from `area`, so that nothing of another guest's is left.
///
/// # Safety
/// As for [`save_states`]; `area` holds a valid image.
pub unsafe fn restore_states(area: *const u8, features: &Features, xcr0: u64) {
    let (low, high) = (features.xcr0 as u32, (features.xcr0 >> 32) as u32);
    // SAFETY: the caller's promise.
    unsafe {
        if features.xcr0 == 0 {
            asm!("fxrstor64 [{}]", in(reg) area, options(nostack));
        } else {
            turn_on(xcr0, features);
            asm!("xrstor64 [{}]", in(reg) area, in("eax") low, in("edx") high, options(nostack));
        }
    }
}

/// Makes `area` an image that loads without a fault, whatever is in it: only states that the machine has, the standard
/// format, no reserved bit (Intel SDM 1, 13.8.1; AMD APM 2, 11.5.8).
pub fn sanitize(area: &mut [u8; 4096], features: &Features) {
    let mut mxcsr = [0; 4];
    mxcsr.copy_from_slice(&area[MXCSR..MXCSR + 4]);
    area[MXCSR..MXCSR + 4].copy_from_slice(&(u32::from_le_bytes(mxcsr) & features.mxcsr).to_le_bytes());
    let mut states = [0; 8];
    states.copy_from_slice(&area[HEADER..HEADER + 8]);
    area[HEADER..HEADER + 8]
        .copy_from_slice(&(u64::from_le_bytes(states) & (features.xcr0 | 3)).to_le_bytes());
    area[HEADER + 8..HEADER + 64].fill(0);
}

/// Fills `area` with the state after power-on: x87 and vector registers 0 and MXCSR as at reset (APM 2 table 14-1).
pub fn reset(area: &mut [u8; 4096]) {
    area.fill(0);
    area[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());
    area[MXCSR..MXCSR + 4].copy_from_slice(&0x1f80_u32.to_le_bytes());
}

/// XMM register `index` (0 to 15) in an image.
pub fn xmm(area: &[u8; 4096], index: usize) -> u128 {
    if area[HEADER] & SSE == 0 {
        return 0;
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&area[XMM + index % 16 * 16..][..16]);
    u128::from_le_bytes(bytes)
}

/// XMM registers 0 to 5 in an image.
pub fn first_xmm(area: &[u8; 4096]) -> &[u8; 6 * 16] {
    match area[XMM..].first_chunk() {
        Some(registers) if area[HEADER] & SSE != 0 => registers,
        _ => &[0; 6 * 16],
    }
}

/// Sets XMM register `index` (0 to 15) in an image.
pub fn set_xmm(area: &mut [u8; 4096], index: usize, value: u128) {
    if area[HEADER] & SSE == 0 {
        area[HEADER] |= SSE;
        area[XMM..XMM + 16 * 16].fill(0);
    }
    area[XMM + index % 16 * 16..][..16].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_image_can_fault() {
        let mut features = Features::of_svm();
        (features.xcr0, features.mxcsr) = (7, 0xffff);
        let mut area = [0xff; 4096];
        sanitize(&mut area, &features);
        assert_eq!(area[24..28], [0xff, 0xff, 0, 0]);
        assert_eq!(area[512..520], [7, 0, 0, 0, 0, 0, 0, 0]);
        assert!(area[520..576].iter().all(|byte| *byte == 0));
        assert!(area[576..].iter().all(|byte| *byte == 0xff));
    }

    #[test]
    fn vector_registers_start_as_zeros_and_keep_their_values() {
        let mut area = [0xff; 4096];
        reset(&mut area);
        area[XMM] = 7;
        assert_eq!(xmm(&area, 0), 0);
        set_xmm(&mut area, 15, u128::MAX - 1);
        assert_eq!((xmm(&area, 0), xmm(&area, 15)), (0, u128::MAX - 1));
        assert!(area[XMM + 256..HEADER].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn detected_states_fit_the_page() {
        let features = Features::of_svm();
        assert!(features.xcr0 == 0 || features.xcr0 & 3 == 3);
        assert_eq!(features.mxcsr & 0xffff, 0xffff);
    }
}
