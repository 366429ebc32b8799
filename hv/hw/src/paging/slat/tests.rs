//! The tree against a model that holds one entry for each page, with real memory for tables and made-up frames for what
//! is mapped (nothing looks into those).

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::physical;

fn page_layout() -> Layout {
    Layout::from_size_align(4096, 4096).unwrap()
}

fn allocate() -> Frame {
    // SAFETY: the layout is not empty.
    token::take(physical::address(unsafe { alloc_zeroed(page_layout()) }) >> 12)
}

fn deallocate(frame: Frame) {
    // SAFETY: it came from `allocate`, and the token proves that nobody has it any more.
    unsafe { dealloc(physical::page(token::store(frame)), page_layout()) };
}

/// Counts what is out; refuses beyond `limit`.
struct Tables {
    out: usize,
    reserved: usize,
    limit: usize,
}

impl Tables {
    fn new(limit: usize) -> Self {
        Self { out: 0, reserved: 0, limit }
    }
}

impl TableSource for Tables {
    fn take(&mut self) -> Option<Frame> {
        (self.out + self.reserved < self.limit).then(|| {
            self.out += 1;
            allocate()
        })
    }

    fn give(&mut self, frame: Frame) {
        self.out -= 1;
        deallocate(frame);
    }

    fn reserve(&mut self) -> bool {
        let room = self.out + self.reserved < self.limit;
        self.reserved += usize::from(room);
        room
    }

    fn take_reserved(&mut self) -> Option<Frame> {
        assert!(self.reserved > 0, "a table was split for which none was set aside");
        self.reserved -= 1;
        self.out += 1;
        Some(allocate())
    }

