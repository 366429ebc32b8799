//! The machine: physical memory, processors' local parts, and what the platform is asked.

use std::{
    collections::HashMap,
    panic::panic_any,
    string::String,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    vec::Vec,
};

use super::lock::Lock;
use super::memory::{FakeMemory, PAGE};
use super::page::FakePage;
use super::processor::{FakeProcessor, Local};
use super::script::Script;
use super::slat::FakeSlat;
use super::vcpu::FakeVcpu;
use crate::machine::Machine;
use crate::memory::Frame;

/// Frames of a virtual processor.
pub(super) const VCPU_FRAMES: usize = 3;
/// What calls the hypervisor.
pub(crate) const HYPERCALL_INSTRUCTION: [u8; 3] = [0x0f, 0x01, 0xd9];

/// What [`FakeMachine`] clones share.
#[derive(Default)]
pub(super) struct Inner {
    pub memory: Arc<FakeMemory>,
    pub locals: Vec<Arc<Local>>,
    pub tsc: AtomicU64,
    /// Ticks that pass with each reading of the time stamp counter.
    pub tick: AtomicU64,
    pub tsc_frequency: u64,
    pub apic_frequency: u64,
    pub cpuid: Lock<HashMap<(u32, u32), [u32; 4]>>,
    pub msrs: Lock<HashMap<u32, u64>>,
    pub written_msrs: Lock<Vec<(u32, u64)>>,
    pub icr: Lock<Vec<u64>>,
    pub icr_intercepted: AtomicBool,
    pub sleep: Lock<Option<(u8, u8)>>,
    pub scripts: Lock<Vec<Arc<Script>>>,
    pub pages: AtomicUsize,
    pub vcpus: AtomicUsize,
}

/// The machine. Clones are the same machine, so a test keeps one and looks at what the hypervisor does to the other.
#[derive(Clone, Default)]
pub struct FakeMachine(pub(super) Arc<Inner>);

/// What a test can do to the machine and learn of it.
impl FakeMachine {
    /// Physical memory.
    pub fn memory(&self) -> &FakeMemory {
        &self.0.memory
    }

    /// The logical processor `index`. It should be asked for once.
    pub fn processor(&self, index: usize) -> FakeProcessor {
        FakeProcessor { machine: self.clone(), local: self.0.locals[index].clone(), index }
    }

    /// The script of the virtual processor that was made as number `index`; those that the test made count too. A script
    /// may be written before its processor is made.
    pub fn script(&self, index: usize) -> Arc<Script> {
        let mut scripts = self.0.scripts.get();
        while scripts.len() <= index {
            scripts.push(Arc::default());
        }
        scripts[index].clone()
    }

    /// How many virtual processors were made so far: the number of the next one's script.
    pub fn vcpus(&self) -> usize {
        self.0.vcpus.load(Ordering::SeqCst)
    }

    /// Sets the time stamp counter.
    pub fn set_tsc(&self, tsc: u64) {
        self.0.tsc.store(tsc, Ordering::SeqCst);
    }

    /// Lets time pass, in ticks of the time stamp counter.
    pub fn pass(&self, ticks: u64) {
        self.0.tsc.fetch_add(ticks, Ordering::SeqCst);
    }

    /// Lets time pass with each reading of the time stamp counter.
    pub fn set_tick(&self, ticks: u64) {
        self.0.tick.store(ticks, Ordering::SeqCst);
    }

    /// Sets what CPUID answers; all other leaves are zeros.
    pub fn set_cpuid(&self, leaf: u32, subleaf: u32, registers: [u32; 4]) {
        self.0.cpuid.get().insert((leaf, subleaf), registers);
    }

    /// Sets a physical model-specific register. Those that were never set do not exist.
    pub fn set_msr(&self, msr: u32, value: u64) {
        self.0.msrs.get().insert(msr, value);
    }

    /// A physical interrupt for the parent on processor `lp`.
    pub fn raise(&self, lp: usize, vector: u8) {
        self.0.locals[lp].post(vector);
    }

    /// A physical NMI that is not the hypervisor's, for a processor that waits.
    pub fn raise_nmi(&self, lp: usize) {
        self.0.locals[lp].nmi.store(true, Ordering::SeqCst);
    }

    /// What happens when processor `lp` next waits and nothing is pending.
    pub fn on_wait(&self, lp: usize, action: impl FnOnce(&Self) + Send + 'static) {
        self.0.locals[lp].on_wait.get().push_back(std::boxed::Box::new(action));
    }

    /// Takes the physical interrupts that wait for the parent on processor `lp`.
    pub fn take_parent_interrupts(&self, lp: usize) -> Vec<u8> {
        core::mem::take(&mut self.0.locals[lp].parent.get())
    }

    /// Whether processor `lp` was kicked and has not noticed.
    pub fn is_kicked(&self, lp: usize) -> bool {
        self.0.locals[lp].kicked.load(Ordering::SeqCst)
    }

    /// Takes what was written to the physical interrupt command register.
    pub fn take_icr(&self) -> Vec<u64> {
        core::mem::take(&mut self.0.icr.get())
    }

