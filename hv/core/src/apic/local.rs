//! The half of a local APIC that belongs to its virtual processor: what is in service, priorities, the timer, and
//! reset. Register accesses are in [`access`].

mod access;
mod page;

use super::incoming::split;
use super::ipi::Address;
use super::lvt::{LocalPin, TimerMode, VectorTable};
use super::timer::Timer;
use super::{ApicBase, Context, Delivery, Destination, Fault, Incoming, Ipi, Mode, Rates};

/// What does not change in the life of a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The APIC id.
    pub id: u32,
    /// This is the processor that starts the system.
    pub bootstrap: bool,
    /// x2APIC mode exists.
    pub x2apic: bool,
    /// Bits of a guest-physical address.
    pub physical_bits: u8,
    /// How fast the timer and the time stamp counter tick.
    pub rates: Rates,
}

/// A virtual processor's local APIC.
#[derive(Clone, Debug)]
pub struct LocalApic {
    pub(super) configuration: Configuration,
    pub(super) base: ApicBase,
    /// The task priority as last written; its upper half counts only while it equals CR8.
    task_priority: u8,
    pub(super) in_service: [u32; 8],
    /// In xAPIC mode; in x2APIC mode it follows from the id.
    pub(super) logical: u32,
    pub(super) format: u32,
    pub(super) spurious: u32,
    /// The error status as latched by the last write, and errors since.
    pub(super) error_status: u32,
    pub(super) new_errors: u32,
    pub(super) command: u64,
    pub(super) table: VectorTable,
    pub(super) timer: Timer,
}

/// Bit 8 of the spurious interrupt vector register.
pub(super) const SOFTWARE_ENABLE: u32 = 1 << 8;
/// Destination format: flat. The other valid value is cluster, 0x0FFF_FFFF.
pub(super) const FLAT: u32 = u32::MAX;
/// Version 0x14 (integrated), six local vector table entries, no suppression of EOI broadcasts.
pub(super) const VERSION: u32 = 0x0005_0014;
/// Error status: a vector below 16 was to be sent.
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// Error status: a vector below 16 was received.
const RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
/// Error status: an access to a register that does not exist.
const ILLEGAL_REGISTER: u32 = 1 << 7;

impl LocalApic {
    /// A local APIC after power-on, whose other half is `incoming`.
    pub fn new(configuration: Configuration, incoming: &Incoming) -> Self {
        let mut apic = Self {
            configuration,
            base: ApicBase::power_on(configuration.bootstrap),
            task_priority: 0,
            in_service: [0; 8],
            logical: 0,
            format: FLAT,
            spurious: 0xFF,
            error_status: 0,
            new_errors: 0,
            command: 0,
            table: VectorTable::RESET,
            timer: Timer::RESET,
        };
        apic.reset(incoming);
        apic
    }

    /// A local APIC of which only the timer is used, as a stand-in for a physical one's: in x2APIC mode and enabled by
    /// software from the start. Make it anew when its processor is reset.
    pub fn timer_only(configuration: Configuration, incoming: &Incoming) -> Self {
        let mut apic = Self::new(configuration, incoming);
        apic.base = apic.base.x2apic();
        apic.spurious |= SOFTWARE_ENABLE;
        apic.publish(incoming);
        apic
    }

    /// Resets everything but the id and IA32_APIC_BASE, as INIT does (SDM 3A 12.4.7.3), and drops what is pending
    /// but for a SIPI. CR8 is the caller's to clear.
    pub fn init(&mut self, incoming: &Incoming) {
        self.reset(incoming);
    }

    fn reset(&mut self, incoming: &Incoming) {
        self.task_priority = 0;
        self.in_service = [0; 8];
        self.logical = 0;
        self.format = FLAT;
        self.spurious = 0xFF;
        self.error_status = 0;
        self.new_errors = 0;
        self.command = 0;
        self.table = VectorTable::RESET;
        self.timer = Timer::RESET;
        incoming.drop_all();
        self.publish(incoming);
    }

    /// Tells senders how this processor is now addressed.
    pub(super) fn publish(&self, incoming: &Incoming) {
        incoming.set_address(Address {
            mode: self.mode(),
            logical: self.logical_destination(),
            flat: self.format >> 28 == 0xF,
            enabled: self.software_enabled(),
        });
    }