    fn unreserve(&mut self) {
        self.reserved = self.reserved.checked_sub(1).expect("gave up a reservation that was not made");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Page {
    NoAccess,
    Lent(u64, Bits),
    Owned(u64, Bits),
}

type Bits = u8;

/// What the format can express of the rights in `bits`.
fn given(bits: Bits) -> Access {
    format::access(Format::Npt.leaf(Access::from_bits_truncate(bits), false))
}

#[derive(Clone, Debug)]
enum Action {
    Fill { page: u64, pages: u64, no_access: bool },
    Lend { page: u64, frame: u64, bits: Bits },
    LendLarge { page: u64, frame: u64, bits: Bits },
    Own { page: u64, frame: u64, bits: Bits },
    Touch { page: u64, accessed: Option<bool>, dirty: Option<bool> },
    SplitAll,
}

/// Pages around boundaries of all levels, so that actions meet.
fn page() -> impl Strategy<Value = u64> {
    let base = prop::sample::select(vec![0, 512, 1024, (1 << 18) - 512, 1 << 18, (1 << 27) - 512, 1 << 27]);
    (base, prop_oneof![Just(0), 0..4_u64, 508..516_u64]).prop_map(|(base, offset)| base + offset)
}

fn action() -> impl Strategy<Value = Action> {
    let length = prop_oneof![1..6_u64, 500..1030_u64, (1 << 18) - 600..(1 << 18) + 600_u64];
    prop_oneof![
        (page(), length, any::<bool>()).prop_map(|(page, pages, no_access)| Action::Fill {
            page,
            pages,
            no_access
        }),
        (page(), 1..1_u64 << 30, 0..8_u8).prop_map(|(page, frame, bits)| Action::Lend { page, frame, bits }),
        (page(), 1..1_u64 << 20, 0..8_u8).prop_map(|(page, frame, bits)| Action::LendLarge {
            page: page & !511,
            frame: frame * 512,
            bits
        }),
        (page(), 1..1_u64 << 30, 0..8_u8).prop_map(|(page, frame, bits)| Action::Own { page, frame, bits }),
        (page(), any::<Option<bool>>(), any::<Option<bool>>())
            .prop_map(|(page, accessed, dirty)| { Action::Touch { page, accessed, dirty } }),
        Just(Action::SplitAll),
    ]
}

struct Model {
    /// Pages that are memory.
    memory: BTreeMap<u64, Page>,
    /// For the rest: first page of each stretch without access, and its end.
    no_access: Vec<(u64, u64)>,
}

impl Model {
    fn clear(&mut self, page: u64, pages: u64) -> Vec<Page> {
        let end = page + pages;
        let gone: Vec<u64> = self.memory.range(page..end).map(|(page, _)| *page).collect();
        let cut = |&(from, to): &(u64, u64)| [(from, to.min(page)), (from.max(end), to)];
        self.no_access = self.no_access.iter().flat_map(cut).filter(|(from, to)| from < to).collect();
        gone.iter().map(|page| self.memory.remove(page).unwrap()).collect()
    }

    fn get(&self, page: u64) -> Option<Page> {
        let without = self.no_access.iter().any(|(from, to)| (*from..*to).contains(&page));
        self.memory.get(&page).copied().or(without.then_some(Page::NoAccess))
    }
}

/// What came back, page by page, without rights.
fn flatten(released: Vec<Released>) -> Vec<Page> {
    let pages = |one| match one {
        Released::Lent(lent) => {
            (0..u64::from(lent.pages())).map(|n| Page::Lent(lent.first() + n, 0)).collect()
        }
        Released::Owned(frame) => vec![Page::Owned(frame.number(), 0)],
    };
    let mut all: Vec<Page> = released.into_iter().flat_map(pages).collect();
    all.sort();
    all
}

fn without_rights(pages: Vec<Page>) -> Vec<Page> {
    let strip = |page| match page {
        Page::Lent(frame, _) => Page::Lent(frame, 0),
        Page::Owned(frame, _) => Page::Owned(frame, 0),
        Page::NoAccess => Page::NoAccess,
    };
    let mut all: Vec<Page> = pages.into_iter().map(strip).collect();
    all.sort();
    all
}

struct Bench {
    space: Space,
    tables: Tables,
    model: Model,
}

impl Bench {
    fn new(limit: usize) -> Self {
        let model = Model { memory: BTreeMap::new(), no_access: Vec::new() };
        Self { space: Space::new(Format::Npt, allocate()), tables: Tables::new(limit), model }
    }

    fn set(&mut self, page: u64, pages: u64, run: Run) -> (Result<(), OutOfTables>, Vec<Page>) {
        let mut released = Vec::new();
        let result = self.space.set(page, pages, run, &mut self.tables, &mut |one| released.push(one));
        (result, flatten(released))
    }

    /// Sets memory, and the model if that succeeds. A refused run comes back.
    fn set_memory(&mut self, page: u64, pages: u64, run: Run, content: impl Fn(u64) -> Page) {
        let (result, released) = self.set(page, pages, run);
        let own: Vec<Page> = (0..pages).map(&content).collect();
        if result.is_err() {
            assert_eq!(released, without_rights(own));
            return;
        }
        assert_eq!(released, without_rights(self.model.clear(page, pages)));
        self.model.memory.extend((page..).zip(own));
    }

    fn apply(&mut self, action: &Action) {
        match *action {
            Action::Fill { page, pages, no_access } => self.fill(page, pages, no_access),
            Action::Lend { page, frame, bits } => {
                let run = Run::Lent(token::take_lent(frame, 1), Access::from_bits_truncate(bits));
                self.set_memory(page, 1, run, |n| Page::Lent(frame + n, bits));
            }
            Action::LendLarge { page, frame, bits } => {
                let run = Run::Lent(token::take_lent(frame, 512), Access::from_bits_truncate(bits));
                self.set_memory(page, 512, run, |n| Page::Lent(frame + n, bits));
            }
            Action::Own { page, frame, bits } => {
                let run = Run::Owned(token::take(frame), Access::from_bits_truncate(bits));
                self.set_memory(page, 1, run, |n| Page::Owned(frame + n, bits));
            }
            Action::Touch { page, accessed, dirty } => {
                self.space.page_state(page, PageStateChange { accessed, dirty });
                let state = self.space.page_state(page, PageStateChange::default());
                if matches!(self.space.get(page), Mapping::Memory { .. }) {
                    assert!(accessed.is_none_or(|wanted| state.accessed == wanted));
                    assert!(dirty.is_none_or(|wanted| state.dirty == wanted));
                } else {
                    assert_eq!(state, PageState::default());
                }
            }
            Action::SplitAll => {
                self.space.split_all(&mut self.tables).expect("every table had been set aside");
                assert_eq!(self.tables.reserved, 0);
            }
        }
    }

    fn fill(&mut self, page: u64, pages: u64, no_access: bool) {
        let run = if no_access { Run::NoAccess } else { Run::Empty };
        let (result, released) = self.set(page, pages, run);
        assert_eq!(released, without_rights(self.model.clear(page, pages)), "access was not taken away");
        if result.is_err() {
            // Edges of uniform stretches may be as before: take over what the tree says of them.
            self.model.no_access.clear();
            return;
        }
        if no_access {
            self.model.no_access.push((page, page + pages));
        }
    }

    fn check(&self, exact: bool) {
        let bases = [0, 1 << 18, 1 << 27].map(|base: u64| base.saturating_sub(1100)..base + 2100);
        for page in bases.into_iter().flatten() {
            let expected = match self.model.get(page) {
                None => None,
                Some(Page::NoAccess) => Some((None, Access::empty())),
                Some(Page::Lent(frame, bits) | Page::Owned(frame, bits)) => Some((Some(frame), given(bits))),
            };
            let found = match self.space.get(page) {
                Mapping::Empty => None,
                Mapping::NoAccess => Some((None, Access::empty())),
                Mapping::Memory { frame, access, .. } => Some((Some(frame), access)),
            };
            for wanted in [Access::READ, Access::WRITE, Access::READ | Access::EXECUTE] {
                let frame = found.filter(|(_, access)| access.contains(wanted)).and_then(|(frame, _)| frame);
                assert_eq!(tree::find_memory(self.space.root, page, wanted), frame, "page {page:#x}");
            }
            let memory = |one: Option<(Option<u64>, Access)>| one.filter(|one| one.0.is_some());
            if exact {
                assert_eq!(found, expected, "page {page:#x}");
            } else {
                assert_eq!(memory(found), memory(expected), "page {page:#x}");
            }
        }
    }

    fn end(mut self) {
        let mut released = Vec::new();
        self.space.clear_all(&mut self.tables, &mut |one| released.push(one));
        assert_eq!(flatten(released), without_rights(self.model.memory.into_values().collect()));
        assert_eq!((self.tables.out, self.tables.reserved), (0, 0));
        deallocate(self.space.into_root());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_map_of_pages(actions in prop::collection::vec(action(), 1..24)) {
        let mut bench = Bench::new(usize::MAX / 2);
        for action in &actions {
            bench.apply(action);
        }
        bench.check(true);
        bench.end();
    }

    #[test]
    fn stays_correct_when_tables_run_out(actions in prop::collection::vec(action(), 1..24), limit in 0..12_usize) {
        let mut bench = Bench::new(limit);
        for action in &actions {
            bench.apply(action);
        }
        bench.check(false);
        bench.end();
    }
}

#[test]
fn a_stretch_without_access_costs_tables_at_its_edges_only() {
    let mut bench = Bench::new(100);
    let pages = 1 << 28;
    assert!(bench.set(0, pages, Run::NoAccess).0.is_ok());
    assert_eq!(bench.tables.out, 0);
    assert!(bench.set(5, pages, Run::NoAccess).0.is_ok());
    assert_eq!(bench.tables.out, 3);
    assert!(bench.set(pages, 512 * 512 * 512, Run::NoAccess).0.is_ok());
    assert_eq!(bench.tables.out, 0, "tables that became uniform stay");
    bench.end();
}

#[test]
fn tables_are_given_back_when_the_last_page_goes() {
    let mut bench = Bench::new(100);
    for page in 0..512 {
        bench.apply(&Action::Lend { page, frame: 1000 + page, bits: 7 });
    }
    assert_eq!(bench.tables.out, 3);
    for page in 0..512 {
        bench.apply(&Action::Fill { page, pages: 1, no_access: true });
    }
    assert_eq!(bench.tables.out, 2, "511 of 512 pages were written one by one");
    assert_eq!(bench.space.get(3), Mapping::NoAccess);
    bench.end();
}

#[test]
fn a_large_page_keeps_its_state_when_it_is_split() {
    let mut bench = Bench::new(100);
    bench.apply(&Action::LendLarge { page: 512, frame: 1 << 20, bits: 3 });
    assert_eq!((bench.tables.out, bench.tables.reserved), (2, 1));
    let large = Mapping::Memory { frame: (1 << 20) + 7, access: Access::READ | Access::WRITE, large: true };
    assert_eq!(bench.space.get(519), large);
    bench.apply(&Action::Touch { page: 600, accessed: Some(true), dirty: Some(true) });
    bench.apply(&Action::Fill { page: 519, pages: 1, no_access: false });
    assert_eq!((bench.tables.out, bench.tables.reserved), (3, 0));
    assert_eq!(bench.space.get(519), Mapping::Empty);
    let state = bench.space.page_state(1023, PageStateChange { dirty: Some(false), accessed: None });
    assert_eq!(state, PageState { accessed: true, dirty: true });
    let state = bench.space.page_state(1023, PageStateChange::default());
    assert_eq!(state, PageState { accessed: true, dirty: false });
    bench.end();
}

#[test]
fn pages_beyond_the_address_space_are_refused() {
    let mut bench = Bench::new(100);
    bench.apply(&Action::Lend { page: SPACE_PAGES, frame: 5, bits: 7 });
    bench.apply(&Action::Own { page: u64::MAX, frame: 5, bits: 7 });
    assert!(bench.set(SPACE_PAGES - 1, u64::MAX, Run::NoAccess).0.is_ok());
    assert_eq!(bench.space.get(SPACE_PAGES - 1), Mapping::NoAccess);
    assert_eq!(bench.space.get(SPACE_PAGES), Mapping::Empty);
    assert_eq!(bench.space.get(u64::MAX), Mapping::Empty);
    bench.end();
}

#[test]
fn the_parents_memory_is_itself_and_every_page_can_be_taken_away() {
    let mut tables = Tables::new(usize::MAX / 2);
    let ranges = [
        IdentityRange { first: 0, pages: 0xa0, device: false, kind: 6 },
        IdentityRange { first: 0xa0, pages: 0x60, device: true, kind: 0 },
        IdentityRange { first: 0x100, pages: (1 << 19) - 0x100, device: false, kind: 6 },
        IdentityRange { first: 1 << 19, pages: 1 << 19, device: true, kind: 0 },
    ];
    let mut space = Space::identity(Format::Npt, allocate(), &ranges, true, &mut tables).unwrap();
    // One 1 GiB leaf and 511 2 MiB leaves of memory.
    assert_eq!(tables.reserved, 513 + 511);
    for page in [0, 0xa0, 0xff, 0x100, 0x1ff, 0x200, 1 << 18, (1 << 19) - 1, 1 << 19, (1 << 20) - 1] {
        assert!(matches!(space.get(page), Mapping::Memory { frame, .. } if frame == page));
    }
    assert_eq!(space.get(1 << 20), Mapping::Empty);
    assert_eq!(space.read(0xa_0000, &mut [0]), Err(GpaFault(0xa_0000)));

    tables.limit = 0;
    let mut released = Vec::new();
    for page in [5, 0x300, (1 << 18) + 1000] {
        space.set(page, 1, Run::Empty, &mut tables, &mut |one| released.push(one)).unwrap();
        assert_eq!(space.get(page), Mapping::Empty);
        assert!(matches!(space.get(page + 1), Mapping::Memory { frame, .. } if frame == page + 1));
    }
    let expected = [5, 0x300, (1 << 18) + 1000].map(|page| Page::Lent(page, 0));
    assert_eq!(flatten(released), expected);
    assert_eq!(tables.reserved, 513 + 511 - 1 - 2);
    // Device registers give nothing back, and dividing a large entry of them takes a table.
    let mut nothing = |_| panic!("device registers were released");
    space.set(0xb8, 1, Run::Empty, &mut tables, &mut nothing).unwrap();
    assert_eq!(space.set(3 << 18, 1, Run::Empty, &mut tables, &mut nothing), Err(OutOfTables));

    space.clear_all(&mut tables, &mut |_| {});
    assert_eq!((tables.out, tables.reserved), (0, 0));
    deallocate(space.into_root());
}

#[test]
fn contents_are_reached_by_guest_addresses_and_rights() {
    let mut bench = Bench::new(100);
    let frames = [allocate(), allocate()];
    let numbers = [frames[0].number(), frames[1].number()];
    let [first, second] = frames;
    let rights = Access::READ | Access::WRITE;
    assert!(bench.set(16, 1, Run::Owned(first, rights)).0.is_ok());
    assert!(bench.set(17, 1, Run::Owned(second, rights)).0.is_ok());
    let text: Vec<u8> = (0..100).collect();
    assert_eq!(bench.space.write(0x10fd3, &text), Ok(()));
    let mut back = vec![0; 100];
    assert_eq!(bench.space.read(0x10fd3, &mut back), Ok(()));
    assert_eq!(back, text);
    assert_eq!(bench.space.read(0x11fff, &mut back), Err(GpaFault(0x12000)));
    assert_eq!(bench.space.read(u64::MAX, &mut back), Err(GpaFault(u64::MAX)));
    assert_eq!(bench.space.compare_exchange(0x11108, 0, 9), Ok(0));
    assert_eq!(bench.space.compare_exchange(0x11108, 0, 7), Ok(9));
    assert_eq!(bench.space.compare_exchange(0x11004, 0, 7), Err(GpaFault(0x11004)));

    let (_, released) = bench.set(16, 1, Run::Owned(token::take(numbers[0]), Access::READ));
    assert_eq!(released, [Page::Owned(numbers[0], 0)]);
    assert_eq!(bench.space.write(0x10000, &[1]), Err(GpaFault(0x10000)));
    assert_eq!(bench.space.read(0x10000, &mut [0]), Ok(()));
    assert_eq!(bench.space.compare_exchange(0x10000, 0, 1), Err(GpaFault(0x10000)));
    assert_eq!(bench.set(16, 2, Run::Empty).1.len(), 2);
    numbers.into_iter().for_each(|number| deallocate(token::take(number)));
    bench.end();
}
