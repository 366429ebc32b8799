//! Emulates the one instruction with which a guest touched a device: port I/O and memory-mapped I/O.
//!
//! Decoding is `iced-x86`'s; here stands what the instructions do. Everything is a guest's input: an instruction that
//! no driver uses on a device is answered with #UD in the guest, never with an error of the worker.
//! Source of behaviour: AMD APM volume 3.

mod alu;
mod linear;
mod operands;
mod ports;
mod string;
#[cfg(test)]
mod tests;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use parterre_chipset::bus::Bus;
use parterre_partition::memory::GuestMemory;
use parterre_partition::message::{Context, InstructionBytes, IoPort, MemoryAccess};
use parterre_partition::registers::{Register, Segments};
use parterre_partition::{Access, Error, Exception, VirtualProcessor};

/// Longest instruction.
const MAX_INSTRUCTION: usize = 15;
/// Iterations of a repeated string instruction that one intercept performs before the guest gets interrupts again.
const REP_CHUNK: u64 = 1024;
/// Vector of #UD.
const INVALID_OPCODE: u8 = 6;
/// Vector of #PF.
const PAGE_FAULT: u8 = 14;

/// Why an instruction was not carried out.
#[derive(Debug)]
enum Stop {
    /// The guest gets an exception instead.
    Fault(Exception),
    /// The hypervisor failed; the VM ends.
    Error(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Error(error)
    }
}

type Outcome<T> = Result<T, Stop>;

/// The exception for an instruction that is not emulated.
fn undefined<T>() -> Outcome<T> {
    Err(Stop::Fault(Exception { vector: INVALID_OPCODE, error_code: None, parameter: 0 }))
}

/// What the guest's instructions can reach.
#[derive(Clone, Copy)]
pub struct Devices<'a> {
    /// Port space.
    pub ports: &'a Bus,
    /// Memory-mapped devices.
    pub memory: &'a Bus,
    /// RAM.
    pub ram: &'a GuestMemory,
}

/// One instruction being emulated.
struct Emulation<'a> {
    vp: &'a mut dyn VirtualProcessor,
    devices: Devices<'a>,
    context: Context,
    registers: [u64; 18],
    changed: u32,
    segments: Option<Segments>,
    /// The page that the hypervisor has translated already: GVA to GPA.
    known: Option<(u64, u64)>,
    /// The GPA that was touched, while it is not known by which GVA.
    touched: Option<u64>,
}

/// Carries out a port access and moves the guest past it.
pub fn port(vp: &mut dyn VirtualProcessor, devices: Devices<'_>, io: &IoPort) -> Result<(), Error> {
    if !io.string && io.context.instruction_length != 0 {
        return ports::simple(vp, devices.ports, io);
    }
    Emulation::start(vp, devices, io.context, None)?.finish(|emulation| {
        let instruction = emulation.decode(&io.bytes)?;
        emulation.port_instruction(&instruction, io)
    })
}

/// Carries out a memory access to a device and moves the guest past it.
pub fn memory(
    vp: &mut dyn VirtualProcessor,
    devices: Devices<'_>,
    access: &MemoryAccess,
) -> Result<(), Error> {
    let known = access.gva.map(|gva| (gva, access.gpa));
    Emulation::start(vp, devices, access.context, known)?.finish(|emulation| {
        let instruction = emulation.decode(&access.bytes)?;
        if known.is_none() && has_one_address(&instruction) {
            emulation.touched = Some(access.gpa);
        }
        emulation.instruction(&instruction)
    })
}

/// Whether an instruction touches memory at one place only: then that place is the GPA of the intercept.
fn has_one_address(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let kinds = (0..instruction.op_count()).map(|operand| instruction.op_kind(operand));
    let explicit = kinds.filter(|kind| *kind == iced_x86::OpKind::Memory).count();
    explicit == 1 && !matches!(instruction.mnemonic(), M::Push | M::Pop)
}

