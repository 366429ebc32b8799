//! The reference time of a partition (TLFS "Partition Reference Time Enlightenment").

use core::mem::offset_of;
use parterre_abi::timer::{self, ReferenceTscPage};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The start of the reference TSC page (`HV_REFERENCE_TSC_PAGE`); the rest of the page is zero.
///
/// When virtual processors may be running, write a sequence of 0 first, then the other fields, the sequence last:
/// whoever reads 0 falls back to the counter register.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReferenceTsc {
    /// Changes with the other fields; 0 says that they are not valid.
    pub sequence: u32,
    /// Zero.
    pub reserved: u32,
    /// Reference time is `(tsc * scale >> 64) + offset`.
    pub scale: u64,
    /// See `scale`.
    pub offset: i64,
}
const _: () = assert!(size_of::<ReferenceTsc>() == offset_of!(ReferenceTscPage, reserved2));
const _: () = assert!(offset_of!(ReferenceTsc, scale) == offset_of!(ReferenceTscPage, tsc_scale));

/// A partition's clock: its time stamp counter and its reference time in units of 100 ns.
///
/// The reference time is computed from the partition's own time stamp counter in just the way that guests compute it,
/// so that the register and the page never contradict each other. Freezing stops both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    scale: u64,
    /// The partition's TSC less the physical one (wrapping).
    tsc_offset: u64,
    /// Reference time less the scaled TSC.
    offset: i64,
    sequence: u32,
    /// The physical TSC at which time stopped.
    frozen: Option<u64>,
}

impl Clock {
    /// A child's clock, whose TSC and reference time are 0 at physical TSC `tsc`. `frequency` is the TSC's, in Hz,
    /// above 10 MHz.
    pub fn new(frequency: u64, tsc: u64) -> Self {
        Self {
            // No machine has a slower one; a scale of all ones is what comes nearest.
            scale: timer::tsc_scale(frequency).unwrap_or(u64::MAX),
            tsc_offset: tsc.wrapping_neg(),
            offset: 0,
            sequence: 1,
            frozen: None,
        }
    }

    /// The parent's clock: its TSC is the physical one, its reference time is 0 at `tsc`.
    pub fn physical(frequency: u64, tsc: u64) -> Self {
        let mut clock = Self { tsc_offset: 0, ..Self::new(frequency, tsc) };
        clock.set_reference_time(0, tsc);
        clock.sequence = 1;
        clock
    }

    /// What a virtual processor adds to the physical TSC, unless its own was set.
    pub fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    /// The physical TSC as far as this partition is concerned: it stands still while time is frozen. Timers, and
    /// settings of a virtual processor's TSC, go by this.
    pub fn effective(&self, tsc: u64) -> u64 {
        self.frozen.unwrap_or(tsc)
    }

    /// The reference time at physical TSC `tsc`, in 100 ns; what HV_X64_MSR_TIME_REF_COUNT reads.
    pub fn reference_time(&self, tsc: u64) -> u64 {
        let tsc = self.effective(tsc).wrapping_add(self.tsc_offset);
        timer::reference_time(tsc, self.scale, self.offset)
    }

    /// How long so many ticks of the physical TSC are, in 100 ns.
    pub fn duration(&self, ticks: u64) -> u64 {
        timer::reference_time(ticks, self.scale, 0)
    }

    /// The first physical TSC at which the reference time is `time` or later; `None` if that is never, as time is
    /// frozen or the counter ends before.
    pub fn tsc_at(&self, time: u64) -> Option<u64> {
        if self.frozen.is_some() {
            return None;
        }
        let guest = timer::tsc_at(time, self.scale, self.offset)?;
        let physical = i128::from(guest) - i128::from(self.tsc_offset as i64);
        u64::try_from(physical.max(0)).ok()
    }

    /// Sets the reference time at physical TSC `tsc` (partition property, restoring a partition). The page's contents
    /// change.
    pub fn set_reference_time(&mut self, time: u64, tsc: u64) {
        let guest = self.effective(tsc).wrapping_add(self.tsc_offset);
        self.offset = time.wrapping_sub(timer::reference_time(guest, self.scale, 0)) as i64;
        self.next_sequence();
    }

    /// Whether time is frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Stops time at physical TSC `tsc`. No virtual processor may run until [`Clock::thaw`].
    pub fn freeze(&mut self, tsc: u64) {
        self.frozen.get_or_insert(tsc);
    }

    /// Lets time go on from where it stopped. Gives the physical ticks that were left out: subtract them (wrapping)
    /// from every virtual processor's TSC offset, and tell its APIC timer
    /// ([`LocalApic::shift_time`](crate::apic::LocalApic::shift_time)). The page's contents stay valid.
    pub fn thaw(&mut self, tsc: u64) -> u64 {
        let ticks = self.frozen.take().map_or(0, |since| tsc.saturating_sub(since));
        self.tsc_offset = self.tsc_offset.wrapping_sub(ticks);
        ticks
    }

    /// The contents of the reference TSC page.
    pub fn page(&self) -> ReferenceTsc {
        ReferenceTsc { sequence: self.sequence, reserved: 0, scale: self.scale, offset: self.offset }
    }

    fn next_sequence(&mut self) {
        // 0 is taken; so is all ones, in older versions of the specification.
        self.sequence = if self.sequence >= u32::MAX - 1 { 1 } else { self.sequence + 1 };
    }
}
