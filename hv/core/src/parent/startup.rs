//! Starting and restarting the parent's processors: INIT and SIPI, which a processor of the parent sends by writing the
//! interrupt command register of its x2APIC (Intel SDM 3A, 9.4 and 11.12.9).
//!
//! INIT cannot be intercepted everywhere, and one that reached a processor would take it away from the hypervisor. So the
//! write is intercepted while such messages are to be expected, and they travel as a word in [`Mailbox`].

use crate::machine::Machine;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Delivery modes of the ICR, bits 10:8.
const MODE_INIT: u64 = 5;
const MODE_STARTUP: u64 = 6;

/// What other processors ask of this one.
#[derive(Default)]
pub(crate) struct Mailbox(AtomicU32);

/// A start message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Reset, then wait for a start-up message.
    Init,
    /// Begin in real mode at this page, if waiting for it.
    Startup(u8),
}

const INIT: u32 = 1 << 9;
const STARTUP: u32 = 1 << 8;

impl Mailbox {
    /// Puts a message in. INIT makes an earlier start-up void; a start-up waits behind an INIT.
    pub fn post(&self, message: Message) {
        match message {
            Message::Init => self.0.store(INIT, SeqCst),
            Message::Startup(page) => {
                // The first of several start-up messages counts, as on a processor that has begun by then.
                let _ = self.0.fetch_update(SeqCst, SeqCst, |word| {
                    (word & STARTUP == 0).then_some(word | STARTUP | u32::from(page))
                });
            }
        }
    }

    /// Whether there is a message.
    pub fn is_waiting(&self) -> bool {
        self.0.load(SeqCst) != 0
    }

    /// Takes the next message out.
    pub fn take(&self) -> Option<Message> {
        let word = self.0.fetch_update(SeqCst, SeqCst, |word| match word {
            0 => None,
            word if word & INIT != 0 => Some(word & !INIT),
            _ => Some(0),
        });
        let word = word.ok()?;
        Some(if word & INIT != 0 { Message::Init } else { Message::Startup(word as u8) })
    }
}

/// What a write of the ICR means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icr {
    /// Nothing the hypervisor has to do with: the physical register takes it.
    Physical,
    /// A level de-assert of INIT, which x2APICs ignore.
    Ignored,
    /// A message for the processor of this APIC id.
    One(u32, Message),
    /// A message for all but the writer.
    Others(Message),
}

/// Reads an ICR value in x2APIC layout.
pub(crate) fn decode_icr(value: u64) -> Icr {
    let message = match value >> 8 & 7 {
        MODE_INIT if value & 1 << 14 == 0 => return Icr::Ignored,
        MODE_INIT => Message::Init,
        MODE_STARTUP => Message::Startup(value as u8),
        _ => return Icr::Physical,
    };
    match value >> 18 & 3 {
        0 => Icr::One((value >> 32) as u32, message),
        3 => Icr::Others(message),
        // To oneself: not a legal combination, and no processor acts on it.
        _ => Icr::Ignored,
    }
}

/// Delivers `message` to processor `lp`.
pub(crate) fn send<M: Machine>(machine: &M, mailbox: &Mailbox, lp: usize, message: Message) {
    mailbox.post(message);
    machine.kick(lp);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_then_two_startups_come_out_as_init_and_the_first_startup() {
        let mailbox = Mailbox::default();
        assert_eq!(mailbox.take(), None);
        mailbox.post(Message::Init);
        mailbox.post(Message::Startup(0x9a));
        mailbox.post(Message::Startup(0x12));
        assert_eq!(mailbox.take(), Some(Message::Init));
        assert_eq!(mailbox.take(), Some(Message::Startup(0x9a)));
        assert_eq!(mailbox.take(), None);
    }

    #[test]
    fn init_voids_an_earlier_startup() {
        let mailbox = Mailbox::default();
        mailbox.post(Message::Startup(1));
        mailbox.post(Message::Init);
        assert_eq!(mailbox.take(), Some(Message::Init));
        assert_eq!(mailbox.take(), None);
    }

    #[test]
    fn the_icr_is_read_as_the_manual_says() {
        assert_eq!(decode_icr(3 << 32 | 0x4500), Icr::One(3, Message::Init));
        assert_eq!(decode_icr(3 << 32 | 0x8500), Icr::Ignored);
        assert_eq!(decode_icr(7 << 32 | 0x4699), Icr::One(7, Message::Startup(0x99)));
        assert_eq!(decode_icr(0xC4500), Icr::Others(Message::Init));
        assert_eq!(decode_icr(0x44500), Icr::Ignored);
        assert_eq!(decode_icr(1 << 32 | 0xFD), Icr::Physical);
        assert_eq!(decode_icr(1 << 32 | 0x402), Icr::Physical);
    }
}
