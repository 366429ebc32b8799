//! IN and OUT, with and without a string.

use iced_x86::Instruction;
use parterre_chipset::bus::{Bus, all_ones};
use parterre_partition::message::IoPort;
use parterre_partition::registers::Register;
use parterre_partition::{Error, VirtualProcessor};

use super::{Emulation, Outcome};

/// RAX after an IN: 8 and 16 bits leave the rest alone, 32 bits clear the upper half.
pub(super) fn merge_rax(rax: u64, size: u8, value: u64) -> u64 {
    match size {
        1 | 2 => (rax & !all_ones(size)) | (value & all_ones(size)),
        _ => value & all_ones(4),
    }
}

/// IN or OUT of one value whose length the hypervisor told: the path that has to be short.
pub(super) fn simple(vp: &mut dyn VirtualProcessor, ports: &Bus, io: &IoPort) -> Result<(), Error> {
    let next = (Register::Rip, io.context.rip_after(io.context.instruction_length.into()));
    if io.write {
        ports.write(io.port.into(), io.size, io.rax);
        return vp.set(&[next]);
    }
    let value = ports.read(io.port.into(), io.size);
    vp.set(&[next, (Register::Rax, merge_rax(io.rax, io.size, value))])
}

impl Emulation<'_> {
    /// Any port instruction, decoded.
    pub(super) fn port_instruction(&mut self, instruction: &Instruction, io: &IoPort) -> Outcome<()> {
        if io.string {
            return self.string_instruction_with(instruction, Some(io));
        }
        if io.write {
            self.devices.ports.write(io.port.into(), io.size, io.rax);
        } else {
            let value = self.devices.ports.read(io.port.into(), io.size);
            self.set(Register::Rax, merge_rax(io.rax, io.size, value));
        }
        self.advance(instruction);
        Ok(())
    }
}
