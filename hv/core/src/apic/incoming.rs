//! The half of a local APIC that every processor may write: interrupts on their way in.

use super::ipi::Address;
use super::{Destination, Mode};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// NMI, INIT, SIPI, ExtINT and the start by hypercall are bits of one word, so that INIT can drop an earlier start in one step.
const NMI: u32 = 1 << 0;
const INIT: u32 = 1 << 1;
const SIPI: u32 = 1 << 2;
const EXT_INT: u32 = 1 << 3;
const START: u32 = 1 << 4;
const SIPI_VECTOR: u32 = 8;
const EXT_INT_VECTOR: u32 = 16;

/// Interrupts that have been sent to a virtual processor and not yet been taken by it, and by which addresses it is
/// found. All methods may be called from any processor at any time; none waits.
#[derive(Debug)]
pub struct Incoming {
    request: [AtomicU32; 8],
    level: [AtomicU32; 8],
    signals: AtomicU32,
    /// Errors seen by senders, to be merged into the error status.
    errors: AtomicU32,
    address: AtomicU64,
    id: u32,
}

impl Incoming {
    /// For the processor with this APIC id. It accepts nothing yet: [`super::LocalApic::new`] opens it.
    pub fn new(id: u32) -> Self {
        Self {
            request: Default::default(),
            level: Default::default(),
            signals: AtomicU32::new(0),
            errors: AtomicU32::new(0),
            address: AtomicU64::new(
                Address { mode: Mode::Disabled, logical: 0, flat: true, enabled: false }.pack(),
            ),
            id,
        }
    }

    /// The APIC id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether this processor is meant by `destination`, as sent by the processor with APIC id `sender` (`None`: by a
    /// device or the parent).
    pub fn matches(&self, destination: Destination, sender: Option<u32>) -> bool {
        match destination {
            Destination::All => true,
            Destination::AllButSelf => sender != Some(self.id),
            Destination::SelfOnly => sender == Some(self.id),
            Destination::Physical(id) => self.id == id,
            Destination::Logical(mda) => self.address().matches_logical(mda),
        }
    }

    /// Whether fixed interrupts are accepted: the APIC is enabled, by hardware and by software.
    pub fn accepts_fixed(&self) -> bool {
        let address = self.address();
        address.enabled && address.mode != Mode::Disabled
    }

    /// Requests a fixed interrupt. True if the processor has to be told: the vector was not already requested. Where
    /// the APIC is disabled the interrupt is lost; vectors below 16 are lost too, and noted as an error (SDM 12.5.3).
    pub fn post_fixed(&self, vector: u8, level: bool) -> bool {
        if vector < 16 {
            self.errors.fetch_or(1 << 6, Ordering::Relaxed);
            return false;
        }
        if !self.accepts_fixed() {
            return false;
        }
        let (word, bit) = split(vector);
        // Before the request, so that whoever takes it sees how it was triggered.
        if level {
            self.level[word].fetch_or(bit, Ordering::Relaxed);
        } else if self.level[word].load(Ordering::Relaxed) & bit != 0 {
            self.level[word].fetch_and(!bit, Ordering::Relaxed);
        }
        self.request[word].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Requests an NMI; false if one was pending already.
    pub fn post_nmi(&self) -> bool {
        self.signals.fetch_or(NMI, Ordering::AcqRel) & NMI == 0
    }

    /// Requests INIT, which ends a start-up that was not taken yet; false if INIT was pending already.
    pub fn post_init(&self) -> bool {
        self.update(|signals| signals & !(START | SIPI | 0xFF << SIPI_VECTOR) | INIT) & INIT == 0
    }

    /// Requests start-up at page `vector`; false, and nothing changed, if one is pending already.
    pub fn post_sipi(&self, vector: u8) -> bool {
        self.post_with_vector(SIPI, SIPI_VECTOR, vector)
    }

    /// Requests a start with the context that lies ready.
    pub(crate) fn post_start(&self) {
        self.signals.fetch_or(START, Ordering::AcqRel);
    }

    /// Asserts the external interrupt line (an 8259's) with `vector`; false, and nothing changed, if it is asserted.
    pub fn post_ext_int(&self, vector: u8) -> bool {
        self.post_with_vector(EXT_INT, EXT_INT_VECTOR, vector)
    }

    /// Whether an NMI is pending.
    pub fn nmi_pending(&self) -> bool {
        self.signals.load(Ordering::Acquire) & NMI != 0
    }

    /// Whether INIT, a SIPI or a start is pending.
    pub fn startup_pending(&self) -> bool {
        self.signals.load(Ordering::Acquire) & (INIT | SIPI | START) != 0
    }

    /// Whether a start is pending that no INIT has taken back.
    pub(crate) fn start_pending(&self) -> bool {
        self.signals.load(Ordering::Acquire) & START != 0
    }

    /// The vector of the external interrupt, while it is asserted.
    pub fn ext_int(&self) -> Option<u8> {
        with_vector(self.signals.load(Ordering::Acquire), EXT_INT, EXT_INT_VECTOR)
    }

    /// Takes a pending NMI.
    pub fn take_nmi(&self) -> bool {
        self.signals.fetch_and(!NMI, Ordering::AcqRel) & NMI != 0
    }

    /// Takes a pending INIT. Take it before a SIPI: that is the order they were sent in.
    pub fn take_init(&self) -> bool {
        self.signals.fetch_and(!INIT, Ordering::AcqRel) & INIT != 0
    }

    /// Takes a pending SIPI's vector.
    pub fn take_sipi(&self) -> Option<u8> {
        let before = self.signals.fetch_and(!(SIPI | 0xFF << SIPI_VECTOR), Ordering::AcqRel);
        with_vector(before, SIPI, SIPI_VECTOR)
    }

    /// Takes a pending start, after INIT and SIPI.
    pub(crate) fn take_start(&self) -> bool {
        self.signals.fetch_and(!START, Ordering::AcqRel) & START != 0
    }

    /// Takes the external interrupt: it was delivered, or cleared by `HvCallClearVirtualInterrupt`.
    pub fn take_ext_int(&self) -> Option<u8> {
        let before = self.signals.fetch_and(!(EXT_INT | 0xFF << EXT_INT_VECTOR), Ordering::AcqRel);
        with_vector(before, EXT_INT, EXT_INT_VECTOR)
    }

    /// Whether nothing at all is pending; cheap enough for every entry.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        let requested = self.request.iter().fold(0, |all, word| all | word.load(Ordering::Acquire));
        requested | self.signals.load(Ordering::Acquire) == 0
    }

