//! The hypervisor's voice: lines of text to a 16550 that the boot program has set up.
//!
//! The parent uses the same port once it runs. So the hypervisor speaks while it starts and when it ends, and otherwise
//! only when something is wrong.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU16, Ordering::Relaxed};

use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;

use crate::cpu::port;

const LINE_STATUS: u16 = 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// So often is the status read before a byte goes out anyway: a port that is not there must not stop anything.
const PATIENCE: u32 = 100_000;

static PORT: AtomicU16 = AtomicU16::new(0);
static LINE: Mutex<()> = Mutex::new(());
static LOGGER: Logger = Logger;

/// Sends log messages to the 16550 at `port` from now on.
pub fn start(port: Option<u16>) {
    PORT.store(port.unwrap_or(0), Relaxed);
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Text to the port without waiting for whoever is writing: for the last words.
#[derive(Debug)]
pub struct LastWords;

impl Write for LastWords {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let port = PORT.load(Relaxed);
        if port != 0 {
            text.bytes().for_each(|byte| send(port, byte));
        }
        Ok(())
    }
}

fn send(port: u16, byte: u8) {
    if byte == b'\n' {
        send(port, b'\r');
    }
    // SAFETY: the boot program was told that a 16550 is at this port; it does no DMA.
    unsafe {
        for _ in 0..PATIENCE {
            if port::read8(port + LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                break;
            }
        }
        port::write8(port, byte);
    }
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let _line = LINE.lock();
        let level = if record.level() <= log::Level::Warn { record.level().as_str() } else { "" };
        let separator = if level.is_empty() { "" } else { ": " };
        // Writing to the port cannot fail.
        let _ = writeln!(LastWords, "parterre: {level}{separator}{}", record.args());
    }

    fn flush(&self) {}
}
