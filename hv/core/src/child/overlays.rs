//! The pages of the hypervisor that a guest has laid over its memory: hypercall page, reference TSC page, assist pages.

use super::{Child, Inner, Vp};
use crate::{
    hypervisor::Hypervisor,
    machine::{Access, Machine},
    memory::{OverlayId, Visible},
};
use core::{mem::size_of_val, sync::atomic::Ordering::SeqCst};
use parterre_abi::{
    msr::{HypercallMsr, OverlayPageMsr},
    status::HvStatus,
};
use zerocopy::IntoBytes;

impl<M: Machine> Child<M> {
    /// The places in the partition's list of frames.
    const HYPERCALL: usize = 0;
    const REFERENCE_TSC: usize = 1;

    /// Writes the hypercall page register: lays the page over the guest's memory, or takes it off. `None` refuses.
    pub(super) fn set_hypercall_msr(&self, hv: &Hypervisor<M>, value: u64) -> Option<()> {
        const RET: u8 = 0xC3;
        let old = HypercallMsr::from(self.hypercall_msr.load(SeqCst));
        if old.locked() {
            return Some(());
        }
        let mut new = HypercallMsr::from(value);
        new.set_enabled(new.enabled() && self.guest_os_id.load(SeqCst) != 0);
        let call = hv.machine.hypercall_instruction();
        let code = [call[0], call[1], call[2], RET];
        let place = new.enabled().then(|| new.page_number());
        let overlays = self.overlays.lock();
        let frame = overlays[Self::HYPERCALL].as_ref()?;
        self.lay(hv, OverlayId::Hypercall, place, frame, &code, Access::READ | Access::EXECUTE)?;
        self.hypercall_msr.store(new.into(), SeqCst);
        Some(())
    }

    /// Writes the reference TSC page register. `None` refuses.
    pub(super) fn set_reference_tsc_msr(&self, hv: &Hypervisor<M>, value: u64) -> Option<()> {
        let new = OverlayPageMsr::from(value);
        let place = new.enabled().then(|| new.page_number());
        let overlays = self.overlays.lock();
        let frame = overlays[Self::REFERENCE_TSC].as_ref()?;
        // The clock is set under the same lock, so what is shown is what it says.
        let contents = self.clock.read().page();
        self.lay(hv, OverlayId::ReferenceTsc, place, frame, contents.as_bytes(), Access::READ)?;
        self.reference_tsc_msr.store(value, SeqCst);
        Some(())
    }

    /// Sets the reference time, also of a guest that runs and reads it from its page.
    pub(crate) fn set_reference_time(&self, hv: &Hypervisor<M>, time: u64) {
        let overlays = self.overlays.lock();
        let contents = {
            let mut clock = self.clock.write();
            clock.set_reference_time(time, hv.machine.tsc());
            clock.page()
        };
        if let Some(frame) = &overlays[Self::REFERENCE_TSC] {
            let bytes = contents.as_bytes();
            let (sequence, rest) = bytes.split_at(size_of_val(&contents.sequence));
            // Whoever reads a sequence of 0 takes the register instead.
            hv.machine.write_frame(frame.frame(), 0, &[0; 4]);
            hv.machine.write_frame(frame.frame(), sequence.len(), rest);
            hv.machine.write_frame(frame.frame(), 0, sequence);
        }
        drop(overlays);
        for vp in self.vps() {
            vp.schedule.note_timer();
            self.wake(hv, &vp);
        }
    }

    /// Writes the VP assist page register. `None` refuses.
    pub(super) fn set_assist(
        &self,
        hv: &Hypervisor<M>,
        vp: &Vp<M>,
        inner: &mut Inner<M>,
        value: u64,
    ) -> Option<()> {
        let new = OverlayPageMsr::from(value);
        let place = new.enabled().then(|| new.page_number());
        let id = OverlayId::VpAssist(vp.index);
        inner.require_eoi(&hv.machine);
        self.lay(hv, id, place, &inner.assist.page, &[0; 4], Access::READ | Access::WRITE)?;
        inner.assist.register = value;
        Some(())
    }

    /// Lays a page of the hypervisor over the guest's memory, its first bytes set to `bytes`, or takes it off. `None` if there
    /// is no such place.
    pub(super) fn lay(
        &self,
        hv: &Hypervisor<M>,
        id: OverlayId,
        place: Option<u64>,
        frame: &Visible,
        bytes: &[u8],
        access: Access,
    ) -> Option<()> {
        self.with_space(hv, |space, tables| {
            match place {
                Some(page) => {
                    hv.machine.write_frame(frame.frame(), 0, bytes);
                    let placed = space.place_overlay(tables, id, page, frame, access);
                    placed.map(|_| ()).map_err(|_| HvStatus::INVALID_PARAMETER)?;
                }
                None => {
                    space.remove_overlay(tables, id);
                }
            }
            Ok(())
        })
        .ok()?;
        // What lay under the page must not be reached through cached translations, nor the page itself afterwards.
        self.translations.advance();
        for vp in self.vps() {
            vp.schedule.interrupt(&hv.machine);
        }
        Some(())
    }
}
