//! Tests of memory on the fake machine: each rule by itself, and random sequences against a model.

mod deposits;
mod model;
mod overlays;
mod pools;
mod random;
mod spaces;
mod table;

use std::vec::Vec;

use super::{AddressSpace, Owner, Pool, Tables, deposit};
use crate::fake::{Board, FakeMachine};
use crate::machine::Access;

const RWX: Access = Access::all();
const RW: Access = Access::READ.union(Access::WRITE);

/// A partition's pool with `count` of the parent's last pages.
fn pool_with(board: &mut Board, owner: u16, count: u64) -> Pool {
    let mut pool = Pool::new(Owner(owner));
    let pages: Vec<u64> = (16..board.ram)
        .rev()
        .filter(|&page| board.table.owner(page) == super::PageOwner::Parent { lends: 0 })
        .take(count as usize)
        .collect();
    let mut tables = Tables { table: &board.table, pool: &mut pool, machine: &board.machine };
    deposit(&mut tables, &mut board.parent, &pages, || ()).expect("the pages are the parent's");
    pool
}

fn tables<'a>(board: &'a Board, pool: &'a mut Pool) -> Tables<'a, FakeMachine> {
    Tables { table: &board.table, pool, machine: &board.machine }
}

/// A board, a pool of `count` pages and an address space of 2048 pages made from it.
fn space_with(count: u64) -> (Board, Pool, AddressSpace<FakeMachine>) {
    let mut board = FakeMachine::builder().build();
    let mut pool = pool_with(&mut board, 1, count);
    let space = AddressSpace::new(&mut tables(&board, &mut pool), 23).expect("one page for the top table");
    (board, pool, space)
}

/// Declares flushed whatever is in the limbo.
fn settle(board: &Board, pool: &mut Pool) {
    let mark = pool.mark();
    pool.settle(&board.table, mark);
}
