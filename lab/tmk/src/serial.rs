//! Output on COM1, by polling.

use crate::cpu::{inb, outb};
use core::fmt::{self, Write};

const COM1: u16 = 0x3F8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;

/// Sets the port to 115200 bits/s, 8N1, no interrupts.
pub fn init() {
    for (offset, value) in [(1, 0x00), (3, 0x80), (0, 0x01), (1, 0x00), (3, 0x03), (2, 0x07), (4, 0x03)] {
        outb(COM1 + offset, value);
    }
}

/// COM1 as a writer.
pub struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

/// Waits for the transmitter, but not for ever: without a port there the program still has to end.
fn put(byte: u8) {
    for _ in 0..100_000 {
        if inb(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
            break;
        }
    }
    outb(COM1, byte);
}

/// Prints a line.
#[macro_export]
macro_rules! line {
    ($($text:tt)*) => {{
        use ::core::fmt::Write as _;
        let _ = writeln!($crate::serial::Serial, $($text)*);
    }};
}
