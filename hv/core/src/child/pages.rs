//! The pages that a virtual processor shares with the parent: the intercept message, the registers, statistics.
//!
//! They lie in the virtual processor's deposited memory and are shown to the parent when it maps them. Their content is
//! the parent's as much as the hypervisor's, so it is copied and checked like any input.

use super::{Inner, vp::Counts};
use crate::{
    machine::{Machine, Reg, SegmentName, Vcpu},
    memory::{Frame, Visible},
};
use core::mem::offset_of;
use parterre_abi::{
    message::Message,
    registers::{InterruptStateRegister, PendingInterruptionRegister, RegisterValue, SegmentRegister},
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

/// What is written of the register page: all but the vectors, which the parent may be changing, and what is reserved before
/// them.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Published {
    version: u16,
    is_valid: u8,
    reserved0: u8,
    dirty: RegisterPageDirty,
    gp_registers: [u64; 16],
    rip: u64,
    rflags: u64,
    reserved1: u64,
    xmm: [RegisterValue; 6],
    segments: [SegmentRegister; 6],
    cr: [u64; 4],
    efer: u64,
    dr7: u64,
    pending_interruption: PendingInterruptionRegister,
    interrupt_state: InterruptStateRegister,
    instruction_emulation_hints: u64,
    xfem: u64,
}
const _: () = assert!(size_of::<Published>() == offset_of!(VpRegisterPage, reserved2));
const _: () = assert!(offset_of!(Published, xmm) == offset_of!(VpRegisterPage, xmm));
const _: () = assert!(offset_of!(Published, efer) == offset_of!(VpRegisterPage, efer));

/// Writes the registers into the register page, as an intercept goes to the parent.
pub(super) fn publish_registers<M: Machine>(machine: &M, pages: &VpPages, inner: &mut Inner<M>) {
    let Some(frame) = pages.get(Page::Registers) else { return };
    let xmm = core::array::from_fn(|index| inner.vcpu.xmm(index).into());
    let vcpu = &inner.vcpu;
    let mut page = Published {
        version: VpRegisterPage::VERSION_1,
        is_valid: 1,
        reserved0: 0,
        dirty: RegisterPageDirty::empty(),
        gp_registers: *vcpu.gprs(),
        rip: vcpu.get(Reg::Rip),
        rflags: vcpu.get(Reg::Rflags),
        reserved1: 0,
        xmm,
        segments: SEGMENTS.map(|name| super::registers::segment_layout(vcpu.segment(name))),
        cr: [Reg::Cr0, Reg::Cr3, Reg::Cr4, Reg::Cr8].map(|register| vcpu.get(register)),
        efer: vcpu.get(Reg::Efer),
        dr7: vcpu.get(Reg::Dr7),
        pending_interruption: super::registers::pending_interruption(vcpu.pending_event()),
        interrupt_state: InterruptStateRegister::default(),
        instruction_emulation_hints: 0,
        xfem: vcpu.get(Reg::Xcr0),
    };
    page.interrupt_state.set_interrupt_shadow(vcpu.interrupt_shadow());
    page.interrupt_state.set_nmi_masked(vcpu.nmi_masked());
    machine.write_frame(frame, 0, page.as_bytes());
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
