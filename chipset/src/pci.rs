//! PCI configuration mechanism 1 with nothing but a host bridge on bus 0.
//!
//! Source: PCI Local Bus Specification 3.0, 3.2.2.3.2. An operating system that probes for PCI finds a bus and is
//! content; devices are added here when there are some.

use std::sync::{Mutex, PoisonError};

use crate::bus::{Device, all_ones};

/// First port: address (4 bytes), data (4 bytes).
pub const BASE: u64 = 0xCF8;
/// Ports before the reset control register at 0xCF9 is carved out: the address register answers 32-bit accesses only.
pub const LEN: u64 = 8;

const ENABLE: u32 = 1 << 31;
/// Configuration header of the host bridge, as dwords: the 440FX north bridge, which every system knows.
const HOST_BRIDGE: [u32; 4] = [0x1237_8086, 0x0000_0000, 0x0600_0002, 0x0000_0000];

/// The host bridge's configuration ports.
#[derive(Default)]
pub struct HostBridge {
    address: Mutex<u32>,
}

impl HostBridge {
    fn address(&self) -> u32 {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration dword that the address register names; all ones where no function is.
    fn dword(&self) -> u32 {
        let address = self.address();
        let function = address >> 8 & 0xFF_FFFF & !(ENABLE >> 8);
        if address & ENABLE == 0 || function != 0 {
            return u32::MAX;
        }
        let register = (address >> 2 & 0x3F) as usize;
        HOST_BRIDGE.get(register).copied().unwrap_or(0)
    }
}

impl Device for HostBridge {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match offset {
            0 if size == 4 => u64::from(self.address()),
            4.. => u64::from(self.dword()) >> (8 * (offset - 4)) & all_ones(size),
            _ => all_ones(size),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if offset == 0 && size == 4 {
            // Bits 1:0 and 30:24 are reserved and read as zero.
            *self.address.lock().unwrap_or_else(PoisonError::into_inner) = value as u32 & 0x80FF_FFFC;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(bridge: &HostBridge, address: u32, offset: u64, size: u8) -> u64 {
        bridge.write(0, 4, address.into());
        bridge.read(4 + offset, size)
    }

    #[test]
    fn only_the_host_bridge_answers() {
        let bridge = HostBridge::default();
        assert_eq!(config(&bridge, ENABLE, 0, 4), 0x1237_8086);
        assert_eq!(config(&bridge, ENABLE, 2, 2), 0x1237);
        assert_eq!(config(&bridge, ENABLE | 8, 2, 2), 0x0600);
        assert_eq!(config(&bridge, ENABLE | 0xFC, 0, 4), 0);
        assert_eq!(config(&bridge, ENABLE | 1 << 8, 0, 4), 0xFFFF_FFFF);
        assert_eq!(config(&bridge, ENABLE | 1 << 16, 0, 2), 0xFFFF);
        assert_eq!(config(&bridge, 0, 0, 4), 0xFFFF_FFFF);
    }

    #[test]
    fn address_register_reads_back_in_one_access_only() {
        let bridge = HostBridge::default();
        bridge.write(0, 4, 0xFFFF_FFFF);
        assert_eq!(bridge.read(0, 4), 0x80FF_FFFC);
        bridge.write(0, 1, 0);
        assert_eq!(bridge.read(0, 4), 0x80FF_FFFC);
        assert_eq!(bridge.read(0, 2), 0xFFFF);
    }
}
