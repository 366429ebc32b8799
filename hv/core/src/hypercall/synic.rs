//! Messages and events that the parent sends to a child's virtual processors without a port (`HvCallPostMessageDirect`,
//! `HvCallSignalEventDirect`; TLFS "Inter-Partition Communication").
//!
//! Nothing is queued here: a message that finds its slot full is refused with `OBJECT_IN_USE`, and the parent asks to be
//! told when the slot is free (`HvRegisterDeliverabilityNotifications`).

use super::Call;
use crate::{hypervisor::Hypervisor, machine::Machine};
use parterre_abi::{
    hypercall::{PostMessageDirectInput, SignalEventDirectInput, SignalEventDirectOutput},
    message::{Message, MessageFlags},
    status::{HvResult, HvStatus},
};

/// `HvCallPostMessageDirect`.
pub(super) fn post_message<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: PostMessageDirectInput = call.header()?;
    let sint = u8::try_from(input.sint_index).map_err(|_| HvStatus::INVALID_PARAMETER)?;
    if input.vtl != 0 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let mut message: Message = zerocopy::transmute!(input.message);
    // "Message pending" is for the hypervisor to say.
    message.header.message_flags = MessageFlags::new();
    let child = hv.child(input.partition_id)?;
    let vp = child.vp(input.vp_index.0)?;
    child.post_message(hv, &vp, sint, &message)
}

/// `HvCallSignalEventDirect`.
pub(super) fn signal_event<M: Machine>(hv: &Hypervisor<M>, call: &Call<'_>) -> HvResult<()> {
    let input: SignalEventDirectInput = call.header()?;
    if input.target_vtl != 0 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    // Before anything happens: an event must not be signalled by a call that fails.
    call.reply(&SignalEventDirectOutput { newly_signaled: 0, reserved: [0; 7] })?;
    let child = hv.child(input.target_partition)?;
    let vp = child.vp(input.target_vp.0)?;
    let newly = child.signal_event(hv, &vp, input.target_sint, input.flag_number)?;
    call.reply(&SignalEventDirectOutput { newly_signaled: newly.into(), reserved: [0; 7] })
}
