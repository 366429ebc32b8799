//! Where everything that lives as long as the hypervisor comes from: the free part of its region, handed out page by
//! page and never taken back.

use crate::launch::PhysicalRange;
use crate::physical::{self, PAGE_SIZE};

/// Hands out pages of the hypervisor's region while it starts.
#[derive(Debug)]
pub struct BootHeap {
    next: u64,
    end: u64,
}

impl BootHeap {
    /// A heap of the memory in `free`.
    ///
    /// # Safety
    /// The memory is mapped, nobody else uses it, and nobody ever will.
    pub unsafe fn new(free: PhysicalRange) -> Self {
        let page = PAGE_SIZE as u64;
        Self { next: free.base.next_multiple_of(page), end: free.end() & !(page - 1) }
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.next)
    }

    /// The physical address of `pages` contiguous zeroed pages.
    ///
    /// Panics when the region is too small; [`crate::launch::region_bytes`] makes sure that it is not.
    pub fn pages(&mut self, pages: usize) -> u64 {
        let bytes = pages * PAGE_SIZE;
        assert!(
            bytes as u64 <= self.remaining(),
            "the hypervisor's region is {} bytes too small; region_bytes() must grow",
            bytes as u64 - self.remaining()
        );
        let base = self.next;
        self.next += bytes as u64;
        // SAFETY: `new` was promised that the range is mapped and ours alone; `next` has just passed it.
        unsafe { physical::pointer(base).write_bytes(0, bytes) };
        base
    }

    /// Puts a value onto pages of its own, for ever.
    pub fn place<T>(&mut self, value: T) -> &'static mut T {
        const { assert!(align_of::<T>() <= PAGE_SIZE) };
        let place = physical::pointer(self.pages(size_of::<T>().div_ceil(PAGE_SIZE))).cast::<T>();
        // SAFETY: the pages are fresh, large enough, aligned for any `T` allowed here, and handed out for ever.
        unsafe {
            place.write(value);
            &mut *place
        }
    }

    /// Puts `count` values made by `make` onto pages of their own, for ever.
    pub fn slice<T>(&mut self, count: usize, mut make: impl FnMut(usize) -> T) -> &'static mut [T] {
        const { assert!(align_of::<T>() <= PAGE_SIZE) };
        let place = physical::pointer(self.pages((count * size_of::<T>()).div_ceil(PAGE_SIZE))).cast::<T>();
        // SAFETY: as in `place`; every element is written before the slice is made.
        unsafe {
            for index in 0..count {
                place.add(index).write(make(index));
            }
            core::slice::from_raw_parts_mut(place, count)
        }
    }

    /// Everything that is left, as the heap's last gift.
    pub fn rest(self) -> PhysicalRange {
        PhysicalRange::new(self.next, self.end.saturating_sub(self.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(4096))]
    struct Arena([u8; 8 * PAGE_SIZE]);

    #[test]
    fn pages_are_zeroed_and_never_overlap() {
        let arena = Box::leak(Box::new(Arena([0xff; 8 * PAGE_SIZE])));
        let base = physical::address(&raw const arena.0);
        // SAFETY: the arena is leaked and used through the heap only.
        let mut heap = unsafe { BootHeap::new(PhysicalRange::new(base + 1, 7 * PAGE_SIZE as u64)) };
        assert_eq!(heap.remaining(), 6 * PAGE_SIZE as u64);
        let first = heap.place(0x1234_u64);
        let many = heap.slice(1000, |index| index as u64);
        assert_eq!((*first, many[999]), (0x1234, 999));
        assert_eq!(physical::address(first) % PAGE_SIZE as u64, 0);
        assert_eq!(physical::address(many.as_ptr()), base + 2 * PAGE_SIZE as u64);
        let page = physical::pointer(heap.pages(1));
        // SAFETY: just taken from the heap.
        let bytes = unsafe { core::slice::from_raw_parts(page, PAGE_SIZE) };
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert_eq!(heap.rest().length, 2 * PAGE_SIZE as u64);
    }
}