    /// Whether the parent's writes of the interrupt command register are intercepted.
    pub fn icr_intercepted(&self) -> bool {
        self.0.icr_intercepted.load(Ordering::SeqCst)
    }

    /// Takes the writes of physical model-specific registers.
    pub fn take_written_msrs(&self) -> Vec<(u32, u64)> {
        core::mem::take(&mut self.0.written_msrs.get())
    }

    /// The sleep types that were written, if any.
    pub fn sleep(&self) -> Option<(u8, u8)> {
        *self.0.sleep.get()
    }

    /// How many values live in pages ([`Machine::emplace`]).
    pub fn live_pages(&self) -> usize {
        self.0.pages.load(Ordering::SeqCst)
    }
}

impl Machine for FakeMachine {
    type Vcpu = FakeVcpu;
    type Slat = FakeSlat;
    type Processor = FakeProcessor;
    type Page<T: Send + Sync + 'static> = FakePage<T>;

    fn emplace<T: Send + Sync + 'static>(&self, frame: Frame, value: T) -> FakePage<T> {
        self.0.pages.fetch_add(1, Ordering::SeqCst);
        FakePage::new(frame, value)
    }

    fn take<T: Send + Sync + 'static>(&self, page: FakePage<T>) -> (T, Frame) {
        self.0.pages.fetch_sub(1, Ordering::SeqCst);
        let (value, mut frame) = page.into_parts();
        self.zero(&mut frame);
        (value, frame)
    }

    fn zero(&self, frame: &mut Frame) {
        self.memory().zero(frame.number());
    }

    fn read_frame(&self, frame: &Frame, offset: usize, bytes: &mut [u8]) {
        self.memory().read(frame.number(), offset, bytes);
    }

    fn write_frame(&self, frame: &Frame, offset: usize, bytes: &[u8]) {
        self.memory().write(frame.number(), offset, bytes);
    }

    fn compare_exchange_frame(&self, frame: &Frame, offset: usize, current: u32, new: u32) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < PAGE, "a word of a page is aligned");
        let memory = self.memory();
        let was = memory.compare_exchange(frame.number(), offset, &current.to_le_bytes(), &new.to_le_bytes());
        was.try_into().map_or(0, u32::from_le_bytes)
    }

    fn new_slat(&self, root: Frame) -> FakeSlat {
        FakeSlat::new(self.0.memory.clone(), Some(root))
    }

    fn end_slat(&self, slat: FakeSlat) -> Frame {
        slat.into_root().expect("only the parent's address space has no root, and it never ends")
    }

    fn vcpu_frames(&self) -> usize {
        VCPU_FRAMES
    }

    fn new_vcpu(&self, frames: [Option<Frame>; 8], slat: &FakeSlat) -> FakeVcpu {
        assert_eq!(frames.iter().flatten().count(), VCPU_FRAMES, "a virtual processor's frames");
        FakeVcpu::new(frames, self, slat, false)
    }

    fn end_vcpu(&self, vcpu: FakeVcpu) -> [Option<Frame>; 8] {
        vcpu.into_frames()
    }

    fn hypercall_instruction(&self) -> [u8; 3] {
        HYPERCALL_INSTRUCTION
    }

    fn tsc(&self) -> u64 {
        self.0.tsc.fetch_add(self.0.tick.load(Ordering::SeqCst), Ordering::SeqCst)
    }

    fn tsc_frequency(&self) -> u64 {
        self.0.tsc_frequency
    }

    fn apic_frequency(&self) -> u64 {
        self.0.apic_frequency
    }

    fn processor_count(&self) -> usize {
        self.0.locals.len()
    }

    fn apic_id(&self, lp: usize) -> u32 {
        self.0.locals[lp].apic_id
    }

    fn kick(&self, lp: usize) {
        self.0.locals[lp].kicked.store(true, Ordering::SeqCst);
    }

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn interrupt_parent(&self, lp: usize, vector: u8) {
        self.raise(lp, vector);
    }

    fn write_icr(&self, value: u64) {
        self.0.icr.get().push(value);
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.0.cpuid.get().get(&(leaf, subleaf)).copied().unwrap_or_default()
    }

    fn read_msr(&self, msr: u32) -> Option<u64> {
        self.0.msrs.get().get(&msr).copied()
    }

    fn write_msr(&self, msr: u32, value: u64) -> bool {
        self.0.written_msrs.get().push((msr, value));
        self.0.msrs.get().get_mut(&msr).map(|register| *register = value).is_some()
    }

    fn enter_sleep(&self, sleep_type_a: u8, sleep_type_b: u8) {
        *self.0.sleep.get() = Some((sleep_type_a, sleep_type_b));
    }

    fn reset(&self, _: core::fmt::Arguments<'_>) -> ! {
        panic_any(String::from("the machine was reset"))
    }

    fn intercept_icr(&self, intercept: bool) {
        self.0.icr_intercepted.store(intercept, Ordering::SeqCst);
    }
}
