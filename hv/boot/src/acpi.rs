//! ACPI tables: finding them, and reading what the hypervisor needs to know.
//!
//! Parterre runs no AML and configures no device; that is the parent's. It reads the lists that never change while
//! the machine runs: processors (MADT), fixed power hardware (FADT), NUMA domains (SRAT), and it hides the tables of
//! the IOMMU ([`HIDDEN`]) from the parent. Source: ACPI 6.5, 5.2.

mod tables;

pub use tables::{Affinity, affinity, power, processors};

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::bytes::{array, u32_at, u64_at};

/// Length of the header that each table begins with.
pub const HEADER: usize = 36;

/// The tables of interrupt remapping and DMA remapping. The parent must not drive that hardware: with an interrupt
/// remapper of its own Linux never asks the hypervisor to route an interrupt.
pub const HIDDEN: [[u8; 4]; 2] = [*b"DMAR", *b"IVRS"];

/// No table is longer; more is damage.
const MAX_TABLE: u32 = 4 << 20;

/// No list of tables is longer.
const MAX_TABLES: usize = 256;

/// Physical memory that the firmware's map names.
pub trait PhysicalMemory {
    /// Fills `buffer` from `address`; false when not all of it is memory.
    #[must_use]
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool;
}

/// Where a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its signature.
    pub signature: [u8; 4],
    /// Its physical address.
    pub address: u64,
    /// Its length in bytes, header included.
    pub length: u32,
}

/// What is wrong with the firmware's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// The RSDP is not readable or its checksum is wrong.
    Rsdp,
    /// There is neither XSDT nor RSDT that can be read.
    Root,
    /// There is no table with this signature.
    Missing([u8; 4]),
    /// The table with this signature has a wrong length or checksum.
    Damaged([u8; 4]),
    /// The MADT names no enabled processor, or not the one that the program runs on.
    Processors,
    /// The MADT names more processors than this.
    TooManyProcessors(usize),
}

impl fmt::Display for AcpiError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |signature: &[u8; 4]| {
            signature.map(|byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' })
        };
        match self {
            Self::Rsdp => write!(out, "the firmware's ACPI root pointer (RSDP) is missing or damaged"),
            Self::Root => write!(out, "the firmware's list of ACPI tables (XSDT) is missing or damaged"),
            Self::Missing(signature) => {
                write!(out, "the firmware has no ACPI table {}", String::from_iter(name(signature)))
            }
            Self::Damaged(signature) => {
                write!(out, "the firmware's ACPI table {} is damaged", String::from_iter(name(signature)))
            }
            Self::Processors => {
                write!(out, "the firmware's list of processors (ACPI MADT) lacks the one this runs on")
            }
            Self::TooManyProcessors(most) => {
                return write!(
                    out,
                    "the machine has more than the {most} processors that Parterre supports; disable some in the \
                     firmware setup"
                );
            }
        }?;
        write!(out, "; update the firmware")
    }
}

/// The tables that the RSDP at `rsdp` leads to. Entries that cannot be read are left out.
///
/// # Errors
/// [`AcpiError::Rsdp`] and [`AcpiError::Root`].
pub fn find(memory: &impl PhysicalMemory, rsdp: u64) -> Result<Vec<Table>, AcpiError> {
    let (root, width) = root_table(memory, rsdp).ok_or(AcpiError::Rsdp)?;
    let table = header(memory, root).ok_or(AcpiError::Root)?;
    let expected = if width == 8 { b"XSDT" } else { b"RSDT" };
    if table.signature != *expected {
        return Err(AcpiError::Root);
    }
    let bytes = read(memory, &table).map_err(|_| AcpiError::Root)?;
    let entries = bytes[HEADER..].chunks_exact(width).take(MAX_TABLES);
    let addresses = entries.filter_map(|entry| match width {
        8 => u64_at(entry, 0),
        _ => u32_at(entry, 0).map(u64::from),
    });
    Ok(addresses.filter_map(|address| header(memory, address)).collect())
}

/// Address of the root table and the length of its entries (ACPI 6.5, 5.2.5.3).
fn root_table(memory: &impl PhysicalMemory, rsdp: u64) -> Option<(u64, usize)> {
    let mut bytes = [0; 36];
    if !memory.read(rsdp, &mut bytes[..20]) || &bytes[..8] != b"RSD PTR " || sum(&bytes[..20]) != 0 {
        return None;
    }
    let revision = bytes[15];
    if revision >= 2 && memory.read(rsdp, &mut bytes) && sum(&bytes) == 0 {
        let xsdt = u64_at(&bytes, 24)?;
        if xsdt != 0 {
            return Some((xsdt, 8));
        }
    }
    Some((u64::from(u32_at(&bytes, 16)?), 4))
}

fn header(memory: &impl PhysicalMemory, address: u64) -> Option<Table> {
    let mut bytes = [0; HEADER];
    if address == 0 || !memory.read(address, &mut bytes) {
        return None;
    }
    let length = u32_at(&bytes, 4)?;
    let sane = length >= HEADER as u32 && length <= MAX_TABLE;
    sane.then_some(Table { signature: array(&bytes, 0)?, address, length })
}

/// The table with this signature, or the first of several.
pub fn table(tables: &[Table], signature: [u8; 4]) -> Option<&Table> {
    tables.iter().find(|table| table.signature == signature)
}

/// The bytes of a table.
///
/// # Errors
/// [`AcpiError::Damaged`] when it cannot be read or its checksum is wrong.
pub fn read(memory: &impl PhysicalMemory, table: &Table) -> Result<Vec<u8>, AcpiError> {
    let mut bytes = vec![0; table.length as usize];
    if memory.read(table.address, &mut bytes) && sum(&bytes) == 0 {
        Ok(bytes)
    } else {
        Err(AcpiError::Damaged(table.signature))
    }
}

/// How a table is taken out of sight without touching the lists that point to it: the first ten bytes of its header
/// with a signature that nobody looks for, and the checksum that fits.
pub fn hidden_header(header: &[u8; 10]) -> [u8; 10] {
    let mut hidden = *header;
    hidden[0] = b'X';
    // Signature and checksum byte change by opposite amounts, so the table's sum stays what it was.
    hidden[9] = header[9].wrapping_add(header[0]).wrapping_sub(b'X');
    hidden
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[cfg(test)]
mod tests;
