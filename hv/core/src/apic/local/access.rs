//! Reading and writing the registers of a local APIC, in the two ways guests have: 32-bit words of a page where
//! reserved bits are ignored (xAPIC), and MSRs where they fault (x2APIC).

use super::{FLAT, ILLEGAL_REGISTER, LocalApic, SEND_ILLEGAL_VECTOR, VERSION};
use crate::apic::ipi::{self, NotSent};
use crate::apic::lvt::{self, TimerMode};
use crate::apic::{Context, Delivery, Destination, Effect, Fault, Ipi, Mode, Register};

impl LocalApic {
    /// Reads by x2APIC MSR number (0x800-0x8FF).
    pub fn read_msr(&self, msr: u32, context: &Context<'_>) -> Result<u64, Fault> {
        match (self.mode(), Register::from_msr(msr)) {
            (Mode::X2Apic, Some(register)) => self.read(register, context),
            _ => Err(Fault),
        }
    }

    /// Writes by x2APIC MSR number.
    pub fn write_msr(&mut self, msr: u32, value: u64, context: &Context<'_>) -> Result<Effect, Fault> {
        match (self.mode(), Register::from_msr(msr)) {
            (Mode::X2Apic, Some(register)) => self.write(register, value, context),
            _ => Err(Fault),
        }
    }

    /// Reads the word at byte `offset` of the xAPIC page.
    pub fn read_page(&mut self, offset: u16, context: &Context<'_>) -> u32 {
        // Registers are 128 bits apart, their upper words undefined: they read as 0.
        if offset & 0xF != 0 {
            return 0;
        }
        match Register::from_offset(offset).map(|register| self.read(register, context)) {
            Some(Ok(value)) => value as u32,
            // Write-only registers read as 0.
            Some(Err(Fault)) => 0,
            None => {
                self.raise_error(ILLEGAL_REGISTER, context.incoming);
                0
            }
        }
    }

    /// Writes the word at byte `offset` of the xAPIC page.
    pub fn write_page(&mut self, offset: u16, value: u32, context: &Context<'_>) -> Effect {
        if offset & 0xF != 0 {
            return Effect::None;
        }
        match Register::from_offset(offset) {
            // A page write never faults; what would in x2APIC mode is ignored.
            Some(register) => self.write(register, value.into(), context).unwrap_or(Effect::None),
            None => {
                self.raise_error(ILLEGAL_REGISTER, context.incoming);
                Effect::None
            }
        }
    }

    /// Reads a register as the present mode lays it out.
    pub fn read(&self, register: Register, context: &Context<'_>) -> Result<u64, Fault> {
        let x2apic = self.mode() == Mode::X2Apic;
        let id = self.configuration.id;
        let rates = self.configuration.rates;
        let word = match register {
            Register::Id => id << if x2apic { 0 } else { 24 },
            Register::Version => VERSION,
            Register::TaskPriority => self.task_priority(context.cr8).into(),
            Register::ProcessorPriority => self.processor_priority(context.cr8).into(),
            Register::ArbitrationPriority | Register::RemoteRead => 0,
            Register::EndOfInterrupt | Register::SelfIpi => return Err(Fault),
            Register::LogicalDestination => self.logical_destination(),
            Register::DestinationFormat => self.format,
            Register::Spurious => self.spurious,
            Register::InService(word) => self.in_service[usize::from(word & 7)],
            Register::TriggerMode(word) => context.incoming.level_word(word),
            Register::InterruptRequest(word) => context.incoming.request_word(word),
            Register::ErrorStatus => self.error_status,
            Register::InterruptCommand if x2apic => return Ok(self.command),
            Register::InterruptCommand => self.command as u32,
            Register::InterruptCommandHigh => (self.command >> 32) as u32,
            Register::LvtTimer => self.table.timer,
            Register::LvtThermal => self.table.thermal,
            Register::LvtPerformance => self.table.performance,
            Register::LvtLint0 => self.table.lint0,
            Register::LvtLint1 => self.table.lint1,
            Register::LvtError => self.table.error,
            Register::InitialCount => self.timer.initial,
            Register::CurrentCount => self.timer.current(self.table.timer_mode(), context.tsc, rates),
            Register::DivideConfiguration => self.timer.divide,
        };
        Ok(word.into())
    }

