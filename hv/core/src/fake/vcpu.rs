//! A virtual processor: its registers, and a script in place of instructions.

use std::{boxed::Box, sync::Arc, sync::atomic::Ordering};

use super::memory::PAGE;
use super::platform::FakeMachine;
use super::processor::FakeProcessor;
use super::script::Script;
use super::slat::{FakeSlat, Space};
use crate::machine::{Access, Event, Exit, Machine, Reg, Segment, SegmentName, Table, TableName, Vcpu};
use crate::memory::Frame;

/// RFLAGS.IF.
const INTERRUPTS: u64 = 1 << 9;

/// A virtual processor.
pub struct FakeVcpu {
    frames: [Option<Frame>; 8],
    parent: bool,
    script: Arc<Script>,
    space: Arc<Space>,
    gprs: [u64; 16],
    registers: [u64; Reg::TscOffset as usize + 1],
    segments: [Segment; 8],
    tables: [Table; 2],
    xsave: Box<[u8; PAGE]>,
    event: Option<Event>,
    shadow: bool,
    nmi_masked: bool,
    interrupt_window: Option<u8>,
    offer: Offer,
    /// The machine cannot deliver what is offered.
    exits_for_offers: bool,
    nmi_window: bool,
    halt_intercepted: bool,
    intercepted_exceptions: u32,
    refused_cr4: u64,
    loaded_on: Option<usize>,
}

/// What has become of an interrupt that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    None,
    Waits(u8),
    Delivered,
}

impl FakeVcpu {
    pub(super) fn new(
        frames: [Option<Frame>; 8],
        machine: &FakeMachine,
        slat: &FakeSlat,
        parent: bool,
    ) -> Self {
        let number = machine.0.vcpus.fetch_add(1, Ordering::SeqCst);
        let mut vcpu = Self {
            frames,
            parent,
            script: machine.script(number),
            space: slat.space.clone(),
            gprs: [0; 16],
            registers: [0; Reg::TscOffset as usize + 1],
            segments: [Segment::default(); 8],
            tables: [Table { base: 0, limit: 0xffff }; 2],
            xsave: Box::new([0; PAGE]),
            event: None,
            shadow: false,
            nmi_masked: false,
            interrupt_window: None,
            offer: Offer::None,
            exits_for_offers: false,
            nmi_window: false,
            halt_intercepted: !parent,
            intercepted_exceptions: 0,
            refused_cr4: 0,
            loaded_on: None,
        };
        vcpu.power_on();
        vcpu
    }

    /// Intel SDM 3A, table 10-1.
    fn power_on(&mut self) {
        self.set(Reg::Rip, 0xfff0);
        self.set(Reg::Rflags, 2);
        self.set(Reg::Cr0, 0x6000_0010);
        self.set(Reg::Dr6, 0xffff_0ff0);
        self.set(Reg::Dr7, 0x400);
        self.set(Reg::Xcr0, 1);
        self.set(Reg::Pat, 0x0007_0406_0007_0406);
        let data = Segment { base: 0, limit: 0xffff, selector: 0, attributes: 0x93 };
        self.segments = [data; 8];
        self.set_segment(
            SegmentName::Cs,
            Segment { base: 0xffff_0000, selector: 0xf000, attributes: 0x9b, ..data },
        );
        self.set_segment(SegmentName::Ldtr, Segment { attributes: 0x82, ..data });
        self.set_segment(SegmentName::Tr, Segment { attributes: 0x8b, ..data });
    }

    pub(super) fn into_frames(self) -> [Option<Frame>; 8] {
        assert_eq!(self.loaded_on, None, "a virtual processor ended while it was loaded");
        self.frames
    }

    /// Its script.
    pub fn script(&self) -> &Script {
        &self.script
    }

    /// Reads the partition's memory as the guest does; the exit is the fault.
    pub fn read_memory(&mut self, gpa: u64, bytes: &mut [u8]) -> Result<(), Exit> {
        self.space.read(gpa, bytes).map_err(|fault| slat_fault(fault.0, Access::READ))
    }

    /// Writes the partition's memory as the guest does; the exit is the fault.
    pub fn write_memory(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), Exit> {
        self.space.write(gpa, bytes).map_err(|fault| slat_fault(fault.0, Access::WRITE))
    }

    /// From now on it asks for windows where interrupts are offered, as machines do that cannot deliver them.
    pub fn exit_for_offers(&mut self) {
        self.exits_for_offers = true;
    }

    /// Whether exceptions of `vector` exit.
    pub fn intercepts_exception(&self, vector: u8) -> bool {
        self.intercepted_exceptions >> vector & 1 != 0
    }

    /// The bits of CR4 whose setting exits.
    pub fn refused_cr4(&self) -> u64 {
        self.refused_cr4
    }

    /// Whether HLT exits.
    pub fn intercepts_halt(&self) -> bool {
        self.halt_intercepted
    }

    /// The exit that comes before any instruction, if one is due.
    fn exit_at_once(&self, processor: &FakeProcessor) -> Option<Exit> {
        let kicked = processor.local.kicked.load(Ordering::SeqCst);
        if self.parent {
            return kicked.then(|| {
                processor.local.kicked.store(false, Ordering::SeqCst);
                Exit::Kick
            });
        }
        processor.local.pending(processor.machine.tsc()).then_some(Exit::Interrupt)
    }

