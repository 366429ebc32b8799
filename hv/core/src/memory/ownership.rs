//! The ownership table: one entry for each physical page, and the transitions between owners.
//!
//! Every transition is one compare-exchange on the page's entry, so processors need no common lock; what spans several
//! pages is undone page by page when a later one refuses. Tokens ([`Frame`], [`Lent`]) come into being here and nowhere
//! else in core. This is not a mapping: address spaces hold what is visible where.

use core::sync::atomic::{AtomicU64, Ordering};

use super::entry_word::{State, VALUE_MAX, Word};
use super::frame::{Frame, Lent, Visible};

/// A partition's place in the table of partitions, as the owner of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub u16);

impl Owner {
    /// The hypervisor itself: owner of the reserve and of what was taken at boot.
    pub const HYPERVISOR: Self = Self(u16::MAX);
}

/// What a range of pages is at boot. Pages in no range do not exist ([`PageOwner::Absent`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// No RAM: device registers or firmware's memory. In the parent's space, but never lent or deposited.
    Absent,
    /// The hypervisor's image, stacks, heap and this table.
    Hypervisor,
    /// RAM of the parent.
    Parent,
    /// For [`OwnershipTable::take_special`].
    Special,
    /// For [`Pool::of_reserve`](super::Pool::of_reserve).
    Reserve,
    /// For [`OwnershipTable::take_boot`].
    Boot,
}

/// A range of pages of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// The first page number.
    pub first: u64,
    /// How many pages.
    pub pages: u64,
    /// What they are.
    pub kind: PageKind,
}

/// Whose a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageOwner {
    /// Nobody's: there is no RAM.
    Absent,
    /// The hypervisor's since boot, handed out or not.
    Hypervisor,
    /// The parent's.
    Parent {
        /// How often children map it.
        lends: u64,
    },
    /// On its way from the parent into a partition's pool.
    Claimed(Owner),
    /// In a pool.
    Deposited(Owner),
    /// A frame taken from a pool (or from the pages set aside at boot).
    Used {
        /// Whose pool it came from.
        owner: Owner,
        /// How many address spaces show it.
        shares: u64,
    },
}

/// Why pages cannot be lent. Nothing was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LendError {
    /// This page is not RAM of the parent.
    NotParent(u64),
    /// This page is lent out too often to count.
    TooOften(u64),
}

/// A part of the pages set aside at boot: those from `next` on have not been handed out.
struct Stock {
    next: AtomicU64,
    end: u64,
}

impl Stock {
    /// From the first to the last range of `kind`.
    fn of(kind: PageKind, ranges: &[PageRange], limit: u64) -> Self {
        let of_kind = || ranges.iter().filter(|range| range.kind == kind);
        let first = of_kind().map(|range| range.first).min().unwrap_or(0);
        let end = of_kind().map(|range| range.first.saturating_add(range.pages)).max().unwrap_or(0);
        Self { next: AtomicU64::new(first), end: end.min(limit) }
    }
}

/// Whose every physical page is.
pub struct OwnershipTable {
    entries: &'static [AtomicU64],
    special: Stock,
    boot: Stock,
}

impl OwnershipTable {
    /// Makes the table in `storage`, which holds an entry for each page from number 0 on and which nobody else uses.
    /// Of ranges that overlap the later one counts; pages behind the end of `storage` do not exist.
    ///
    /// The machine layer calls this once, at boot: the tokens that come from the table are as true as `ranges` is.
    pub fn new(storage: &'static [AtomicU64], ranges: &[PageRange]) -> Self {
        let limit = storage.len() as u64;
        storage.iter().for_each(|entry| entry.store(Word::new(State::Absent).pack(), Ordering::Relaxed));
        for range in ranges {
            let state = match range.kind {
                PageKind::Absent => State::Absent,
                PageKind::Hypervisor => State::Hypervisor,
                PageKind::Parent => State::Parent,
                PageKind::Special => State::Special,
                PageKind::Reserve => State::Reserve,
                PageKind::Boot => State::Boot,
            };
            let first = range.first.min(limit) as usize;
            let end = range.first.saturating_add(range.pages).min(limit) as usize;
            for entry in &storage[first..end] {
                entry.store(Word::new(state).pack(), Ordering::Relaxed);
            }
        }
        Self {
            entries: storage,
            special: Stock::of(PageKind::Special, ranges, limit),
            boot: Stock::of(PageKind::Boot, ranges, limit),
        }
    }

