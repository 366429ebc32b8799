//! The registers of a local APIC, and the three ways to name one: an offset in the xAPIC page, an x2APIC MSR, a
//! register name of the hypercall interface.

/// A register of the local APIC (Intel SDM 3A tables 12-1 and 12-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Local APIC id.
    Id,
    /// Version and number of LVT entries.
    Version,
    /// Task priority.
    TaskPriority,
    /// Arbitration priority; xAPIC only, reads as 0.
    ArbitrationPriority,
    /// Processor priority.
    ProcessorPriority,
    /// End of interrupt.
    EndOfInterrupt,
    /// Remote read; xAPIC only, reads as 0.
    RemoteRead,
    /// Logical destination.
    LogicalDestination,
    /// Destination format; xAPIC only.
    DestinationFormat,
    /// Spurious interrupt vector, with the software enable bit.
    Spurious,
    /// In-service bits of vectors `32 * n ..`.
    InService(u8),
    /// Trigger mode bits of vectors `32 * n ..`.
    TriggerMode(u8),
    /// Interrupt request bits of vectors `32 * n ..`.
    InterruptRequest(u8),
    /// Error status.
    ErrorStatus,
    /// Interrupt command: the low half in xAPIC mode, all 64 bits in x2APIC mode.
    InterruptCommand,
    /// The high half of the interrupt command; xAPIC only.
    InterruptCommandHigh,
    /// LVT: timer.
    LvtTimer,
    /// LVT: thermal sensor.
    LvtThermal,
    /// LVT: performance counters.
    LvtPerformance,
    /// LVT: local interrupt pin 0.
    LvtLint0,
    /// LVT: local interrupt pin 1.
    LvtLint1,
    /// LVT: error.
    LvtError,
    /// Timer: initial count.
    InitialCount,
    /// Timer: current count.
    CurrentCount,
    /// Timer: divide configuration.
    DivideConfiguration,
    /// Self IPI; x2APIC only.
    SelfIpi,
}

impl Register {
    /// The first x2APIC MSR number.
    pub const FIRST_MSR: u32 = 0x800;
    /// The last MSR number that is set aside for x2APIC. Those that name no register raise #GP.
    pub const LAST_MSR: u32 = 0x8FF;
    /// What a register name of the hypercall interface adds to the x2APIC MSR number (`HvX64RegisterApicId` is
    /// 0x84802).
    const NAME_BASE: u32 = 0x0008_4000;

    /// The register at byte `offset` of the xAPIC page. Registers lie 16 bytes apart; what is between them is
    /// undefined by the architecture and names nothing here.
    pub fn from_offset(offset: u16) -> Option<Self> {
        let slot = u8::try_from(offset >> 4).ok().filter(|_| offset.trailing_zeros() >= 4)?;
        Self::from_slot(slot).filter(|register| *register != Self::SelfIpi)
    }

    /// The register that x2APIC MSR `msr` accesses.
    pub fn from_msr(msr: u32) -> Option<Self> {
        let slot = u8::try_from(msr.checked_sub(Self::FIRST_MSR)?).ok()?;
        Self::from_slot(slot).filter(|register| !register.xapic_only())
    }

    /// The register that `HV_REGISTER_NAME` `name` means.
    pub fn from_name(name: u32) -> Option<Self> {
        Self::from_msr(name.checked_sub(Self::NAME_BASE)?)
    }

    /// Whether x2APIC mode lacks it.
    fn xapic_only(self) -> bool {
        matches!(
            self,
            Self::ArbitrationPriority
                | Self::RemoteRead
                | Self::DestinationFormat
                | Self::InterruptCommandHigh
        )
    }

    /// By its place in the page, in units of 16 bytes.
    fn from_slot(slot: u8) -> Option<Self> {
        Some(match slot {
            0x02 => Self::Id,
            0x03 => Self::Version,
            0x08 => Self::TaskPriority,
            0x09 => Self::ArbitrationPriority,
            0x0A => Self::ProcessorPriority,
            0x0B => Self::EndOfInterrupt,
            0x0C => Self::RemoteRead,
            0x0D => Self::LogicalDestination,
            0x0E => Self::DestinationFormat,
            0x0F => Self::Spurious,
            0x10..=0x17 => Self::InService(slot & 7),
            0x18..=0x1F => Self::TriggerMode(slot & 7),
            0x20..=0x27 => Self::InterruptRequest(slot & 7),
            0x28 => Self::ErrorStatus,
            0x30 => Self::InterruptCommand,
            0x31 => Self::InterruptCommandHigh,
            0x32 => Self::LvtTimer,
            0x33 => Self::LvtThermal,
            0x34 => Self::LvtPerformance,
            0x35 => Self::LvtLint0,
            0x36 => Self::LvtLint1,
            0x37 => Self::LvtError,
            0x38 => Self::InitialCount,
            0x39 => Self::CurrentCount,
            0x3E => Self::DivideConfiguration,
            0x3F => Self::SelfIpi,
            _ => return None,
        })
    }
}