    /// The window exit that is due between two instructions.
    pub(super) fn window(&mut self) -> Option<Exit> {
        let interruptible = self.get(Reg::Rflags) & INTERRUPTS != 0 && !self.shadow;
        let priority = self.get(Reg::Cr8) & 0xf;
        if self.nmi_window && !self.nmi_masked && !self.shadow {
            return Some(Exit::NmiWindow);
        }
        let open = |vector: u8| interruptible && u64::from(vector >> 4) > priority;
        if let Offer::Waits(vector) = self.offer
            && open(vector)
        {
            self.offer = Offer::Delivered;
            self.script.note_delivered(Event::Interrupt(vector));
        }
        self.interrupt_window.is_some_and(open).then_some(Exit::InterruptWindow)
    }
}

fn slat_fault(gpa: u64, access: Access) -> Exit {
    Exit::SlatFault { gpa, gva: None, access, page_table_walk: false }
}

impl Vcpu for FakeVcpu {
    type Slat = FakeSlat;
    type Processor = FakeProcessor;

    fn load(&mut self, processor: &mut FakeProcessor) {
        assert_eq!(self.loaded_on, None, "a virtual processor is loaded twice");
        self.loaded_on = Some(processor.index);
    }

    fn unload(&mut self, processor: &mut FakeProcessor) {
        assert_eq!(self.loaded_on, Some(processor.index), "a virtual processor is unloaded elsewhere");
        self.loaded_on = None;
    }

    /// When the script is at its end a child is interrupted for the parent (vector 0xff), and the parent is kicked.
    fn run(&mut self, processor: &mut FakeProcessor) -> Exit {
        assert_eq!(self.loaded_on, Some(processor.index), "a virtual processor runs without being loaded");
        let script = self.script.clone();
        script.note_run();
        if let Some(exit) = self.exit_at_once(processor) {
            return exit;
        }
        if let Some(event) = self.event.take() {
            self.nmi_masked |= event == Event::Nmi;
            script.note_delivered(event);
        }
        if let Some(exit) = self.window() {
            return exit;
        }
        self.shadow = false;
        script.advance(self).unwrap_or_else(|| {
            if self.parent {
                return Exit::Kick;
            }
            processor.local.post(0xff);
            Exit::Interrupt
        })
    }

    fn flush_tlb(&mut self) {
        self.script.note_flush();
    }

    fn gprs(&self) -> &[u64; 16] {
        &self.gprs
    }

    fn gprs_mut(&mut self) -> &mut [u64; 16] {
        &mut self.gprs
    }

    fn get(&self, register: Reg) -> u64 {
        self.registers[register as usize]
    }

    fn set(&mut self, register: Reg, value: u64) {
        self.registers[register as usize] = value;
    }

    fn segment(&self, name: SegmentName) -> Segment {
        self.segments[name as usize]
    }

    fn set_segment(&mut self, name: SegmentName, value: Segment) {
        self.segments[name as usize] = value;
    }

    fn table(&self, name: TableName) -> Table {
        self.tables[name as usize]
    }

    fn set_table(&mut self, name: TableName, value: Table) {
        self.tables[name as usize] = value;
    }

    fn cpl(&self) -> u8 {
        (self.segment(SegmentName::Ss).attributes >> 5 & 3) as u8
    }

    fn xsave(&self) -> &[u8; 4096] {
        assert_eq!(self.loaded_on, None, "the XSAVE area is that of an unloaded processor");
        &self.xsave
    }

    fn xsave_mut(&mut self) -> &mut [u8; 4096] {
        assert_eq!(self.loaded_on, None, "the XSAVE area is that of an unloaded processor");
        &mut self.xsave
    }

    fn xmm(&mut self, index: usize) -> u128 {
        let place = 160 + 16 * index;
        self.xsave[place..place + 16].try_into().map_or(0, u128::from_le_bytes)
    }

    fn first_xmm(&mut self) -> &[u8; 6 * 16] {
        self.xsave[160..].first_chunk().expect("the area is a page")
    }

    fn set_xmm(&mut self, index: usize, value: u128) {
        let place = 160 + 16 * index;
        self.xsave[place..place + 16].copy_from_slice(&value.to_le_bytes());
    }

    fn pending_event(&self) -> Option<Event> {
        self.event
    }

    fn inject(&mut self, event: Option<Event>) {
        self.event = event;
    }

    fn interrupt_shadow(&self) -> bool {
        self.shadow
    }

    fn set_interrupt_shadow(&mut self, shadow: bool) {
        self.shadow = shadow;
    }

    fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    fn set_nmi_masked(&mut self, masked: bool) {
        self.nmi_masked = masked;
    }

    fn request_interrupt_window(&mut self, vector: Option<u8>) {
        self.interrupt_window = vector;
    }

    fn offer_interrupt(&mut self, vector: u8) {
        if self.exits_for_offers {
            self.interrupt_window = Some(vector);
        } else {
            (self.interrupt_window, self.offer) = (None, Offer::Waits(vector));
        }
    }

    fn end_offer(&mut self) -> bool {
        std::mem::replace(&mut self.offer, Offer::None) == Offer::Delivered
    }

    fn request_nmi_window(&mut self, request: bool) {
        self.nmi_window = request;
    }

    fn intercept_halt(&mut self, intercept: bool) {
        self.halt_intercepted = intercept;
    }

    fn refuse_cr4(&mut self, bits: u64) {
        self.refused_cr4 = bits;
    }

    fn intercept_exceptions(&mut self, mask: u32) {
        self.intercepted_exceptions = mask;
    }
}
