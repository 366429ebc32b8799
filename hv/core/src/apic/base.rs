//! IA32_APIC_BASE: where the xAPIC page lies and which mode the local APIC is in (Intel SDM 3A 12.4.4, 12.12.1,
//! 12.12.5).

use super::Fault;

/// How the local APIC is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not at all: the processor behaves as if it had none.
    Disabled,
    /// Through its page.
    XApic,
    /// Through MSRs.
    X2Apic,
}

/// The contents of IA32_APIC_BASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicBase(u64);

impl ApicBase {
    /// The MSR's number.
    pub const MSR: u32 = 0x1B;
    const BOOTSTRAP: u64 = 1 << 8;
    const EXTENDED: u64 = 1 << 10;
    const ENABLE: u64 = 1 << 11;
    const ADDRESS: u64 = !0xFFF;
    const DEFAULT_ADDRESS: u64 = 0xFEE0_0000;

    /// The value after power-on: xAPIC mode at the usual address.
    pub(super) fn power_on(bootstrap: bool) -> Self {
        Self(Self::DEFAULT_ADDRESS | Self::ENABLE | if bootstrap { Self::BOOTSTRAP } else { 0 })
    }

    /// The value as the guest reads it.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The mode that the enable bits say. EXTD without EN cannot come into being.
    pub fn mode(self) -> Mode {
        match (self.0 & Self::ENABLE != 0, self.0 & Self::EXTENDED != 0) {
            (false, _) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
        }
    }

    /// Whether this processor is the one that starts the system.
    pub fn is_bootstrap(self) -> bool {
        self.0 & Self::BOOTSTRAP != 0
    }

    /// The GPA of the xAPIC page, if the APIC is accessed that way.
    pub fn page(self) -> Option<u64> {
        (self.mode() == Mode::XApic).then_some(self.0 & Self::ADDRESS)
    }

    /// The same in x2APIC mode.
    pub(super) fn x2apic(self) -> Self {
        Self(self.0 | Self::ENABLE | Self::EXTENDED)
    }

    /// The register after the guest writes `value`; #GP for reserved bits and for transitions that SDM figure 12-27
    /// does not have. The BSP flag is read-only here.
    pub(super) fn written(self, value: u64, x2apic: bool, physical_bits: u8) -> Result<Self, Fault> {
        let new = self.checked(value, x2apic, physical_bits)?;
        match (self.mode(), new.mode()) {
            (Mode::Disabled, Mode::X2Apic) | (Mode::X2Apic, Mode::XApic) => Err(Fault),
            _ => Ok(new),
        }
    }

    /// The register after a set by the parent (restoring state), which may jump to any valid mode.
    pub(super) fn checked(self, value: u64, x2apic: bool, physical_bits: u8) -> Result<Self, Fault> {
        let width = u64::MAX.checked_shl(u32::from(physical_bits)).unwrap_or(0);
        let extended = if x2apic { Self::EXTENDED } else { 0 };
        let writable = (Self::ADDRESS & !width) | Self::ENABLE | Self::BOOTSTRAP | extended;
        let illegal = value & Self::EXTENDED != 0 && value & Self::ENABLE == 0;
        if value & !writable != 0 || illegal {
            return Err(Fault);
        }
        Ok(Self((value & !Self::BOOTSTRAP) | (self.0 & Self::BOOTSTRAP)))
    }
}
