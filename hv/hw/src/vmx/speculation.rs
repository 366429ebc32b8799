//! What a processor needs done so that one partition's data cannot be guessed by another that runs on it afterwards: out
//! of the first-level data cache (L1TF), out of its buffers (MDS and its kin), through predicted branches. What is needed
//! the processor says in CPUID leaf 7 and `IA32_ARCH_CAPABILITIES` (Intel SDM volume 4, register 10AH; volume 2A, CPUID).
//!
//! This is done where a virtual processor comes to a logical processor, not at each entry: between two entries of the same
//! one only the hypervisor has run, on its behalf. What another thread of the same core does meanwhile is not covered.

use core::arch::asm;

use crate::cpu::{msr, tables};

/// `IA32_ARCH_CAPABILITIES`.
pub const ARCH_CAPABILITIES: u32 = 0x10a;
const PREDICTION_COMMAND: u32 = 0x49;
const FLUSH_COMMAND: u32 = 0x10b;
/// SPEC_CTRL: predictions of less privileged code are not followed.
pub const IBRS: u64 = 1 << 0;

/// CPUID leaf 7.
mod cpuid {
    pub const EBX_RTM: u32 = 1 << 11;
    pub const EDX_MD_CLEAR: u32 = 1 << 10;
    pub const EDX_IBRS_IBPB: u32 = 1 << 26;
    pub const EDX_L1D_FLUSH: u32 = 1 << 28;
    pub const EDX_ARCH_CAPABILITIES: u32 = 1 << 29;
}

/// `IA32_ARCH_CAPABILITIES`.
mod says {
    pub const RDCL_NO: u64 = 1 << 0;
    pub const IBRS_ALL: u64 = 1 << 1;
    pub const SKIP_L1D_FLUSH: u64 = 1 << 3;
    pub const MDS_NO: u64 = 1 << 5;
    pub const TAA_NO: u64 = 1 << 8;
    pub const FB_CLEAR: u64 = 1 << 17;
    pub const RFDS_CLEAR: u64 = 1 << 28;
}

/// What has to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Empty the first-level data cache.
    flush_cache: bool,
    /// Overwrite the buffers.
    clear_buffers: bool,
    /// Forget branch predictions.
    forget_branches: bool,
    /// One setting of IBRS holds for good, so the hypervisor wants it set.
    pub keep_ibrs: bool,
}

impl Speculation {
    /// Out of CPUID leaf 7 and, if there is that register, what `capabilities` reads from `IA32_ARCH_CAPABILITIES`.
    pub fn new([_, ebx, _, edx]: [u32; 4], capabilities: impl FnOnce() -> u64) -> Self {
        let says = if edx & cpuid::EDX_ARCH_CAPABILITIES != 0 { capabilities() } else { 0 };
        let flush_cache =
            edx & cpuid::EDX_L1D_FLUSH != 0 && says & (says::RDCL_NO | says::SKIP_L1D_FLUSH) == 0;
        let transactions = ebx & cpuid::EBX_RTM != 0 && says & says::TAA_NO == 0;
        let leaks =
            says & says::MDS_NO == 0 || says & (says::FB_CLEAR | says::RFDS_CLEAR) != 0 || transactions;
        let forget_branches = edx & cpuid::EDX_IBRS_IBPB != 0;
        Self {
            flush_cache,
            clear_buffers: leaks && edx & cpuid::EDX_MD_CLEAR != 0,
            forget_branches,
            keep_ibrs: forget_branches && says & says::IBRS_ALL != 0,
        }
    }

    /// Does it, before a virtual processor other than the last one runs on this logical processor. Caches and buffers matter
    /// only if that is a child's.
    #[inline]
    pub fn separate(&self, child: bool) {
        if self.flush_cache | self.clear_buffers | self.forget_branches {
            self.clean_up(child);
        }
    }

    #[inline(never)]
    fn clean_up(&self, child: bool) {
        // SAFETY: CPUID says that the commands exist; they change no state that software sees. VERW with a selector of data
        // that may be written changes a flag.
        unsafe {
            if self.forget_branches {
                msr::write(PREDICTION_COMMAND, 1);
            }
            if child && self.flush_cache {
                // This overwrites the buffers too.
                msr::write(FLUSH_COMMAND, 1);
            } else if child && self.clear_buffers {
                asm!("verw word ptr [{}]", in(reg) &raw const DATA, options(readonly, nostack));
            }
        }
    }
}

static DATA: u16 = tables::DATA;

#[cfg(test)]
mod tests {
    use super::*;

    fn says(ebx: u32, edx: u32, capabilities: u64) -> Speculation {
        Speculation::new([0, ebx, 0, edx], || capabilities)
    }

    const ALL: u32 = 1 << 10 | 1 << 26 | 1 << 28 | 1 << 29;

    #[test]
    fn a_processor_without_these_commands_is_asked_for_nothing() {
        let none = Speculation::new([0; 4], || panic!("the register is not there"));
        assert_eq!(none, Speculation::default());
    }

    #[test]
    fn the_cache_is_flushed_where_the_processor_is_affected() {
        let old = says(0, ALL & !(1 << 29), u64::MAX);
        assert!(old.flush_cache && old.clear_buffers && old.forget_branches && !old.keep_ibrs);
        assert!(says(0, ALL, 0).flush_cache);
        assert!(!says(0, ALL, 1).flush_cache, "RDCL_NO");
        assert!(!says(0, ALL, 1 << 3).flush_cache, "a hypervisor below does it");
        assert!(!says(0, ALL & !(1 << 28), 0).flush_cache, "no command");
    }

    #[test]
    fn buffers_are_cleared_where_one_of_them_leaks() {
        assert!(says(0, ALL, 0).clear_buffers);
        assert!(!says(0, ALL, 1 << 5).clear_buffers, "MDS_NO");
        assert!(says(0, ALL, 1 << 5 | 1 << 17).clear_buffers, "memory-mapped I/O");
        assert!(says(0, ALL, 1 << 5 | 1 << 28).clear_buffers, "register files");
        assert!(says(1 << 11, ALL, 1 << 5).clear_buffers, "transactions");
        assert!(!says(1 << 11, ALL, 1 << 5 | 1 << 8).clear_buffers, "TAA_NO");
        assert!(!says(0, ALL & !(1 << 10), 0).clear_buffers, "no command");
        assert!(says(0, ALL, 2).keep_ibrs);
    }
}
