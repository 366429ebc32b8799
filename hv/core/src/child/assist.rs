//! The VP assist page, of which "EOI assist" is used (TLFS "EOI Assist"): after an interrupt whose end changes nothing but
//! the local APIC, the guest may leave out the write of EOI. It clears a bit of the page instead, and the hypervisor looks at
//! the bit when the virtual processor has left guest mode.

use super::{Inner, Vp};
use crate::{machine::Machine, memory::Visible};
use parterre_abi::{msr::OverlayPageMsr, vp_page::VpAssistPage};

/// See the module.
pub(crate) struct Assist {
    /// The page.
    pub page: Visible,
    /// Its register.
    pub register: u64,
    /// "No EOI required" was set for the interrupt in service, and the guest has not been seen to clear it.
    offered: bool,
}

impl Assist {
    /// The assist page of a new virtual processor, which is not enabled.
    pub fn new(page: Visible) -> Self {
        Self { page, register: 0, offered: false }
    }

    /// Whether the guest may leave out the end of the interrupt in service.
    pub fn is_offered(&self) -> bool {
        self.offered
    }

    fn set<M: Machine>(&self, machine: &M, value: u32) {
        machine.write_frame(self.page.frame(), 0, &value.to_le_bytes());
    }
}

impl<M: Machine> Inner<M> {
    /// `vector` has just been acknowledged: lets the guest leave out its end, if nothing waits for that.
    pub(super) fn offer_no_eoi(&mut self, machine: &M, vp: &Vp<M>, vector: u8) {
        let enabled = OverlayPageMsr::from(self.assist.register).enabled();
        if enabled && self.apic.may_skip_eoi(&vp.incoming, vector) {
            self.assist.set(machine, VpAssistPage::NO_EOI_REQUIRED);
            self.assist.offered = true;
        }
    }

    /// The virtual processor has left guest mode: ends the interrupt in service if the guest has ended it by the page.
    pub(super) fn look_for_eoi(&mut self, machine: &M, vp: &Vp<M>) {
        if !self.assist.offered {
            return;
        }
        let mut bytes = [0; 4];
        machine.read_frame(self.assist.page.frame(), 0, &mut bytes);
        if u32::from_le_bytes(bytes) & VpAssistPage::NO_EOI_REQUIRED == 0 {
            self.assist.offered = false;
            self.apic.eoi(&vp.incoming);
        }
    }

    /// Something waits for the end of the interrupt in service, which the guest has to tell now. For a virtual processor that
    /// is not in guest mode.
    pub(crate) fn require_eoi(&mut self, machine: &M) {
        if core::mem::take(&mut self.assist.offered) {
            self.assist.set(machine, 0);
        }
    }
}
