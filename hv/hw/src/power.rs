//! Sleeping and resetting by the fixed hardware of ACPI (ACPI 6.5, 4.8.3.2 and 4.8.3.6).

use core::arch::asm;

use crate::cpu::port;
use crate::cpu::registers;
use crate::launch::{PowerHardware, ResetRegister};
use crate::physical;

const PM1_SLEEP_TYPE: u16 = 7 << 10;
const PM1_SLEEP_ENABLE: u16 = 1 << 13;
/// The reset control register of nearly every chipset: bit 1 says a full reset, bit 2 does it.
const RESET_CONTROL: u16 = 0xcf9;
/// The keyboard controller's command port, and its command to pulse the processor's reset line.
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// The value of a PM1 control register that starts the sleep of type `sleep_type`; its other bits stay as they are.
fn sleep_value(current: u16, sleep_type: u8) -> u16 {
    current & !(PM1_SLEEP_TYPE | PM1_SLEEP_ENABLE) | u16::from(sleep_type & 7) << 10 | PM1_SLEEP_ENABLE
}

/// Starts the sleep that the parent's ACPI tables give these types to; returns if the machine goes on.
pub fn enter_sleep(power: &PowerHardware, sleep_type_a: u8, sleep_type_b: u8) {
    for (control, sleep_type) in [(power.pm1a_control, sleep_type_a), (power.pm1b_control, sleep_type_b)] {
        let Some(port) = control else { continue };
        // SAFETY: the FADT names this port as the power management control register; it starts sleep, and touches no memory.
        unsafe { port::write16(port, sleep_value(port::read16(port), sleep_type)) };
    }
}

/// Resets the machine by what it has, the most thorough way first.
pub fn reset(power: &PowerHardware) -> ! {
    // SAFETY: each of these resets the machine or does nothing. A reset register in memory is mapped (`start`).
    unsafe {
        match power.reset {
            Some(ResetRegister::Port { port, value }) => port::write8(port, value),
            Some(ResetRegister::Memory { address, value }) => {
                physical::pointer(address).write_volatile(value)
            }
            None => {}
        }
        pause();
        port::write8(RESET_CONTROL, 2);
        port::write8(RESET_CONTROL, 6);
        pause();
        port::write8(KEYBOARD_COMMAND, KEYBOARD_RESET);
        pause();
        // The last resort: an exception without a descriptor table for it shuts the processor down, which resets a PC.
        let empty = [0_u16; 5];
        asm!("lidt [{}]", "int3", in(reg) &raw const empty);
    }
    registers::halt();
}

/// Gives the hardware time: reading a port takes about a microsecond.
fn pause() {
    for _ in 0..100_000 {
        // SAFETY: reading the port of POST codes does nothing.
        unsafe { port::read8(0x80) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_keeps_the_other_bits() {
        assert_eq!(sleep_value(0x1c01, 5), 0x3401);
        assert_eq!(sleep_value(0x0001, 0xff), 0x3c01);
    }
}
