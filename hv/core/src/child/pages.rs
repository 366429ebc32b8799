//! The pages that a virtual processor shares with the parent: the intercept message, the registers, statistics.
//!
//! They lie in the virtual processor's deposited memory and are shown to the parent when it maps them. Their content is
//! the parent's as much as the hypervisor's, so it is copied and checked like any input.

use super::{Inner, vp::Counts};
use crate::{
    machine::{Machine, Reg, SegmentName, Vcpu},
    memory::{Frame, Visible},
};
use parterre_abi::{
    message::Message,
    stats::VpCounter,
    vp_page::{RegisterPageDirty, VpRegisterPage},
};
use zerocopy::{FromZeros, IntoBytes};

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// The message of the intercept that the virtual processor waits for.
    Message = 0,
    /// Its registers.
    Registers = 1,
    /// Its statistics.
    Stats = 2,
}

/// The pages that were mapped.
#[derive(Default)]
pub(crate) struct VpPages([Option<Visible>; 3]);

/// Segments in the register page, in order.
const SEGMENTS: [SegmentName; 6] =
    [SegmentName::Es, SegmentName::Cs, SegmentName::Ss, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs];

impl VpPages {
    /// The frame of a page, if it is mapped.
    pub fn get(&self, page: Page) -> Option<&Frame> {
        self.0[page as usize].as_ref().map(Visible::frame)
    }

    /// The place of a page.
    pub fn place(&mut self, page: Page) -> &mut Option<Visible> {
        &mut self.0[page as usize]
    }

    /// Takes all of them.
    pub fn take_all(self) -> [Option<Visible>; 3] {
        self.0
    }

    /// Writes an intercept's message. `false` if the parent has not mapped the page.
    pub fn write_message<M: Machine>(&self, machine: &M, message: &Message) -> bool {
        let Some(frame) = self.get(Page::Message) else { return false };
        let used = size_of_val(&message.header) + usize::from(message.header.payload_size);
        machine.write_frame(frame, 0, &message.as_bytes()[..used]);
        true
    }

    fn set_counter<M: Machine>(&self, machine: &M, counter: VpCounter, value: u64) {
        if let Some(frame) = self.get(Page::Stats) {
            machine.write_frame(frame, 8 * counter.0 as usize, &value.to_le_bytes());
        }
    }

    /// Tells the parent that the virtual processor is blocked in the hypervisor.
    pub fn set_blocked<M: Machine>(&self, machine: &M) {
        self.set_counter(machine, VpCounter::ROOT_DISPATCH_THREAD_BLOCKED, 1);
    }

    /// Tells the parent that it is no longer. To be done before the signal.
    pub fn clear_blocked<M: Machine>(&self, machine: &M) {
        self.set_counter(machine, VpCounter::ROOT_DISPATCH_THREAD_BLOCKED, 0);
    }

    /// Writes the statistics, if the parent has asked for them.
    pub fn write_counts<M: Machine>(&self, machine: &M, counts: &Counts) {
        if self.get(Page::Stats).is_none() {
            return;
        }
        for (counter, value) in [
            (VpCounter::TOTAL_RUN_TIME, counts.run_time(machine)),
            (VpCounter::HYPERCALLS_COUNT, counts.hypercalls),
            (VpCounter::IO_INSTRUCTIONS_COUNT, counts.io),
            (VpCounter::HLT_INSTRUCTIONS_COUNT, counts.halts),
            (VpCounter::CPUID_INSTRUCTIONS_COUNT, counts.cpuids),
            (VpCounter::MSR_ACCESSES_COUNT, counts.msrs),
            (VpCounter::PAGE_FAULT_INTERCEPTS_COUNT, counts.memory),
            (VpCounter::EXTERNAL_INTERRUPTS_COUNT, counts.interrupts),
            (VpCounter::LOGICAL_PROCESSOR_DISPATCHES, counts.dispatches),
        ] {
            self.set_counter(machine, counter, value);
        }
    }

    /// Takes the vectors that the parent has put into the register page, and leaves none there.
    pub fn take_vectors<M: Machine>(&self, machine: &M) -> [u8; 8] {
        let mut vectors = [0; 8];
        if let Some(frame) = self.get(Page::Registers) {
            let low = exchange(machine, frame, VpRegisterPage::INTERRUPT_VECTORS_OFFSET);
            let high = exchange(machine, frame, VpRegisterPage::INTERRUPT_VECTORS_OFFSET + 4);
            vectors[..4].copy_from_slice(&low.to_le_bytes());
            vectors[4..].copy_from_slice(&high.to_le_bytes());
        }
        vectors
    }
}

