//! The 16550 serial port COM1, on top of vm-superio's model.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};

use crate::IrqLine;
use crate::bus::Device;

/// First port of COM1.
pub const COM1: u64 = 0x3F8;
/// Number of ports.
pub const LEN: u64 = 8;
/// Interrupt of COM1.
pub const COM1_IRQ: u8 = 4;

/// Where the bytes go that the guest sends. It must not block: a VP waits for it.
pub type Output = Box<dyn Write + Send>;

/// Called when the guest has read all input, so that more may be given. It must not call back into the port.
pub type InputWanted = Box<dyn Fn() + Send>;

struct Events(InputWanted);

impl SerialEvents for Events {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        (self.0)();
    }
}

struct Line(IrqLine);

impl Trigger for Line {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.pulse();
        Ok(())
    }
}

/// A serial port.
pub struct SerialPort {
    port: Mutex<Serial<Line, Events, Output>>,
}

impl SerialPort {
    /// A port after reset.
    pub fn new(line: IrqLine, output: Output, wanted: InputWanted) -> SerialPort {
        SerialPort { port: Mutex::new(Serial::with_events(Line(line), Events(wanted), output)) }
    }

    fn locked<R>(&self, f: impl FnOnce(&mut Serial<Line, Events, Output>) -> R) -> R {
        f(&mut self.port.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives the guest bytes to read. Returns how many there was room for.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        self.locked(|port| {
            let room = port.fifo_capacity().min(bytes.len());
            // In loopback mode the guest tests the chip and takes nothing from outside; what came is dropped.
            port.enqueue_raw_bytes(&bytes[..room]).unwrap_or(bytes.len())
        })
    }

    /// How many bytes the guest has room for.
    pub fn room(&self) -> usize {
        self.locked(|port| port.fifo_capacity())
    }

    /// The registers, as they are saved with a VM.
    pub fn state(&self) -> SerialState {
        self.locked(|port| port.state())
    }
}

impl Device for SerialPort {
    fn read(&self, offset: u64, size: u8) -> u64 {
        // Wider accesses are split, as the ISA bus does.
        self.locked(|port| {
            (0..size).fold(0, |value, i| value | u64::from(port.read(offset as u8 + i)) << (8 * i))
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        self.locked(|port| {
            for i in 0..size {
                // An output that fails is the output's loss; the guest is not stopped for it.
                let _ = port.write(offset as u8 + i, (value >> (8 * i)) as u8);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ioapic::IoApic;
    use crate::{ApicBus, ApicMessage};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Count(AtomicU32);

    impl ApicBus for Count {
        fn send(&self, _: ApicMessage) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_go_both_ways_and_input_interrupts() {
        let count = Arc::new(Count::default());
        let ioapic = Arc::new(IoApic::new(count.clone()));
        ioapic.write(0, 4, 0x10 + 2 * u64::from(COM1_IRQ));
        ioapic.write(0x10, 4, 0x24);
        let sink = Sink::default();
        let port =
            SerialPort::new(IrqLine::new(ioapic, COM1_IRQ.into()), Box::new(sink.clone()), Box::new(|| ()));
        port.write(0, 1, u64::from(b'A'));
        assert_eq!(*sink.0.lock().unwrap(), b"A");
        port.write(1, 1, 1); // interrupt on received data
        assert_eq!(port.receive(b"xy"), 2);
        assert!(count.0.load(Ordering::Relaxed) > 0);
        assert_eq!((port.read(0, 1), port.read(0, 1)), (b'x'.into(), b'y'.into()));
        assert_eq!(port.read(5, 1) & 1, 0);
    }

    #[test]
    fn input_beyond_the_fifo_waits_outside() {
        let ioapic = Arc::new(IoApic::new(Arc::new(Count::default())));
        let port = SerialPort::new(IrqLine::new(ioapic, 4), Box::new(std::io::sink()), Box::new(|| ()));
        let room = port.room();
        assert_eq!(port.receive(&vec![0; room + 5]), room);
        assert_eq!(port.room(), 0);
        assert_eq!(port.receive(b"z"), 0);
    }
}
