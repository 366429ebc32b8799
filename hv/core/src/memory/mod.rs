//! Page ownership: whose every physical page is, the tokens that stand for pages, and the address spaces that map them.
//!
//! One [`OwnershipTable`] has an entry for each physical page. A partition's [`Pool`] holds the pages deposited to it;
//! its [`AddressSpace`] maps what the parent lends it and what the hypervisor lays over that. The parent's own
//! [`ParentSpace`] is the identity, less what it has deposited. [`Claim`] and [`withdraw`] move pages between the two.
//!
//! ```text
//!   Parent ──claim──▶ Claimed ──finish──▶ Deposited ──take──▶ Used ──give──▶ Deposited (limbo) ──settle──▶ Deposited
//!     ▲  lends 0                             │ free                 shares 0
//!     └───────────────withdraw───────────────┘
//! ```
//!
//! Nothing here waits for processors. Where cached translations outlive a change, the page in question stays out of
//! use until the caller says that they are gone: a deposited page between [`Claim`] and its end, a frame that comes back
//! in the pool's limbo.

mod deposit;
mod entry_word;
mod frame;
mod ownership;
mod parent;
mod pool;
mod space;
#[cfg(test)]
mod tests;

pub use deposit::{Claim, DepositError, deposit, withdraw};
pub use frame::{Frame, Lent, Visible, entry};
pub use ownership::{LendError, Owner, OwnershipTable, PageKind, PageOwner, PageRange};
pub use parent::ParentSpace;
pub use pool::{Pool, ReserveTables, Tables};
pub use space::{AddressSpace, OverlayId, PageSize, Placement, Progress, SpaceError};
