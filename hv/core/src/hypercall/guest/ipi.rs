//! `HvCallSendSyntheticClusterIpi` and its Ex form (TLFS "Synthetic Cluster IPI").

use super::{Call, Child, processors::Processors};
use crate::{child::Vp, hypervisor::Hypervisor, machine::Machine};
use parterre_abi::{
    hypercall::{HypercallCode, SendSyntheticClusterIpiExInput, SendSyntheticClusterIpiInput},
    status::{HvResult, HvStatus},
    types::InputVtl,
};

/// Vectors that can be asserted.
const VECTORS: core::ops::RangeInclusive<u32> = 16..=255;

/// Answers one of the two calls, of virtual processor `caller`.
pub(super) fn answer<M: Machine>(
    hv: &Hypervisor<M>,
    child: &Child<M>,
    caller: &Vp<M>,
    call: &Call<'_>,
) -> HvResult<()> {
    let (vector, processors) = if call.code() == HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI {
        call.expect_simple()?;
        let input: SendSyntheticClusterIpiInput = call.header()?;
        (vector(input.vector, input.target_vtl)?, Processors::First(input.processor_mask))
    } else {
        call.expect_variable()?;
        let input: SendSyntheticClusterIpiExInput = call.header()?;
        let set = core::mem::offset_of!(SendSyntheticClusterIpiExInput, processor_set);
        (vector(input.vector, input.target_vtl)?, Processors::read(call, set)?)
    };
    processors.for_each(child, |vp| {
        let news = vp.incoming.post_fixed(vector, false);
        if news && vp.index != caller.index {
            child.wake(hv, &vp);
        }
    });
    Ok(())
}

fn vector(vector: u32, vtl: InputVtl) -> HvResult<u8> {
    if !VECTORS.contains(&vector) || !vtl.is_vtl0() {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    u8::try_from(vector).map_err(|_| HvStatus::INVALID_PARAMETER)
}
