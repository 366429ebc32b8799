//! Memory of a device's that the guest has in its physical address space beside its RAM: video memory.

use vm_memory::{Bytes, GuestMemoryRegion, MemoryRegionAddress};

use crate::memory::{LARGE_PAGE, RamRange, RamRegion};
use crate::{Error, Result};

/// Zeroed memory that a partition can map wherever the guest wants it ([`crate::Partition::map_device_memory`]).
pub struct DeviceMemory(RamRegion);

impl DeviceMemory {
    /// Reserves `size` bytes, a multiple of 2 MiB. Host pages are taken when they are first touched.
    ///
    /// # Errors
    /// There is no memory left, or the size is not possible.
    pub fn new(size: u64) -> Result<DeviceMemory> {
        if size == 0 || !size.is_multiple_of(LARGE_PAGE) || size > 1 << 32 {
            return Err(Error::MemorySize(size));
        }
        RamRegion::new(RamRange { gpa: 0, len: size }, size).map(DeviceMemory)
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.0.len()
    }

    /// Copies bytes out. The guest may be writing them.
    ///
    /// # Errors
    /// They are not all within it.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        let outside = |_| std::io::ErrorKind::InvalidInput.into();
        self.0.read_slice(bytes, MemoryRegionAddress(offset)).map_err(outside)
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// They are not all within it.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let outside = |_| std::io::ErrorKind::InvalidInput.into();
        self.0.write_slice(bytes, MemoryRegionAddress(offset)).map_err(outside)
    }

    /// Gives all pages back to the host: it is zeroed again. It must be mapped nowhere.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn discard(&self) -> Result<()> {
        self.0.discard()
    }

    /// Where it lies in this process.
    pub(crate) fn host_address(&self) -> u64 {
        self.0.host_address()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_and_written_within_its_bounds() {
        let memory = DeviceMemory::new(LARGE_PAGE).unwrap();
        let mut bytes = [0; 4];
        memory.write(LARGE_PAGE - 4, &[1, 2, 3, 4]).unwrap();
        memory.read(LARGE_PAGE - 4, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);
        for offset in [LARGE_PAGE - 3, LARGE_PAGE, u64::MAX] {
            assert!(memory.read(offset, &mut bytes).is_err() && memory.write(offset, &bytes).is_err());
        }
        memory.discard().unwrap();
        memory.read(LARGE_PAGE - 4, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4]);
        assert!(DeviceMemory::new(4096).is_err() && DeviceMemory::new(0).is_err());
    }
}
