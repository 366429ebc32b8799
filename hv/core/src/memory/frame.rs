//! The tokens that stand for physical pages. Only the ownership table of this module's parent makes them, which is
//! what lets the machine layer turn one into memory without asking further (SAFETY.md has the argument).

/// A page that the hypervisor owns alone. It is neither copied nor made elsewhere than in the ownership table.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame(u64);

impl Frame {
    /// For the ownership table: the page has just become the hypervisor's, and no other token for it exists.
    pub(super) fn mint(number: u64) -> Self {
        Self(number)
    }

    /// The physical page number.
    pub fn number(&self) -> u64 {
        self.0
    }
}

/// Pages of the parent that it has lent to a partition (or has itself): ordinary memory, contents untrusted and
/// changing at any time.
#[derive(Debug, PartialEq, Eq)]
pub struct Lent {
    first: u64,
    pages: u32,
}

impl Lent {
    /// For the ownership table: these pages are the parent's, and their loan has been counted.
    pub(super) fn mint(first: u64, pages: u32) -> Self {
        Self { first, pages }
    }

    /// The first physical page number.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// How many pages.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Splits off the first `pages` pages; `None`, and nothing lost, when there are not more than that.
    pub fn split(self, pages: u32) -> Result<(Self, Self), Self> {
        if pages == 0 || pages >= self.pages {
            return Err(self);
        }
        let rest = Self { first: self.first + u64::from(pages), pages: self.pages - pages };
        Ok((Self { first: self.first, pages }, rest))
    }
}

/// A page of the hypervisor that a partition may see as well: overlays, the parent's special pages, statistics, register
/// and message pages. Its content is as untrusted as guest memory, so no value can live in it: only copies go in and
/// out. The way back to a [`Frame`] is through the limbo of its pool ([`Tables::give_visible`](super::Tables)).
#[derive(Debug, PartialEq, Eq)]
pub struct Visible(Frame);

impl Visible {
    /// Makes a page one that partitions may see.
    pub fn new(frame: Frame) -> Self {
        Self(frame)
    }

    /// For the pool, which checks that no address space shows the page any more.
    pub(super) fn into_frame(self) -> Frame {
        self.0
    }

    /// The page, for copying.
    pub fn frame(&self) -> &Frame {
        &self.0
    }

    /// The physical page number, which is the parent's GPA page as well.
    pub fn number(&self) -> u64 {
        self.0.number()
    }
}

/// The only crossing between tokens and page-table entries, for the machine layer: an address space stores a token as
/// the number in a leaf and makes the token again when it clears that leaf. A token is stored in one leaf at most, so
/// none is ever doubled; the tree's tests count them.
pub mod entry {
    use super::{Frame, Lent};

    /// Stores an owned page.
    pub fn store(frame: Frame) -> u64 {
        frame.0
    }

    /// Takes an owned page out of the leaf (or the table pointer) that [`store`] put it into.
    pub fn take(number: u64) -> Frame {
        Frame(number)
    }

    /// Stores lent pages.
    pub fn store_lent(lent: Lent) -> u64 {
        lent.first
    }

    /// Takes lent pages out of the leaf that [`store_lent`] put them into.
    pub fn take_lent(first: u64, pages: u32) -> Lent {
        Lent { first, pages }
    }
}
