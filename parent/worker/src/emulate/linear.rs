//! Guest linear addresses: translation, then RAM or a device.

use parterre_partition::{Access, Exception, Translation};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{Emulation, Outcome, PAGE_FAULT, Stop};

/// Page fault error code bits: present, write, user, fetch.
const PF_PRESENT: u32 = 1 << 0;
const PF_WRITE: u32 = 1 << 1;
const PF_USER: u32 = 1 << 2;
const PF_FETCH: u32 = 1 << 4;

impl Emulation<'_> {
    /// Translates an address, or stops with the page fault that the guest would get.
    pub(super) fn translate(&mut self, gva: u64, access: Access) -> Outcome<u64> {
        if let Some((known_gva, known_gpa)) = self.known
            && gva & !0xFFF == known_gva
            && access != Access::Execute
        {
            return Ok(known_gpa | gva & 0xFFF);
        }
        // The intercept names the GPA of the only operand in memory. One that crosses a page is translated properly.
        if let Some(gpa) = self.touched
            && gpa & 0xFFF == gva & 0xFFF
            && access != Access::Execute
        {
            return Ok(gpa);
        }
        match self.vp.translate(gva, access)? {
            Translation::Mapped(gpa) => Ok(gpa),
            Translation::Fault { present } => {
                let mut code = if present { PF_PRESENT } else { 0 };
                code |= match access {
                    Access::Read => 0,
                    Access::Write => PF_WRITE,
                    Access::Execute => PF_FETCH,
                };
                code |= if self.context.cpl == 3 { PF_USER } else { 0 };
                Err(Stop::Fault(Exception { vector: PAGE_FAULT, error_code: Some(code), parameter: gva }))
            }
        }
    }

    fn is_ram(&self, gpa: u64) -> bool {
        self.devices.ram.regions().address_in_range(GuestAddress(gpa))
    }

    /// Splits an access where it crosses a page.
    fn pieces(gva: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        let first = (0x1000 - (gva as usize & 0xFFF)).min(len);
        [(gva, 0..first), (gva.wrapping_add(first as u64), first..len)]
            .into_iter()
            .filter(|(_, range)| !range.is_empty())
    }

    /// Reads guest memory or a device.
    pub(super) fn read_linear(&mut self, gva: u64, data: &mut [u8], access: Access) -> Outcome<()> {
        for (at, range) in Self::pieces(gva, data.len()) {
            let gpa = self.translate(at, access)?;
            let piece = &mut data[range];
            if self.is_ram(gpa) {
                // Pages are whole RAM or none, so this cannot fail half-way; what cannot be read reads as ones.
                if self.devices.ram.regions().read_slice(piece, GuestAddress(gpa)).is_err() {
                    piece.fill(0xFF);
                }
            } else if access == Access::Execute {
                // No code runs from a device.
                return super::undefined();
            } else {
                let value = self.devices.memory.read(gpa, piece.len() as u8);
                piece.copy_from_slice(&value.to_le_bytes()[..piece.len()]);
            }
        }
        Ok(())
    }

    /// Writes guest memory or a device. Both pages of an access that crosses are checked before anything is written.
    pub(super) fn write_linear(&mut self, gva: u64, data: &[u8]) -> Outcome<()> {
        let mut targets = [0; 2];
        for (target, (at, _)) in targets.iter_mut().zip(Self::pieces(gva, data.len())) {
            *target = self.translate(at, Access::Write)?;
        }
        for (gpa, (_, range)) in targets.into_iter().zip(Self::pieces(gva, data.len())) {
            let piece = &data[range];
            if self.is_ram(gpa) {
                // As above: a page is RAM as a whole.
                let _ = self.devices.ram.regions().write_slice(piece, GuestAddress(gpa));
            } else {
                let mut value = [0; 8];
                value[..piece.len()].copy_from_slice(piece);
                self.devices.memory.write(gpa, piece.len() as u8, u64::from_le_bytes(value));
            }
        }
        Ok(())
    }

    /// Reads a value of `size` bytes (1, 2, 4, 8).
    pub(super) fn read_value(&mut self, gva: u64, size: usize) -> Outcome<u64> {
        let mut bytes = [0; 8];
        self.read_linear(gva, &mut bytes[..size], Access::Read)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes a value of `size` bytes (1, 2, 4, 8).
    pub(super) fn write_value(&mut self, gva: u64, size: usize, value: u64) -> Outcome<()> {
        self.write_linear(gva, &value.to_le_bytes()[..size])
    }
}
