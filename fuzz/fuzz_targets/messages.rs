//! Messages and event flags in pages that the guest changes while they are delivered.
#![no_main]

use std::cell::{Cell, RefCell};

use libfuzzer_sys::fuzz_target;
use parterre_abi::message::{MESSAGE_SIZE, Message, MessageType};
use parterre_core::synic::{SharedPage, Synic};

/// A page, and a guest that writes the next word of the data somewhere at each access of the hypervisor.
struct Page<'a> {
    bytes: RefCell<[u8; 4096]>,
    guest: RefCell<&'a [u8]>,
    accesses: Cell<u32>,
}

impl Page<'_> {
    fn act(&self) {
        self.accesses.set(self.accesses.get() + 1);
        let mut guest = self.guest.borrow_mut();
        let Some((step, rest)) = guest.split_at_checked(3) else { return };
        *guest = rest;
        let place = usize::from(u16::from_le_bytes([step[0], step[1]])) % 4096;
        self.bytes.borrow_mut()[place] = step[2];
    }

    fn word(&self, offset: usize) -> u32 {
        assert_eq!(offset % 4, 0, "words are aligned");
        let bytes = self.bytes.borrow();
        u32::from_le_bytes(core::array::from_fn(|byte| bytes[offset + byte]))
    }
}

impl SharedPage for Page<'_> {
    fn load(&self, offset: usize) -> u32 {
        self.act();
        self.word(offset)
    }

    fn store(&self, offset: usize, bytes: &[u8]) {
        self.act();
        self.bytes.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn compare_exchange(&self, offset: usize, current: u32, new: u32) -> u32 {
        self.act();
        let was = self.word(offset);
        if was == current {
            self.bytes.borrow_mut()[offset..offset + 4].copy_from_slice(&new.to_le_bytes());
        }
        was
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((steps, guest)) = data.split_at_checked(data.len() / 2) else { return };
    let page = Page { bytes: RefCell::new([0; 4096]), guest: RefCell::new(guest), accesses: Cell::new(0) };
    let mut synic = Synic::new();
    for step in steps.chunks_exact(4) {
        let [what, sint, low, high] = [step[0], step[1], step[2], step[3]];
        let number = u16::from_le_bytes([low, high]);
        let before = page.accesses.get();
        match what % 4 {
            0 => {
                let register = 0x4000_0080 + u32::from(sint) % 32;
                let _ = synic.write(register, u64::from(number) | u64::from(what) << 16);
            }
            1 => {
                let quiet = page.guest.borrow().is_empty();
                let slot = usize::from(sint % 16) * MESSAGE_SIZE;
                let taken = page.word(slot) != 0;
                let message =
                    Message::new(MessageType(u32::from(number)), 1, &step[..2]).unwrap_or(Message::NONE);
                let put = synic.put_message(&page, sint, &message);
                assert!(!(quiet && taken && put.is_ok()), "a message was overwritten");
            }
            2 => {
                let quiet = page.guest.borrow().is_empty();
                let free = synic.slot_is_free(&page, sint);
                let full = page.word(usize::from(sint % 16) * MESSAGE_SIZE) != 0;
                assert!(!(quiet && free && full), "a full slot is called free");
            }
            _ => {
                let _ = synic.signal_event(&page, sint, number);
            }
        }
        assert!(page.accesses.get() - before < 4096, "delivery ends");
    }
});
