//! The SynIC of a child's virtual processor: where its pages lie, and what is sent to it (TLFS "Inter-Partition
//! Communication").
//!
//! Messages and events come from other processors while the virtual processor runs, so none of this needs its lock: the
//! registers have a lock of their own, which is held for a few steps only. There is no queue of messages here: the parent
//! is told when a slot is free (`HvRegisterDeliverabilityNotifications`), and each timer keeps its own message.

use super::{Child, Inner, Vp};
use crate::{
    hypervisor::Hypervisor,
    machine::{Access, Machine},
    memory::{OverlayId, Visible},
    synic::{Change, FramePage, Signalled, Synic, timer_message},
    time::Expiration,
};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use parterre_abi::{
    message::{MESSAGE_PAYLOAD_SIZE, Message},
    msr::{OverlayPageMsr, SINT_COUNT},
    status::{HvResult, HvStatus},
};
use spin::Mutex;

/// See the module.
pub(crate) struct VpSynic {
    registers: Mutex<Synic>,
    /// Some source ends its interrupts by itself. Only then does an interrupt have to look at the registers.
    auto_eoi: AtomicBool,
    /// The message page (SIMP).
    pub messages: Visible,
    /// The event flags page (SIEFP).
    pub events: Visible,
}

impl VpSynic {
    /// A SynIC after creation, with these zeroed pages.
    pub fn new(messages: Visible, events: Visible) -> Self {
        Self { registers: Mutex::default(), auto_eoi: AtomicBool::new(false), messages, events }
    }

    /// Reads a register. `None` if it is none of the SynIC's.
    pub fn read(&self, number: u32) -> Option<u64> {
        self.registers.lock().read(number)
    }

    /// Whether an interrupt with `vector` ends when it is delivered.
    pub fn is_auto_eoi(&self, vector: u8) -> bool {
        self.auto_eoi.load(Relaxed) && self.registers.lock().is_auto_eoi(vector)
    }

    /// Puts a message into the slot of source `sint`; gives the vector to request. For errors see [`Synic::put_message`].
    fn put<M: Machine>(&self, machine: &M, sint: u8, message: &Message) -> HvResult<Option<u8>> {
        let page = FramePage { machine, frame: self.messages.frame() };
        self.registers.lock().put_message(&page, sint, message)
    }

    fn signal<M: Machine>(&self, machine: &M, sint: u8, flag: u16) -> HvResult<Signalled> {
        let page = FramePage { machine, frame: self.events.frame() };
        self.registers.lock().signal_event(&page, sint, flag)
    }

    /// Which of the sources `wanted` could take a message now. The others' slots are marked, so that the guest tells when it
    /// has emptied them.
    pub fn free_slots<M: Machine>(&self, machine: &M, wanted: u16) -> u16 {
        let page = FramePage { machine, frame: self.messages.frame() };
        let registers = self.registers.lock();
        let is_free = |sint: &u8| wanted & 1 << sint != 0 && registers.slot_is_free(&page, *sint);
        (0..SINT_COUNT as u8).filter(is_free).fold(0, |free, sint| free | 1 << sint)
    }
}

impl<M: Machine> Child<M> {
    /// Posts a message to a source of a virtual processor.
    ///
    /// # Errors
    /// As [`Synic::put_message`]; `INVALID_PARAMETER` also for a payload that does not fit a message.
    pub(crate) fn post_message(
        &self,
        hv: &Hypervisor<M>,
        vp: &Vp<M>,
        sint: u8,
        message: &Message,
    ) -> HvResult<()> {
        if usize::from(message.header.payload_size) > MESSAGE_PAYLOAD_SIZE {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let vector = vp.synic.put(&hv.machine, sint, message)?;
        self.request(hv, vp, vector);
        Ok(())
    }

    /// Sets an event flag of a source of a virtual processor; says whether it was clear before.
    ///
    /// # Errors
    /// As [`Synic::signal_event`].
    pub(crate) fn signal_event(&self, hv: &Hypervisor<M>, vp: &Vp<M>, sint: u8, flag: u16) -> HvResult<bool> {
        let signalled = vp.synic.signal(&hv.machine, sint, flag)?;
        self.request(hv, vp, signalled.vector);
        Ok(signalled.newly)
    }

    /// Requests an interrupt of a virtual processor that may run elsewhere.
    fn request(&self, hv: &Hypervisor<M>, vp: &Vp<M>, vector: Option<u8>) {
        if vector.is_some_and(|vector| vp.incoming.post_fixed(vector, false)) {
            self.wake(hv, vp);
        }
    }

    /// Writes a register of the SynIC for its virtual processor, or for the parent while it holds the lock. The outer `None`
    /// for other registers, the inner for values that fault. Afterwards messages that wait may be deliverable.
    pub(super) fn write_synic(
        &self,
        hv: &Hypervisor<M>,
        vp: &Vp<M>,
        number: u32,
        value: u64,
    ) -> Option<Option<()>> {
        let change = {
            let mut registers = vp.synic.registers.lock();
            let change = registers.write(number, value)?;
            vp.synic.auto_eoi.store(registers.has_auto_eoi(), Relaxed);
            change
        };
        let (id, page, frame) = match change {
            Err(_) => return Some(None),
            Ok(Change::None | Change::Deliver) => return Some(Some(())),
            Ok(Change::MessagePage(page)) => (OverlayId::Messages(vp.index), page, &vp.synic.messages),
            Ok(Change::EventFlagsPage(page)) => (OverlayId::EventFlags(vp.index), page, &vp.synic.events),
        };
        self.lay_synic_page(hv, id, page, frame);
        Some(Some(()))
    }

    /// Lays a page of the SynIC where its register says. Beyond the end of memory the guest cannot reach it (TLFS "SIMP
    /// Register"), which is no fault.
    fn lay_synic_page(&self, hv: &Hypervisor<M>, id: OverlayId, register: OverlayPageMsr, frame: &Visible) {
        let place = register.enabled().then(|| register.page_number());
        let access = Access::READ | Access::WRITE;
        if self.lay(hv, id, place, frame, &[], access).is_none() {
            self.lay(hv, id, None, frame, &[], access);
        }
    }
}

impl<M: Machine> Inner<M> {
    /// Delivers the messages of timers that have expired, as far as their slots are free.
    pub(super) fn deliver_timer_messages(&mut self, machine: &M, vp: &Vp<M>, now: u64) {
        for expired in self.timers.undelivered() {
            let Expiration::Message { sint, index, expiration } = expired else { continue };
            if let Ok(vector) = vp.synic.put(machine, sint, &timer_message(index, expiration, now)) {
                self.timers.delivered(index);
                // The virtual processor looks at its interrupts next.
                vector.map(|vector| vp.incoming.post_fixed(vector, false));
            }
        }
    }
}
