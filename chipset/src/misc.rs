//! Small ports: resets, the keyboard controller's reset command, diagnostic codes.

use std::sync::Arc;

use crate::PowerEvents;
use crate::bus::Device;

/// Reset control register (ACPI's reset register in the FADT).
pub const RESET_CONTROL: u64 = 0xCF9;
/// The value of the FADT that resets: CPU reset, full.
pub const RESET_VALUE: u8 = 0x06;
/// Keyboard controller: status and command port.
pub const I8042_COMMAND: u64 = 0x64;
/// Ports that swallow writes and read zero: POST codes (0x80), I/O delay (0xED), NMI status (0x61).
pub const IGNORED: [u64; 3] = [0x61, 0x80, 0xED];

/// Command "pulse output line 0", which is the processor's reset line.
const PULSE_RESET: u64 = 0xFE;
/// Bit of the reset control register that makes a reset happen.
const RESET_CPU: u64 = 1 << 2;

/// Port 0xCF9.
pub struct ResetControl(pub Arc<dyn PowerEvents>);

impl Device for ResetControl {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        0
    }
    fn write(&self, _offset: u64, _size: u8, value: u64) {
        if value & RESET_CPU != 0 {
            self.0.reset();
        }
    }
}

/// Port 0x64 of a keyboard controller without a keyboard: always ready, knows one command.
pub struct KeyboardController(pub Arc<dyn PowerEvents>);

impl Device for KeyboardController {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        0
    }
    fn write(&self, _offset: u64, _size: u8, value: u64) {
        if value == PULSE_RESET {
            self.0.reset();
        }
    }
}

/// A port without effect.
pub struct Ignored;

impl Device for Ignored {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        0
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64) {}
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Counts power events: offs in the low half, resets in the high half.
    #[derive(Default)]
    pub(crate) struct Power {
        pub(crate) offs: AtomicU32,
        pub(crate) resets: AtomicU32,
    }

    impl PowerEvents for Power {
        fn power_off(&self) {
            self.offs.fetch_add(1, Ordering::Relaxed);
        }
        fn reset(&self) {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_reset_values_reset() {
        let power = Arc::new(Power::default());
        let control = ResetControl(power.clone());
        control.write(0, 1, 2); // selects the kind, does nothing yet
        assert_eq!(power.resets.load(Ordering::Relaxed), 0);
        control.write(0, 1, u64::from(RESET_VALUE));
        let keyboard = KeyboardController(power.clone());
        keyboard.write(0, 1, 0xD1);
        assert_eq!(power.resets.load(Ordering::Relaxed), 1);
        keyboard.write(0, 1, PULSE_RESET);
        assert_eq!(power.resets.load(Ordering::Relaxed), 2);
    }
}
