//! Tests of the page walk, over a small guest memory.

use super::*;
use core::cell::RefCell;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Guest memory as 64-bit words; what was never written is not there. `Ok` pages end at 1 MiB.
#[derive(Default)]
struct Memory {
    words: RefCell<BTreeMap<u64, u64>>,
    /// Replaces this word before the next compare-exchange, as another processor would.
    race: RefCell<Option<(u64, u64)>>,
}

impl Memory {
    fn set(&self, gpa: u64, value: u64) {
        self.words.borrow_mut().insert(gpa, value);
    }

    fn word(&self, gpa: u64) -> u64 {
        self.words.borrow().get(&gpa).copied().unwrap_or(0)
    }
}

const END: u64 = 1 << 20;

impl GuestMemory for Memory {
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault> {
        for (at, byte) in (gpa..).zip(bytes) {
            if at >= END {
                return Err(GpaFault(at));
            }
            *byte = self.word(at & !7).to_le_bytes()[(at & 7) as usize];
        }
        Ok(())
    }

    fn compare_exchange(&self, gpa: u64, current: u64, new: u64) -> Result<u64, GpaFault> {
        if gpa >= END || !gpa.is_multiple_of(8) {
            return Err(GpaFault(gpa));
        }
        if let Some((at, value)) = self.race.borrow_mut().take() {
            self.set(at, value);
        }
        let seen = self.word(gpa);
        if seen == current {
            self.set(gpa, new);
        }
        Ok(seen)
    }
}

const CR0: u64 = 1 << 31 | 1 << 16 | 1;
const PAE: u64 = 1 << 5;
const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;
const GVA: u64 = 0x7F12_3456_7ABC;

/// Present, writable, user.
const PWU: u64 = 7;

fn long() -> Paging {
    Paging { cr0: CR0, cr3: 0x1000, cr4: PAE, efer: LMA | NXE, rflags: 2, physical_bits: 40 }
}

/// Four levels at 0x1000, 0x2000, 0x3000, 0x4000, leading `GVA` to page 0x55.
fn tree() -> Memory {
    let memory = Memory::default();
    for (level, next) in [(3u64, 0x2000), (2, 0x3000), (1, 0x4000), (0, 0x55000)] {
        memory.set(entry_at(level), next | PWU);
    }
    memory
}

fn entry_at(level: u64) -> u64 {
    0x1000 * (4 - level) + (GVA >> (12 + 9 * level) & 0x1FF) * 8
}

fn ask(access: Access, privilege: Privilege) -> Request {
    Request { access, privilege, smap_override: false, update: false }
}

fn user(access: Access) -> Request {
    ask(access, Privilege::User)
}

fn supervisor(access: Access) -> Request {
    ask(access, Privilege::Supervisor)
}

fn gpa(result: Result<Translation, WalkFault>) -> Option<u64> {
    result.ok().map(|translation| translation.gpa)
}

#[test]
fn four_levels() {
    let memory = tree();
    assert_eq!(gpa(walk(&memory, &long(), GVA, user(Access::WRITE))), Some(0x55ABC));
    memory.set(entry_at(0), 0x55000 | PWU | 1 << 7 | 1 << 4);
    assert_eq!(walk(&memory, &long(), GVA, user(Access::READ)).unwrap().pat_index, 6);
    assert_eq!(walk(&memory, &long(), 1 << 47, user(Access::READ)), Err(WalkFault::NotCanonical));
    assert_eq!(walk(&memory, &long(), !0 << 46, user(Access::READ)), Err(WalkFault::NotPresent { code: 4 }));
}

#[test]
fn five_levels() {
    let memory = tree();
    memory.set(0x7000, 0x1000 | PWU);
    let paging = Paging { cr3: 0x7000, cr4: PAE | 1 << 12, ..long() };
    assert_eq!(gpa(walk(&memory, &paging, GVA, user(Access::READ))), Some(0x55ABC));
    assert_eq!(walk(&memory, &paging, 1 << 56, user(Access::READ)), Err(WalkFault::NotCanonical));
    assert!(walk(&memory, &paging, 1 << 47, user(Access::READ)).unwrap_err().page_fault().is_some());
}

