//! A local APIC's state as the hypercall interface carries it (`HV_GET_SET_VP_STATE_LAPIC_STATE`): every field as its
//! register reads in the mode that IA32_APIC_BASE says. The task priority is not in it (it is CR8), nor is
//! IA32_TSC_DEADLINE.

use super::lvt::{MASKED, TimerMode};
use super::{Context, LocalApic, Mode, Register};
use parterre_abi::lapic::LapicState;

/// Bit 2 of the first request word, which no vector can use, says that an NMI is pending.
const NMI_PENDING: u32 = 1 << 2;
/// Vectors 0-15 do not exist.
const VECTORS_0_31: u32 = 0xFFFF_0000;
/// The errors that the error status register can show.
const ERRORS: u32 = 0xE0;

impl LocalApic {
    /// The state as of now. The processor must not be running.
    pub fn export(&self, context: &Context<'_>) -> LapicState {
        let word = |register| self.read(register, context).map_or(0, |value| value as u32);
        let mut request: [u32; 8] = core::array::from_fn(|at| context.incoming.request_word(at as u8));
        if context.incoming.nmi_pending() {
            request[0] |= NMI_PENDING;
        }
        LapicState {
            apic_id: word(Register::Id),
            apic_version: word(Register::Version),
            apic_ldr: self.logical_destination(),
            apic_dfr: self.format,
            apic_spurious: self.spurious,
            apic_isr: self.in_service,
            apic_tmr: core::array::from_fn(|at| context.incoming.level_word(at as u8)),
            apic_irr: request,
            apic_esr: self.error_status,
            apic_icr_high: (self.command >> 32) as u32,
            apic_icr_low: self.command as u32,
            apic_lvt_timer: self.table.timer,
            apic_lvt_thermal: self.table.thermal,
            apic_lvt_perfmon: self.table.performance,
            apic_lvt_lint0: self.table.lint0,
            apic_lvt_lint1: self.table.lint1,
            apic_lvt_error: self.table.error,
            apic_lvt_cmci: MASKED,
            apic_error_status: self.new_errors,
            apic_initial_count: self.timer.initial,
            apic_counter_value: word(Register::CurrentCount),
            apic_divide_configuration: self.timer.divide,
            apic_remote_read: 0,
        }
    }

    /// Takes over `state`; IA32_APIC_BASE must have been set before. Any value is accepted: bits that cannot be set
    /// are dropped, and the id and the version stay what they are. The processor must not be running; interrupts that
    /// are posted at the same time come before or after the change.
    pub fn import(&mut self, state: &LapicState, context: &Context<'_>) {
        let incoming = context.incoming;
        if self.mode() != Mode::X2Apic {
            self.logical = state.apic_ldr & 0xFF00_0000;
            self.format = state.apic_dfr | super::local::FLAT >> 4;
        }
        self.spurious = state.apic_spurious & 0x3FF;
        self.in_service = without_low(state.apic_isr);
        self.error_status = state.apic_esr & ERRORS;
        self.new_errors = state.apic_error_status & ERRORS;
        self.command = (u64::from(state.apic_icr_high) << 32 | u64::from(state.apic_icr_low)) & !(1 << 12);
        self.import_table(state);
        self.import_timer(state, context);
        incoming.replace(without_low(state.apic_irr), without_low(state.apic_tmr));
        if state.apic_irr[0] & NMI_PENDING != 0 {
            incoming.post_nmi();
        } else {
            incoming.take_nmi();
        }
        self.publish(incoming);
    }

    fn import_table(&mut self, state: &LapicState) {
        for (register, value) in [
            (Register::LvtTimer, state.apic_lvt_timer),
            (Register::LvtThermal, state.apic_lvt_thermal),
            (Register::LvtPerformance, state.apic_lvt_perfmon),
            (Register::LvtLint0, state.apic_lvt_lint0),
            (Register::LvtLint1, state.apic_lvt_lint1),
            (Register::LvtError, state.apic_lvt_error),
        ] {
            let enabled = self.software_enabled();
            if let Some((entry, writable)) = self.table.entry(register) {
                *entry = value & writable | if enabled { 0 } else { MASKED };
            }
        }
    }

    fn import_timer(&mut self, state: &LapicState, context: &Context<'_>) {
        let rates = self.configuration.rates;
        let deadline = self.timer.deadline;
        self.timer.disarm();
        self.timer.divide = state.apic_divide_configuration & 0xB;
        self.timer.initial = state.apic_initial_count;
        if self.table.timer_mode() == TimerMode::Deadline {
            self.timer.deadline = deadline;
        } else {
            self.timer.resume(state.apic_counter_value.min(state.apic_initial_count), context.tsc, rates);
        }
    }
}

fn without_low(mut words: [u32; 8]) -> [u32; 8] {
    words[0] &= VECTORS_0_31;
    words
}
