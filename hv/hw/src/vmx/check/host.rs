//! The hypervisor's own state (SDM volume 3C, 27.2.2 to 27.2.4).

use super::Check;
use crate::vmx::control::{CR4_PAE, EFER_LMA, EFER_LME};
use crate::vmx::field::Field;

const HOST_IS_64_BIT: u64 = 1 << 9;

impl Check<'_> {
    pub(super) fn host(&mut self) {
        use Field::*;
        self.expect_fixed(HostCr0, self.capabilities.cr0);
        self.expect_fixed(HostCr4, self.capabilities.cr4);
        self.expect_zero(HostCr3, 0xfff << 52);
        for address in [
            HostSysenterEsp,
            HostSysenterEip,
            HostFsBase,
            HostGsBase,
            HostGdtrBase,
            HostIdtrBase,
            HostTrBase,
            HostRip,
        ] {
            self.expect_canonical(address);
        }
        self.expect_memory_types(HostPat);
        for selector in [
            HostEsSelector,
            HostCsSelector,
            HostSsSelector,
            HostDsSelector,
            HostFsSelector,
            HostGsSelector,
            HostTrSelector,
        ] {
            self.expect(selector, self.read(selector) & 7 == 0, "a privilege level, or of the local table");
        }
        for selector in [HostCsSelector, HostTrSelector] {
            self.expect(selector, self.read(selector) != 0, "null");
        }
        let wide = self.read(ExitControls) & HOST_IS_64_BIT != 0;
        self.expect(ExitControls, wide, "an exit out of IA-32e mode would leave it");
        self.expect(HostCr4, self.read(HostCr4) & CR4_PAE != 0, "IA-32e mode without PAE");
        let efer = self.read(HostEfer);
        self.expect(HostEfer, efer & EFER_LMA != 0 && efer & EFER_LME != 0, "not IA-32e mode");
    }
}
