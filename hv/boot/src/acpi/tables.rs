//! MADT, FADT and SRAT: from a table's bytes to what the machine layer is told.

use alloc::vec::Vec;

use parterre_hw::launch::{MemoryDomain, PhysicalRange, PowerHardware, ResetRegister};

use super::{AcpiError, HEADER};
use crate::bytes::{array, u8_at, u16_at, u32_at, u64_at};

/// MADT and SRAT structures: bit 0 of their flags.
const ENABLED: u32 = 1;

/// APIC identifiers of all enabled processors, `boot` first, the others in the table's order (ACPI 6.5, 5.2.12).
///
/// # Errors
/// [`AcpiError::Processors`] when `boot` is not among them.
pub fn processors(madt: &[u8], boot: u32) -> Result<Vec<u32>, AcpiError> {
    // Local APIC address and flags come before the structures.
    let mut ids = Vec::new();
    for structure in structures(madt, HEADER + 8) {
        let found = match structure[0] {
            // Local APIC: 0xff is no processor's.
            0 => u8_at(structure, 3).map(u32::from).filter(|id| *id != 0xff).zip(u32_at(structure, 4)),
            // Local x2APIC.
            9 => u32_at(structure, 4).filter(|id| *id != u32::MAX).zip(u32_at(structure, 8)),
            _ => None,
        };
        if let Some((id, flags)) = found
            && flags & ENABLED != 0
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    let at = ids.iter().position(|id| *id == boot).ok_or(AcpiError::Processors)?;
    ids[..=at].rotate_right(1);
    Ok(ids)
}

/// The structures behind a table's fixed part: each begins with its type and its length.
fn structures(table: &[u8], from: usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = table.get(from..).unwrap_or_default();
    core::iter::from_fn(move || {
        let length = usize::from(u8_at(rest, 1)?);
        // A length of 0 or 1 would never end; one beyond the table is damage: stop there.
        if length < 2 || length > rest.len() {
            return None;
        }
        let (structure, behind) = rest.split_at(length);
        rest = behind;
        Some(structure)
    })
}

/// The fixed power hardware that a FADT declares (ACPI 6.5, 5.2.9).
pub fn power(fadt: &[u8]) -> PowerHardware {
    const PM1A_CNT_BLK: usize = 64;
    const PM1B_CNT_BLK: usize = 68;
    const FLAGS: usize = 112;
    const X_PM1A_CNT_BLK: usize = 172;
    const X_PM1B_CNT_BLK: usize = 184;
    const HW_REDUCED_ACPI: u32 = 1 << 20;

    let flags = u32_at(fadt, FLAGS).unwrap_or(0);
    if flags & HW_REDUCED_ACPI != 0 {
        return PowerHardware { reset: reset(fadt, flags), ..PowerHardware::default() };
    }
    let control = |extended: usize, legacy: usize| {
        let port = match GenericAddress::read(fadt, extended) {
            Some(GenericAddress { space: GenericAddress::PORT, address }) if address != 0 => address,
            _ => u64::from(u32_at(fadt, legacy)?),
        };
        u16::try_from(port).ok().filter(|port| *port != 0)
    };
    PowerHardware {
        pm1a_control: control(X_PM1A_CNT_BLK, PM1A_CNT_BLK),
        pm1b_control: control(X_PM1B_CNT_BLK, PM1B_CNT_BLK),
        reset: reset(fadt, flags),
    }
}

fn reset(fadt: &[u8], flags: u32) -> Option<ResetRegister> {
    const RESET_REG: usize = 116;
    const RESET_VALUE: usize = 128;
    const RESET_REG_SUP: u32 = 1 << 10;

    if flags & RESET_REG_SUP == 0 {
        return None;
    }
    let register = GenericAddress::read(fadt, RESET_REG).filter(|register| register.address != 0)?;
    let value = u8_at(fadt, RESET_VALUE)?;
    match register.space {
        GenericAddress::PORT => Some(ResetRegister::Port { port: register.address.try_into().ok()?, value }),
        GenericAddress::MEMORY => Some(ResetRegister::Memory { address: register.address, value }),
        // In PCI configuration space: nobody does that on a PC.
        _ => None,
    }
}

/// ACPI's generic address structure (5.2.3.2), as far as it names a place.
struct GenericAddress {
    space: u8,
    address: u64,
}

impl GenericAddress {
    const MEMORY: u8 = 0;
    const PORT: u8 = 1;

    fn read(table: &[u8], at: usize) -> Option<Self> {
        Some(Self { space: u8_at(table, at)?, address: u64_at(table, at + 4)? })
    }
}

/// NUMA proximity domains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// APIC identifier and domain of processors.
    pub processors: Vec<(u32, u32)>,
    /// Domains of memory, sorted by address.
    pub memory: Vec<MemoryDomain>,
}

impl Affinity {
    /// The domain of a processor, 0 when the table does not name it.
    pub fn of_processor(&self, apic_id: u32) -> u32 {
        self.processors.iter().find(|(id, _)| *id == apic_id).map_or(0, |(_, domain)| *domain)
    }
}

/// What a SRAT says (ACPI 6.5, 5.2.16).
pub fn affinity(srat: &[u8]) -> Affinity {
    let mut affinity = Affinity::default();
    for structure in structures(srat, HEADER + 12) {
        match structure[0] {
            0 => affinity.processors.extend(local_apic_affinity(structure)),
            1 => affinity.memory.extend(memory_affinity(structure)),
            2 => affinity.processors.extend(x2apic_affinity(structure)),
            _ => {}
        }
    }
    affinity.memory.sort_by_key(|domain| domain.range.base);
    affinity
}

fn local_apic_affinity(structure: &[u8]) -> Option<(u32, u32)> {
    let high: [u8; 3] = array(structure, 9)?;
    let domain = u32::from_le_bytes([u8_at(structure, 2)?, high[0], high[1], high[2]]);
    let enabled = u32_at(structure, 4)? & ENABLED != 0;
    enabled.then_some((u8_at(structure, 3)?.into(), domain))
}

fn x2apic_affinity(structure: &[u8]) -> Option<(u32, u32)> {
    let enabled = u32_at(structure, 12)? & ENABLED != 0;
    enabled.then_some((u32_at(structure, 8)?, u32_at(structure, 4)?))
}

fn memory_affinity(structure: &[u8]) -> Option<MemoryDomain> {
    let range = PhysicalRange::new(u64_at(structure, 8)?, u64_at(structure, 16)?);
    let enabled = u32_at(structure, 28)? & ENABLED != 0 && range.length != 0;
    // The domain's number is four bytes that begin at an odd place.
    let domain = u32::from(u16_at(structure, 2)?) | u32::from(u16_at(structure, 4)?) << 16;
    enabled.then_some(MemoryDomain { range, proximity_domain: domain })
}
