//! Physical memory as the hypervisor sees it: mapped onto itself.
//!
//! In a test on the host there is no physical memory; a test allocates page-aligned memory and uses its address as the
//! physical one, so the same arithmetic holds.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// The byte at physical address `address`. Making the pointer is safe; using it needs a reason to own the memory.
pub fn pointer(address: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(address as usize)
}

/// The first byte of physical page `number`.
pub fn page(number: u64) -> *mut u8 {
    pointer(number << 12)
}

/// The physical address of something of the hypervisor's (image, region or stack, all mapped onto themselves).
pub fn address<T: ?Sized>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// Copies bytes from physical address `from`. Partitions may be writing there, so what comes may be a mixture.
///
/// # Safety
/// The bytes are mapped memory, and no Rust reference to them exists.
pub unsafe fn read(from: u64, bytes: &mut [u8]) {
    let (head, words) = split(from, bytes.len());
    let (head, rest) = bytes.split_at_mut(head);
    let (words, tail) = rest.split_at_mut(words);
    let copy = |at: u64, part: &mut [u8]| {
        for (index, byte) in part.iter_mut().enumerate() {
            // SAFETY: the caller's promise; volatile, because the memory changes under us.
            *byte = unsafe { pointer(at + index as u64).read_volatile() };
        }
    };
    copy(from, head);
    let at = from + head.len() as u64;
    for (index, word) in words.chunks_exact_mut(8).enumerate() {
        // SAFETY: as above; `split` has made the address a multiple of 8.
        word.copy_from_slice(
            &unsafe { pointer(at + index as u64 * 8).cast::<u64>().read_volatile() }.to_ne_bytes(),
        );
    }
    copy(at + words.len() as u64, tail);
}

/// Copies bytes to physical address `to`, whole aligned 64-bit words at a time where there are any.
///
/// # Safety
/// The bytes are mapped memory whose content may be anything, and no Rust reference to them exists.
pub unsafe fn write(to: u64, bytes: &[u8]) {
    let (head, words) = split(to, bytes.len());
    let (head, rest) = bytes.split_at(head);
    let (words, tail) = rest.split_at(words);
    let copy = |at: u64, part: &[u8]| {
        for (index, byte) in part.iter().enumerate() {
            // SAFETY: the caller's promise; volatile, because others look at the memory.
            unsafe { pointer(at + index as u64).write_volatile(*byte) };
        }
    };
    copy(to, head);
    let at = to + head.len() as u64;
    for (index, word) in words.chunks_exact(8).enumerate() {
        let value =
            u64::from_ne_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
        // SAFETY: as above; `split` has made the address a multiple of 8.
        unsafe { pointer(at + index as u64 * 8).cast::<u64>().write_volatile(value) };
    }
    copy(at + words.len() as u64, tail);
}

/// How many bytes lie before the first multiple of 8, and how many in whole words from there.
fn split(address: u64, length: usize) -> (usize, usize) {
    let head = ((8 - address % 8) % 8).min(length as u64) as usize;
    (head, (length - head) & !7)
}

/// Fills a page with zeros.
///
/// # Safety
/// The page is mapped memory whose content may be anything, and no Rust reference to it exists.
pub unsafe fn zero(page_number: u64) {
    // SAFETY: the caller's promise.
    unsafe { page(page_number).write_bytes(0, PAGE_SIZE) }
}

/// The word at `address` for atomic access, `None` if it is not aligned.
///
/// # Safety
/// The word is mapped memory that is accessed by atomic or volatile operations only, for ever.
pub unsafe fn atomic32(address: u64) -> Option<&'static AtomicU32> {
    // SAFETY: the caller's promise, and the alignment is checked.
    address.is_multiple_of(4).then(|| unsafe { AtomicU32::from_ptr(pointer(address).cast()) })
}

/// As [`atomic32`], for 64 bits.
///
/// # Safety
/// As for [`atomic32`].
pub unsafe fn atomic64(address: u64) -> Option<&'static AtomicU64> {
    // SAFETY: the caller's promise, and the alignment is checked.
    address.is_multiple_of(8).then(|| unsafe { AtomicU64::from_ptr(pointer(address).cast()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_every_length_and_alignment_are_exact() {
        let memory = Box::leak(Box::new([0_u64; 8]));
        let base = address(memory.as_ptr());
        for (at, length) in (0..16).flat_map(|at| (0..40).map(move |length| (at, length))) {
            let sent: Vec<u8> = (0..length).map(|i| (i * 7 + at + 1) as u8).collect();
            let mut received = vec![0; length];
            let mut whole = [0; 64];
            // SAFETY: the memory is leaked and used through its address only.
            unsafe {
                write(base, &[0xee; 64]);
                write(base + at as u64, &sent);
                read(base + at as u64, &mut received);
                read(base, &mut whole);
            }
            assert_eq!(received, sent, "{length} bytes at {at}");
            assert!(whole[..at].iter().chain(&whole[at + length..]).all(|byte| *byte == 0xee));
        }
    }

    #[test]
    fn words_must_be_aligned() {
        let memory = Box::leak(Box::new([0_u64; 2]));
        let base = address(memory.as_ptr());
        // SAFETY: the memory is leaked and used through its address only.
        unsafe {
            assert!(atomic32(base + 2).is_none() && atomic64(base + 4).is_none());
            assert!(atomic32(base + 4).is_some() && atomic64(base + 8).is_some());
        }
    }
}
