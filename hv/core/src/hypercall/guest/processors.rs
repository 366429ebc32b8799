//! The virtual processors that a call of a child is about (TLFS `HV_VP_SET`).

use super::Call;
use crate::{
    child::{Child, MAX_VPS, VpRef},
    machine::Machine,
};
use parterre_abi::{
    status::{HvResult, HvStatus},
    types::{GenericSetFormat, VpSet, set_bits},
};

const BANK: u32 = 64;
const BANKS: usize = (MAX_VPS / BANK) as usize;

/// A set of virtual processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processors {
    /// All of the partition's.
    All,
    /// Those of virtual processors 0 to 63 whose bits are set; some of them may not be there.
    First(u64),
    /// Those whose bits are set; some of them may not be there.
    Some([u64; BANKS]),
}

impl Processors {
    /// Reads the set at byte `offset` of the input; the variable part of the input is its banks. Banks that no virtual
    /// processor can be in are read, and left out.
    ///
    /// # Errors
    /// `INVALID_PARAMETER`: there is no such format. `INVALID_HYPERCALL_INPUT`: the banks are not as many as the variable
    /// part holds.
    pub fn read(call: &Call<'_>, offset: usize) -> HvResult<Self> {
        let set: VpSet = call.input_at(offset)?;
        match set.format {
            GenericSetFormat::ALL => return Ok(Self::All),
            GenericSetFormat::SPARSE_4K => {}
            _ => return Err(HvStatus::INVALID_PARAMETER),
        }
        if usize::from(call.control.variable_header_size()) != set.bank_count() {
            return Err(HvStatus::INVALID_HYPERCALL_INPUT);
        }
        let mut banks = [0; BANKS];
        for (position, bank) in set_bits(set.valid_bank_mask).enumerate() {
            let bits = call.input_at(offset + size_of::<VpSet>() + 8 * position)?;
            if let Some(place) = banks.get_mut(bank as usize) {
                *place = bits;
            }
        }
        Ok(Self::Some(banks))
    }

    /// Runs `action` on each that is there.
    pub fn for_each<M: Machine>(&self, child: &Child<M>, mut action: impl FnMut(VpRef<'_, M>)) {
        match self {
            Self::All => child.vps().for_each(action),
            Self::First(mask) => {
                set_bits(*mask).filter_map(|bit| child.vp(bit).ok()).for_each(action);
            }
            Self::Some(banks) => {
                for (base, bank) in (0..).step_by(BANK as usize).zip(banks) {
                    set_bits(*bank).filter_map(|bit| child.vp(base + bit).ok()).for_each(&mut action);
                }
            }
        }
    }
}
