//! Interprocessor interrupts: the interrupt command register, destinations, and who is meant by one
//! (Intel SDM 3A 12.6).

use super::Mode;

/// Whom an interrupt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The processor with this APIC id.
    Physical(u32),
    /// The processors that this logical address (message destination address) selects.
    Logical(u32),
    /// All processors of the partition.
    All,
    /// All but the sender.
    AllButSelf,
    /// The sender only.
    SelfOnly,
}

impl Destination {
    /// From a destination field of eight bits (xAPIC mode, MSIs, `HvCallAssertVirtualInterrupt` by APIC id).
    pub fn narrow(field: u8, logical: bool) -> Self {
        match (logical, field) {
            (false, 0xFF) => Self::All,
            (false, id) => Self::Physical(id.into()),
            (true, mask) => Self::Logical(mask.into()),
        }
    }

    /// From a destination field of 32 bits (x2APIC mode).
    pub fn wide(field: u32, logical: bool) -> Self {
        match (logical, field) {
            (_, u32::MAX) => Self::All,
            (false, id) => Self::Physical(id),
            (true, mask) => Self::Logical(mask),
        }
    }
}

/// What kind of interrupt it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Fixed: `vector` to every destination.
    Fixed,
    /// Lowest priority: `vector` to one of the destinations.
    LowestPriority,
    /// A non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// A start-up interrupt: `vector` is the page to start at.
    StartUp,
}

/// An interprocessor interrupt to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// Its kind.
    pub delivery: Delivery,
    /// Its vector, where the kind has one.
    pub vector: u8,
    /// Whom it is for.
    pub destination: Destination,
    /// It is level-triggered: its end will be told. Never so for interrupts between processors, which are edges
    /// whatever the command says (SDM 3A 12.6.1).
    pub level: bool,
}

/// Why an interrupt command sends nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotSent {
    /// It asks for nothing (INIT level de-assert), or for something that does not exist (SMI, reserved modes).
    Nothing,
    /// The vector is below 16: a "send illegal vector" error.
    IllegalVector,
}

/// Reserved bits of the x2APIC interrupt command (12 is the delivery status, gone but tolerated).
pub(super) const X2APIC_RESERVED: u64 = 0xFFF3_2000;

/// Takes the interrupt command `value` apart (64 bits; the destination in its high half as `mode` lays it out).
pub(super) fn decode(value: u64, mode: Mode) -> Result<Ipi, NotSent> {
    let vector = value as u8;
    let level_assert = value & 1 << 14 != 0;
    let level_triggered = value & 1 << 15 != 0;
    let delivery = match value >> 8 & 7 {
        0 => Delivery::Fixed,
        1 => Delivery::LowestPriority,
        4 => Delivery::Nmi,
        5 if level_triggered && !level_assert => return Err(NotSent::Nothing),
        5 => Delivery::Init,
        6 => Delivery::StartUp,
        _ => return Err(NotSent::Nothing),
    };
    let destination = destination(value, mode);
    let to_self = matches!(destination, Destination::SelfOnly)
        || (matches!(destination, Destination::All) && value >> 18 & 3 == 2);
    match delivery {
        Delivery::Fixed | Delivery::LowestPriority if vector < 16 => Err(NotSent::IllegalVector),
        // SDM table 12-3: these shorthands do not exist for INIT and start-up.
        Delivery::Init | Delivery::StartUp if to_self => Err(NotSent::Nothing),
        _ => Ok(Ipi { delivery, vector, destination, level: false }),
    }
}

/// The destination that an interrupt command names, by shorthand or field.
fn destination(value: u64, mode: Mode) -> Destination {
    let logical = value & 1 << 11 != 0;
    match value >> 18 & 3 {
        1 => Destination::SelfOnly,
        2 => Destination::All,
        3 => Destination::AllButSelf,
        _ if mode == Mode::X2Apic => Destination::wide((value >> 32) as u32, logical),
        _ => Destination::narrow((value >> 56) as u8, logical),
    }
}

/// By which address a processor's APIC answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub mode: Mode,
    /// The logical destination register.
    pub logical: u32,
    /// The destination format: flat, or else cluster (xAPIC mode).
    pub flat: bool,
    /// Software-enabled: fixed interrupts are accepted.
    pub enabled: bool,
}

impl Address {
    /// In one word, for [`super::Incoming`].
    pub fn pack(self) -> u64 {
        let mode = match self.mode {
            Mode::Disabled => 0,
            Mode::XApic => 1,
            Mode::X2Apic => 2,
        };
        u64::from(self.logical) | mode << 32 | u64::from(self.flat) << 34 | u64::from(self.enabled) << 35
    }

    /// The inverse of [`Address::pack`].
    pub fn unpack(word: u64) -> Self {
        let mode = match word >> 32 & 3 {
            0 => Mode::Disabled,
            1 => Mode::XApic,
            _ => Mode::X2Apic,
        };
        Self { mode, logical: word as u32, flat: word & 1 << 34 != 0, enabled: word & 1 << 35 != 0 }
    }

    /// Whether the logical address `mda` selects this processor (SDM 12.6.2.2, 12.12.10.2).
    pub fn matches_logical(self, mda: u32) -> bool {
        match self.mode {
            Mode::Disabled => false,
            Mode::X2Apic => mda >> 16 == self.logical >> 16 && mda & self.logical & 0xFFFF != 0,
            Mode::XApic => {
                let Ok(mda) = u8::try_from(mda) else { return false };
                let own = (self.logical >> 24) as u8;
                match (self.flat, mda) {
                    (true, _) => mda & own != 0,
                    (false, 0xFF) => true,
                    (false, _) => mda >> 4 == own >> 4 && mda & own & 0xF != 0,
                }
            }
        }
    }
}
