//! The local vector table (Intel SDM 3A 12.5.1).

use super::{Delivery, Fault, Register};

/// Interrupts that the local vector table routes, the timer's apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalPin {
    /// Thermal sensor.
    Thermal,
    /// Performance counters.
    Performance,
    /// Pin LINT0, where a PC's 8259 is.
    Lint0,
    /// Pin LINT1, where a PC's NMI is.
    Lint1,
    /// The APIC's own errors.
    Error,
}

pub(super) const MASKED: u32 = 1 << 16;
/// Delivery status and remote IRR, which are read-only.
const READ_ONLY: u32 = 1 << 12 | 1 << 14;

/// How the timer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    Deadline,
}

/// The entries, each as its register reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VectorTable {
    pub timer: u32,
    pub thermal: u32,
    pub performance: u32,
    pub lint0: u32,
    pub lint1: u32,
    pub error: u32,
}

impl VectorTable {
    pub const RESET: Self = Self {
        timer: MASKED,
        thermal: MASKED,
        performance: MASKED,
        lint0: MASKED,
        lint1: MASKED,
        error: MASKED,
    };

    /// The entry that `register` is, with its writable bits.
    pub fn entry(&mut self, register: Register) -> Option<(&mut u32, u32)> {
        Some(match register {
            Register::LvtTimer => (&mut self.timer, 0x0007_00FF),
            Register::LvtThermal => (&mut self.thermal, 0x0001_07FF),
            Register::LvtPerformance => (&mut self.performance, 0x0001_07FF),
            Register::LvtLint0 => (&mut self.lint0, 0x0001_A7FF),
            Register::LvtLint1 => (&mut self.lint1, 0x0001_A7FF),
            Register::LvtError => (&mut self.error, 0x0001_00FF),
            _ => return None,
        })
    }

    /// Masks every entry: the APIC was disabled by software.
    pub fn mask_all(&mut self) {
        for entry in [
            &mut self.timer,
            &mut self.thermal,
            &mut self.performance,
            &mut self.lint0,
            &mut self.lint1,
            &mut self.error,
        ] {
            *entry |= MASKED;
        }
    }

    /// What a signal on `pin` becomes: its kind (`None`: ExtINT, whose vector comes from the 8259) and vector.
    /// `None` if the entry is masked or its mode is not one that exists here.
    pub fn route(&self, pin: LocalPin) -> Option<(Option<Delivery>, u8)> {
        let entry = match pin {
            LocalPin::Thermal => self.thermal,
            LocalPin::Performance => self.performance,
            LocalPin::Lint0 => self.lint0,
            LocalPin::Lint1 => self.lint1,
            LocalPin::Error => self.error,
        };
        let delivery = match entry >> 8 & 7 {
            _ if entry & MASKED != 0 => return None,
            0 => Some(Delivery::Fixed),
            4 => Some(Delivery::Nmi),
            5 => Some(Delivery::Init),
            7 => None,
            _ => return None,
        };
        Some((delivery, entry as u8))
    }

    /// How the timer counts. The reserved fourth mode counts as one-shot.
    pub fn timer_mode(&self) -> TimerMode {
        match self.timer >> 17 & 3 {
            1 => TimerMode::Periodic,
            2 => TimerMode::Deadline,
            _ => TimerMode::OneShot,
        }
    }

    /// The timer's vector, unless it is masked.
    pub fn timer_vector(&self) -> Option<u8> {
        (self.timer & MASKED == 0).then_some(self.timer as u8)
    }
}

/// What an entry becomes when `value` is written: `writable` bits taken over, read-only ones ignored, others a fault
/// where `strict` (x2APIC mode); masked in any case where the APIC is software-disabled.
pub(super) fn written(value: u32, writable: u32, strict: bool, enabled: bool) -> Result<u32, Fault> {
    if strict && value & !(writable | READ_ONLY) != 0 {
        return Err(Fault);
    }
    Ok(value & writable | if enabled { 0 } else { MASKED })
}
