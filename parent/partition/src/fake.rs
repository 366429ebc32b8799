//! A partition without a hypervisor: intercepts come from a script, registers live in memory.
//!
//! It lets the worker's logic (run loop, emulator, devices, management) be tried on any machine. Address translation
//! is the identity unless a test says otherwise.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use crate::device_memory::DeviceMemory;
use crate::registers::{ArchState, Register, Segments};
use crate::{
    Access, Error, Exception, Intercept, InterruptRequest, Partition, Posted, Result, Translation,
    VirtualProcessor,
};

/// Records the interrupts that devices assert.
#[derive(Clone, Default)]
pub struct FakePartition {
    interrupts: Arc<Mutex<Vec<InterruptRequest>>>,
    synic: Arc<Mutex<FakeSynic>>,
    device_memory: Arc<Mutex<BTreeMap<u64, Arc<DeviceMemory>>>>,
}

/// The SynIC of a [`FakePartition`]: one slot for messages.
#[derive(Default)]
struct FakeSynic {
    slot: Option<Vec<u8>>,
    events: Vec<(u32, u8, u16)>,
    notify: u16,
    time: u64,
}

impl FakePartition {
    /// The interrupts asserted since the last call.
    pub fn take_interrupts(&self) -> Vec<InterruptRequest> {
        self.interrupts.lock().map(|mut list| std::mem::take(&mut *list)).unwrap_or_default()
    }
}

impl FakePartition {
    /// Where memory of devices is mapped.
    pub fn device_memory(&self) -> Vec<u64> {
        self.device_memory.lock().map(|mapped| mapped.keys().copied().collect()).unwrap_or_default()
    }

    fn synic(&self) -> std::sync::MutexGuard<'_, FakeSynic> {
        self.synic.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Empties the message slot, as the guest does.
    pub fn take_message(&self) -> Option<Vec<u8>> {
        self.synic().slot.take()
    }

    /// The SINTs for which a free slot is to be reported; they are forgotten.
    pub fn take_notify(&self) -> u16 {
        std::mem::take(&mut self.synic().notify)
    }

    /// The events signalled since the last call: VP, SINT, flag.
    pub fn take_events(&self) -> Vec<(u32, u8, u16)> {
        std::mem::take(&mut self.synic().events)
    }
}

impl Partition for FakePartition {
    fn post_message(&self, _vp: u32, _sint: u8, _kind: u32, payload: &[u8]) -> Result<Posted> {
        let mut synic = self.synic();
        if synic.slot.is_some() {
            return Ok(Posted::Full);
        }
        synic.slot = Some(payload.to_vec());
        Ok(Posted::Done)
    }

    fn signal_event(&self, vp: u32, sint: u8, flag: u16) -> Result<()> {
        self.synic().events.push((vp, sint, flag));
        Ok(())
    }

    fn notify_deliverable(&self, _vp: u32, sints: u16) -> Result<()> {
        self.synic().notify |= sints;
        Ok(())
    }

    fn reference_time(&self) -> Result<u64> {
        Ok(self.synic().time)
    }

    /// Frozen time does not go on; any other is 1 later after each call.
    fn freeze_time(&self, frozen: bool) -> Result<()> {
        self.synic().time += u64::from(!frozen);
        Ok(())
    }

    fn map_device_memory(&self, gpa: u64, memory: &Arc<DeviceMemory>) -> Result<()> {
        if let Ok(mut mapped) = self.device_memory.lock() {
            mapped.insert(gpa, memory.clone());
        }
        Ok(())
    }

    fn unmap_device_memory(&self, gpa: u64) -> Result<()> {
        if let Ok(mut mapped) = self.device_memory.lock() {
            mapped.remove(&gpa);
        }
        Ok(())
    }

    fn assert_interrupt(&self, request: &InterruptRequest) -> Result<()> {
        if let Ok(mut list) = self.interrupts.lock() {
            list.push(*request);
        }
        Ok(())
    }
}

/// A VP that plays back intercepts; when the script ends it is interrupted for ever.
#[derive(Default)]
pub struct FakeVp {
    /// VP index.
    pub index: u32,
    /// What the next runs return.
    pub script: VecDeque<Intercept>,
    /// Registers in the order of [`Register::ALL`].
    pub registers: [u64; 18],
    /// Segments.
    pub segments: Segments,
    /// Page translations (page number to page number); pages not named map to themselves.
    pub pages: BTreeMap<u64, Option<u64>>,
    /// Exceptions injected.
    pub exceptions: Vec<Exception>,
    /// What the guest left for its crash.
    pub crash_parameters: [u64; 5],
}

impl VirtualProcessor for FakeVp {
    fn index(&self) -> u32 {
        self.index
    }

    fn run(&mut self) -> Result<Intercept> {
        self.script.pop_front().ok_or(Error::Interrupted)
    }

    fn get(&mut self, names: &[Register], values: &mut [u64]) -> Result<()> {
        for (name, value) in names.iter().zip(values) {
            *value = self.registers[*name as usize];
        }
        Ok(())
    }

    fn set(&mut self, values: &[(Register, u64)]) -> Result<()> {
        for (name, value) in values {
            self.registers[*name as usize] = *value;
        }
        Ok(())
    }

    fn segments(&mut self) -> Result<Segments> {
        Ok(self.segments)
    }

    fn set_arch_state(&mut self, state: &ArchState) -> Result<()> {
        self.registers = state.general;
        self.segments = Segments { registers: state.segments, cr0: state.cr0, efer: state.efer };
        Ok(())
    }

    fn translate(&mut self, gva: u64, _access: Access) -> Result<Translation> {
        let page = self.pages.get(&(gva >> 12)).copied().unwrap_or(Some(gva >> 12));
        Ok(match page {
            Some(page) => Translation::Mapped(page << 12 | gva & 0xFFF),
            None => Translation::Fault { present: false },
        })
    }

    fn crash_parameters(&mut self) -> Result<[u64; 5]> {
        Ok(self.crash_parameters)
    }

    fn inject(&mut self, exception: Exception) -> Result<()> {
        self.exceptions.push(exception);
        Ok(())
    }
}
