//! Copying to and from memory that a partition may change at the same time: by atomic accesses only, so that the worst
//! outcome is a mixture of old and new bytes.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

/// How many of `length` bytes at `place` come before the first whole aligned word, and how many words there are.
fn split(place: *mut u8, length: usize) -> (usize, usize) {
    let head = place.align_offset(8).min(length);
    (head, (length - head) / 8)
}

/// Copies out of memory.
///
/// # Safety
/// `place` is mapped for `bytes.len()` bytes and is no memory that Rust code has references to.
pub unsafe fn read(place: *mut u8, bytes: &mut [u8]) {
    let (head, words) = split(place, bytes.len());
    let (first, rest) = bytes.split_at_mut(head);
    let (middle, last) = rest.split_at_mut(words * 8);
    // SAFETY: all offsets are within what the caller promises; the middle is aligned.
    unsafe {
        for (offset, byte) in first.iter_mut().enumerate() {
            *byte = AtomicU8::from_ptr(place.add(offset)).load(Relaxed);
        }
        for (index, word) in middle.chunks_exact_mut(8).enumerate() {
            let source = AtomicU64::from_ptr(place.add(head + index * 8).cast());
            word.copy_from_slice(&source.load(Relaxed).to_ne_bytes());
        }
        for (offset, byte) in last.iter_mut().enumerate() {
            *byte = AtomicU8::from_ptr(place.add(head + words * 8 + offset)).load(Relaxed);
        }
    }
}

/// Copies into memory.
///
/// # Safety
/// As for [`read`].
pub unsafe fn write(place: *mut u8, bytes: &[u8]) {
    let (head, words) = split(place, bytes.len());
    let (first, rest) = bytes.split_at(head);
    let (middle, last) = rest.split_at(words * 8);
    // SAFETY: as in `read`.
    unsafe {
        for (offset, byte) in first.iter().enumerate() {
            AtomicU8::from_ptr(place.add(offset)).store(*byte, Relaxed);
        }
        for (index, word) in middle.as_chunks().0.iter().enumerate() {
            AtomicU64::from_ptr(place.add(head + index * 8).cast()).store(u64::from_ne_bytes(*word), Relaxed);
        }
        for (offset, byte) in last.iter().enumerate() {
            AtomicU8::from_ptr(place.add(head + words * 8 + offset)).store(*byte, Relaxed);
        }
    }
}

/// Atomically replaces a word if it equals `current`; gives what was there.
///
/// # Safety
/// As for [`read`], with 8 bytes at a multiple of 8.
pub unsafe fn compare_exchange(place: *mut u8, current: u64, new: u64) -> u64 {
    // SAFETY: the caller's promise.
    let word = unsafe { AtomicU64::from_ptr(place.cast()) };
    word.compare_exchange(current, new, SeqCst, SeqCst).unwrap_or_else(|found| found)
}
