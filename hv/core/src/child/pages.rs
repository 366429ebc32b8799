//! The pages that a virtual processor shares with the parent: the intercept message, the registers, statistics.
//!
//! They lie in the virtual processor's deposited memory and are shown to the parent when it maps them. Their content is
//! the parent's as much as the hypervisor's, so it is copied and checked like any input.

use super::{Inner, vp::Counts};
use crate::{
    hypervisor::Hypervisor,
    machine::{Machine, Reg, Segment, SegmentName, Vcpu},
    memory::{Frame, Visible},
};
use core::mem::offset_of;
use parterre_abi::{
    message::Message,
    registers::{InterruptStateRegister, RegisterValue, SegmentRegister},
    stats::VpCounter,
    vp_page::{RegisterPageDirty, VpRegisterPage},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

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
            write_counter(machine, frame, counter, value);
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
    pub fn write_counts<M: Machine>(&self, hv: &Hypervisor<M>, counts: &Counts) {
        let Some(frame) = self.get(Page::Stats) else { return };
        for (counter, value) in [
            (VpCounter::TOTAL_RUN_TIME, counts.run_time(hv)),
            (VpCounter::HYPERCALLS_COUNT, counts.hypercalls),
            (VpCounter::IO_INSTRUCTIONS_COUNT, counts.io),
            (VpCounter::HLT_INSTRUCTIONS_COUNT, counts.halts),
            (VpCounter::CPUID_INSTRUCTIONS_COUNT, counts.cpuids),
            (VpCounter::MSR_ACCESSES_COUNT, counts.msrs),
            (VpCounter::PAGE_FAULT_INTERCEPTS_COUNT, counts.memory),
            (VpCounter::EXTERNAL_INTERRUPTS_COUNT, counts.interrupts),
            (VpCounter::PENDING_INTERRUPTS_COUNT, counts.windows),
            (VpCounter::OTHER_INTERCEPTS_COUNT, counts.others),
            (VpCounter::LOGICAL_PROCESSOR_DISPATCHES, counts.dispatches),
        ] {
            write_counter(&hv.machine, frame, counter, value);
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

fn write_counter<M: Machine>(machine: &M, frame: &Frame, counter: VpCounter, value: u64) {
    machine.write_frame(frame, 8 * counter.0 as usize, &value.to_le_bytes());
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

/// Of what is published, what comes before the general registers.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Beginning {
    version: u16,
    is_valid: u8,
    reserved0: u8,
    dirty: RegisterPageDirty,
}

const GENERAL: usize = offset_of!(VpRegisterPage, gp_registers);
const XMM: usize = offset_of!(VpRegisterPage, xmm);
const SEGMENT_REGISTERS: usize = offset_of!(VpRegisterPage, segments);
const _: () =
    assert!(size_of::<Beginning>() == GENERAL && size_of::<Segment>() == size_of::<SegmentRegister>());

/// Writes the registers into the register page, as an intercept goes to the parent; `segments` are the segment registers.
pub(super) fn publish_registers<M: Machine>(
    machine: &M,
    pages: &VpPages,
    inner: &mut Inner<M>,
    segments: &[Segment; SEGMENTS.len()],
) {
    let Some(frame) = pages.get(Page::Registers) else { return };
    machine.write_frame(frame, XMM, inner.vcpu.first_xmm());
    let vcpu = &inner.vcpu;
    let beginning = Beginning {
        version: VpRegisterPage::VERSION_1,
        is_valid: 1,
        reserved0: 0,
        dirty: RegisterPageDirty::empty(),
    };
    machine.write_frame(frame, 0, beginning.as_bytes());
    machine.write_frame(frame, GENERAL, vcpu.gprs().as_bytes());
    let word = |offset, value: u64| machine.write_frame(frame, offset, &value.to_le_bytes());
    word(offset_of!(VpRegisterPage, rip), vcpu.get(Reg::Rip));
    word(offset_of!(VpRegisterPage, rflags), vcpu.get(Reg::Rflags));
    word(offset_of!(VpRegisterPage, reserved1), 0);
    let interrupt_state = InterruptStateRegister::new()
        .with_interrupt_shadow(vcpu.interrupt_shadow())
        .with_nmi_masked(vcpu.nmi_masked());
    machine.write_frame(frame, SEGMENT_REGISTERS, segments.as_bytes());
    for (offset, value) in [
        (offset_of!(VpRegisterPage, cr0), vcpu.get(Reg::Cr0)),
        (offset_of!(VpRegisterPage, cr3), vcpu.get(Reg::Cr3)),
        (offset_of!(VpRegisterPage, cr4), vcpu.get(Reg::Cr4)),
        (offset_of!(VpRegisterPage, cr8), vcpu.get(Reg::Cr8)),
        (offset_of!(VpRegisterPage, efer), vcpu.get(Reg::Efer)),
        (offset_of!(VpRegisterPage, dr7), vcpu.get(Reg::Dr7)),
    ] {
        word(offset, value);
    }
    word(
        offset_of!(VpRegisterPage, pending_interruption),
        super::registers::pending_interruption(vcpu.pending_event()).into(),
    );
    word(offset_of!(VpRegisterPage, interrupt_state), interrupt_state.into());
    word(offset_of!(VpRegisterPage, instruction_emulation_hints), 0);
    word(offset_of!(VpRegisterPage, xfem), vcpu.get(Reg::Xcr0));
}

/// Takes over what the parent has changed in the register page. Values that are not allowed are left out, as in a processor
/// that refuses them; the parent finds the old ones at the next intercept.
pub(super) fn adopt_registers<M: Machine>(machine: &M, pages: &VpPages, inner: &mut Inner<M>) {
    let Some(frame) = pages.get(Page::Registers) else { return };
    const DIRTY: usize = offset_of!(VpRegisterPage, dirty);
    let dirty: RegisterPageDirty = read(machine, frame, DIRTY);
    if dirty.is_empty() {
        return;
    }
    machine.write_frame(frame, DIRTY, &[0; 4]);
    if dirty.contains(RegisterPageDirty::GENERAL) {
        let registers = inner.vcpu.gprs_mut().as_mut_bytes();
        machine.read_frame(frame, offset_of!(VpRegisterPage, gp_registers), registers);
    }
    if dirty.contains(RegisterPageDirty::INSTRUCTION_POINTER) {
        inner.vcpu.set(Reg::Rip, read(machine, frame, offset_of!(VpRegisterPage, rip)));
    }
    if dirty.contains(RegisterPageDirty::FLAGS) {
        inner.set_rflags(read(machine, frame, offset_of!(VpRegisterPage, rflags)));
    }
    if dirty.contains(RegisterPageDirty::XMM) {
        let xmm: [RegisterValue; 6] = read(machine, frame, offset_of!(VpRegisterPage, xmm));
        for (index, xmm) in xmm.into_iter().enumerate() {
            inner.vcpu.set_xmm(index, xmm.as_u128());
        }
    }
    if dirty.contains(RegisterPageDirty::SEGMENTS) {
        let segments: [SegmentRegister; 6] = read(machine, frame, offset_of!(VpRegisterPage, segments));
        for (segment, name) in segments.into_iter().zip(SEGMENTS) {
            let _ = inner.set_segment(name, segment);
        }
    }
}

/// Reads a part of the register page. The parent may be writing there: what is read is read once.
fn read<M: Machine, T: FromBytes + IntoBytes>(machine: &M, frame: &Frame, offset: usize) -> T {
    let mut value = T::new_zeroed();
    machine.read_frame(frame, offset, value.as_mut_bytes());
    value
}
