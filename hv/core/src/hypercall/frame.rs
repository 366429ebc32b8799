//! One hypercall: reading its input, writing its output (TLFS chapter "Hypercall Interface").

use super::xmm::Block;
use crate::machine::{GpaFault, Vcpu, gpr};
use parterre_abi::{
    hypercall::{HypercallCode, HypercallInput, HypercallOutput},
    status::{HvResult, HvStatus},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const PAGE: u64 = 4096;

/// The memory that the caller's GPAs mean.
pub(crate) trait Memory {
    /// Copies bytes out; faults where the caller itself could not read.
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GpaFault>;
    /// Copies bytes in; faults where the caller itself could not write.
    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), GpaFault>;
}

/// How far a call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// Its status.
    pub status: HvStatus,
    /// Elements done, counted from element 0; 0 for a simple call.
    pub reps: u16,
}

impl Done {
    /// A simple call has ended with `result`.
    pub fn simple(result: HvResult<()>) -> Self {
        Self { status: result.err().unwrap_or(HvStatus::SUCCESS), reps: 0 }
    }

    /// What the caller finds in RAX.
    pub fn output(self) -> u64 {
        HypercallOutput::from_reps(self.status, self.reps).into()
    }
}

/// One call.
pub(crate) struct Call<'a> {
    /// The control word.
    pub control: HypercallInput,
    input: u64,
    output: u64,
    memory: &'a dyn Memory,
    /// All registers of a fast call that takes XMM registers.
    block: Option<&'a Block>,
}

impl<'a> Call<'a> {
    /// Takes a call from the registers of a 64-bit caller.
    ///
    /// # Errors
    /// The control word has reserved bits set, or a memory parameter is not 8-byte aligned or crosses a page.
    pub fn from_registers<V: Vcpu>(vcpu: &V, memory: &'a dyn Memory) -> HvResult<Self> {
        let r = vcpu.gprs();
        Self::new(r[gpr::RCX], r[gpr::RDX], r[gpr::R8], memory)
    }

    /// Takes a call from the register pairs of a 32-bit caller: EDX:EAX, EBX:ECX and EDI:ESI.
    ///
    /// # Errors
    /// As [`Call::from_registers`].
    pub fn from_register_pairs<V: Vcpu>(vcpu: &V, memory: &'a dyn Memory) -> HvResult<Self> {
        let r = vcpu.gprs();
        let pair = |high: usize, low: usize| r[high] << 32 | r[low] & 0xFFFF_FFFF;
        let (control, input) = (pair(gpr::RDX, gpr::RAX), pair(gpr::RBX, gpr::RCX));
        Self::new(control, input, pair(gpr::RDI, gpr::RSI), memory)
    }

    #[inline]
    fn new(control: u64, input: u64, output: u64, memory: &'a dyn Memory) -> HvResult<Self> {
        let call = Self { control: HypercallInput::from(control), input, output, memory, block: None };
        call.control.check()?;
        let aligned = call.input.is_multiple_of(8) && call.output.is_multiple_of(8);
        if call.control.fast() || aligned { Ok(call) } else { Err(HvStatus::INVALID_ALIGNMENT) }
    }

    /// Takes the parameters of a fast call from XMM registers, too. They are kept in `place`.
    pub fn take_block<V: Vcpu>(&mut self, place: &'a mut Option<Block>, vcpu: &mut V) {
        self.block = Some(place.insert(Block::new(vcpu, self.control, [self.input, self.output])));
    }

    /// Which call.
    pub fn code(&self) -> HypercallCode {
        self.control.code()
    }

    /// Refuses a rep count or start in a call that has no elements, and a variable header where none belongs.
    pub fn expect_simple(&self) -> HvResult<()> {
        let c = self.control;
        if c.rep_count() == 0 && c.variable_header_size() == 0 {
            Ok(())
        } else {
            Err(HvStatus::INVALID_HYPERCALL_INPUT)
        }
    }