#[test]
fn large_pages() {
    let memory = tree();
    memory.set(entry_at(1), 0x60_0000 | PWU | 1 << 7);
    assert_eq!(gpa(walk(&memory, &long(), GVA, user(Access::READ))), Some(0x60_0000 | GVA & 0x1F_FFFF));
    memory.set(entry_at(2), 0x4000_0000 | PWU | 1 << 7 | 1 << 12);
    let translation = walk(&memory, &long(), GVA, user(Access::READ)).unwrap();
    assert_eq!(translation.gpa, 0x4000_0000 | GVA & 0x3FFF_FFFF);
    assert_eq!(translation.pat_index, 4);
    memory.set(entry_at(2), 0x4000_2000 | PWU | 1 << 7);
    assert_eq!(walk(&memory, &long(), GVA, user(Access::READ)), Err(WalkFault::Reserved { code: 0xD }));
    memory.set(entry_at(3), 0x2000 | PWU | 1 << 7);
    assert_eq!(
        walk(&memory, &long(), GVA, supervisor(Access::WRITE)),
        Err(WalkFault::Reserved { code: 0xB })
    );
}

#[test]
fn every_level_is_checked() {
    for level in 0..4 {
        let memory = tree();
        let whole = memory.word(entry_at(level));
        memory.set(entry_at(level), whole & !1);
        assert_eq!(walk(&memory, &long(), GVA, user(Access::WRITE)), Err(WalkFault::NotPresent { code: 6 }));
        memory.set(entry_at(level), whole & !2);
        assert_eq!(walk(&memory, &long(), GVA, user(Access::WRITE)), Err(WalkFault::Protection { code: 7 }));
        assert!(walk(&memory, &long(), GVA, user(Access::READ)).is_ok());
        memory.set(entry_at(level), whole & !4);
        assert_eq!(walk(&memory, &long(), GVA, user(Access::READ)), Err(WalkFault::Protection { code: 5 }));
        assert!(walk(&memory, &long(), GVA, supervisor(Access::READ)).is_ok());
        memory.set(entry_at(level), whole | 1 << 63);
        assert_eq!(
            walk(&memory, &long(), GVA, user(Access::EXECUTE)),
            Err(WalkFault::Protection { code: 0x15 })
        );
        let no_nxe = Paging { efer: LMA, ..long() };
        assert_eq!(
            walk(&memory, &no_nxe, GVA, user(Access::EXECUTE)),
            Err(WalkFault::Reserved { code: 0xD })
        );
        memory.set(entry_at(level), whole | 1 << 40);
        assert_eq!(walk(&memory, &long(), GVA, user(Access::READ)), Err(WalkFault::Reserved { code: 0xD }));
    }
}

#[test]
fn supervisor_rules() {
    let memory = tree();
    let smep = Paging { cr4: PAE | 1 << 20, ..long() };
    assert!(walk(&memory, &long(), GVA, supervisor(Access::EXECUTE)).is_ok());
    assert_eq!(
        walk(&memory, &smep, GVA, supervisor(Access::EXECUTE)),
        Err(WalkFault::Protection { code: 0x11 })
    );
    assert!(walk(&memory, &smep, GVA, supervisor(Access::READ)).is_ok());
    let smap = Paging { cr4: PAE | 1 << 21, ..long() };
    assert_eq!(walk(&memory, &smap, GVA, supervisor(Access::READ)), Err(WalkFault::Protection { code: 1 }));
    assert!(walk(&memory, &smap, GVA, supervisor(Access::EXECUTE)).is_ok());
    let with_ac = Paging { rflags: 1 << 18, ..smap };
    assert!(walk(&memory, &smap, GVA, Request::new(Access::READ, 0, &with_ac)).is_ok());
    assert!(walk(&memory, &smap, GVA, Request::new(Access::READ, 3, &smap)).is_ok());
    assert!(walk(&memory, &smap, GVA, ask(Access::READ | Access::EXECUTE, Privilege::Exempt)).is_ok());
    memory.set(entry_at(0), 0x55001);
    assert!(walk(&memory, &long(), GVA, supervisor(Access::WRITE)).is_err());
    let no_wp = Paging { cr0: CR0 & !(1 << 16), ..long() };
    assert!(walk(&memory, &no_wp, GVA, supervisor(Access::WRITE)).is_ok());
    assert!(walk(&memory, &long(), GVA, user(Access::empty())).is_ok(), "translation only");
}

#[test]
fn pae() {
    let paging = Paging { cr3: 0x1020, efer: NXE, ..long() };
    let memory = Memory::default();
    let gva = 0xC060_1123u64;
    memory.set(0x1020 + 3 * 8, 0x2001);
    memory.set(0x2000 + 3 * 8, 0x3000 | PWU);
    memory.set(0x3000 + 8, 0x55000 | PWU);
    assert_eq!(gpa(walk(&memory, &paging, gva, user(Access::WRITE))), Some(0x55123));
    memory.set(0x2000 + 3 * 8, 0x20_0000 | PWU | 1 << 7);
    assert_eq!(gpa(walk(&memory, &paging, gva, user(Access::WRITE))), Some(0x20_1123));
    memory.set(0x2000 + 3 * 8, 0x20_0000 | PWU | 1 << 7 | 1 << 52);
    assert!(matches!(walk(&memory, &paging, gva, user(Access::READ)), Err(WalkFault::Reserved { .. })));
    memory.set(0x1020 + 3 * 8, 0x2003);
    assert_eq!(walk(&memory, &paging, gva, user(Access::READ)), Err(WalkFault::Reserved { code: 0xD }));
}