/// Replaces a word by 0; gives what was there.
fn exchange<M: Machine>(machine: &M, frame: &Frame, offset: usize) -> u32 {
    let mut bytes = [0; 4];
    machine.read_frame(frame, offset, &mut bytes);
    let mut expected = u32::from_le_bytes(bytes);
    loop {
        let found = machine.compare_exchange_frame(frame, offset, expected, 0);
        if found == expected {
            return found;
        }
        expected = found;
    }
}

/// How much of the page is written: all but the vectors, which the parent may be changing.
const WRITTEN: usize = core::mem::offset_of!(VpRegisterPage, reserved2);

/// Writes the registers into the register page, as an intercept goes to the parent.
pub(super) fn publish_registers<M: Machine>(machine: &M, pages: &VpPages, inner: &mut Inner<M>) {
    let Some(frame) = pages.get(Page::Registers) else { return };
    let mut page = VpRegisterPage::new_zeroed();
    page.version = VpRegisterPage::VERSION_1;
    page.is_valid = 1;
    page.gp_registers = *inner.vcpu.gprs();
    page.rip = inner.vcpu.get(Reg::Rip);
    page.rflags = inner.vcpu.get(Reg::Rflags);
    for (index, xmm) in page.xmm.iter_mut().enumerate() {
        *xmm = inner.vcpu.xmm(index).into();
    }
    for (segment, name) in page.segments.iter_mut().zip(SEGMENTS) {
        *segment = super::registers::segment_layout(inner.vcpu.segment(name));
    }
    page.cr0 = inner.vcpu.get(Reg::Cr0);
    page.cr3 = inner.vcpu.get(Reg::Cr3);
    page.cr4 = inner.vcpu.get(Reg::Cr4);
    page.cr8 = inner.vcpu.get(Reg::Cr8);
    page.efer = inner.vcpu.get(Reg::Efer);
    page.dr7 = inner.vcpu.get(Reg::Dr7);
    page.xfem = inner.vcpu.get(Reg::Xcr0);
    page.pending_interruption = super::registers::pending_interruption(inner.vcpu.pending_event());
    page.interrupt_state.set_interrupt_shadow(inner.vcpu.interrupt_shadow());
    page.interrupt_state.set_nmi_masked(inner.vcpu.nmi_masked());
    machine.write_frame(frame, 0, &page.as_bytes()[..WRITTEN]);
}

/// Takes over what the parent has changed in the register page. Values that are not allowed are left out, as in a processor
/// that refuses them; the parent finds the old ones at the next intercept.
pub(super) fn adopt_registers<M: Machine>(machine: &M, pages: &VpPages, inner: &mut Inner<M>) {
    let Some(frame) = pages.get(Page::Registers) else { return };
    let mut head = [0; 8];
    machine.read_frame(frame, 0, &mut head);
    let dirty = RegisterPageDirty(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
    if dirty.is_empty() {
        return;
    }
    let mut page = VpRegisterPage::new_zeroed();
    machine.read_frame(frame, 0, &mut page.as_mut_bytes()[..WRITTEN]);
    machine.write_frame(frame, 4, &[0; 4]);
    if dirty.contains(RegisterPageDirty::GENERAL) {
        *inner.vcpu.gprs_mut() = page.gp_registers;
    }
    if dirty.contains(RegisterPageDirty::INSTRUCTION_POINTER) {
        inner.vcpu.set(Reg::Rip, page.rip);
    }
    if dirty.contains(RegisterPageDirty::FLAGS) {
        inner.set_rflags(page.rflags);
    }
    if dirty.contains(RegisterPageDirty::XMM) {
        for (index, xmm) in page.xmm.into_iter().enumerate() {
            inner.vcpu.set_xmm(index, xmm.as_u128());
        }
    }
    if dirty.contains(RegisterPageDirty::SEGMENTS) {
        for (segment, name) in page.segments.into_iter().zip(SEGMENTS) {
            let _ = inner.set_segment(name, segment);
        }
    }
}