    /// The mode it is in.
    pub fn mode(&self) -> Mode {
        self.base.mode()
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> ApicBase {
        self.base
    }

    /// Writes IA32_APIC_BASE for the guest. Disabling the APIC resets it.
    pub fn write_base(&mut self, value: u64, incoming: &Incoming) -> Result<(), Fault> {
        let Configuration { x2apic, physical_bits, .. } = self.configuration;
        let new = self.base.written(value, x2apic, physical_bits)?;
        self.enter(new, incoming);
        Ok(())
    }

    /// Sets IA32_APIC_BASE for the parent, from any mode to any other.
    pub fn set_base(&mut self, value: u64, incoming: &Incoming) -> Result<(), Fault> {
        let Configuration { x2apic, physical_bits, .. } = self.configuration;
        let new = self.base.checked(value, x2apic, physical_bits)?;
        self.enter(new, incoming);
        Ok(())
    }

    fn enter(&mut self, base: ApicBase, incoming: &Incoming) {
        let before = self.mode();
        self.base = base;
        match (before, self.mode()) {
            (before, after) if before == after => {}
            (_, Mode::Disabled) => self.reset(incoming),
            // The destination field lies elsewhere, and is not carried over (SDM 3A 12.12.5.1).
            _ => {
                self.command &= 0xFFFF_FFFF;
                self.publish(incoming);
            }
        }
    }

    /// The logical destination register.
    pub(super) fn logical_destination(&self) -> u32 {
        let id = self.configuration.id;
        match self.mode() {
            Mode::X2Apic => (id >> 4) << 16 | 1 << (id & 0xF),
            _ => self.logical,
        }
    }

    pub(super) fn software_enabled(&self) -> bool {
        self.spurious & SOFTWARE_ENABLE != 0
    }

    /// The task priority register. Its lower half is kept here, its upper half is CR8.
    pub(super) fn task_priority(&self, cr8: u8) -> u8 {
        if self.task_priority >> 4 == cr8 { self.task_priority } else { cr8 << 4 }
    }

    /// The processor priority: the task priority, or the class in service if that is higher (SDM 3A 12.8.3.1).
    pub(super) fn processor_priority(&self, cr8: u8) -> u8 {
        let task = self.task_priority(cr8);
        let service = self.highest_in_service().unwrap_or(0) & 0xF0;
        if task & 0xF0 >= service { task } else { service }
    }

    /// The highest vector in service.
    pub fn highest_in_service(&self) -> Option<u8> {
        highest(|word| self.in_service[word])
    }

    /// The vector to deliver next, if its priority is above that of the task (CR8) and of what is in service. With a
    /// `cr8` of 0: the vector that would be delivered if only the task priority allowed it.
    pub fn highest_pending(&self, incoming: &Incoming, cr8: u8) -> Option<u8> {
        if self.mode() == Mode::Disabled {
            return None;
        }
        incoming.highest_request().filter(|vector| vector >> 4 > self.processor_priority(cr8) >> 4)
    }

    /// The processor takes `vector`: it is no longer requested, but in service, unless it ends by itself (a SynIC
    /// source with auto-EOI). False if it was not requested any more.
    pub fn acknowledge(&mut self, incoming: &Incoming, vector: u8, auto_eoi: bool) -> bool {
        let taken = incoming.take_request(vector);
        if taken && !auto_eoi {
            self.begin_service(vector);
        }
        taken
    }

    /// The processor has taken `vector`, which was requested no more.
    pub fn begin_service(&mut self, vector: u8) {
        let (word, bit) = split(vector);
        self.in_service[word] |= bit;
    }

    /// Ends the highest interrupt in service; gives its vector and whether it was level-triggered.
    pub fn eoi(&mut self, incoming: &Incoming) -> Option<(u8, bool)> {
        let vector = self.highest_in_service()?;
        let (word, bit) = split(vector);
        self.in_service[word] &= !bit;
        Some((vector, incoming.is_level(vector)))
    }

    /// Whether the end of `vector`, just acknowledged, may stay unnoticed for now ("No EOI required", TLFS "EOI
    /// Assist"): it was edge-triggered, and nothing of lower priority waits for it or is interrupted by it.
    pub fn may_skip_eoi(&self, incoming: &Incoming, vector: u8) -> bool {
        let (word, bit) = split(vector);
        let only = highest(|at| if at == word { self.in_service[at] & !bit } else { self.in_service[at] });
        !incoming.is_level(vector) && only.is_none() && incoming.highest_request().is_none()
    }

    /// A signal on a pin of the local vector table (`HvCallAssertVirtualInterrupt` with LINT0 or LINT1): the
    /// interrupt it becomes, if any. [`LocalApic::ext_int_pin`] tells whether it means ExtINT.
    pub fn local_interrupt(&self, pin: LocalPin) -> Option<Ipi> {
        let (delivery, vector) = self.table.route(pin)?;
        let delivery = delivery.filter(|kind| *kind != Delivery::Fixed || vector >= 16)?;
        Some(Ipi { delivery, vector, destination: Destination::SelfOnly, level: false })
    }

    /// Whether an 8259 reaches this processor: LINT0 is open and in ExtINT mode, or the APIC is disabled.
    pub fn ext_int_pin(&self) -> bool {
        self.mode() == Mode::Disabled || matches!(self.table.route(LocalPin::Lint0), Some((None, _)))
    }

    /// When [`LocalApic::timer_expired`] is to be called, in physical TSC ticks; it may be in the past.
    pub fn timer_deadline(&self, context: &Context<'_>) -> Option<u64> {
        self.table.timer_vector()?;
        self.timer.next(self.table.timer_mode(), context.tsc, context.tsc_offset)
    }

    /// The timer's vector, unless it is masked.
    pub fn timer_vector(&self) -> Option<u8> {
        self.table.timer_vector()
    }

    /// Whether the timer counts, or waits for its deadline: only then can it expire.
    #[inline]
    pub fn timer_runs(&self) -> bool {
        self.timer.runs()
    }

    /// If the timer has expired, the vector to request ([`Incoming::post_fixed`]); the timer goes on or stops as its
    /// mode says.
    pub fn timer_expired(&mut self, context: &Context<'_>) -> Option<u8> {
        let mode = self.table.timer_mode();
        let expired = self.timer.expire(mode, context.tsc, context.tsc_offset, self.configuration.rates);
        self.table.timer_vector().filter(|_| expired)
    }

    /// The partition's time stood still for `ticks` TSC ticks, and so did the timer. The TSC-deadline mode follows
    /// the guest's time stamp counter and is not concerned.
    pub fn shift_time(&mut self, ticks: u64) {
        self.timer.shift(ticks);
    }

    /// IA32_TSC_DEADLINE (0x6E0). It reads 0 unless the timer is armed in that mode.
    pub fn tsc_deadline(&self) -> u64 {
        if self.table.timer_mode() == TimerMode::Deadline { self.timer.deadline } else { 0 }
    }

    /// Writes IA32_TSC_DEADLINE; without effect in other modes of the timer (SDM 3A 12.5.4.1). The timer's deadline
    /// has changed.
    pub fn write_tsc_deadline(&mut self, value: u64) {
        if self.table.timer_mode() == TimerMode::Deadline {
            self.timer.deadline = value;
        }
    }

    /// Notes an error and raises the error interrupt.
    fn raise_error(&mut self, error: u32, incoming: &Incoming) {
        self.new_errors |= error;
        if let Some((Some(Delivery::Fixed), vector)) = self.table.route(LocalPin::Error) {
            if vector < 16 {
                self.new_errors |= RECEIVED_ILLEGAL_VECTOR;
            } else {
                incoming.post_fixed(vector, false);
            }
        }
    }
}

/// The highest vector whose bit is set in the eight words that `word` gives.
pub(super) fn highest(word: impl Fn(usize) -> u32) -> Option<u8> {
    (0..8).rev().find_map(|index| {
        let bits = word(index);
        // Below 256, as index is below 8.
        (bits != 0).then(|| (index as u32 * 32 + bits.ilog2()) as u8)
    })
}
