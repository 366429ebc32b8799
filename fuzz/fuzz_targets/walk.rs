//! The page walk over tables of the guest's making.
#![no_main]

use std::{cell::RefCell, collections::HashMap};

use libfuzzer_sys::fuzz_target;
use parterre_core::{
    machine::{Access, GpaFault},
    walk::{GuestMemory, Paging, Privilege, Request, fetch, walk},
};

/// Sixteen pages of words that repeat the data, and what was changed of them.
struct Memory<'a> {
    words: &'a [u8],
    changed: RefCell<HashMap<u64, u64>>,
}

impl Memory<'_> {
    fn original(&self, gpa: u64) -> u64 {
        let index = gpa as usize % self.words.len().max(1);
        let bytes = core::array::from_fn(|byte| self.words.get(index + byte).copied().unwrap_or(0));
        u64::from_le_bytes(bytes)
    }

    fn word(&self, gpa: u64) -> Result<u64, GpaFault> {
        if gpa >> 16 != 0 {
            return Err(GpaFault(gpa));
        }
        Ok(self.changed.borrow().get(&gpa).copied().unwrap_or_else(|| self.original(gpa)))
    }
}

impl GuestMemory for Memory<'_> {
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault> {
        for (offset, byte) in (gpa..).zip(bytes) {
            *byte = (self.word(offset & !7)? >> (offset % 8 * 8)) as u8;
        }
        Ok(())
    }

    fn compare_exchange(&self, gpa: u64, current: u64, new: u64) -> Result<u64, GpaFault> {
        assert_eq!(gpa % 8, 0, "words are aligned");
        let was = self.word(gpa)?;
        if was == current {
            self.changed.borrow_mut().insert(gpa, new);
        }
        Ok(was)
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((head, words)) = data.split_at_checked(56) else { return };
    let field = |index: usize| {
        u64::from_le_bytes(core::array::from_fn(|byte| head.get(8 * index + byte).copied().unwrap_or(0)))
    };
    let paging = Paging {
        cr0: field(0),
        cr3: field(1) & 0xF_FFFF,
        cr4: field(2),
        efer: field(3),
        rflags: field(4),
        physical_bits: 12 + (field(5) % 41) as u8,
    };
    let gva = field(6);
    let flags = (field(5) >> 8) as u8;
    let request = Request {
        access: Access::from_bits_truncate(flags),
        privilege: [Privilege::User, Privilege::Supervisor, Privilege::Exempt][usize::from(flags >> 3) % 3],
        smap_override: flags & 1 << 5 != 0,
        update: flags & 1 << 6 != 0,
    };
    let memory = Memory { words, changed: RefCell::default() };
    if let Ok(translation) = walk(&memory, &paging, gva, request) {
        assert_eq!(translation.gpa % 4096, gva % 4096);
    }
    // Accessed and dirty are bits 5 and 6 of an entry, of either size.
    const MARKS: u64 = 0x60 | 0x60 << 32;
    for (gpa, new) in memory.changed.borrow().iter() {
        assert!(request.update, "nobody asked for marks");
        assert_eq!((new ^ memory.original(*gpa)) & !MARKS, 0, "at {gpa:#x}");
    }
    if let Ok(bytes) = fetch(&memory, &paging, (flags >> 6) & 3, gva) {
        assert!(!bytes.is_empty());
    }
});
