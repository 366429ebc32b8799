//! The synthetic interrupt controller of one of the parent's processors: its registers, the messages that the root
//! scheduler and doorbells need, and the event ring (TLFS "Inter-Partition Communication"; Linux `mshv_synic.c`).
//!
//! The parent reads message slot 0 only, and a message that it does not know blocks the slot for ever; so nothing goes
//! there but scheduler signals and doorbell notices. The pages are fixed: the parent finds their numbers in the registers.

use crate::{
    machine::Machine,
    memory::{Frame, Visible},
};
use arrayvec::ArrayVec;
use parterre_abi::{
    message::{
        MESSAGE_SIZE, Message, MessageType, NotificationMessagePayload, SIGNAL_PAIRS,
        VpSignalPairSchedulerMessage,
    },
    msr::{OverlayPageMsr, SINT_COUNT, Scontrol, Sint},
    types::{PartitionId, VpIndex},
};
use zerocopy::{FromZeros, IntoBytes};

/// Signals kept for a busy slot; more are found again by asking the virtual processors themselves.
const SIGNALS: usize = 3 * SIGNAL_PAIRS;
/// Entries of an event ring (`HV_SYNIC_EVENT_RING_MESSAGE_COUNT`).
const RING_ENTRIES: usize = 63;
/// Bytes of one ring in the page: two flags, two spare bytes, the entries.
const RING_SIZE: usize = 256;
/// The SINT that messages come on, and the one that doorbells are bound to.
const SINT_MESSAGES: usize = 0;

/// A virtual processor that can run again.
pub(crate) type Signal = (PartitionId, VpIndex);

/// The pages of one processor's SynIC.
pub struct SynicPages {
    /// Messages (SIMP).
    pub messages: Visible,
    /// Event flags (SIEFP).
    pub events: Visible,
    /// Event rings (SIRBP).
    pub rings: Visible,
}

/// One processor's SynIC.
pub(crate) struct ParentSynic {
    pages: SynicPages,
    scontrol: Scontrol,
    messages_enabled: bool,
    events_enabled: bool,
    rings_enabled: bool,
    sints: [Sint; SINT_COUNT],
    signals: ArrayVec<Signal, SIGNALS>,
    signals_lost: bool,
    /// Where the next entry of each ring goes, and whether a notice for the ring is due.
    heads: [u8; SINT_COUNT],
    notices: u16,
}

impl ParentSynic {
    /// A SynIC after reset.
    pub fn new(pages: SynicPages) -> Self {
        Self {
            pages,
            scontrol: Scontrol::new(),
            messages_enabled: false,
            events_enabled: false,
            rings_enabled: false,
            sints: [Sint::RESET; SINT_COUNT],
            signals: ArrayVec::new(),
            signals_lost: false,
            heads: [0; SINT_COUNT],
            notices: 0,
        }
    }

    /// After INIT: registers as after reset, nothing queued.
    pub fn reset(&mut self) {
        self.scontrol = Scontrol::new();
        (self.messages_enabled, self.events_enabled, self.rings_enabled) = (false, false, false);
        self.sints = [Sint::RESET; SINT_COUNT];
        self.signals.clear();
        self.signals_lost = false;
        self.restart_rings();
    }

    /// The parent forgets where it reads the rings when it takes a processor offline; so does the writer.
    pub fn restart_rings(&mut self) {
        self.heads = [0; SINT_COUNT];
        self.notices = 0;
    }

    /// Reads the register SCONTROL, or a page register.
    pub fn scontrol(&self) -> u64 {
        self.scontrol.into()
    }

    /// Writes SCONTROL.
    pub fn set_scontrol(&mut self, value: u64) {
        self.scontrol = value.into();
    }

    /// The page registers: SIMP, SIEFP, SIRBP.
    pub fn page_register(&self, which: PageRegister) -> u64 {
        let (page, enabled) = match which {
            PageRegister::Messages => (&self.pages.messages, self.messages_enabled),
            PageRegister::Events => (&self.pages.events, self.events_enabled),
            PageRegister::Rings => (&self.pages.rings, self.rings_enabled),
        };
        OverlayPageMsr::new().with_enabled(enabled).with_page_number(page.number()).into()
    }

    /// Writes a page register: only the enable bit counts, and the page number must be the one that was read. `None`
    /// refuses another.
    pub fn set_page_register(&mut self, which: PageRegister, value: u64) -> Option<()> {
        let value = OverlayPageMsr::from(value);
        let current = OverlayPageMsr::from(self.page_register(which));
        // A parent that shuts the SynIC down may clear the register as a whole.
        if value.page_number() != current.page_number() && value.enabled() {
            return None;
        }
        match which {
            PageRegister::Messages => self.messages_enabled = value.enabled(),
            PageRegister::Events => self.events_enabled = value.enabled(),
            PageRegister::Rings => self.rings_enabled = value.enabled(),
        }
        Some(())
    }

    /// Reads a SINT.
    pub fn sint(&self, index: usize) -> u64 {
        self.sints.get(index).map_or(0, |sint| (*sint).into())
    }

    /// Writes a SINT; `None` if the value is not allowed.
    pub fn set_sint(&mut self, index: usize, value: u64) -> Option<()> {
        let value = Sint::from(value);
        if !value.is_valid() {
            return None;
        }
        *self.sints.get_mut(index)? = value;
        Some(())
    }

