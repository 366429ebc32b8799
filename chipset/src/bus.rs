//! Port and memory buses: which device answers an address.
//!
//! What no device answers reads as all ones and swallows writes, as on a PC.

use std::sync::Arc;

/// A device with registers. Accesses come from several VPs at once.
pub trait Device: Send + Sync {
    /// Reads `size` bytes (1, 2, 4 or 8) at `offset` into the device's range.
    fn read(&self, offset: u64, size: u8) -> u64;
    /// Writes the low `size` bytes of `value` at `offset`.
    fn write(&self, offset: u64, size: u8, value: u64);
}

/// All ones in `size` bytes: what an empty bus reads.
pub fn all_ones(size: u8) -> u64 {
    match size {
        1 => 0xFF,
        2 => 0xFFFF,
        4 => 0xFFFF_FFFF,
        _ => u64::MAX,
    }
}

/// Two devices were put at the same address.
#[derive(Debug, PartialEq, Eq)]
pub struct Overlap {
    /// First address of the device that did not fit.
    pub start: u64,
    /// Its length.
    pub len: u64,
}

impl std::fmt::Display for Overlap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "two devices claim addresses from {:#x} for {:#x} bytes; move one of them",
            self.start, self.len
        )
    }
}

impl std::error::Error for Overlap {}

struct Entry {
    start: u64,
    len: u64,
    device: Arc<dyn Device>,
}

/// An address space with devices in it; used once for ports and once for memory.
#[derive(Default)]
pub struct Bus {
    // Sorted by start; no two overlap.
    entries: Vec<Entry>,
}

impl Bus {
    /// Puts a device at `start..start + len`.
    pub fn add(&mut self, start: u64, len: u64, device: Arc<dyn Device>) -> Result<(), Overlap> {
        let at = self.entries.partition_point(|e| e.start < start);
        let before = at.checked_sub(1).and_then(|i| self.entries.get(i));
        let hits_before = before.is_some_and(|e| e.start + e.len > start);
        let hits_after = self.entries.get(at).is_some_and(|e| e.start < start.saturating_add(len));
        if len == 0 || hits_before || hits_after {
            return Err(Overlap { start, len });
        }
        self.entries.insert(at, Entry { start, len, device });
        Ok(())
    }

    fn find(&self, address: u64, size: u8) -> Option<(&dyn Device, u64)> {
        let at = self.entries.partition_point(|e| e.start <= address).checked_sub(1)?;
        let entry = self.entries.get(at)?;
        let offset = address - entry.start;
        let end = offset.checked_add(u64::from(size))?;
        (end <= entry.len).then_some((&*entry.device, offset))
    }

    /// Whether some device answers this address.
    pub fn claims(&self, address: u64, size: u8) -> bool {
        self.find(address, size).is_some()
    }

    /// Reads `size` bytes at `address`.
    pub fn read(&self, address: u64, size: u8) -> u64 {
        match self.find(address, size) {
            Some((device, offset)) => device.read(offset, size) & all_ones(size),
            None => all_ones(size),
        }
    }

    /// Writes `size` bytes at `address`.
    pub fn write(&self, address: u64, size: u8, value: u64) {
        if let Some((device, offset)) = self.find(address, size) {
            device.write(offset, size, value & all_ones(size));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, u8, u64)>>);

    impl Device for Recorder {
        fn read(&self, offset: u64, _size: u8) -> u64 {
            0xAA00 + offset
        }
        fn write(&self, offset: u64, size: u8, value: u64) {
            self.0.lock().unwrap().push((offset, size, value));
        }
    }

    #[test]
    fn devices_answer_in_their_range_only() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::default();
        bus.add(0x3F8, 8, device.clone()).unwrap();
        assert_eq!(bus.read(0x3F9, 2), 0xAA01);
        assert_eq!(bus.read(0x3F9, 1), 0x01);
        assert_eq!(bus.read(0x3F7, 1), 0xFF);
        assert_eq!(bus.read(0x3FF, 2), 0xFFFF); // reaches beyond the end
        assert_eq!(bus.read(u64::MAX, 8), u64::MAX);
        bus.write(0x3FF, 1, 0x1234);
        bus.write(0x400, 1, 1);
        assert_eq!(*device.0.lock().unwrap(), [(7, 1, 0x34)]);
    }

    #[test]
    fn overlapping_devices_are_refused() {
        let mut bus = Bus::default();
        let device = || Arc::new(Recorder::default());
        bus.add(0x10, 0x10, device()).unwrap();
        for (start, len) in [(0x10, 1), (0x0F, 2), (0x1F, 1), (0x00, 0x100), (0x30, 0)] {
            assert_eq!(bus.add(start, len, device()), Err(Overlap { start, len }));
        }
        bus.add(0x20, 1, device()).unwrap();
        bus.add(0x0F, 1, device()).unwrap();
        assert_eq!(bus.read(0x20, 1), 0);
    }
}
