//! A PC as core sees it: [`parterre_core::machine::Machine`] with either vendor's virtualization extension.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::Ordering::SeqCst;

use parterre_core::machine::Machine;
use parterre_core::memory::Frame;

use crate::cpu::{msr, registers};
use crate::launch::PowerHardware;
use crate::paging::slat::Space;
use crate::physical::{self, PAGE_SIZE};
use crate::processor::{LogicalProcessor, Shared};
use crate::timer::{self, Clock};
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use crate::{apic, power};

/// The machine.
#[derive(Debug)]
pub struct Pc {
    /// The virtualization extension.
    pub vendor: Vendor,
    /// What processors know of each other, in their order.
    pub processors: &'static [&'static Shared],
    /// The clocks.
    pub clock: Clock,
    /// Sleep and reset.
    pub power: PowerHardware,
}

/// A frame that holds a value.
#[derive(Debug)]
pub struct Page<T> {
    frame: Frame,
    value: PhantomData<T>,
}

impl<T> Page<T> {
    fn new(frame: Frame, value: T) -> Self {
        const { assert!(size_of::<T>() <= PAGE_SIZE && align_of::<T>() <= PAGE_SIZE) };
        let page = Self { frame, value: PhantomData };
        // SAFETY: a `Frame` is the only token of its page, which no partition sees; the value fits and is aligned.
        unsafe { page.pointer().write(value) };
        page
    }

    fn pointer(&self) -> *mut T {
        physical::page(self.frame.number()).cast()
    }

    fn take(self) -> (T, Frame) {
        // SAFETY: `new` has put the value there, and the token that could reach it is consumed here.
        let value = unsafe { self.pointer().read() };
        let mut frame = self.frame;
        zero(&mut frame);
        (value, frame)
    }
}

impl<T> Deref for Page<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` has put the value there; only this token reaches it, so borrows of the token are borrows of it.
        unsafe { &*self.pointer() }
    }
}

impl<T> DerefMut for Page<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the token is borrowed exclusively.
        unsafe { &mut *self.pointer() }
    }
}

fn zero(frame: &mut Frame) {
    // SAFETY: the page is the hypervisor's, and its token is borrowed exclusively.
    unsafe { physical::zero(frame.number()) };
}

/// The physical address of `length` bytes from `offset` in `frame`.
fn within(frame: &Frame, offset: usize, length: usize) -> u64 {
    assert!(offset <= PAGE_SIZE && length <= PAGE_SIZE - offset, "an access crosses the end of a frame");
    (frame.number() << 12) + offset as u64
}

impl Machine for Pc {
    type Vcpu = Vcpu;
    type Slat = Space;
    type Processor = LogicalProcessor;
    type Page<T: Send + Sync + 'static> = Page<T>;

    fn emplace<T: Send + Sync + 'static>(&self, frame: Frame, value: T) -> Page<T> {
        Page::new(frame, value)
    }

    fn take<T: Send + Sync + 'static>(&self, page: Page<T>) -> (T, Frame) {
        page.take()
    }

    fn zero(&self, frame: &mut Frame) {
        zero(frame);
    }

    fn read_frame(&self, frame: &Frame, offset: usize, bytes: &mut [u8]) {
        // SAFETY: the page is the hypervisor's; a frame that holds a value is inside a `Page` and cannot come here.
        unsafe { physical::read(within(frame, offset, bytes.len()), bytes) }
    }

    fn write_frame(&self, frame: &Frame, offset: usize, bytes: &[u8]) {
        // SAFETY: as in `read_frame`; frames that are not in a `Page` hold bytes that may be anything.
        unsafe { physical::write(within(frame, offset, bytes.len()), bytes) }
    }

    fn compare_exchange_frame(&self, frame: &Frame, offset: usize, current: u32, new: u32) -> u32 {
        // SAFETY: as in `write_frame`.
        let word = unsafe { physical::atomic32(within(frame, offset, 4)) };
        let word = word.expect("core asks for multiples of 4 only");
        word.compare_exchange(current, new, SeqCst, SeqCst).unwrap_or_else(|found| found)
    }

    fn new_slat(&self, root: Frame) -> Self::Slat {
        Space::new(self.vendor.format().of_child(), root)
    }

    fn end_slat(&self, slat: Self::Slat) -> Frame {
        slat.into_root()
    }

    fn vcpu_frames(&self) -> usize {
        self.vendor.vcpu_frames()
    }

    fn new_vcpu(&self, frames: [Option<Frame>; 8], slat: &Space) -> Vcpu {
        self.vendor.new_child_vcpu(frames, slat)
    }

    fn end_vcpu(&self, vcpu: Vcpu) -> [Option<Frame>; 8] {
        self.vendor.end_vcpu(vcpu)
    }

    fn hypercall_instruction(&self) -> [u8; 3] {
        self.vendor.hypercall_instruction()
    }

    fn tsc(&self) -> u64 {
        timer::tsc()
    }

    fn tsc_frequency(&self) -> u64 {
        self.clock.tsc_frequency
    }

    fn apic_frequency(&self) -> u64 {
        self.clock.apic_frequency
    }

    fn processor_count(&self) -> usize {
        self.processors.len()
    }

    fn apic_id(&self, lp: usize) -> u32 {
        self.processors[lp].apic_id
    }

    fn kick(&self, lp: usize) {
        self.processors[lp].send_kick();
    }

    fn interrupt_parent(&self, lp: usize, vector: u8) {
        apic::send(self.processors[lp].apic_id, vector);
    }

    fn write_icr(&self, value: u64) {
        apic::command(value);
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        registers::cpuid(leaf, subleaf)
    }

    fn read_msr(&self, msr: u32) -> Option<u64> {
        msr::try_read(msr)
    }

    fn write_msr(&self, msr: u32, value: u64) -> bool {
        // SAFETY: core's policy lets through only registers that it lists as harmless to the hypervisor.
        unsafe { msr::try_write(msr, value) }
    }

    fn enter_sleep(&self, sleep_type_a: u8, sleep_type_b: u8) {
        power::enter_sleep(&self.power, sleep_type_a, sleep_type_b);
    }

    fn reset(&self, why: core::fmt::Arguments<'_>) -> ! {
        log::info!("the machine is reset: {why}");
        power::reset(&self.power)
    }

    fn intercept_icr(&self, intercept: bool) {
        self.vendor.intercept_icr(intercept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parterre_core::memory::entry;
    use std::sync::Arc;

    #[repr(align(4096))]
    struct Arena([u8; PAGE_SIZE]);

    fn frame() -> Frame {
        let arena = Box::leak(Box::new(Arena([0xff; PAGE_SIZE])));
        entry::take(physical::address(&raw const arena.0) >> 12)
    }

    #[test]
    fn a_page_gives_back_its_value_and_a_zeroed_frame() {
        let counted = Arc::new(());
        let mut page = Page::new(frame(), (5_u64, Arc::clone(&counted)));
        page.0 += 1;
        assert_eq!((page.0, Arc::strong_count(&counted)), (6, 2));
        let (value, frame) = page.take();
        drop(value);
        assert_eq!(Arc::strong_count(&counted), 1);
        let mut bytes = [1; PAGE_SIZE];
        // SAFETY: the frame is the test's own.
        unsafe { physical::read(within(&frame, 0, PAGE_SIZE), &mut bytes) };
        assert!(bytes.iter().all(|byte| *byte == 0));
    }

    #[test]
    #[should_panic(expected = "crosses the end")]
    fn an_access_stays_in_its_frame() {
        within(&frame(), 4090, 7);
    }
}