    /// Whether doorbells that are bound to `sint` can be delivered here.
    pub fn takes_doorbells(&self, sint: usize) -> bool {
        self.takes_messages() && self.rings_enabled && self.sints.get(sint).is_some_and(|s| !s.masked())
    }

    /// Whether the parent has enabled what messages need.
    pub fn takes_messages(&self) -> bool {
        self.scontrol.enabled() && self.messages_enabled && !self.sints[SINT_MESSAGES].masked()
    }

    /// Queues a signal and delivers what the slot takes. `false` if there was no room: it has to be sent again when the
    /// parent has taken some.
    pub fn signal<M: Machine>(&mut self, machine: &M, lp: usize, signal: Signal) -> bool {
        let queued = self.signals.try_push(signal).is_ok();
        self.signals_lost |= !queued;
        self.deliver(machine, lp);
        queued
    }

    /// Whether signals were lost since the last question; the virtual processors know who waits.
    pub fn take_signals_lost(&mut self) -> bool {
        core::mem::take(&mut self.signals_lost)
    }

    /// Forgets the signals of a partition that ends.
    pub fn drop_partition(&mut self, partition: PartitionId) {
        self.signals.retain(|(id, _)| *id != partition);
    }

    /// Appends a port id to the ring of `sint`, and announces it unless the parent is reading already. `false` if the
    /// ring is full.
    pub fn ring<M: Machine>(&mut self, machine: &M, lp: usize, sint: usize, port: u32) -> bool {
        let ring = sint * RING_SIZE;
        let frame = self.pages.rings.frame();
        let head = usize::from(self.heads[sint]);
        let entry = ring + 4 + 4 * head;
        if machine.compare_exchange_frame(frame, entry, 0, port) != 0 {
            machine.write_frame(frame, ring + 1, &[1]);
            return false;
        }
        self.heads[sint] = ((head + 1) % RING_ENTRIES) as u8;
        let mut masked = [0; 1];
        machine.read_frame(frame, ring, &mut masked);
        if masked[0] == 0 {
            machine.write_frame(frame, ring, &[1]);
            self.notices |= 1 << sint;
            self.deliver(machine, lp);
        }
        true
    }

    /// The parent has emptied the slot, or something new is to be said: fills it if it is free.
    pub fn deliver<M: Machine>(&mut self, machine: &M, lp: usize) {
        if !self.takes_messages() || (self.signals.is_empty() && self.notices == 0) {
            return;
        }
        if !self.slot_is_free(machine) {
            return;
        }
        let message = self.next_message();
        let frame = self.pages.messages.frame();
        let bytes = message.as_bytes();
        // The type goes last: a slot with a type is a message.
        machine.write_frame(frame, SINT_MESSAGES * MESSAGE_SIZE + 4, &bytes[4..]);
        machine.compare_exchange_frame(frame, SINT_MESSAGES * MESSAGE_SIZE, 0, message.header.message_type.0);
        let sint = self.sints[SINT_MESSAGES];
        if !sint.polling() {
            machine.interrupt_parent(lp, sint.vector());
        }
    }

    fn next_message(&mut self) -> Message {
        if self.signals.is_empty() {
            let sint = self.notices.trailing_zeros();
            self.notices &= self.notices - 1;
            let payload = NotificationMessagePayload { sint_index: sint };
            return self.flagged(Message::with_payload(MessageType::SYNIC_SINT_INTERCEPT, 0, &payload));
        }
        let mut payload = VpSignalPairSchedulerMessage::new_zeroed();
        let count = self.signals.len().min(SIGNAL_PAIRS);
        for (index, (partition, vp)) in self.signals.drain(..count).enumerate() {
            payload.partition_ids[index] = partition;
            payload.vp_indexes[index] = vp;
        }
        payload.vp_count = count as u8;
        self.flagged(Message::with_payload(MessageType::SCHEDULER_VP_SIGNAL_PAIR, 0, &payload))
    }

    /// `message`, with the flag that asks for an end-of-message write when more is waiting.
    fn flagged(&self, mut message: Message) -> Message {
        let more = !self.signals.is_empty() || self.notices != 0 || self.signals_lost;
        message.header.message_flags.set_message_pending(more);
        message
    }

    /// Whether slot 0 is empty. If it is not, the message in it is marked so that its end will be told.
    fn slot_is_free<M: Machine>(&self, machine: &M) -> bool {
        let frame = self.pages.messages.frame();
        let slot = SINT_MESSAGES * MESSAGE_SIZE;
        if read_word(machine, frame, slot) == 0 {
            return true;
        }
        // Byte 5 of the header holds the flags. The parent may empty the slot meanwhile: look again.
        let word = read_word(machine, frame, slot + 4);
        machine.compare_exchange_frame(frame, slot + 4, word, word | 1 << 8);
        read_word(machine, frame, slot) == 0
    }
}

/// Which page register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageRegister {
    /// SIMP.
    Messages,
    /// SIEFP.
    Events,
    /// SIRBP.
    Rings,
}

fn read_word<M: Machine>(machine: &M, frame: &Frame, offset: usize) -> u32 {
    let mut bytes = [0; 4];
    machine.read_frame(frame, offset, &mut bytes);
    u32::from_le_bytes(bytes)
}
