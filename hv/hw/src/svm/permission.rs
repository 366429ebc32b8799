//! The MSR and I/O permission maps (AMD APM volume 2, 15.11 and 15.10.1): which accesses exit.

use core::sync::atomic::{AtomicU8, Ordering::SeqCst};

use crate::heap::BootHeap;
use crate::physical;
use crate::vcpu::msrs;

/// An MSR permission map: two bits (read, write) for each register of three ranges. Registers outside of them always exit.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct MsrMap([AtomicU8; 8192]);

/// An I/O permission map: one bit for each port, and one byte more because an access may reach over the last port.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct IoMap([u8; 3 * 4096]);

/// Where the bits of `msr` are: byte, and shift of the read bit (the write bit is the next one).
fn position(msr: u32) -> Option<(usize, u32)> {
    let index = match msr {
        0x0000_0000..=0x0000_1fff => msr,
        0xc000_0000..=0xc000_1fff => msr - 0xc000_0000 + 0x2000,
        0xc001_0000..=0xc001_1fff => msr - 0xc001_0000 + 0x4000,
        _ => return None,
    };
    Some((index as usize / 4, index % 4 * 2))
}

impl MsrMap {
    /// A map that lets everything through, for ever.
    pub fn new(heap: &mut BootHeap) -> &'static Self {
        // SAFETY: fresh zeroed pages, which are a valid map and are handed out for ever.
        unsafe { &*physical::pointer(heap.pages(2)).cast() }
    }

    /// Makes every access exit.
    pub fn intercept_all(&self) {
        for byte in &self.0 {
            byte.store(0xff, SeqCst);
        }
    }

    /// Sets which accesses of `msr` exit. Without effect on registers that no map covers.
    pub fn intercept(&self, msr: u32, read: bool, write: bool) {
        let Some((byte, shift)) = position(msr) else { return };
        let bits = (u8::from(read) | u8::from(write) << 1) << shift;
        // Two steps, exits first: a processor that reads the map in between intercepts too much at worst.
        self.0[byte].fetch_or(bits, SeqCst);
        self.0[byte].fetch_and(!(3 << shift) | bits, SeqCst);
    }

    /// Whether reads and whether writes of `msr` exit.
    #[cfg(test)]
    fn intercepts(&self, msr: u32) -> (bool, bool) {
        position(msr).map_or((true, true), |(byte, shift)| {
            let bits = self.0[byte].load(SeqCst) >> shift;
            (bits & 1 != 0, bits & 2 != 0)
        })
    }

    /// Fills the map for the parent: the registers that are switched, virtualized or dangerous to the hypervisor exit, the
    /// others are the machine's own.
    pub fn fill_for_parent(&self) {
        for msr in msrs::PARENT_READ_WRITE.into_iter().chain(PARENT_READ_WRITE) {
            self.intercept(msr, true, true);
        }
        for msr in msrs::PARENT_WRITE.into_iter().chain(PARENT_WRITE) {
            self.intercept(msr, false, true);
        }
    }

    /// Fills the map for children: everything exits but what VMLOAD and VMSAVE switch.
    pub fn fill_for_child(&self) {
        self.intercept_all();
        for msr in msrs::CHILD_OWN.into_iter().chain(msrs::SYSTEM_CALL) {
            self.intercept(msr, false, false);
        }
    }
}

impl IoMap {
    /// A map by which every access exits, for ever.
    pub fn new(heap: &mut BootHeap) -> &'static Self {
        // SAFETY: fresh zeroed pages, which are a valid map and are handed out for ever.
        let map: &'static mut Self = unsafe { &mut *physical::pointer(heap.pages(3)).cast() };
        map.0.fill(0xff);
        map
    }
}

/// Of this vendor's registers those of which both reads and writes exit for the parent.
const PARENT_READ_WRITE: [u32; 4] = [
    0xc001_0114, // VM_CR
    0xc001_0115, // IGNNE
    0xc001_0117, // VM_HSAVE_PA
    0xc001_0118, // SVM_KEY
];

/// Those of which writes exit, and reads do not.
const PARENT_WRITE: [u32; 14] = [
    0xc000_0104, // TSC ratio
    0xc001_0010, // SYSCFG: memory encryption, and the registers below
    0xc001_0016, // IORR 0: redirects memory accesses
    0xc001_0017,
    0xc001_0018, // IORR 1
    0xc001_0019,
    0xc001_001a, // TOP_MEM: what is memory at all
    0xc001_001d, // TOP_MEM2
    0xc001_0020, // microcode patch loader
    0xc001_0058, // MMIO configuration base
    0xc001_0111, // SMM base
    0xc001_0112, // SMM address
    0xc001_0113, // SMM mask
    0xc001_0116, // SMM control
];

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> MsrMap {
        MsrMap([const { AtomicU8::new(0) }; 8192])
    }

    #[test]
    fn bits_lie_where_the_manual_says() {
        assert_eq!(position(0), Some((0, 0)));
        assert_eq!(position(0x1fff), Some((0x7ff, 6)));
        assert_eq!(position(0xc000_0000), Some((0x800, 0)));
        assert_eq!(position(0xc000_0081), Some((0x820, 2)));
        assert_eq!(position(0xc001_0000), Some((0x1000, 0)));
        assert_eq!(position(0xc001_1fff), Some((0x17ff, 6)));
        for outside in [0x2000, 0x4000_0000, 0xbfff_ffff, 0xc000_2000, 0xc001_2000, u32::MAX] {
            assert_eq!(position(outside), None);
        }
    }

    #[test]
    fn one_register_is_changed_and_its_neighbours_are_not() {
        let map = empty();
        map.intercept(0x831, true, false);
        assert_eq!(map.intercepts(0x831), (true, false));
        map.intercept(0x831, false, true);
        assert_eq!(map.intercepts(0x831), (false, true));
        assert_eq!((map.intercepts(0x830), map.intercepts(0x832)), ((false, false), (false, false)));
        map.intercept(0x4000_0000, false, false);
        assert_eq!(map.intercepts(0x4000_0000), (true, true));
    }

    #[test]
    fn the_parent_keeps_its_apic_but_not_the_timer_and_not_svm() {
        let map = empty();
        map.fill_for_parent();
        assert_eq!(map.intercepts(0x80b), (false, false));
        assert_eq!(map.intercepts(0x808), (false, false));
        assert_eq!(map.intercepts(0x830), (false, true));
        for msr in [0x832, 0x838, 0x839, 0x83e, 0x6e0, 0xc000_0080, 0xc001_0114, 0xc001_0117] {
            assert_eq!(map.intercepts(msr), (true, true));
        }
    }

    #[test]
    fn a_child_owns_what_is_switched_and_nothing_else() {
        let map = empty();
        map.fill_for_child();
        let own = (0..0x2000)
            .chain(0xc000_0000..0xc000_2000)
            .chain(0xc001_0000..0xc001_2000)
            .filter(|msr| map.intercepts(*msr) != (true, true));
        let mut expected = Vec::from_iter(msrs::CHILD_OWN.into_iter().chain(msrs::SYSTEM_CALL));
        expected.sort_unstable();
        assert_eq!(own.collect::<Vec<u32>>(), expected);
    }
}
