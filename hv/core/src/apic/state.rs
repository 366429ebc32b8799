//! A local APIC's state as the hypercall interface carries it (`HV_GET_SET_VP_STATE_LAPIC_STATE`).

use super::lvt::{MASKED, TimerMode};
use super::{Context, LocalApic, Mode, Register};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `HV_X64_INTERRUPT_CONTROLLER_STATE`: every field as its register reads in the mode that IA32_APIC_BASE says.
/// The task priority is not in it (it is CR8), nor is IA32_TSC_DEADLINE.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct InterruptControllerState {
    pub id: u32,
    pub version: u32,
    pub logical_destination: u32,
    pub destination_format: u32,
    pub spurious: u32,
    pub in_service: [u32; 8],
    pub trigger_mode: [u32; 8],
    /// Bit 2 of the first word, which no vector can use, says that an NMI is pending.
    pub request: [u32; 8],
    /// The error status register.
    pub error_status: u32,
    pub command_high: u32,
    pub command: u32,
    pub lvt_timer: u32,
    pub lvt_thermal: u32,
    pub lvt_performance: u32,
    pub lvt_lint0: u32,
    pub lvt_lint1: u32,
    pub lvt_error: u32,
    pub lvt_cmci: u32,
    /// Errors since the register was last written.
    pub new_errors: u32,
    pub initial_count: u32,
    pub current_count: u32,
    pub divide: u32,
    pub remote_read: u32,
}
const _: () = assert!(size_of::<InterruptControllerState>() == 176);

/// The NMI bit of [`InterruptControllerState::request`].
const NMI_PENDING: u32 = 1 << 2;
/// Vectors 0-15 do not exist.
const VECTORS_0_31: u32 = 0xFFFF_0000;
/// The errors that the error status register can show.
const ERRORS: u32 = 0xE0;

impl LocalApic {
    /// The state as of now. The processor must not be running.
    pub fn export(&self, context: &Context<'_>) -> InterruptControllerState {
        let word = |register| self.read(register, context).map_or(0, |value| value as u32);
        let mut request: [u32; 8] = core::array::from_fn(|at| context.incoming.request_word(at as u8));
        if context.incoming.nmi_pending() {
            request[0] |= NMI_PENDING;
        }
        InterruptControllerState {
            id: word(Register::Id),
            version: word(Register::Version),
            logical_destination: self.logical_destination(),
            destination_format: self.format,
            spurious: self.spurious,
            in_service: self.in_service,
            trigger_mode: core::array::from_fn(|at| context.incoming.level_word(at as u8)),
            request,
            error_status: self.error_status,
            command_high: (self.command >> 32) as u32,
            command: self.command as u32,
            lvt_timer: self.table.timer,
            lvt_thermal: self.table.thermal,
            lvt_performance: self.table.performance,
            lvt_lint0: self.table.lint0,
            lvt_lint1: self.table.lint1,
            lvt_error: self.table.error,
            lvt_cmci: MASKED,
            new_errors: self.new_errors,
            initial_count: self.timer.initial,
            current_count: word(Register::CurrentCount),
            divide: self.timer.divide,
            remote_read: 0,
        }
    }

    /// Takes over `state`; IA32_APIC_BASE must have been set before. Any value is accepted: bits that cannot be set
    /// are dropped, and the id and the version stay what they are. The processor must not be running; interrupts that
    /// are posted at the same time come before or after the change.
    pub fn import(&mut self, state: &InterruptControllerState, context: &Context<'_>) {
        let incoming = context.incoming;
        if self.mode() != Mode::X2Apic {
            self.logical = state.logical_destination & 0xFF00_0000;
            self.format = state.destination_format | super::local::FLAT >> 4;
        }
        self.spurious = state.spurious & 0x3FF;
        self.in_service = without_low(state.in_service);
        self.error_status = state.error_status & ERRORS;
        self.new_errors = state.new_errors & ERRORS;
        self.command = (u64::from(state.command_high) << 32 | u64::from(state.command)) & !(1 << 12);
        self.import_table(state);
        self.import_timer(state, context);
        incoming.replace(without_low(state.request), without_low(state.trigger_mode));
        if state.request[0] & NMI_PENDING != 0 {
            incoming.post_nmi();
        } else {
            incoming.take_nmi();
        }
        self.publish(incoming);
    }

    fn import_table(&mut self, state: &InterruptControllerState) {
        for (register, value) in [
            (Register::LvtTimer, state.lvt_timer),
            (Register::LvtThermal, state.lvt_thermal),
            (Register::LvtPerformance, state.lvt_performance),
            (Register::LvtLint0, state.lvt_lint0),
            (Register::LvtLint1, state.lvt_lint1),
            (Register::LvtError, state.lvt_error),
        ] {
            let enabled = self.software_enabled();
            if let Some((entry, writable)) = self.table.entry(register) {
                *entry = value & writable | if enabled { 0 } else { MASKED };
            }
        }
    }

    fn import_timer(&mut self, state: &InterruptControllerState, context: &Context<'_>) {
        let rates = self.configuration.rates;
        let deadline = self.timer.deadline;
        self.timer.disarm();
        self.timer.divide = state.divide & 0xB;
        self.timer.initial = state.initial_count;
        if self.table.timer_mode() == TimerMode::Deadline {
            self.timer.deadline = deadline;
        } else {
            self.timer.resume(state.current_count.min(state.initial_count), context.tsc, rates);
        }
    }
}

fn without_low(mut words: [u32; 8]) -> [u32; 8] {
    words[0] &= VECTORS_0_31;
    words
}
