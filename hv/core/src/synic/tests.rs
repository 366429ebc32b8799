//! Tests of the SynIC against a page that a guest empties.

use super::*;
use crate::apic::Fault;
use core::cell::{Cell, RefCell};
use parterre_abi::message::{Message, MessageType, TimerMessagePayload};
use parterre_abi::msr::{self, OverlayPageMsr, Sint};
use parterre_abi::status::HvStatus;
use proptest::prelude::*;
use std::boxed::Box;
use std::vec::Vec;

/// A page, and what the guest does to it before the next compare-exchange.
struct Page {
    words: RefCell<Box<[u32; 1024]>>,
    guest: Cell<Option<(usize, u32)>>,
}

impl Page {
    fn new() -> Self {
        Self { words: RefCell::new(Box::new([0; 1024])), guest: Cell::new(None) }
    }

    fn word(&self, offset: usize) -> u32 {
        self.words.borrow()[offset / 4]
    }

    fn set(&self, offset: usize, value: u32) {
        self.words.borrow_mut()[offset / 4] = value;
    }

    /// The guest reads the message of a source: its first payload byte and whether more is waiting.
    fn receive(&self, sint: usize) -> Option<(u8, bool)> {
        let slot = sint * 256;
        let kind = self.word(slot);
        let pending = self.word(slot + 4) & 1 << 8 != 0;
        self.set(slot, 0);
        (kind != 0).then(|| (self.word(slot + 16) as u8, pending))
    }
}

impl SharedPage for Page {
    fn load(&self, offset: usize) -> u32 {
        self.word(offset)
    }

    fn store(&self, offset: usize, bytes: &[u8]) {
        for (index, word) in bytes.chunks_exact(4).enumerate() {
            self.set(offset + 4 * index, u32::from_le_bytes(word.try_into().unwrap()));
        }
    }

    fn compare_exchange(&self, offset: usize, current: u32, new: u32) -> u32 {
        if let Some((at, value)) = self.guest.take() {
            self.set(at, value);
        }
        let seen = self.word(offset);
        if seen == current {
            self.set(offset, new);
        }
        seen
    }
}

fn message(number: u8) -> Message {
    Message::new(MessageType(1), 7, &[number]).unwrap()
}

/// Enabled, with both pages and source 2 at vector 0x50.
fn synic() -> Synic {
    let mut synic = Synic::new();
    write(&mut synic, msr::SCONTROL, 1);
    write(&mut synic, msr::SIMP, 0x5001);
    write(&mut synic, msr::SIEFP, 0x6001);
    write(&mut synic, msr::SINT0 + 2, Sint::new().with_vector(0x50).into());
    synic
}

fn write(synic: &mut Synic, number: u32, value: u64) -> Change {
    synic.write(number, value).unwrap().unwrap()
}

#[test]
fn registers() {
    let mut synic = Synic::new();
    for sint in msr::SINT0..=msr::SINT15 {
        assert_eq!(synic.read(sint), Some(0x1_0000));
    }
    assert_eq!(synic.read(msr::SVERSION), Some(1));
    assert_eq!(synic.write(msr::SVERSION, 1), Some(Err(Fault)));
    assert_eq!(synic.read(msr::SIRBP), None);
    assert_eq!(synic.write(msr::SIRBP, 1), None);
    let simp = OverlayPageMsr::from(0x1234_5001);
    assert_eq!(write(&mut synic, msr::SIMP, 0x1234_5001), Change::MessagePage(simp));
    assert_eq!(synic.message_page(), simp);
    assert_eq!(write(&mut synic, msr::SIEFP, 0x6FFE), Change::EventFlagsPage(0x6FFE.into()));
    assert_eq!(synic.read(msr::SIEFP), Some(0x6FFE), "reserved bits are preserved");
    assert_eq!(write(&mut synic, msr::EOM, 5), Change::Deliver);
    assert_eq!(synic.read(msr::EOM), Some(0));
    assert_eq!(synic.write(msr::SINT0 + 3, 15), Some(Err(Fault)));
    assert_eq!(synic.read(msr::SINT0 + 3), Some(0x1_0000), "a refused value changes nothing");
    write(&mut synic, msr::SINT0 + 3, 1 << 16 | 15);
    write(&mut synic, msr::SINT0 + 3, 1 << 18);
    assert_eq!(synic.vector(3), None);
}

#[test]
fn auto_eoi() {
    let mut synic = synic();
    let auto = Sint::new().with_vector(0xF3).with_auto_eoi(true);
    write(&mut synic, msr::SINT0 + 4, auto.into());
    assert!(synic.is_auto_eoi(0xF3));
    assert!(!synic.is_auto_eoi(0x50));
    write(&mut synic, msr::SINT0 + 4, auto.with_masked(true).into());
    assert!(!synic.is_auto_eoi(0xF3));
}

