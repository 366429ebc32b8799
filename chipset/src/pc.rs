//! The machine put together: which device sits at which port and address.

use std::sync::Arc;

use crate::bus::{Bus, Device, Overlap};
use crate::ioapic::{self, IoApic};
use crate::misc::{self, Ignored, KeyboardController, ResetControl};
use crate::pci::{self, HostBridge};
use crate::pm::{self, PowerManagement};
use crate::rtc::{self, Clock, Rtc};
use crate::serial::{self, InputWanted, Output, SerialPort};
use crate::{ApicBus, IrqLine, PowerEvents};

/// A PC's devices.
pub struct Pc {
    /// Port space.
    pub ports: Bus,
    /// Memory-mapped devices.
    pub memory: Bus,
    /// Interrupt controller.
    pub ioapic: Arc<IoApic>,
    /// COM1.
    pub com1: Arc<SerialPort>,
    /// Power button and sleep control.
    pub power: Arc<PowerManagement>,
}

/// The ports around 0xCF8: configuration address (32-bit), reset control (8-bit, inside it) and configuration data.
struct ConfigurationPorts {
    bridge: HostBridge,
    reset: ResetControl,
}

impl Device for ConfigurationPorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (1, 1) => self.reset.read(0, 1),
            _ => self.bridge.read(offset, size),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match (offset, size) {
            (1, 1) => self.reset.write(0, 1, value),
            _ => self.bridge.write(offset, size, value),
        }
    }
}

impl Pc {
    /// Builds the machine in its reset state.
    ///
    /// # Errors
    /// Two devices at one address; a mistake in this module.
    pub fn new(
        apics: Arc<dyn ApicBus>,
        events: Arc<dyn PowerEvents>,
        clock: Clock,
        output: Output,
        input_wanted: InputWanted,
    ) -> Result<Pc, Overlap> {
        let ioapic = Arc::new(IoApic::new(apics));
        let line = |pin: u8| IrqLine::new(ioapic.clone(), pin.into());
        let com1 = Arc::new(SerialPort::new(line(serial::COM1_IRQ), output, input_wanted));
        let power = Arc::new(PowerManagement::new(line(pm::SCI), events.clone()));
        let configuration =
            ConfigurationPorts { bridge: HostBridge::default(), reset: ResetControl(events.clone()) };

        let mut ports = Bus::default();
        ports.add(serial::COM1, serial::LEN, com1.clone())?;
        ports.add(pm::BASE, pm::LEN, power.clone())?;
        ports.add(rtc::BASE, rtc::LEN, Arc::new(Rtc::new(clock)))?;
        ports.add(pci::BASE, pci::LEN, Arc::new(configuration))?;
        ports.add(misc::I8042_COMMAND, 1, Arc::new(KeyboardController(events)))?;
        for port in misc::IGNORED {
            ports.add(port, 1, Arc::new(Ignored))?;
        }
        let mut memory = Bus::default();
        memory.add(ioapic::BASE, ioapic::LEN, ioapic.clone())?;
        Ok(Pc { ports, memory, ioapic, com1, power })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ApicMessage;
    use crate::misc::tests::Power;
    use std::sync::atomic::Ordering;

    struct Nobody;

    impl ApicBus for Nobody {
        fn send(&self, _: ApicMessage) {}
    }

    #[test]
    fn ports_are_where_a_pc_has_them() {
        let power = Arc::new(Power::default());
        let pc = Pc::new(
            Arc::new(Nobody),
            power.clone(),
            rtc::system_clock(),
            Box::new(std::io::sink()),
            Box::new(|| ()),
        )
        .unwrap();
        assert_eq!(pc.ports.read(0x3FD, 1) & 0x60, 0x60); // transmitter empty
        assert_eq!(pc.ports.read(0x1F7, 1), 0xFF); // no disk
        pc.ports.write(0xCF8, 4, 0x8000_0000);
        assert_eq!(pc.ports.read(0xCFC, 4), 0x1237_8086);
        assert_eq!(power.resets.load(Ordering::Relaxed), 0);
        pc.ports.write(0xCF9, 1, 6);
        pc.ports.write(0x604, 2, 0x2000);
        assert_eq!((power.resets.load(Ordering::Relaxed), power.offs.load(Ordering::Relaxed)), (1, 1));
        pc.memory.write(0xFEC0_0000, 4, 1);
        assert_eq!(pc.memory.read(0xFEC0_0010, 4) & 0xFF, 0x11);
    }
}