    /// Writes a register as the present mode lays it out. In x2APIC mode reserved bits and read-only registers fault;
    /// in xAPIC mode they are ignored.
    pub fn write(&mut self, register: Register, value: u64, context: &Context<'_>) -> Result<Effect, Fault> {
        let x2apic = self.mode() == Mode::X2Apic;
        if register == Register::InterruptCommand {
            let value = if x2apic { value } else { self.command & !0xFFFF_FFFF | value & 0xFFFF_FFFF };
            return self.write_command(value, context);
        }
        let reserved = if x2apic { reserved_bits(register)? } else { 0 };
        if value & reserved != 0 {
            return Err(Fault);
        }
        let word = value as u32;
        match register {
            Register::TaskPriority => {
                self.task_priority = word as u8;
                return Ok(Effect::SetCr8(self.task_priority >> 4));
            }
            Register::EndOfInterrupt => return Ok(self.end_of_interrupt(context)),
            Register::SelfIpi => {
                return self.send(ipi::decode(u64::from(word as u8) | 1 << 18, Mode::X2Apic), context);
            }
            Register::LogicalDestination => self.logical = word & 0xFF00_0000,
            Register::DestinationFormat => self.format = word | FLAT >> 4,
            Register::InterruptCommandHigh => {
                self.command = self.command & 0xFFFF_FFFF | u64::from(word) << 32;
            }
            Register::Spurious => self.write_spurious(word),
            Register::ErrorStatus => self.write_error_status(context),
            Register::InitialCount | Register::DivideConfiguration => {
                return Ok(self.write_timer(register, word, context));
            }
            Register::LvtTimer => return self.write_lvt_timer(word, context),
            Register::LvtThermal
            | Register::LvtPerformance
            | Register::LvtLint0
            | Register::LvtLint1
            | Register::LvtError => self.write_lvt(register, word)?,
            // Read-only: ignored in xAPIC mode, and `reserved_bits` has refused it in x2APIC mode.
            _ => return Ok(Effect::None),
        }
        self.publish(context.incoming);
        // Masking or unmasking may have changed whether the timer interrupts.
        Ok(if register == Register::Spurious { Effect::TimerChanged } else { Effect::None })
    }

    /// Sets a register for the parent: like a guest's write, but for registers that would do something beyond
    /// changing state, which are refused.
    pub fn set(&mut self, register: Register, value: u64, context: &Context<'_>) -> Result<Effect, Fault> {
        match register {
            Register::InterruptCommand | Register::EndOfInterrupt | Register::SelfIpi => Err(Fault),
            _ => self.write(register, value, context),
        }
    }

    /// HV_X64_MSR_EOI: write-only.
    pub fn write_synthetic_eoi(&mut self, value: u64, context: &Context<'_>) -> Result<Effect, Fault> {
        if value >> 32 != 0 || self.mode() == Mode::Disabled {
            return Err(Fault);
        }
        Ok(self.end_of_interrupt(context))
    }

    /// HV_X64_MSR_ICR: both halves of the interrupt command at once, the destination laid out as in the present mode.
    pub fn read_synthetic_icr(&self) -> Result<u64, Fault> {
        if self.mode() == Mode::Disabled { Err(Fault) } else { Ok(self.command) }
    }

    /// Writes HV_X64_MSR_ICR.
    pub fn write_synthetic_icr(&mut self, value: u64, context: &Context<'_>) -> Result<Effect, Fault> {
        if self.mode() == Mode::Disabled {
            return Err(Fault);
        }
        self.write_command(value, context)
    }

    /// HV_X64_MSR_TPR.
    pub fn read_synthetic_tpr(&self, cr8: u8) -> u64 {
        self.task_priority(cr8).into()
    }

    /// Writes HV_X64_MSR_TPR.
    pub fn write_synthetic_tpr(&mut self, value: u64) -> Result<Effect, Fault> {
        self.task_priority = u8::try_from(value).map_err(|_| Fault)?;
        Ok(Effect::SetCr8(self.task_priority >> 4))
    }

    fn end_of_interrupt(&mut self, context: &Context<'_>) -> Effect {
        let ended = self.eoi(context.incoming);
        Effect::EndOfInterrupt {
            vector: ended.map(|(vector, _)| vector),
            level: ended.is_some_and(|(_, level)| level),
        }
    }

