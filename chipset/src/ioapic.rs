//! The IO-APIC: input pins and the redirection table that turns them into interrupts.
//!
//! Source: Intel 82093AA datasheet; version 0x11 with 24 entries. Edges on a masked pin are lost, as on the chip. The
//! local APICs live in the hypervisor: interrupts leave through [`ApicBus`], the ends of level-triggered ones come
//! back through [`IoApic::end_of_interrupt`].

use std::sync::{Arc, Mutex, PoisonError};

use crate::bus::Device;
use crate::{ApicBus, ApicMessage};

/// Physical address of the register window.
pub const BASE: u64 = 0xFEC0_0000;
/// Length of the register window.
pub const LEN: u64 = 0x1000;
/// Number of input pins.
pub const PINS: usize = 24;
/// APIC id of the IO-APIC, as the MADT says too.
pub const ID: u8 = 0;

const VERSION: u32 = 0x11 | ((PINS as u32 - 1) << 16);
/// Register select and data window.
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const LOGICAL: u64 = 1 << 11;
/// Delivery status and remote IRR are the chip's.
const READ_ONLY: u64 = REMOTE_IRR | 1 << 12;
/// Bits of an entry that exist: vector to mask, and the destination.
const WRITABLE: u64 = 0xFF00_0000_0001_FFFF & !READ_ONLY;

struct State {
    select: u8,
    id: u8,
    entries: [u64; PINS],
    lines: [bool; PINS],
}

/// The IO-APIC.
pub struct IoApic {
    bus: Arc<dyn ApicBus>,
    state: Mutex<State>,
}

impl IoApic {
    /// An IO-APIC after reset: all pins masked.
    pub fn new(bus: Arc<dyn ApicBus>) -> IoApic {
        let state = State { select: 0, id: ID, entries: [MASKED; PINS], lines: [false; PINS] };
        IoApic { bus, state: Mutex::new(state) }
    }

    fn locked<R>(&self, f: impl FnOnce(&mut State, &dyn ApicBus) -> R) -> R {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut state, &*self.bus)
    }

    /// Drives an input pin. Pins that do not exist are ignored.
    pub fn set_line(&self, pin: usize, high: bool) {
        self.locked(|state, bus| {
            let Some(line) = state.lines.get_mut(pin) else { return };
            let was = std::mem::replace(line, high);
            if state.entries[pin] & LEVEL != 0 {
                state.send_level(pin, bus);
            } else if high && !was {
                state.send(pin, bus);
            }
        });
    }

    /// A local APIC ended a level-triggered interrupt with this vector.
    pub fn end_of_interrupt(&self, vector: u8) {
        self.locked(|state, bus| {
            for pin in 0..PINS {
                let entry = &mut state.entries[pin];
                if *entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR && *entry as u8 == vector {
                    *entry &= !REMOTE_IRR;
                    state.send_level(pin, bus);
                }
            }
        });
    }
}

impl State {
    /// Sends the interrupt of a pin unless it is masked.
    fn send(&mut self, pin: usize, bus: &dyn ApicBus) -> bool {
        let entry = self.entries[pin];
        let delivery_mode = (entry >> 8) as u8 & 7;
        let vector = entry as u8;
        let needs_vector = matches!(delivery_mode, 0 | 1);
        if entry & MASKED != 0 || matches!(delivery_mode, 3 | 6) || (needs_vector && vector < 16) {
            return false;
        }
        bus.send(ApicMessage {
            delivery_mode,
            vector,
            destination: (entry >> 56) as u8,
            logical: entry & LOGICAL != 0,
            level: entry & LEVEL != 0,
        });
        true
    }

    /// Sends the interrupt of a level-triggered pin if it is asserted and the last one has ended.
    ///
    /// The devices of this chipset assert high; an entry programmed active-low is taken to mean the same line.
    fn send_level(&mut self, pin: usize, bus: &dyn ApicBus) {
        if self.lines[pin] && self.entries[pin] & REMOTE_IRR == 0 && self.send(pin, bus) {
            self.entries[pin] |= REMOTE_IRR;
        }
    }

    fn read(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION,
            select => match self.entry_half(select) {
                Some((pin, shift)) => (self.entries[pin] >> shift) as u32,
                None => 0,
            },
        }
    }

    fn write(&mut self, value: u32, bus: &dyn ApicBus) {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0xF;
        }
        let Some((pin, shift)) = self.entry_half(self.select) else { return };
        let mask = WRITABLE & (0xFFFF_FFFF << shift);
        let mut entry = (self.entries[pin] & !mask) | (u64::from(value) << shift & mask);
        if entry & LEVEL == 0 {
            entry &= !REMOTE_IRR;
        }
        self.entries[pin] = entry;
        if entry & LEVEL != 0 {
            self.send_level(pin, bus);
        }
    }

    /// Which half of which entry a register number names.
    fn entry_half(&self, select: u8) -> Option<(usize, u32)> {
        let index = usize::from(select.checked_sub(0x10)?);
        (index / 2 < PINS).then_some((index / 2, 32 * (index as u32 & 1)))
    }
}

