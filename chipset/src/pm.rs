//! ACPI fixed hardware: PM1a event and control registers.
//!
//! Source: ACPI specification 6.5, 4.8.3.1 "PM1 Event Grouping" and 4.8.3.2 "PM1 Control Grouping". There is no SMI
//! command port: ACPI mode is always on.

use std::sync::{Arc, Mutex, PoisonError};

use crate::bus::Device;
use crate::{IrqLine, PowerEvents};

/// First port: status (2 bytes), enable (2), control (2).
pub const BASE: u64 = 0x600;
/// Number of ports.
pub const LEN: u64 = 6;
/// System control interrupt, level-triggered, active high.
pub const SCI: u8 = 9;
/// Sleep type that means "soft off" in the `_S5` package.
pub const SLEEP_TYPE_OFF: u8 = 0;

const STATUS: u64 = 0;
const ENABLE: u64 = 2;
const CONTROL: u64 = 4;

const POWER_BUTTON: u16 = 1 << 8;
/// Enable bits that exist: timer, global lock, power button, sleep button, clock. Only the power button ever has a status.
const ENABLE_BITS: u16 = 1 << 0 | 1 << 5 | POWER_BUTTON | 1 << 9 | 1 << 10;
const SCI_ENABLED: u16 = 1 << 0;
const SLEEP_ENABLE: u16 = 1 << 13;

#[derive(Default)]
struct State {
    status: u16,
    enable: u16,
    control: u16,
}

/// The PM1a block.
pub struct PowerManagement {
    line: IrqLine,
    events: Arc<dyn PowerEvents>,
    state: Mutex<State>,
}

impl PowerManagement {
    /// The block after reset.
    pub fn new(line: IrqLine, events: Arc<dyn PowerEvents>) -> PowerManagement {
        PowerManagement { line, events, state: Mutex::default() }
    }

    fn update(&self, f: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut state);
        self.line.set(state.status & state.enable != 0);
    }

    /// Presses the power button: an operating system that listens shuts down.
    pub fn press_power_button(&self) {
        self.update(|state| state.status |= POWER_BUTTON);
    }

    fn write_control(&self, value: u16) {
        self.update(|state| state.control = value & !SLEEP_ENABLE);
        let sleep_type = (value >> 10) as u8 & 7;
        if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_OFF {
            self.events.power_off();
        }
    }
}

impl Device for PowerManagement {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let block = u64::from(state.status)
            | u64::from(state.enable) << 16
            | u64::from(state.control | SCI_ENABLED) << 32;
        (block >> (8 * offset)) & crate::bus::all_ones(size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match (offset, size) {
            (STATUS, 2) => self.update(|state| state.status &= !(value as u16)),
            (STATUS, 4) => self.update(|state| {
                state.status &= !(value as u16);
                state.enable = (value >> 16) as u16 & ENABLE_BITS;
            }),
            (ENABLE, 2) => self.update(|state| state.enable = value as u16 & ENABLE_BITS),
            (CONTROL, 2) => self.write_control(value as u16),
            // Byte accesses of the event registers act on their half.
            (0..=1, 1) => self.update(|state| state.status &= !((value as u16) << (8 * offset))),
            (2..=3, 1) => self.update(|state| {
                let shift = 8 * (offset - ENABLE);
                let half = 0xFFu16 << shift;
                state.enable = ((state.enable & !half) | (value as u16) << shift) & ENABLE_BITS;
            }),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ioapic::IoApic;
    use crate::misc::tests::Power;
    use crate::{ApicBus, ApicMessage};
    use std::sync::atomic::Ordering;

    #[derive(Default)]
    struct Sent(Mutex<Vec<u8>>);

    impl ApicBus for Sent {
        fn send(&self, message: ApicMessage) {
            self.0.lock().unwrap().push(message.vector);
        }
    }

    fn make() -> (Arc<Power>, Arc<Sent>, PowerManagement) {
        let (power, sent) = (Arc::new(Power::default()), Arc::new(Sent::default()));
        let ioapic = Arc::new(IoApic::new(sent.clone()));
        ioapic.write(0, 4, 0x10 + 2 * u64::from(SCI));
        ioapic.write(0x10, 4, 0x8039);
        (power.clone(), sent, PowerManagement::new(IrqLine::new(ioapic, SCI.into()), power))
    }

    #[test]
    fn sleep_enable_with_type_off_switches_off() {
        let (power, _, pm) = make();
        pm.write(CONTROL, 2, 5 << 10 | u64::from(SLEEP_ENABLE));
        pm.write(CONTROL, 2, 0x0001);
        assert_eq!(power.offs.load(Ordering::Relaxed), 0);
        pm.write(CONTROL, 2, 0x2000);
        assert_eq!(power.offs.load(Ordering::Relaxed), 1);
        assert_eq!(pm.read(CONTROL, 2), u64::from(SCI_ENABLED));
    }

    #[test]
    fn power_button_interrupts_once_enabled_and_is_cleared_by_writing_one() {
        let (_, sent, pm) = make();
        pm.press_power_button();
        assert!(sent.0.lock().unwrap().is_empty());
        pm.write(ENABLE, 2, u64::MAX);
        assert_eq!(*sent.0.lock().unwrap(), [0x39]);
        assert_eq!(pm.read(STATUS, 4), u64::from(POWER_BUTTON) | u64::from(ENABLE_BITS) << 16);
        pm.write(STATUS + 1, 1, 1);
        assert_eq!(pm.read(STATUS, 2), 0);
    }
}