#[test]
fn two_levels_of_32_bits() {
    let paging = Paging { cr4: 1 << 4, efer: NXE, ..long() };
    let memory = Memory::default();
    // Directory entry 1 is the high half of the word at 0x1000; so is table entry 3 of its word.
    memory.set(0x1000, (0x2000 | PWU) << 32);
    memory.set(0x2008, (0x55000 | PWU) << 32 | 0x1234);
    let gva = 0x0040_3567;
    let request = Request { update: true, ..user(Access::WRITE) };
    assert_eq!(gpa(walk(&memory, &paging, gva, request)), Some(0x55567));
    assert_eq!(memory.word(0x2008), (0x55000 | PWU | 0x60) << 32 | 0x1234, "the neighbour is left alone");
    assert_eq!(memory.word(0x1000), (0x2000 | PWU | 0x20) << 32);
    memory.set(0x1000, (0x0080_0000 | 0x3 << 13 | PWU | 1 << 7) << 32);
    assert_eq!(gpa(walk(&memory, &paging, gva, user(Access::READ))), Some(0x3_0080_3567));
    memory.set(0x1000, (0x00A0_0000 | PWU | 1 << 7) << 32);
    assert_eq!(walk(&memory, &paging, gva, user(Access::READ)), Err(WalkFault::Reserved { code: 0xD }));
    let narrow = Paging { physical_bits: 33, ..paging };
    memory.set(0x1000, (0x0080_0000 | 0x3 << 13 | PWU | 1 << 7) << 32);
    assert!(walk(&memory, &narrow, gva, user(Access::READ)).is_err());
    let no_pse = Paging { cr4: 0, ..paging };
    memory.set(0x1000, (0x2000 | PWU | 1 << 7) << 32);
    assert_eq!(gpa(walk(&memory, &no_pse, gva, user(Access::READ))), Some(0x55567));
}

#[test]
fn without_paging_addresses_have_32_bits() {
    let paging = Paging { cr0: 0x10, ..long() };
    let memory = Memory::default();
    assert_eq!(gpa(walk(&memory, &paging, 0x1_0000_0FF0, user(Access::EXECUTE))), Some(0xFF0));
}

#[test]
fn accessed_and_dirty_bits() {
    let memory = tree();
    let request = Request { update: true, ..user(Access::READ) };
    walk(&memory, &long(), GVA, request).unwrap();
    for level in 0..4 {
        assert_eq!(memory.word(entry_at(level)) & 0x60, 0x20);
    }
    walk(&memory, &long(), GVA, Request { access: Access::WRITE, ..request }).unwrap();
    assert_eq!(memory.word(entry_at(0)) & 0x60, 0x60);
    assert_eq!(memory.word(entry_at(1)) & 0x60, 0x20);
}

#[test]
fn an_entry_that_changes_is_read_again() {
    let memory = tree();
    let request = Request { update: true, ..user(Access::WRITE) };
    *memory.race.borrow_mut() = Some((entry_at(1), 0x5000 | PWU));
    memory.set(0x5000 + (GVA >> 12 & 0x1FF) * 8, 0x66000 | PWU);
    assert_eq!(gpa(walk(&memory, &long(), GVA, request)), Some(0x66ABC));
    assert_eq!(memory.word(entry_at(0)) & 0x40, 0, "the old page was not marked dirty");
}

#[test]
fn tables_outside_memory() {
    let memory = tree();
    let far = Paging { cr3: END, ..long() };
    assert!(matches!(
        walk(&memory, &far, GVA, user(Access::READ)),
        Err(WalkFault::Table { write: false, .. })
    ));
}

