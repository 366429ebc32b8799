//! `HvCallStartVirtualProcessor` and `HvCallGetVpIndexFromApicId`, with which a guest starts its own virtual processors.

use super::{Call, Child, Done};
use crate::{hypervisor::Hypervisor, machine::Machine};
use parterre_abi::{
    hypercall::{GetVpIndexFromApicIdInput, StartVirtualProcessorInput},
    status::{HvResult, HvStatus},
    types::PartitionId,
};

/// `HvCallStartVirtualProcessor`, about the caller's own partition.
pub(super) fn start<M: Machine>(hv: &Hypervisor<M>, child: &Child<M>, call: &Call<'_>) -> HvResult<()> {
    call.expect_simple()?;
    let input: StartVirtualProcessorInput = call.header()?;
    own(child, input.partition_id)?;
    if input.reserved != [0; 3] {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    // The level itself, not one that counts only if a flag says so; there is no other than 0.
    if !input.target_vtl.is_vtl0() || input.target_vtl.target_vtl() != 0 {
        return Err(HvStatus::INVALID_VTL_STATE);
    }
    child.start_vp(hv, input.vp_index.0, input.vp_context)
}

/// `HvCallGetVpIndexFromApicId`, about the caller's own partition. A virtual processor's index is its APIC id.
pub(super) fn index_of_apic_id<M: Machine>(child: &Child<M>, call: &Call<'_>) -> HvResult<Done> {
    call.expect_rep()?;
    let input: GetVpIndexFromApicIdInput = call.header()?;
    own(child, input.partition_id)?;
    if !input.target_vtl.is_vtl0() {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    for rep in call.reps() {
        let answer = || {
            let id: u32 = call.input_at(size_of::<GetVpIndexFromApicIdInput>() + 4 * usize::from(rep))?;
            let vp = child.vp(id).map_err(|_| HvStatus::INVALID_PARAMETER)?;
            call.copy_output(4 * usize::from(rep), &vp.index.to_le_bytes())
        };
        if let Err(status) = answer() {
            return Ok(Done { status, reps: rep });
        }
    }
    Ok(Done { status: HvStatus::SUCCESS, reps: call.control.rep_count() })
}

fn own<M: Machine>(child: &Child<M>, partition: PartitionId) -> HvResult<()> {
    let own = partition == PartitionId::SELF || partition == child.id;
    if own { Ok(()) } else { Err(HvStatus::ACCESS_DENIED) }
}
