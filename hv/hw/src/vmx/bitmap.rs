//! The MSR bitmaps (Intel SDM volume 3C, 25.6.9): which accesses of model-specific registers exit.

use core::sync::atomic::{AtomicU8, Ordering::SeqCst};

use crate::heap::BootHeap;
use crate::physical;
use crate::vcpu::msrs;

/// Four bitmaps of a KiB: reads of low registers, reads of high ones, writes of low ones, writes of high ones. Registers
/// outside of both ranges always exit.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct MsrBitmap([AtomicU8; 4096]);

const WRITES: usize = 2048;

/// Where the read bit of `msr` is; its write bit is [`WRITES`] bytes on.
fn position(msr: u32) -> Option<(usize, u8)> {
    let (base, index) = match msr {
        0x0000_0000..=0x0000_1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (1024, msr - 0xc000_0000),
        _ => return None,
    };
    Some((base + index as usize / 8, 1 << (index % 8)))
}

impl MsrBitmap {
    /// Bitmaps that let everything through, for ever.
    pub fn new(heap: &mut BootHeap) -> &'static Self {
        // SAFETY: a fresh zeroed page, which is valid and is handed out for ever.
        unsafe { &*physical::pointer(heap.pages(1)).cast() }
    }

    /// Sets which accesses of `msr` exit. Without effect on registers that no bitmap covers.
    pub fn intercept(&self, msr: u32, read: bool, write: bool) {
        let Some((byte, bit)) = position(msr) else { return };
        for (byte, exits) in [(byte, read), (byte + WRITES, write)] {
            if exits {
                self.0[byte].fetch_or(bit, SeqCst);
            } else {
                self.0[byte].fetch_and(!bit, SeqCst);
            }
        }
    }

    /// Whether reads and whether writes of `msr` exit.
    #[cfg(test)]
    fn intercepts(&self, msr: u32) -> (bool, bool) {
        position(msr).map_or((true, true), |(byte, bit)| {
            let exits = |byte: usize| self.0[byte].load(SeqCst) & bit != 0;
            (exits(byte), exits(byte + WRITES))
        })
    }

    /// Fills the bitmaps for the parent: the registers that are switched, virtualized or dangerous to the hypervisor exit,
    /// the others are the machine's own.
    pub fn fill_for_parent(&self) {
        let own = PARENT_READ_WRITE.into_iter().flatten();
        own.chain(msrs::PARENT_READ_WRITE).for_each(|msr| self.intercept(msr, true, true));
        let writes = PARENT_WRITE.into_iter().chain(msrs::PARENT_WRITE).chain(msrs::SYSTEM_CALL);
        writes.for_each(|msr| self.intercept(msr, false, true));
    }

    /// Fills the bitmaps for children: everything exits but what entries and exits switch, or stays in the machine for a
    /// loaded processor.
    pub fn fill_for_child(&self) {
        self.0.iter().for_each(|byte| byte.store(0xff, SeqCst));
        msrs::CHILD_OWN.into_iter().for_each(|msr| self.intercept(msr, false, false));
        msrs::SYSTEM_CALL.for_each(|msr| self.intercept(msr, false, true));
    }
}

/// Of this vendor's registers those of which both reads and writes exit for the parent.
const PARENT_READ_WRITE: [core::ops::RangeInclusive<u32>; 5] = [
    0x3a..=0x3a,   // feature control: VMX is taken
    0x480..=0x492, // VMX capabilities
    0x560..=0x561, // processor trace output: it goes to physical addresses
    0x570..=0x587, // processor trace
    0x600..=0x600, // debug store: buffers that the processor fills in hypervisor code, too
];

/// Those of which writes exit, and reads do not.
const PARENT_WRITE: [u32; 5] = [
    0x79,  // microcode update
    0x8b,  // microcode revision, which asking for it writes
    0x9b,  // SMM monitor control
    0x1f2, // SMM range
    0x1f3, //
];

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> MsrBitmap {
        MsrBitmap([const { AtomicU8::new(0) }; 4096])
    }

    #[test]
    fn bits_lie_where_the_manual_says() {
        assert_eq!(position(0), Some((0, 1)));
        assert_eq!(position(0x1fff), Some((1023, 0x80)));
        assert_eq!(position(0xc000_0081), Some((1024 + 16, 2)));
        for outside in [0x2000, 0x4000_0000, 0xbfff_ffff, 0xc000_2000, 0xc001_0010, u32::MAX] {
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
    fn the_parent_keeps_its_apic_but_not_the_timer_and_not_vmx() {
        let map = empty();
        map.fill_for_parent();
        assert_eq!(map.intercepts(0x80b), (false, false));
        assert_eq!(map.intercepts(0x830), (false, true));
        for msr in [0x3a, 0x480, 0x491, 0x570, 0x832, 0x838, 0x839, 0x83e, 0x6e0, 0xc000_0080] {
            assert_eq!(map.intercepts(msr), (true, true));
        }
    }

    #[test]
    fn a_child_owns_what_is_switched_and_nothing_else() {
        let map = empty();
        map.fill_for_child();
        let own =
            (0..0x2000).chain(0xc000_0000..0xc000_2000).filter(|msr| map.intercepts(*msr) != (true, true));
        let (mut shared, own): (Vec<_>, Vec<_>) = own.partition(|msr| msrs::SYSTEM_CALL.contains(msr));
        assert_eq!(own, msrs::CHILD_OWN);
        assert_eq!(shared.len(), 4);
        assert!(shared.drain(..).all(|msr| map.intercepts(msr) == (false, true)));
    }
}
