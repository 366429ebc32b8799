//! Fetching the bytes of an instruction.

use super::{GuestMemory, Paging, Request, WalkFault, walk};
use crate::machine::Access;
use arrayvec::ArrayVec;

/// The bytes from an instruction's start on; none is longer than 15.
pub type Instruction = ArrayVec<u8, 15>;

const PAGE_SIZE: u64 = 4096;

/// Reads up to 15 bytes from linear address `linear` (CS base and RIP, wrapped to 32 bits outside 64-bit mode) for code
/// at `cpl`. What follows on the next page is left out when it cannot be fetched; the instruction need not reach there.
///
/// The guest may have changed its code since it exited: what is read must be checked, not trusted.
pub fn fetch<G: GuestMemory + ?Sized>(
    memory: &G,
    paging: &Paging,
    cpl: u8,
    linear: u64,
) -> Result<Instruction, WalkFault> {
    let request = Request::new(Access::EXECUTE, cpl, paging);
    let mut bytes = [0u8; 15];
    let first = usize::try_from(PAGE_SIZE - linear % PAGE_SIZE).unwrap_or(15).min(15);
    let (head, tail) = bytes.split_at_mut(first);
    fetch_within_page(memory, paging, linear, request, head)?;
    let mut count = first;
    if !tail.is_empty() {
        let next = following_page(paging, linear);
        if fetch_within_page(memory, paging, next, request, tail).is_ok() {
            count = 15;
        }
    }
    Ok(bytes.iter().copied().take(count).collect())
}

fn fetch_within_page<G: GuestMemory + ?Sized>(
    memory: &G,
    paging: &Paging,
    linear: u64,
    request: Request,
    bytes: &mut [u8],
) -> Result<(), WalkFault> {
    let gpa = walk(memory, paging, linear, request)?.gpa;
    memory.read(gpa, bytes).map_err(|fault| WalkFault::Table { gpa: fault.0, write: false })
}

/// The page after the one of `linear`; addresses wrap at 4 GiB outside long mode.
fn following_page(paging: &Paging, linear: u64) -> u64 {
    let next = (linear | (PAGE_SIZE - 1)).wrapping_add(1);
    if paging.efer & 1 << 10 != 0 { next } else { next & 0xFFFF_FFFF }
}
