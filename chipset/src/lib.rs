//! The PC for unenlightened guests: emulated devices behind port and memory buses.
//!
//! Devices here know nothing of partitions, processes or sockets. They are given lines to raise ([`IrqLine`]), a way
//! to interrupt processors ([`ApicBus`]) and somebody to tell about power ([`PowerEvents`]); the worker connects them.
//! Every value that arrives comes from a guest and may be anything.
//!
//! What is here: 16550 serial port, CMOS clock, IO-APIC, ACPI power management, reset ports, ACPI tables.
//! What is not: 8259, 8254 and HPET. Guests learn from the MADT (no PCAT_COMPAT) that there is no 8259, and take
//! their time from the hypervisor's timers.

#![forbid(unsafe_code)]

pub mod acpi;
pub mod bus;
pub mod ioapic;
pub mod misc;
pub mod pc;
pub mod pci;
pub mod pm;
pub mod rtc;
pub mod serial;

/// Somebody who is told when the guest ends or restarts its machine.
pub trait PowerEvents: Send + Sync {
    /// The guest switched its machine off.
    fn power_off(&self);
    /// The guest asked for a reset.
    fn reset(&self);
}

/// An interrupt that the IO-APIC sends to the local APICs (82093AA datasheet, 3.2.4; Intel SDM volume 3, "APIC").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicMessage {
    /// Delivery mode as the redirection entry encodes it: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT.
    pub delivery_mode: u8,
    /// Interrupt vector.
    pub vector: u8,
    /// APIC id or logical destination.
    pub destination: u8,
    /// The destination is logical.
    pub logical: bool,
    /// Level-triggered.
    pub level: bool,
}

/// The way from the IO-APIC to the local APICs.
pub trait ApicBus: Send + Sync {
    /// Sends an interrupt.
    fn send(&self, message: ApicMessage);
}

/// An input pin of the interrupt controller, as a device sees it.
#[derive(Clone)]
pub struct IrqLine {
    controller: std::sync::Arc<ioapic::IoApic>,
    pin: usize,
}

impl IrqLine {
    /// The line to a pin of an IO-APIC.
    pub fn new(controller: std::sync::Arc<ioapic::IoApic>, pin: usize) -> IrqLine {
        IrqLine { controller, pin }
    }

    /// Drives the line high or low.
    pub fn set(&self, high: bool) {
        self.controller.set_line(self.pin, high);
    }

    /// One rising edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}
