//! A 16550 UART, polled: what the messages of the boot program go through until the machine layer speaks.
//!
//! Source: National Semiconductor PC16550D, "Registers".

use core::fmt;

use parterre_hw::cpu::port;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;

/// Line control: the divisor is accessible.
const DIVISOR_ACCESS: u8 = 0x80;
/// Line control: 8 data bits, no parity, 1 stop bit.
const FORMAT_8N1: u8 = 0x03;
/// Line status: the transmitter takes a byte.
const TRANSMITTER_EMPTY: u8 = 0x20;

/// A byte is given up after so many polls (far more than the milliseconds that a byte takes at any speed).
const PATIENCE: u32 = 1_000_000;

/// The UART at an I/O port.
pub struct Serial {
    base: u16,
}

impl Serial {
    /// The UART whose registers begin at `base`.
    pub fn new(base: u16) -> Self {
        Self { base }
    }

    /// Whether something answers there: an empty bus reads as ones.
    pub fn is_present(&self) -> bool {
        self.read(LINE_STATUS) != 0xff
    }

    /// Sets 115200 baud, 8N1, no interrupts.
    pub fn initialize(&self) {
        self.write(INTERRUPT_ENABLE, 0);
        self.write(LINE_CONTROL, DIVISOR_ACCESS | FORMAT_8N1);
        self.write(DATA, 1);
        self.write(INTERRUPT_ENABLE, 0);
        self.write(LINE_CONTROL, FORMAT_8N1);
        // FIFOs on and cleared; DTR and RTS up.
        self.write(FIFO_CONTROL, 0x07);
        self.write(MODEM_CONTROL, 0x03);
    }

    fn send(&self, byte: u8) {
        for _ in 0..PATIENCE {
            if self.read(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                break;
            }
            core::hint::spin_loop();
        }
        self.write(DATA, byte);
    }

    fn read(&self, register: u16) -> u8 {
        // SAFETY: reading a register of a UART (or of nothing) touches no memory.
        unsafe { port::read8(self.base.wrapping_add(register)) }
    }

    fn write(&self, register: u16, value: u8) {
        // SAFETY: the port is the one that the configuration names as a UART, or COM1; a UART does no DMA, so no
        // write to it touches memory.
        unsafe { port::write8(self.base.wrapping_add(register), value) }
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
        Ok(())
    }
}