#[test]
fn a_message_needs_an_enabled_synic_and_an_empty_slot() {
    let page = Page::new();
    let mut synic = synic();
    assert_eq!(synic.put_message(&page, 16, &message(1)), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(synic.put_message(&page, 2, &Message::NONE), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(synic.put_message(&page, 2, &message(1)), Ok(Some(0x50)));
    assert_eq!(synic.put_message(&page, 2, &message(2)), Err(HvStatus::OBJECT_IN_USE));
    assert_eq!(page.receive(2), Some((1, true)), "the guest is told to write EOM");
    assert_eq!(synic.put_message(&page, 3, &message(3)), Ok(None), "masked: without an interrupt");
    assert_eq!(page.receive(3), Some((3, false)));
    write(&mut synic, msr::SIMP, 0x5000);
    assert_eq!(synic.put_message(&page, 2, &message(1)), Err(HvStatus::INVALID_SYNIC_STATE));
    write(&mut synic, msr::SIMP, 0x5001);
    write(&mut synic, msr::SCONTROL, 0);
    assert_eq!(synic.put_message(&page, 2, &message(1)), Err(HvStatus::INVALID_SYNIC_STATE));
}

#[test]
fn a_slot_emptied_while_it_is_marked_takes_the_message() {
    let page = Page::new();
    let synic = synic();
    synic.put_message(&page, 2, &message(1)).unwrap();
    page.guest.set(Some((2 * 256, 0)));
    assert_eq!(synic.put_message(&page, 2, &message(2)), Ok(Some(0x50)));
    assert_eq!(page.receive(2), Some((2, false)));
}

#[test]
fn event_flags() {
    let page = Page::new();
    let mut synic = synic();
    let newly = Signalled { newly: true, vector: Some(0x50) };
    assert_eq!(synic.signal_event(&page, 2, 2047), Ok(newly));
    assert_eq!(page.word(2 * 256 + 252), 1 << 31);
    assert_eq!(synic.signal_event(&page, 2, 2047), Ok(Signalled { newly: false, vector: None }));
    page.guest.set(Some((2 * 256, 0x10)));
    assert_eq!(synic.signal_event(&page, 2, 1), Ok(newly));
    assert_eq!(page.word(2 * 256), 0x12, "the guest's own change stays");
    assert_eq!(synic.signal_event(&page, 2, 2048), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(synic.signal_event(&page, 16, 0), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(synic.signal_event(&page, 3, 0), Err(HvStatus::INVALID_SYNIC_STATE), "masked");
    write(&mut synic, msr::SINT0 + 3, Sint::new().with_polling(true).into());
    assert_eq!(synic.signal_event(&page, 3, 0), Ok(Signalled { newly: true, vector: None }));
    write(&mut synic, msr::SIEFP, 0);
    assert_eq!(synic.signal_event(&page, 2, 0), Err(HvStatus::INVALID_SYNIC_STATE));
}

#[test]
fn timer_messages() {
    let message = timer_message(3, 1000, 1005);
    assert_eq!(message.header.message_type, MessageType::TIMER_EXPIRED);
    let payload: TimerMessagePayload = message.payload_as();
    assert_eq!((payload.timer_index, payload.expiration_time, payload.delivery_time), (3, 1000, 1005));
}

proptest! {
    /// However posts, receptions and EOMs interleave: every message arrives once, in order by source, and whoever waits for a
    /// slot of a guest that writes EOM when it was told to is not left waiting.
    #[test]
    fn nothing_is_lost(actions in prop::collection::vec((0u8..3, 0u8..3), 1..80)) {
        let page = Page::new();
        let synic = synic();
        let mut waiting: [Vec<u8>; 3] = Default::default();
        let (mut sent, mut received): ([Vec<u8>; 3], [Vec<u8>; 3]) = Default::default();
        // Sends what waits for a source, as far as its slot takes it.
        let send = |waiting: &mut Vec<u8>, sint: u8| {
            while let Some(first) = waiting.first() {
                match synic.put_message(&page, sint, &message(*first)) {
                    Ok(_) => drop(waiting.remove(0)),
                    Err(status) => return assert_eq!(status, HvStatus::OBJECT_IN_USE),
                }
            }
        };
        let end = [(2, 0), (2, 1), (2, 2)].into_iter().cycle().take(3 * 81);
        for (number, (action, sint)) in actions.into_iter().chain(end).enumerate() {
            let list = &mut waiting[usize::from(sint)];
            if action < 2 {
                sent[usize::from(sint)].push(number as u8);
                list.push(number as u8);
                if list.len() == 1 {
                    send(list, sint);
                }
            } else if let Some((number, pending)) = page.receive(sint.into()) {
                received[usize::from(sint)].push(number);
                prop_assert!(pending || list.is_empty(), "the guest knows that another waits");
                if pending && !list.is_empty() {
                    prop_assert!(synic.slot_is_free(&page, sint));
                    send(list, sint);
                    if !list.is_empty() {
                        prop_assert!(!synic.slot_is_free(&page, sint), "which marks the slot");
                    }
                }
            }
        }
        prop_assert_eq!(sent, received);
    }

    #[test]
    fn any_register_value_is_taken_or_refused(number in msr::SCONTROL..=msr::SINT15, value: u64, page_words in prop::collection::vec((0usize..1024, any::<u32>()), 0..50)) {
        let page = Page::new();
        for (at, value) in page_words {
            page.set(at * 4, value);
        }
        let mut synic = synic();
        let before = synic.clone();
        if synic.write(number, value) == Some(Err(Fault)) {
            prop_assert_eq!(&synic, &before);
        }
        for sint in 0..16 {
            let _ = synic.put_message(&page, sint, &message(1));
            let _ = synic.signal_event(&page, sint, value as u16);
            prop_assert!(synic.vector(sint).is_none_or(|vector| vector >= 16));
        }
    }
}