    /// How many pages the table knows.
    pub fn pages(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Whether `page` is anything but a hole.
    #[inline]
    pub fn is_ram(&self, page: u64) -> bool {
        let entry = usize::try_from(page).ok().and_then(|page| self.entries.get(page));
        entry.is_some_and(|entry| Word::is_ram(entry.load(Ordering::Acquire)))
    }

    /// Whose `page` is. What other processors do may change that at once.
    pub fn owner(&self, page: u64) -> PageOwner {
        let word = self.load(page);
        match word.state {
            State::Absent => PageOwner::Absent,
            State::Hypervisor | State::Special | State::Reserve | State::Boot => PageOwner::Hypervisor,
            State::Parent => PageOwner::Parent { lends: word.value },
            State::Claimed => PageOwner::Claimed(Owner(word.slot)),
            State::Deposited => PageOwner::Deposited(Owner(word.slot)),
            State::Used => PageOwner::Used { owner: Owner(word.slot), shares: word.value },
        }
    }

    /// A page for the parent's special pages (the hypercall page, SynIC pages and so on), which never comes back.
    /// `None` when all are handed out. Not zeroed.
    pub fn take_special(&self) -> Option<Visible> {
        self.take_from(&self.special, State::Special).map(Visible::new)
    }

    /// A page for an object of the hypervisor's that lives for ever. `None` when all are handed out. Not zeroed.
    pub fn take_boot(&self) -> Option<Frame> {
        self.take_from(&self.boot, State::Boot)
    }

    fn take_from(&self, stock: &Stock, state: State) -> Option<Frame> {
        let used = Word::owned(State::Used, Owner::HYPERVISOR.0, 0);
        loop {
            let page = stock.next.fetch_add(1, Ordering::Relaxed);
            if page >= stock.end {
                // Keeps the counter from ever coming round.
                stock.next.fetch_min(stock.end, Ordering::Relaxed);
                return None;
            }
            if self.replace(page, Word::new(state), used) {
                return Some(Frame::mint(page));
            }
        }
    }

    /// Lends `pages` pages of the parent from `first` on: all of them or none.
    pub fn lend(&self, first: u64, pages: u32) -> Result<Lent, LendError> {
        let end = first.checked_add(u64::from(pages)).ok_or(LendError::NotParent(first))?;
        for page in first..end {
            if let Err(error) = self.count_lend(page) {
                (first..page).for_each(|counted| self.count_unlend(counted));
                return Err(error);
            }
        }
        Ok(Lent::mint(first, pages))
    }

    /// Ends a loan.
    pub fn unlend(&self, lent: Lent) {
        (lent.first()..lent.first() + u64::from(lent.pages())).for_each(|page| self.count_unlend(page));
    }

    fn count_lend(&self, page: u64) -> Result<(), LendError> {
        let mut error = LendError::NotParent(page);
        let counted = self.update(page, |word| match word.state {
            State::Parent if word.value < VALUE_MAX => Some(Word { value: word.value + 1, ..word }),
            State::Parent => {
                error = LendError::TooOften(page);
                None
            }
            _ => None,
        });
        if counted.is_some() { Ok(()) } else { Err(error) }
    }

    fn count_unlend(&self, page: u64) {
        let counted = self.update(page, |word| {
            (word.state == State::Parent && word.value > 0).then(|| Word { value: word.value - 1, ..word })
        });
        debug_assert!(counted.is_some(), "page {page:#x} was lent and is not the parent's any more");
    }

    /// Counts one more address space that shows `page`; until [`OwnershipTable::unshare`] no pool takes it back.
    /// `false` if it is shown too often to count. Whoever counted may mint the token for the one leaf.
    pub(super) fn share(&self, page: &Visible) -> bool {
        let counted = self.update(page.number(), |word| {
            (word.state == State::Used && word.value < VALUE_MAX)
                .then(|| Word { value: word.value + 1, ..word })
        });
        counted.is_some()
    }

    /// Ends what [`OwnershipTable::share`] began, after the leaf is gone.
    pub(super) fn unshare(&self, page: u64) {
        let counted = self.update(page, |word| {
            (word.state == State::Used && word.value > 0).then(|| Word { value: word.value - 1, ..word })
        });
        debug_assert!(counted.is_some(), "frame {page:#x} was not shown");
    }

    /// Takes `page` from the parent for a deposit to `owner`. Says whose it is if it cannot be had.
    pub(super) fn claim(&self, page: u64, owner: Owner) -> Result<(), PageOwner> {
        let claimed = Word::owned(State::Claimed, owner.0, 0);
        if self.replace(page, Word::new(State::Parent), claimed) { Ok(()) } else { Err(self.owner(page)) }
    }

    /// Gives a claimed page back to the parent.
    pub(super) fn unclaim(&self, page: u64, owner: Owner) {
        let done = self.replace(page, Word::owned(State::Claimed, owner.0, 0), Word::new(State::Parent));
        debug_assert!(done, "page {page:#x} was not claimed");
    }

    /// Turns a claimed page into a frame in use.
    pub(super) fn settle_claim(&self, page: u64, owner: Owner) -> Option<Frame> {
        let used = Word::owned(State::Used, owner.0, 0);
        self.replace(page, Word::owned(State::Claimed, owner.0, 0), used).then(|| Frame::mint(page))
    }

    /// Turns a page set aside for the reserve into a frame in use.
    pub(super) fn take_reserve(&self, page: u64) -> Option<Frame> {
        let used = Word::owned(State::Used, Owner::HYPERVISOR.0, 0);
        self.replace(page, Word::new(State::Reserve), used).then(|| Frame::mint(page))
    }

    /// Makes a page that was the hypervisor's since boot a frame in use, so that a pool can have it.
    pub(super) fn adopt(&self, frame: &Frame) -> bool {
        let used = Word::owned(State::Used, Owner::HYPERVISOR.0, 0);
        self.replace(frame.number(), Word::new(State::Hypervisor), used)
    }

    /// Gives a frame in use, shown nowhere, back to the parent.
    pub(super) fn release(&self, frame: Frame, owner: Owner) -> Result<u64, Frame> {
        let used = Word::owned(State::Used, owner.0, 0);
        let done = self.replace(frame.number(), used, Word::new(State::Parent));
        if done { Ok(frame.number()) } else { Err(frame) }
    }

    /// Puts a frame in use, shown nowhere, at the end of a pool's list.
    pub(super) fn park(&self, frame: Frame, owner: Owner) -> Result<u64, Frame> {
        let used = Word::owned(State::Used, owner.0, 0);
        let done = self.replace(frame.number(), used, Word::owned(State::Deposited, owner.0, VALUE_MAX));
        if done { Ok(frame.number()) } else { Err(frame) }
    }

    /// Takes the first page out of a pool's list; also gives the next one.
    pub(super) fn unpark(&self, page: u64, owner: Owner) -> Option<(Frame, u64)> {
        let before = self.update(page, |word| {
            (word.state == State::Deposited && word.slot == owner.0)
                .then(|| Word::owned(State::Used, owner.0, 0))
        })?;
        Some((Frame::mint(page), before.value))
    }

    /// Makes `next` the page that follows `page` in its pool's list.
    pub(super) fn link(&self, page: u64, owner: Owner, next: u64) {
        let linked = self.update(page, |word| {
            (word.state == State::Deposited && word.slot == owner.0).then_some(Word { value: next, ..word })
        });
        debug_assert!(linked.is_some(), "page {page:#x} is in a list but not deposited");
    }

    fn load(&self, page: u64) -> Word {
        let entry = usize::try_from(page).ok().and_then(|page| self.entries.get(page));
        Word::unpack(entry.map_or(0, |entry| entry.load(Ordering::Acquire)))
    }

    /// Replaces the entry of `page` if it is `from`.
    fn replace(&self, page: u64, from: Word, to: Word) -> bool {
        let Some(entry) = usize::try_from(page).ok().and_then(|page| self.entries.get(page)) else {
            return false;
        };
        entry.compare_exchange(from.pack(), to.pack(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Changes the entry of `page` to what `change` makes of it; gives what it was, `None` if `change` refused.
    fn update(&self, page: u64, mut change: impl FnMut(Word) -> Option<Word>) -> Option<Word> {
        let entry = usize::try_from(page).ok().and_then(|page| self.entries.get(page))?;
        entry
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
                change(Word::unpack(bits)).map(Word::pack)
            })
            .ok()
            .map(Word::unpack)
    }
}