#[test]
fn instructions_are_fetched_across_pages() {
    let memory = tree();
    let at = (GVA & !0xFFF) + 0xFFB;
    memory.set(0x55FF8, 0x0706_0504_0302_0100);
    memory.set(0x66000, 0xBBBB_BBBB_BBBB_BBBB);
    memory.set(0x66008, 0xBBBB_BBBB_BBBB_BBBB);
    assert_eq!(fetch(&memory, &long(), 3, at).unwrap()[..], [3, 4, 5, 6, 7]);
    memory.set(entry_at(0) + 8, 0x66000 | PWU);
    let whole = fetch(&memory, &long(), 3, at).unwrap();
    assert_eq!(whole[..], [3, 4, 5, 6, 7, 0xBB, 0xBB, 0xBB, 0xBB, 0xBB, 0xBB, 0xBB, 0xBB, 0xBB, 0xBB]);
    assert!(fetch(&memory, &long(), 3, 0).is_err());
    let real = Paging { cr0: 0x10, efer: 0, ..long() };
    memory.set(0, 0x11);
    assert_eq!(fetch(&memory, &real, 0, 0x55FFB).unwrap().len(), 15);
    assert_eq!(fetch(&memory, &long(), 3, GVA).unwrap().len(), 15);
}

#[test]
fn translation_flags() {
    use parterre_abi::hypercall::{TranslateGvaControlFlags as Flags, TranslateGvaResultCode as ResultCode};
    let smap = Paging { cr4: PAE | 1 << 21, ..long() };
    let memory = tree();
    let ask = |flags: Flags, cpl| {
        let request = Request::of_flags(flags, cpl, &smap).unwrap();
        walk(&memory, &smap, GVA, request).map_err(WalkFault::result_code)
    };
    assert!(ask(Flags::empty(), 0).is_ok());
    assert_eq!(ask(Flags::VALIDATE_READ, 0), Err(ResultCode::PRIVILEGE_VIOLATION));
    assert!(ask(Flags::VALIDATE_READ, 3).is_ok());
    assert!(ask(Flags::VALIDATE_READ | Flags::USER_ACCESS, 0).is_ok());
    assert!(ask(Flags::VALIDATE_READ | Flags::OVERRIDE_SMAP, 0).is_ok());
    assert!(ask(Flags::VALIDATE_READ | Flags::PRIVILEGE_EXEMPT, 0).is_ok());
    assert!(ask(Flags::VALIDATE_READ | Flags::SUPERVISOR_ACCESS, 3).is_err());
    assert_eq!(memory.word(entry_at(0)) & 0x60, 0);
    assert!(ask(Flags::VALIDATE_WRITE | Flags::SET_PAGE_TABLE_BITS, 3).is_ok());
    assert_eq!(memory.word(entry_at(0)) & 0x60, 0x60);
    memory.set(entry_at(0), 0);
    assert_eq!(ask(Flags::empty(), 0), Err(ResultCode::PAGE_NOT_PRESENT));
    memory.set(entry_at(0), PWU | 1 << 51);
    assert_eq!(ask(Flags::empty(), 0), Err(ResultCode::INVALID_PAGE_TABLE_FLAGS));
    memory.set(entry_at(1), END | PWU);
    assert_eq!(ask(Flags::empty(), 0), Err(ResultCode::GPA_UNMAPPED));
    for flags in [
        Flags::USER_ACCESS | Flags::SUPERVISOR_ACCESS,
        Flags::ENFORCE_SMAP | Flags::OVERRIDE_SMAP,
        Flags::SHADOW_STACK,
    ] {
        assert_eq!(Request::of_flags(flags, 0, &smap), None);
    }
}

proptest! {
    #[test]
    fn garbage_never_panics_and_never_grants(
        cr0: u64, cr3 in 0u64..END, cr4: u64, efer: u64, rflags: u64, physical_bits in 0u8..=64, gva: u64,
        words in prop::collection::vec((0u64..END / 8, any::<u64>()), 0..200),
        fill: u64, access in 0u8..8, who in 0u8..3, update: bool,
    ) {
        let memory = Memory::default();
        for page in 0..16 {
            memory.set(page * 0x1000 + (gva >> 12 & 0x1FF) * 8, fill & 0xFFFF | page << 12);
        }
        for (at, value) in words {
            memory.set(at * 8, value);
        }
        let paging = Paging { cr0, cr3, cr4, efer, rflags, physical_bits };
        let privilege = [Privilege::User, Privilege::Supervisor, Privilege::Exempt][usize::from(who)];
        let request = Request {
            access: Access::from_bits_truncate(access),
            privilege,
            smap_override: false,
            update,
        };
        if let Ok(found) = walk(&memory, &paging, gva, request) {
            prop_assert!(found.gpa < 1 << 52 && found.pat_index < 8);
            // Whatever is allowed to users is allowed without privilege checks.
            let exempt = Request { privilege: Privilege::Exempt, update: false, ..request };
            prop_assert_eq!(walk(&memory, &paging, gva, exempt), Ok(found));
        }
        let _ = fetch(&memory, &paging, who, gva);
    }
}
