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

/// Copies bytes from physical address `from`, whole 64-bit words at a time. Partitions may be writing there, so what comes
/// may be a mixture.
///
/// # Safety
/// The bytes are mapped memory, and no Rust reference to them exists.
pub unsafe fn read(from: u64, bytes: &mut [u8]) {
    if let Ok(word) = <&mut [u8; 8]>::try_from(&mut *bytes)
        && from.is_multiple_of(8)
    {
        // SAFETY: the caller's promise; volatile, because the memory changes under us.
        *word = unsafe { pointer(from).cast::<u64>().read_volatile() }.to_ne_bytes();
        return;
    }
    if let Ok(word) = <&mut [u8; 4]>::try_from(&mut *bytes)
        && from.is_multiple_of(4)
    {
        // SAFETY: as before.
        *word = unsafe { pointer(from).cast::<u32>().read_volatile() }.to_ne_bytes();
        return;
    }
    // SAFETY: the caller's promise; `bytes` are of that length.
    unsafe { copy(bytes.as_mut_ptr(), pointer(from), bytes.len()) }
}

/// Copies bytes to physical address `to`, whole 64-bit words at a time.
///
/// # Safety
/// The bytes are mapped memory whose content may be anything, and no Rust reference to them exists.
pub unsafe fn write(to: u64, bytes: &[u8]) {
    if let Ok(word) = <[u8; 8]>::try_from(bytes)
        && to.is_multiple_of(8)
    {
        // SAFETY: the caller's promise; volatile, because others look at the memory.
        unsafe { pointer(to).cast::<u64>().write_volatile(u64::from_ne_bytes(word)) };
        return;
    }
    if let Ok(words) = <&[u8; 16]>::try_from(bytes)
        && to.is_multiple_of(8)
    {
        for (to, word) in (to..).step_by(8).zip(words.as_chunks().0) {
            // SAFETY: as before.
            unsafe { pointer(to).cast::<u64>().write_volatile(u64::from_ne_bytes(*word)) };
        }
        return;
    }
    if let Ok(word) = <[u8; 4]>::try_from(bytes)
        && to.is_multiple_of(4)
    {
        // SAFETY: as before.
        unsafe { pointer(to).cast::<u32>().write_volatile(u32::from_ne_bytes(word)) };
        return;
    }
    // SAFETY: the caller's promise; `bytes` are of that length.
    unsafe { copy(pointer(to), bytes.as_ptr(), bytes.len()) }
}

/// Copies memory of which one side is shared with others. It is done by the processor's own instruction, since Rust's copies
/// suppose that nobody else writes there.
///
/// # Safety
/// Both are mapped memory of that length and do not overlap; `to` may be written with anything.
unsafe fn copy(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: the caller's promise; the direction flag is clear, as everywhere.
    unsafe {
        core::arch::asm!(
            "rep movsq", "mov ecx, {tail:e}", "rep movsb",
            tail = in(reg) length % 8, inout("rcx") length / 8 => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
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