    fn write_command(&mut self, value: u64, context: &Context<'_>) -> Result<Effect, Fault> {
        if self.mode() == Mode::X2Apic && value & ipi::X2APIC_RESERVED & !(1 << 12) != 0 {
            return Err(Fault);
        }
        // The delivery status never shows: interrupts are sent at once.
        self.command = value & !(1 << 12);
        self.send(ipi::decode(self.command, self.mode()), context)
    }

    /// Sends what was decoded; an ordinary interrupt to oneself needs no one else.
    fn send(&mut self, decoded: Result<Ipi, NotSent>, context: &Context<'_>) -> Result<Effect, Fault> {
        match decoded {
            Ok(Ipi { delivery: Delivery::Fixed, vector, destination: Destination::SelfOnly, .. }) => {
                context.incoming.post_fixed(vector, false);
                Ok(Effect::None)
            }
            Ok(ipi) => Ok(Effect::SendIpi(ipi)),
            Err(NotSent::Nothing) => Ok(Effect::None),
            Err(NotSent::IllegalVector) => {
                self.raise_error(SEND_ILLEGAL_VECTOR, context.incoming);
                Ok(Effect::None)
            }
        }
    }

    fn write_spurious(&mut self, word: u32) {
        self.spurious = word & 0x3FF;
        if !self.software_enabled() {
            self.table.mask_all();
        }
    }

    /// Shows the errors since the last write (SDM 3A 12.5.3).
    fn write_error_status(&mut self, context: &Context<'_>) {
        self.error_status = core::mem::take(&mut self.new_errors) | context.incoming.take_errors();
    }

    fn write_lvt(&mut self, register: Register, word: u32) -> Result<(), Fault> {
        let strict = self.mode() == Mode::X2Apic;
        let enabled = self.software_enabled();
        if let Some((entry, writable)) = self.table.entry(register) {
            *entry = lvt::written(word, writable, strict, enabled)?;
        }
        Ok(())
    }

    /// Guests write all of the timer's registers whenever they arm it; what stays as it is moves no deadline.
    fn write_lvt_timer(&mut self, word: u32, context: &Context<'_>) -> Result<Effect, Fault> {
        let (before, old) = (self.table.timer_mode(), self.table.timer);
        self.write_lvt(Register::LvtTimer, word)?;
        let new = core::mem::replace(&mut self.table.timer, old);
        if new == old {
            return Ok(Effect::None);
        }
        self.settle_timer(context);
        self.table.timer = new;
        let after = self.table.timer_mode();
        // Changing to or from TSC-deadline mode disarms the timer (SDM 3A 12.5.4.1).
        if before != after && (before == TimerMode::Deadline || after == TimerMode::Deadline) {
            self.timer.disarm();
        }
        Ok(Effect::TimerChanged)
    }

    fn write_timer(&mut self, register: Register, word: u32, context: &Context<'_>) -> Effect {
        if register == Register::DivideConfiguration && self.timer.has_divide(word) {
            return Effect::None;
        }
        self.settle_timer(context);
        let mode = self.table.timer_mode();
        let rates = self.configuration.rates;
        match register {
            Register::DivideConfiguration => self.timer.set_divide(word, mode, context.tsc, rates),
            // Ignored in TSC-deadline mode (SDM 3A 12.5.4.1).
            _ if mode == TimerMode::Deadline => {}
            _ => self.timer.start(word, context.tsc, rates),
        }
        Effect::TimerChanged
    }

    /// Gives what has expired by now its interrupt, before something about the timer changes.
    fn settle_timer(&mut self, context: &Context<'_>) {
        if let Some(vector) = self.timer_expired(context) {
            context.incoming.post_fixed(vector, false);
        }
    }
}

/// The bits that must be zero when an x2APIC register is written; #GP for registers that cannot be.
fn reserved_bits(register: Register) -> Result<u64, Fault> {
    let writable: u32 = match register {
        Register::TaskPriority | Register::SelfIpi => 0xFF,
        Register::EndOfInterrupt | Register::ErrorStatus => 0,
        Register::Spurious => 0x3FF,
        Register::DivideConfiguration => 0xB,
        Register::InitialCount => u32::MAX,
        // Each entry checks its own.
        Register::LvtTimer
        | Register::LvtThermal
        | Register::LvtPerformance
        | Register::LvtLint0
        | Register::LvtLint1
        | Register::LvtError => u32::MAX,
        _ => return Err(Fault),
    };
    Ok(!u64::from(writable))
}
