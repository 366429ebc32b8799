//! How pages move from the parent into a partition's pool and back (TLFS: `HvCallDepositMemory`,
//! `HvCallWithdrawMemory`).
//!
//! A deposit has two halves, because processors may have cached the parent's translations, and those of children that
//! a page was lent to a moment ago: [`Claim::new`] takes the pages from the parent; then the caller has every processor
//! leave guest mode once and drop its cached translations; then [`Claim::finish`] puts them into the pool.

use super::ownership::{Owner, OwnershipTable, PageOwner};
use super::parent::ParentSpace;
use super::pool::{Pool, Tables};
use crate::machine::Machine;

/// Why pages cannot be deposited. Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DepositError {
    /// This page is not RAM of the parent (or it is in the list twice).
    NotParent(u64),
    /// This page is lent to a partition.
    Lent(u64),
    /// No tables are left for splitting the parent's large entries.
    OutOfTables,
}

/// Pages that are no longer the parent's and not yet in a pool.
#[must_use = "claimed pages belong to nobody until the claim is finished or cancelled"]
#[derive(Debug)]
pub struct Claim<'a> {
    owner: Owner,
    pages: &'a [u64],
    reserve_mark: u64,
}

impl<'a> Claim<'a> {
    /// Takes all of `pages` from the parent for `pool`, or none.
    pub fn new<M: Machine>(
        machine: &M,
        table: &OwnershipTable,
        parent: &mut ParentSpace<M>,
        pool: &Pool,
        pages: &'a [u64],
    ) -> Result<Self, DepositError> {
        let owner = pool.owner();
        for (index, &page) in pages.iter().enumerate() {
            if let Err(found) = table.claim(page, owner) {
                pages[..index].iter().for_each(|&claimed| table.unclaim(claimed, owner));
                return Err(match found {
                    PageOwner::Parent { lends: 1.. } => DepositError::Lent(page),
                    _ => DepositError::NotParent(page),
                });
            }
        }
        let claim = Self { owner, pages, reserve_mark: parent.mark() };
        for (index, &page) in pages.iter().enumerate() {
            if parent.hide(machine, table, page).is_err() {
                claim.undo(machine, table, parent, index);
                return Err(DepositError::OutOfTables);
            }
        }
        Ok(claim)
    }

    /// Puts the pages into the pool that they were claimed for. All processors have been flushed since.
    pub fn finish<M: Machine>(self, table: &OwnershipTable, parent: &mut ParentSpace<M>, pool: &mut Pool) {
        debug_assert_eq!(self.owner, pool.owner(), "the claim is another pool's");
        for frame in self.pages.iter().filter_map(|&page| table.settle_claim(page, self.owner)) {
            pool.add(table, frame);
        }
        parent.settle(table, self.reserve_mark);
    }

    /// Gives the pages back to the parent.
    pub fn cancel<M: Machine>(self, machine: &M, table: &OwnershipTable, parent: &mut ParentSpace<M>) {
        self.undo(machine, table, parent, self.pages.len());
    }

    /// Gives back all pages, of which the first `hidden` are out of the parent's sight.
    fn undo<M: Machine>(
        &self,
        machine: &M,
        table: &OwnershipTable,
        parent: &mut ParentSpace<M>,
        hidden: usize,
    ) {
        for (index, &page) in self.pages.iter().enumerate() {
            // A page that cannot be shown again stays claimed: lost, but in nobody's wrong hands.
            if index >= hidden || parent.show(machine, table, page).is_ok() {
                table.unclaim(page, self.owner);
                parent.join(machine, table, page);
            }
        }
    }
}

/// Deposits all of `pages`, or none. `flush` has every processor leave guest mode once and drop its cached translations,
/// and returns when all have.
pub fn deposit<M: Machine>(
    tables: &mut Tables<'_, M>,
    parent: &mut ParentSpace<M>,
    pages: &[u64],
    flush: impl FnOnce(),
) -> Result<(), DepositError> {
    let claim = Claim::new(tables.machine, tables.table, parent, tables.pool, pages)?;
    flush();
    claim.finish(tables.table, parent, tables.pool);
    Ok(())
}

/// Gives a free page of the pool, zeroed, back to the parent and says which. `None` when no page is free; pages in the
/// pool's limbo are not.
pub fn withdraw<M: Machine>(tables: &mut Tables<'_, M>, parent: &mut ParentSpace<M>) -> Option<u64> {
    let Tables { table, pool, machine } = tables.again();
    let mut frame = pool.take_for_withdrawal(table)?;
    let page = frame.number();
    machine.zero(&mut frame);
    if parent.show(machine, table, page).is_err() {
        pool.give(table, frame).ok()?;
        return None;
    }
    match table.release(frame, pool.owner()) {
        Ok(_) => pool.forget_used(),
        Err(frame) => debug_assert!(false, "{frame:?} was free and shown"),
    }
    parent.join(machine, table, page);
    Some(page)
}