    /// The highest vector requested, whatever the priorities.
    pub fn highest_request(&self) -> Option<u8> {
        super::local::highest(|word| self.request[word].load(Ordering::Acquire))
    }

    /// Whether `vector` is requested.
    pub fn is_requested(&self, vector: u8) -> bool {
        let (word, bit) = split(vector);
        self.request[word].load(Ordering::Acquire) & bit != 0
    }

    /// Whether the last request of `vector` was level-triggered.
    pub fn is_level(&self, vector: u8) -> bool {
        let (word, bit) = split(vector);
        self.level[word].load(Ordering::Acquire) & bit != 0
    }

    /// Takes back the request of `vector`; whether there was one.
    pub fn take_request(&self, vector: u8) -> bool {
        let (word, bit) = split(vector);
        self.request[word].fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    /// Requests `vector` again, as it was before it was [taken](Self::take_request).
    pub fn give_back(&self, vector: u8) {
        let (word, bit) = split(vector);
        self.request[word].fetch_or(bit, Ordering::AcqRel);
    }

    pub(super) fn request_word(&self, word: u8) -> u32 {
        self.request[usize::from(word & 7)].load(Ordering::Acquire)
    }

    pub(super) fn level_word(&self, word: u8) -> u32 {
        self.level[usize::from(word & 7)].load(Ordering::Acquire)
    }

    /// Replaces all requests and their trigger modes (restoring state, reset).
    pub(super) fn replace(&self, request: [u32; 8], level: [u32; 8]) {
        for word in 0..8 {
            self.level[word].store(level[word], Ordering::Release);
            self.request[word].store(request[word], Ordering::Release);
        }
    }

    /// Drops what is pending, for a reset of the processor; but not INIT and starts, which only the processor itself may
    /// take: a start can follow the INIT that causes this very reset.
    pub(super) fn drop_all(&self) {
        self.signals.fetch_and(INIT | SIPI | START | 0xFF << SIPI_VECTOR, Ordering::AcqRel);
        self.errors.store(0, Ordering::Release);
        self.replace([0; 8], [0; 8]);
    }

    pub(super) fn take_errors(&self) -> u32 {
        self.errors.swap(0, Ordering::Relaxed)
    }

    pub(super) fn set_address(&self, address: Address) {
        self.address.store(address.pack(), Ordering::Release);
    }

    fn address(&self) -> Address {
        Address::unpack(self.address.load(Ordering::Acquire))
    }

    fn post_with_vector(&self, flag: u32, shift: u32, vector: u8) -> bool {
        let post = |signals| {
            if signals & flag != 0 { signals } else { signals | flag | u32::from(vector) << shift }
        };
        self.update(post) & flag == 0
    }

    /// Changes the signals in one step; gives what they were.
    fn update(&self, change: impl Fn(u32) -> u32) -> u32 {
        let mut current = self.signals.load(Ordering::Acquire);
        loop {
            match self.signals.compare_exchange_weak(
                current,
                change(current),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(before) => return before,
                Err(seen) => current = seen,
            }
        }
    }
}

/// The word and the bit of a vector.
pub(super) fn split(vector: u8) -> (usize, u32) {
    (usize::from(vector >> 5), 1 << (vector & 31))
}

fn with_vector(signals: u32, flag: u32, shift: u32) -> Option<u8> {
    (signals & flag != 0).then_some((signals >> shift) as u8)
}
