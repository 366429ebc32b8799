//! Parameters in XMM registers (TLFS "XMM Fast Hypercall Input" and "XMM Fast Hypercall Output").
//!
//! The two general-purpose registers and XMM0 to XMM5 are one block of 112 bytes. The input is at its start; registers behind
//! it, counted in 16 bytes, take the output. Registers without output stay as they are.

use crate::machine::{Vcpu, gpr};
use core::{cell::Cell, mem::size_of};
use parterre_abi::{
    hypercall::{GetVpIndexFromApicIdInput, HypercallCode as Code, HypercallInput},
    status::{HvResult, HvStatus},
};

const UNIT: usize = 16;
/// RDX and R8, then six XMM registers.
const UNITS: usize = 7;
const SIZE: usize = UNIT * UNITS;

/// Whether a call of a child takes parameters from XMM registers when it is fast: those that need more than two words.
pub(super) fn takes(code: Code) -> bool {
    has_output(code)
        || matches!(
            code,
            Code::FLUSH_VIRTUAL_ADDRESS_SPACE
                | Code::FLUSH_VIRTUAL_ADDRESS_LIST
                | Code::FLUSH_VIRTUAL_ADDRESS_SPACE_EX
                | Code::FLUSH_VIRTUAL_ADDRESS_LIST_EX
                | Code::SEND_SYNTHETIC_CLUSTER_IPI_EX
        )
}

/// Whether such a call gives output as well.
pub(super) fn has_output(code: Code) -> bool {
    code == Code::GET_VP_INDEX_FROM_APIC_ID
}

/// The registers of one call.
pub(crate) struct Block {
    bytes: Cell<[u8; SIZE]>,
    /// Where output begins; at the end if there can be none.
    output: usize,
    written: Cell<bool>,
}

impl Block {
    /// The block of a call whose general-purpose registers hold these words.
    pub fn new<V: Vcpu>(vcpu: &mut V, control: HypercallInput, [first, second]: [u64; 2]) -> Self {
        let mut bytes = [0; SIZE];
        let (general, vector) = bytes.split_at_mut(UNIT);
        general[..8].copy_from_slice(&first.to_le_bytes());
        general[8..].copy_from_slice(&second.to_le_bytes());
        for (index, place) in vector.chunks_exact_mut(UNIT).enumerate() {
            place.copy_from_slice(&vcpu.xmm(index).to_le_bytes());
        }
        let output =
            if has_output(control.code()) { input_size(control).next_multiple_of(UNIT) } else { SIZE };
        Self { bytes: Cell::new(bytes), output: output.min(SIZE), written: Cell::new(false) }
    }

    /// Copies input from byte `offset` on.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> HvResult<()> {
        let all = self.bytes.get();
        let source = offset.checked_add(bytes.len()).and_then(|end| all[..self.output].get(offset..end));
        bytes.copy_from_slice(source.ok_or(HvStatus::INVALID_HYPERCALL_INPUT)?);
        Ok(())
    }

    /// Writes output from byte `offset` on.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> HvResult<()> {
        let mut all = self.bytes.get();
        let place = offset.checked_add(bytes.len()).and_then(|end| all[self.output..].get_mut(offset..end));
        place.ok_or(HvStatus::INVALID_HYPERCALL_INPUT)?.copy_from_slice(bytes);
        self.bytes.set(all);
        self.written.set(true);
        Ok(())
    }

    /// Puts the output into the registers of a 64-bit caller.
    pub fn give_back<V: Vcpu>(&self, vcpu: &mut V) {
        if !self.written.get() {
            return;
        }
        let bytes = self.bytes.get();
        let word =
            |at: usize| bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        for unit in self.output / UNIT..UNITS {
            let (low, high) = (word(unit * UNIT), word(unit * UNIT + 8));
            match unit.checked_sub(1) {
                Some(index) => vcpu.set_xmm(index, u128::from(high) << 64 | u128::from(low)),
                None => (vcpu.gprs_mut()[gpr::RDX], vcpu.gprs_mut()[gpr::R8]) = (low, high),
            }
        }
    }
}

/// How long the input of a call with output is.
fn input_size(control: HypercallInput) -> usize {
    size_of::<GetVpIndexFromApicIdInput>() + size_of::<u32>() * usize::from(control.rep_count())
}