    /// Refuses a rep count or start in a call that has no elements but may have a variable header.
    pub fn expect_variable(&self) -> HvResult<()> {
        let fits = self.control.rep_count() == 0 && self.has_room();
        if fits { Ok(()) } else { Err(HvStatus::INVALID_HYPERCALL_INPUT) }
    }

    /// Whether there is room for more than two words: memory, or XMM registers.
    fn has_room(&self) -> bool {
        !self.control.fast() || self.block.is_some()
    }

    /// Refuses a rep call without elements, or with a variable header.
    pub fn expect_rep(&self) -> HvResult<()> {
        let c = self.control;
        let fits = c.rep_count() != 0 && c.variable_header_size() == 0 && self.has_room();
        if fits { Ok(()) } else { Err(HvStatus::INVALID_HYPERCALL_INPUT) }
    }

    /// Refuses a rep call without elements that may have a variable header.
    pub fn expect_variable_rep(&self) -> HvResult<()> {
        let fits = self.control.rep_count() != 0 && self.has_room();
        if fits { Ok(()) } else { Err(HvStatus::INVALID_HYPERCALL_INPUT) }
    }

    /// The elements that are still to do: from the start to the count.
    pub fn reps(&self) -> core::ops::Range<u16> {
        self.control.rep_start()..self.control.rep_count()
    }

    /// The fixed part of the input.
    ///
    /// # Errors
    /// It does not fit into registers though the call says it is fast, crosses a page, or is not readable.
    pub fn header<T: FromBytes + IntoBytes + Immutable + KnownLayout>(&self) -> HvResult<T> {
        self.input_at(0)
    }

    /// A value in the input, from byte `offset` on.
    pub fn input_at<T: FromBytes + IntoBytes + Immutable + KnownLayout>(&self, offset: usize) -> HvResult<T> {
        let mut value = T::new_zeroed();
        self.copy_input(offset, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies input from byte `offset` on.
    #[inline]
    pub fn copy_input(&self, offset: usize, bytes: &mut [u8]) -> HvResult<()> {
        if let Some(block) = self.block {
            return block.read(offset, bytes);
        }
        if self.control.fast() {
            let mut registers = [0; 16];
            registers[..8].copy_from_slice(&self.input.to_le_bytes());
            registers[8..].copy_from_slice(&self.output.to_le_bytes());
            let source = offset.checked_add(bytes.len()).and_then(|end| registers.get(offset..end));
            bytes.copy_from_slice(source.ok_or(HvStatus::INVALID_HYPERCALL_INPUT)?);
            return Ok(());
        }
        let gpa = within_page(self.input, offset, bytes.len())?;
        self.memory.read(gpa, bytes).map_err(|_| HvStatus::INVALID_PARAMETER)
    }

    /// Writes output from byte `offset` on.
    ///
    /// # Errors
    /// The call is fast without room for output, or the page is not writable.
    #[inline]
    pub fn copy_output(&self, offset: usize, bytes: &[u8]) -> HvResult<()> {
        if let Some(block) = self.block {
            return block.write(offset, bytes);
        }
        if self.control.fast() {
            return Err(HvStatus::INVALID_HYPERCALL_INPUT);
        }
        let gpa = within_page(self.output, offset, bytes.len())?;
        self.memory.write(gpa, bytes).map_err(|_| HvStatus::INVALID_PARAMETER)
    }

    /// Writes a value to the start of the output.
    pub fn reply<T: IntoBytes + Immutable>(&self, value: &T) -> HvResult<()> {
        self.copy_output(0, value.as_bytes())
    }
}

/// The address of `length` bytes at `offset` behind `start`, which must not leave the page of `start`.
fn within_page(start: u64, offset: usize, length: usize) -> HvResult<u64> {
    let first = (start % PAGE) + offset as u64;
    if first + length as u64 > PAGE {
        return Err(HvStatus::INVALID_ALIGNMENT);
    }
    Ok(start - start % PAGE + first)
}