impl Device for IoApic {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        self.locked(|state, _| match offset {
            IOREGSEL => u64::from(state.select),
            IOWIN => u64::from(state.read()),
            _ => 0,
        })
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        self.locked(|state, bus| match offset {
            IOREGSEL => state.select = value as u8,
            IOWIN => state.write(value as u32, bus),
            _ => {}
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIVE_LOW: u64 = 1 << 13;

    #[derive(Default)]
    struct Sent(Mutex<Vec<ApicMessage>>);

    impl ApicBus for Sent {
        fn send(&self, message: ApicMessage) {
            self.0.lock().unwrap().push(message);
        }
    }

    fn make() -> (Arc<Sent>, IoApic) {
        let sent = Arc::new(Sent::default());
        (sent.clone(), IoApic::new(sent))
    }

    fn program(ioapic: &IoApic, pin: u64, entry: u64) {
        for (half, value) in [(1, entry >> 32), (0, entry & 0xFFFF_FFFF)] {
            ioapic.write(IOREGSEL, 4, 0x10 + pin * 2 + half);
            ioapic.write(IOWIN, 4, value);
        }
    }

    fn take(sent: &Sent) -> Vec<u8> {
        sent.0.lock().unwrap().drain(..).map(|m| m.vector).collect()
    }

    #[test]
    fn an_edge_is_sent_once_and_lost_while_masked() {
        let (sent, ioapic) = make();
        ioapic.set_line(4, true);
        ioapic.set_line(4, false);
        program(&ioapic, 4, 0x0300_0000_0000_0030);
        assert_eq!(take(&sent), []);
        ioapic.set_line(4, true);
        ioapic.set_line(4, true);
        let message =
            ApicMessage { delivery_mode: 0, vector: 0x30, destination: 3, logical: false, level: false };
        assert_eq!(*sent.0.lock().unwrap(), [message]);
        ioapic.set_line(4, false);
        ioapic.set_line(4, true);
        assert_eq!(take(&sent), [0x30, 0x30]);
    }

    #[test]
    fn a_level_is_sent_again_after_its_end_while_it_lasts() {
        let (sent, ioapic) = make();
        program(&ioapic, 9, LEVEL | ACTIVE_LOW | 0x41);
        ioapic.set_line(9, true);
        ioapic.set_line(9, true);
        assert_eq!(take(&sent), [0x41]);
        ioapic.end_of_interrupt(0x42);
        assert_eq!(take(&sent), []);
        ioapic.end_of_interrupt(0x41);
        assert_eq!(take(&sent), [0x41]);
        ioapic.set_line(9, false);
        ioapic.end_of_interrupt(0x41);
        assert_eq!(take(&sent), []);
    }

    #[test]
    fn unmasking_an_asserted_level_sends_it() {
        let (sent, ioapic) = make();
        ioapic.set_line(9, true);
        program(&ioapic, 9, LEVEL | MASKED | 0x41);
        assert_eq!(take(&sent), []);
        program(&ioapic, 9, LEVEL | 0x41);
        assert_eq!(take(&sent), [0x41]);
    }

    #[test]
    fn registers_read_back_what_exists() {
        let (_, ioapic) = make();
        ioapic.write(IOREGSEL, 4, 1);
        assert_eq!(ioapic.read(IOWIN, 4), u64::from(VERSION));
        program(&ioapic, 23, u64::MAX);
        ioapic.write(IOREGSEL, 4, 0x10 + 46);
        assert_eq!(ioapic.read(IOWIN, 4), WRITABLE & 0xFFFF_FFFF);
        ioapic.write(IOREGSEL, 4, 0x10 + 47);
        assert_eq!(ioapic.read(IOWIN, 4), 0xFF00_0000);
    }

    #[test]
    fn nonsense_is_ignored() {
        let (sent, ioapic) = make();
        for select in [0x40, 0x41, 0xFF] {
            ioapic.write(IOREGSEL, 4, select);
            ioapic.write(IOWIN, 4, 0);
            assert_eq!(ioapic.read(IOWIN, 4), 0);
        }
        ioapic.set_line(PINS, true);
        program(&ioapic, 1, 0x0F); // vector below 16
        program(&ioapic, 2, 0x330); // reserved delivery mode
        ioapic.set_line(1, true);
        ioapic.set_line(2, true);
        assert_eq!(take(&sent), []);
    }
}