impl<'a> Emulation<'a> {
    fn start(
        vp: &'a mut dyn VirtualProcessor,
        devices: Devices<'a>,
        context: Context,
        known: Option<(u64, u64)>,
    ) -> Result<Emulation<'a>, Error> {
        let mut registers = [0; 18];
        vp.get(&Register::ALL, &mut registers)?;
        let known = known.map(|(gva, gpa)| (gva & !0xFFF, gpa & !0xFFF));
        Ok(Emulation { vp, devices, context, registers, changed: 0, segments: None, known, touched: None })
    }

    /// Runs one instruction and writes back what it changed, or gives the guest its exception.
    fn finish(mut self, run: impl FnOnce(&mut Self) -> Outcome<()>) -> Result<(), Error> {
        let outcome = run(&mut self);
        match outcome {
            Ok(()) => self.write_back(),
            Err(Stop::Fault(exception)) => {
                // A repeated string instruction may have got part of the way.
                self.changed &= !(1 << Register::Rip as u32);
                self.write_back()?;
                self.vp.inject(exception)
            }
            Err(Stop::Error(error)) => Err(error),
        }
    }

    fn write_back(&mut self) -> Result<(), Error> {
        // On the stack: this runs at every access to a device.
        let mut values = [(Register::Rax, 0); 18];
        let mut count = 0;
        for register in Register::ALL {
            if self.changed & 1 << register as u32 != 0 {
                values[count] = (register, self.registers[register as usize]);
                count += 1;
            }
        }
        if count == 0 { Ok(()) } else { self.vp.set(&values[..count]) }
    }

    fn get(&self, register: Register) -> u64 {
        self.registers[register as usize]
    }

    fn set(&mut self, register: Register, value: u64) {
        self.registers[register as usize] = value;
        self.changed |= 1 << register as u32;
    }

    /// Decodes the instruction at RIP, from the bytes of the message or from guest memory.
    fn decode(&mut self, bytes: &InstructionBytes) -> Outcome<Instruction> {
        let bits = self.context.code_bits();
        let decode = |bytes: &[u8], rip| Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE).decode();
        let instruction = decode(bytes.as_slice(), self.context.rip);
        if !instruction.is_invalid() {
            return Ok(instruction);
        }
        let mut fetched = [0; MAX_INSTRUCTION];
        let count = self.fetch(&mut fetched)?;
        let instruction = decode(&fetched[..count], self.context.rip);
        if instruction.is_invalid() { undefined() } else { Ok(instruction) }
    }

    /// Reads up to 15 bytes at RIP and says how many; fewer when the next page cannot be fetched from.
    fn fetch(&mut self, bytes: &mut [u8; MAX_INSTRUCTION]) -> Outcome<usize> {
        let start = self.context.linear_rip();
        let first = (0x1000 - (start as usize & 0xFFF)).min(MAX_INSTRUCTION);
        self.read_linear(start, &mut bytes[..first], Access::Execute)?;
        let rest = start.wrapping_add(first as u64);
        if first < MAX_INSTRUCTION && self.read_linear(rest, &mut bytes[first..], Access::Execute).is_err() {
            return Ok(first);
        }
        Ok(MAX_INSTRUCTION)
    }

    /// Moves the guest past the instruction.
    fn advance(&mut self, instruction: &Instruction) {
        let next = self.context.rip_after(instruction.len() as u64);
        self.set(Register::Rip, next);
    }

    /// Carries out an instruction with a memory operand.
    fn instruction(&mut self, instruction: &Instruction) -> Outcome<()> {
        use Mnemonic as M;
        match instruction.mnemonic() {
            M::Movsb
            | M::Movsw
            | M::Movsd
            | M::Movsq
            | M::Stosb
            | M::Stosw
            | M::Stosd
            | M::Stosq
            | M::Lodsb
            | M::Lodsw
            | M::Lodsd
            | M::Lodsq
            | M::Scasb
            | M::Scasw
            | M::Scasd
            | M::Scasq
            | M::Cmpsb
            | M::Cmpsw
            | M::Cmpsd
            | M::Cmpsq => self.string_instruction(instruction),
            _ => {
                self.plain_instruction(instruction)?;
                self.advance(instruction);
                Ok(())
            }
        }
    }
}
